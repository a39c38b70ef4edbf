// Random numbers of the load generator: the same on every machine and library for the same seed,
// which the standard's distributions are not.
#ifndef BLOCKSERVE_BENCH_LOAD_RANDOM_H_
#define BLOCKSERVE_BENCH_LOAD_RANDOM_H_

#include <cmath>
#include <cstdint>

namespace blockserve {

// SplitMix64: cheap to seed, so that every request has a stream of its own.
class LoadRandom {
 public:
  explicit LoadRandom(uint64_t seed) : state_(seed) {}
  // Stream `stream` of `seed`.
  LoadRandom(uint64_t seed, uint64_t stream) : state_(seed) {
    state_ = Next() ^ (stream * 0xd1342543de82ef95u);
    Next();
  }

  uint64_t Next() {
    uint64_t z = (state_ += 0x9e3779b97f4a7c15u);
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
  }
  // (0, 1)
  double Uniform() { return (static_cast<double>(Next() >> 11) + 0.5) * 0x1.0p-53; }
  // 0 .. bound - 1; bound > 0
  uint64_t Below(uint64_t bound) {
    return static_cast<uint64_t>(static_cast<double>(bound) * Uniform());
  }
  // Mean 1.
  double Exponential() { return -std::log(Uniform()); }
  // Mean 0, standard deviation 1.
  double Normal() { return std::sqrt(2 * Exponential()) * std::cos(6.283185307179586 * Uniform()); }

 private:
  uint64_t state_;
};

}  // namespace blockserve

#endif  // BLOCKSERVE_BENCH_LOAD_RANDOM_H_
