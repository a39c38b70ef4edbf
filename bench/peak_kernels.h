// Loops that do nothing but what is to be measured: the ceilings that a benchmark's figures are set
// against.
#ifndef BLOCKSERVE_BENCH_PEAK_KERNELS_H_
#define BLOCKSERVE_BENCH_PEAK_KERNELS_H_

#include <cstdint>

#include "kernels/cpu/kernel_target.h"

namespace blockserve {

// One instruction in many independent chains, in registers.
struct PeakLoop {
  const char* name = nullptr;  // of the instruction, as a person knows it
  // Runs the chains `rounds` times and returns the operations done (a multiply-add is two).
  double (*run)(int64_t rounds) = nullptr;
};

// What kernels of a target can use on this machine, null where it lacks the instruction.
struct PeakLoops {
  PeakLoop fma_f32;   // float32 multiply-add, the widest vectors
  PeakLoop bf16_dot;  // bfloat16 pairs into float32 sums
  PeakLoop int8_dot;  // groups of four 8-bit products into 32-bit sums
};
PeakLoops FindPeakLoops(KernelTarget target);

// Reads `count` floats (a multiple of 64) once and returns their sum: as fast as memory gives them.
float ReadAll(const float* values, int64_t count);

}  // namespace blockserve

#endif  // BLOCKSERVE_BENCH_PEAK_KERNELS_H_
