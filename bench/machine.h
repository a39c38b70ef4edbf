// What the machine can do at most: measured, since names and data sheets say little of a shared or
// virtual one.
#ifndef BLOCKSERVE_BENCH_MACHINE_H_
#define BLOCKSERVE_BENCH_MACHINE_H_

#include <nlohmann/json.hpp>
#include <string>

#include "common/thread_pool.h"
#include "kernels/cpu/kernel_target.h"

namespace blockserve {

struct PeakRate {
  std::string instruction;  // empty: the machine has none, the rates are 0
  double one_core = 0;      // operations per second
  double all_cores = 0;     // of all threads of the pool together
};

std::string CpuName();
int NumCores();  // that this process may use

struct Machine {
  std::string cpu;  // model name
  int cores = 0;    // that this process may use
  int threads = 0;  // of the pool
  PeakRate fma_f32;
  PeakRate bf16_dot;
  PeakRate int8_dot;
  double read_bytes_per_s_one_core = 0;  // from memory, far beyond the caches
  double read_bytes_per_s = 0;           // all threads
  // Of the CUDA device that the engines run on; empty on the CPU.
  std::string device;
  std::string device_libraries;
  PeakRate device_product;  // of the type that they multiply; one_core is 0
  double device_bytes_per_s = 0;

  // The better of both in each rate of the CPU: of two looks at the machine, what hindered one (a
  // neighbour on the same host, say) is not the machine.
  void TakeBetter(const Machine& other);
  nlohmann::ordered_json Json() const;
};

// Names and counts alone: the rates are 0.
Machine NameMachine(const ThreadPool& pool);
// Takes about half a second and 256 MiB for that time. The best of several tries: what hinders one
// is not the machine.
// `target`: its instructions are measured, as if the machine had no others.
Machine MeasureMachine(ThreadPool& pool, KernelTarget target);

}  // namespace blockserve

#endif  // BLOCKSERVE_BENCH_MACHINE_H_
