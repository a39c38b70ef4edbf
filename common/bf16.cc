#include "common/bf16.h"

namespace blockserve {
namespace {

// In groups of a fixed size: compilers make vector code of those.
template <auto kConvert, class From, class To>
[[gnu::always_inline]] inline void ConvertAll(const From* from, int64_t count, To* to) {
  constexpr int64_t kGroup = 16;
  int64_t i = 0;
  for (; i + kGroup <= count; i += kGroup) {
    for (int64_t j = 0; j < kGroup; ++j) to[i + j] = kConvert(from[i + j]);
  }
  for (; i < count; ++i) to[i] = kConvert(from[i]);
}

#if defined(__x86_64__)
// A host converts each context row on its way to a device, where it is what the next batch waits
// for: the vectors that every machine has take twice the time of these.
[[gnu::target("avx2")]] void Bf16FromFloatsAvx2(const float* from, int64_t count, uint16_t* to) {
  ConvertAll<Bf16FromFloat>(from, count, to);
}
#endif

}  // namespace

void Bf16FromFloats(const float* from, int64_t count, uint16_t* to) {
#if defined(__x86_64__)
  if (__builtin_cpu_supports("avx2")) return Bf16FromFloatsAvx2(from, count, to);
#endif
  ConvertAll<Bf16FromFloat>(from, count, to);
}

void FloatsFromBf16(const uint16_t* from, int64_t count, float* to) {
  ConvertAll<FloatFromBf16>(from, count, to);
}

}  // namespace blockserve
