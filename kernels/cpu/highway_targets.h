// Which instruction sets Highway compiles a kernel file for; to be included before Highway.
#ifndef BLOCKSERVE_KERNELS_CPU_HIGHWAY_TARGETS_H_
#define BLOCKSERVE_KERNELS_CPU_HIGHWAY_TARGETS_H_

// Without fused multiply-add the first two would give other bits than the rest. Vectors of SVE have
// no size that the compiler knows: they cannot be parts of a V16.
#define HWY_DISABLED_TARGETS                                                \
  (HWY_SSSE3 | HWY_SSE4 | HWY_SVE | HWY_SVE2 | HWY_SVE_256 | HWY_SVE2_128 | \
   BLOCKSERVE_TARGETS_OF_LATER_HIGHWAY)
#if defined(__aarch64__)
// Highway leaves out what every machine can do better, and AArch64 always has NEON; but tests
// compare with the portable kernels.
#define HWY_COMPILE_ALL_ATTAINABLE
// Highway's NEON includes cryptography, which not every machine has, unless it believes that it
// cannot ask the machine: this is its name for that.
#define TOOLCHAIN_MISS_SYS_AUXV_H
#endif

#include "hwy/detect_targets.h"
#include "kernels/cpu/kernel_target.h"

// Highway 1.2 (Debian 13) takes SSE2 for what every machine has, in place of the portable kernels,
// and knows more kinds of AVX-512 than are asked for.
#ifdef HWY_AVX3_ZEN4
#define BLOCKSERVE_TARGETS_OF_LATER_HIGHWAY (HWY_SSE2 | HWY_AVX3_DL | HWY_AVX3_ZEN4 | HWY_AVX3_SPR)
#else
#define BLOCKSERVE_TARGETS_OF_LATER_HIGHWAY 0
#endif

#if HWY_TARGETS & HWY_AVX3
#define BLOCKSERVE_AVX512_FUNCTION(NAME) &N_AVX3::NAME
#else
#define BLOCKSERVE_AVX512_FUNCTION(NAME) nullptr
#endif
#if HWY_TARGETS & HWY_AVX2
#define BLOCKSERVE_AVX2_FUNCTION(NAME) &N_AVX2::NAME
#else
#define BLOCKSERVE_AVX2_FUNCTION(NAME) nullptr
#endif
#if HWY_TARGETS & HWY_NEON
#define BLOCKSERVE_NEON_FUNCTION(NAME) &N_NEON::NAME
#else
#define BLOCKSERVE_NEON_FUNCTION(NAME) nullptr
#endif
#if HWY_TARGETS & HWY_SCALAR
#define BLOCKSERVE_PORTABLE_FUNCTION(NAME) &N_SCALAR::NAME
#elif HWY_TARGETS & HWY_EMU128
#define BLOCKSERVE_PORTABLE_FUNCTION(NAME) &N_EMU128::NAME
#else
#define BLOCKSERVE_PORTABLE_FUNCTION(NAME) nullptr
#endif

// The version of a kernel for a target; nullptr where it is not compiled.
#define BLOCKSERVE_KERNEL_FOR(target, NAME)                             \
  ((target) == KernelTarget::kAvx512 ? BLOCKSERVE_AVX512_FUNCTION(NAME) \
   : (target) == KernelTarget::kAvx2 ? BLOCKSERVE_AVX2_FUNCTION(NAME)   \
   : (target) == KernelTarget::kNeon ? BLOCKSERVE_NEON_FUNCTION(NAME)   \
                                     : BLOCKSERVE_PORTABLE_FUNCTION(NAME))

#endif  // BLOCKSERVE_KERNELS_CPU_HIGHWAY_TARGETS_H_
