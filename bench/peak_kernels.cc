#include "bench/peak_kernels.h"

#include "kernels/cpu/amx_matmul.h"

#if defined(__x86_64__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#include <asm/hwcap.h>
#include <sys/auxv.h>
#endif

namespace blockserve {
namespace {

// Rounds of chains for each one that the caller asks for.
constexpr int kInnerRounds = 64;

// Written in assembly: what is timed must be these instructions and no load or store beside them. A
// latency of 4 on 2 units needs 8 chains; these take the registers that there are, less the inputs.
// clang-format off
#define BLOCKSERVE_CHAINS_12(STEP) \
  STEP("0") STEP("1") STEP("2") STEP("3") STEP("4") STEP("5") \
  STEP("6") STEP("7") STEP("8") STEP("9") STEP("10") STEP("11")
#define BLOCKSERVE_CHAINS_24(STEP) \
  BLOCKSERVE_CHAINS_12(STEP) \
  STEP("12") STEP("13") STEP("14") STEP("15") STEP("16") STEP("17") \
  STEP("18") STEP("19") STEP("20") STEP("21") STEP("22") STEP("23")
// clang-format on

#if defined(__x86_64__)
#define BLOCKSERVE_LOW_REGISTERS                                                           \
  "xmm0", "xmm1", "xmm2", "xmm3", "xmm4", "xmm5", "xmm6", "xmm7", "xmm8", "xmm9", "xmm10", \
      "xmm11", "xmm12", "xmm13", "xmm14", "xmm15"
#define BLOCKSERVE_HIGH_REGISTERS \
  "xmm16", "xmm17", "xmm18", "xmm19", "xmm20", "xmm21", "xmm22", "xmm23", "xmm30", "xmm31"

// Inputs of a half (float32), of two halves (bfloat16) and of ones (int8).
constexpr uint32_t kHalf = 0x3f000000, kHalves = 0x3f003f00, kOnes = 0x01010101,
                   kPairs = 0x00010001;

#define BLOCKSERVE_ZERO_512(N) "vpxord %%zmm" N ", %%zmm" N ", %%zmm" N "\n\t"
#define BLOCKSERVE_ZERO_256(N) "vpxor %%ymm" N ", %%ymm" N ", %%ymm" N "\n\t"
#define BLOCKSERVE_FMA_512(N) "vfmadd231ps %%zmm30, %%zmm31, %%zmm" N "\n\t"
#define BLOCKSERVE_BF16_512(N) "vdpbf16ps %%zmm30, %%zmm31, %%zmm" N "\n\t"
#define BLOCKSERVE_INT8_512(N) "vpdpbusd %%zmm30, %%zmm31, %%zmm" N "\n\t"
#define BLOCKSERVE_FMA_256(N) "vfmadd231ps %%ymm14, %%ymm15, %%ymm" N "\n\t"
// Without VNNI: 8-bit pairs to 16 bits, those to 32 bits, an addition.
#define BLOCKSERVE_INT8_256(N)                                                     \
  "vpmaddubsw %%ymm14, %%ymm14, %%ymm12\n\tvpmaddwd %%ymm15, %%ymm12, %%ymm12\n\t" \
  "vpaddd %%ymm12, %%ymm" N ", %%ymm" N "\n\t"

#define BLOCKSERVE_LOOP_512(NAME, STEP, INPUT, OPERATIONS)                                        \
  __attribute__((target("avx512f"))) double NAME(int64_t rounds) {                                \
    int64_t left = rounds * kInnerRounds;                                                         \
    asm volatile(BLOCKSERVE_CHAINS_24(BLOCKSERVE_ZERO_512)                                      \
                 "vpbroadcastd %1, %%zmm30\n\tvmovdqa64 %%zmm30, %%zmm31\n"                     \
                 "1:\n\t" BLOCKSERVE_CHAINS_24(STEP) "dec %0\n\tjnz 1b\n\tvzeroupper"           \
                 : "+r"(left)                                                                   \
                 : "r"(INPUT)                                                                   \
                 : "cc", BLOCKSERVE_LOW_REGISTERS, BLOCKSERVE_HIGH_REGISTERS); \
    return static_cast<double>(rounds) * kInnerRounds * 24 * (OPERATIONS);                        \
  }
#define BLOCKSERVE_LOOP_256(NAME, STEP, INPUT, OTHER, OPERATIONS)                                 \
  __attribute__((target("avx2"))) double NAME(int64_t rounds) {                                   \
    int64_t left = rounds * kInnerRounds;                                                         \
    const uint32_t input = INPUT, other = OTHER;                                                  \
    asm volatile(BLOCKSERVE_CHAINS_12(BLOCKSERVE_ZERO_256)                                      \
                 "vpbroadcastd %1, %%ymm14\n\tvpbroadcastd %2, %%ymm15\n"                       \
                 "1:\n\t" BLOCKSERVE_CHAINS_12(STEP) "dec %0\n\tjnz 1b\n\tvzeroupper"           \
                 : "+r"(left)                                                                   \
                 : "m"(input), "m"(other)                                                       \
                 : "cc", BLOCKSERVE_LOW_REGISTERS); \
    return static_cast<double>(rounds) * kInnerRounds * 12 * (OPERATIONS);                        \
  }

// clang-format off
BLOCKSERVE_LOOP_512(FmaAvx512, BLOCKSERVE_FMA_512, kHalf, 16 * 2)
BLOCKSERVE_LOOP_512(Bf16DotAvx512, BLOCKSERVE_BF16_512, kHalves, 32 * 2)
BLOCKSERVE_LOOP_512(Int8DotAvx512, BLOCKSERVE_INT8_512, kOnes, 64 * 2)
BLOCKSERVE_LOOP_256(FmaAvx2, BLOCKSERVE_FMA_256, kHalf, kHalf, 8 * 2)
BLOCKSERVE_LOOP_256(Int8DotAvx2, BLOCKSERVE_INT8_256, kOnes, kPairs, 32 * 2)
// clang-format on

// Six tiles of sums; the latency of 52 cycles needs four.
#define BLOCKSERVE_CHAINS_AMX(STEP) STEP("0") STEP("1") STEP("2") STEP("3") STEP("4") STEP("5")
#define BLOCKSERVE_ZERO_AMX(N) "tilezero %%tmm" N "\n\t"
#define BLOCKSERVE_INT8_AMX(N) "tdpbusd %%tmm6, %%tmm7, %%tmm" N "\n\t"
#define BLOCKSERVE_BF16_AMX(N) "tdpbf16ps %%tmm6, %%tmm7, %%tmm" N "\n\t"

constexpr AmxTileConfig kWholeTiles = {.row_bytes = {64, 64, 64, 64, 64, 64, 64, 64},
                                       .rows = {16, 16, 16, 16, 16, 16, 16, 16}};

#define BLOCKSERVE_LOOP_AMX(NAME, STEP, OPERATIONS)                                               \
  double NAME(int64_t rounds) {                                                                   \
    int64_t left = rounds * kInnerRounds;                                                         \
    asm volatile("ldtilecfg %1\n\t" BLOCKSERVE_CHAINS_AMX(BLOCKSERVE_ZERO_AMX)                  \
                 "tilezero %%tmm6\n\ttilezero %%tmm7\n"                                         \
                 "1:\n\t" BLOCKSERVE_CHAINS_AMX(STEP) "dec %0\n\tjnz 1b\n\ttilerelease"         \
                 : "+r"(left)                                                                   \
                 : "m"(kWholeTiles)                                                                 \
                 : "cc"); \
    return static_cast<double>(rounds) * kInnerRounds * 6 * (OPERATIONS);                         \
  }

// clang-format off
BLOCKSERVE_LOOP_AMX(Int8DotAmx, BLOCKSERVE_INT8_AMX, 16 * 16 * 64 * 2)
BLOCKSERVE_LOOP_AMX(Bf16DotAmx, BLOCKSERVE_BF16_AMX, 16 * 16 * 32 * 2)
// clang-format on

__attribute__((target("avx2"))) float ReadAvx2(const float* values, int64_t count) {
  __m256 s0 = _mm256_setzero_ps(), s1 = s0, s2 = s0, s3 = s0;
  for (int64_t i = 0; i < count; i += 32) {
    s0 = _mm256_add_ps(s0, _mm256_loadu_ps(values + i));
    s1 = _mm256_add_ps(s1, _mm256_loadu_ps(values + i + 8));
    s2 = _mm256_add_ps(s2, _mm256_loadu_ps(values + i + 16));
    s3 = _mm256_add_ps(s3, _mm256_loadu_ps(values + i + 24));
  }
  const __m256 sum = _mm256_add_ps(_mm256_add_ps(s0, s1), _mm256_add_ps(s2, s3));
  return _mm256_cvtss_f32(sum);
}
#elif defined(__aarch64__)
#define BLOCKSERVE_NEON_REGISTERS                                                                \
  "v0", "v1", "v2", "v3", "v4", "v5", "v6", "v7", "v8", "v9", "v10", "v11", "v12", "v13", "v14", \
      "v15", "v16", "v17", "v18", "v19", "v20", "v21", "v22", "v23", "v30", "v31"
#define BLOCKSERVE_ZERO_NEON(N) "movi v" N ".4s, #0\n\t"
#define BLOCKSERVE_FMA_NEON(N) "fmla v" N ".4s, v30.4s, v31.4s\n\t"
#define BLOCKSERVE_INT8_NEON(N) "sdot v" N ".4s, v30.16b, v31.16b\n\t"

#define BLOCKSERVE_LOOP_NEON(NAME, STEP, INPUT, OPERATIONS)                                        \
  double NAME(int64_t rounds) {                                                                    \
    int64_t left = rounds * kInnerRounds;                                                          \
    asm volatile(                                                                                  \
        ".arch armv8.2-a+dotprod\n\t" BLOCKSERVE_CHAINS_24(                                        \
            BLOCKSERVE_ZERO_NEON) "movi v30." INPUT "\n\tmovi v31." INPUT                          \
                                  "\n"                                                             \
                                  "1:\n\t" BLOCKSERVE_CHAINS_24(STEP) "subs %0, %0, #1\n\tb.ne 1b" \
        : "+r"(left)                                                                               \
        :                                                                                          \
        : "cc", BLOCKSERVE_NEON_REGISTERS);                                                        \
    return static_cast<double>(rounds) * kInnerRounds * 24 * (OPERATIONS);                         \
  }

// clang-format off
BLOCKSERVE_LOOP_NEON(FmaNeon, BLOCKSERVE_FMA_NEON, "4s, #0", 4 * 2)
BLOCKSERVE_LOOP_NEON(Int8DotNeon, BLOCKSERVE_INT8_NEON, "16b, #1", 16 * 2)
// clang-format on

float ReadNeon(const float* values, int64_t count) {
  float32x4_t s0 = vdupq_n_f32(0), s1 = s0, s2 = s0, s3 = s0;
  for (int64_t i = 0; i < count; i += 16) {
    s0 = vaddq_f32(s0, vld1q_f32(values + i));
    s1 = vaddq_f32(s1, vld1q_f32(values + i + 4));
    s2 = vaddq_f32(s2, vld1q_f32(values + i + 8));
    s3 = vaddq_f32(s3, vld1q_f32(values + i + 12));
  }
  return vaddvq_f32(vaddq_f32(vaddq_f32(s0, s1), vaddq_f32(s2, s3)));
}
#endif

// One chain a lane, as the portable kernels have it.
double FmaPortable(int64_t rounds) {
  float sum[16] = {};
  float a = 0.5f, b = 0.25f;
  for (int64_t round = 0; round < rounds * kInnerRounds; ++round) {
    for (float& s : sum) s += a * b;
    asm volatile("" : "+m"(sum));
  }
  return static_cast<double>(rounds) * kInnerRounds * 16 * 2;
}

}  // namespace

PeakLoops FindPeakLoops([[maybe_unused]] KernelTarget target) {
  PeakLoops loops;
  loops.fma_f32 = {"multiply and add", &FmaPortable};
#if defined(__x86_64__)
  __builtin_cpu_init();
  const bool with_avx512 = target == KernelTarget::kAvx512 || target == KernelTarget::kAmx;
  if (with_avx512 && __builtin_cpu_supports("avx512f")) {
    loops.fma_f32 = {"AVX-512 FMA", &FmaAvx512};
  } else if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) {
    loops.fma_f32 = {"AVX2 FMA", &FmaAvx2};
  }
  if (with_avx512 && __builtin_cpu_supports("avx512bf16"))
    loops.bf16_dot = {"AVX-512 BF16", &Bf16DotAvx512};
  if (with_avx512 && __builtin_cpu_supports("avx512vnni")) {
    loops.int8_dot = {"AVX-512 VNNI", &Int8DotAvx512};
  } else if (__builtin_cpu_supports("avx2")) {
    loops.int8_dot = {"AVX2 maddubs", &Int8DotAvx2};
  }
  if (target == KernelTarget::kAmx) {
    loops.bf16_dot = {"AMX BF16", &Bf16DotAmx};
    loops.int8_dot = {"AMX INT8", &Int8DotAmx};
  }
#elif defined(__aarch64__)
  loops.fma_f32 = {"NEON FMA", &FmaNeon};
  if ((getauxval(AT_HWCAP) & HWCAP_ASIMDDP) != 0) {
    loops.int8_dot = {"NEON dot product", &Int8DotNeon};
  }
#endif
  return loops;
}

float ReadAll(const float* values, int64_t count) {
#if defined(__aarch64__)
  return ReadNeon(values, count);
#else
#if defined(__x86_64__)
  if (__builtin_cpu_supports("avx2")) return ReadAvx2(values, count);
#endif
  float sum[16] = {};
  for (int64_t i = 0; i < count; i += 16) {
    for (int j = 0; j < 16; ++j) sum[j] += values[i + j];
  }
  return sum[0];
#endif
}

}  // namespace blockserve
