// The instruction sets that the CPU kernels are compiled for. All give the same bits, but for
// products of bfloat16 pairs (WeightFormat::kBf16Dot).
#ifndef BLOCKSERVE_KERNELS_CPU_KERNEL_TARGET_H_
#define BLOCKSERVE_KERNELS_CPU_KERNEL_TARGET_H_

#include <vector>

namespace blockserve {

enum class KernelTarget {
  kPortable,  // one lane at a time, fused multiply-add by the C library: right, and slow
  kAvx2,      // with FMA
  kAvx512,    // F, VL, DQ, BW
  kAmx,       // AVX-512, and AMX for products of 8-bit integers and of bfloat16 pairs
  kNeon,      // AArch64: every machine has it
};

const char* KernelTargetName(KernelTarget target);
// What this build holds and this machine can run, the best first.
std::vector<KernelTarget> SupportedKernelTargets();

}  // namespace blockserve

#endif  // BLOCKSERVE_KERNELS_CPU_KERNEL_TARGET_H_
