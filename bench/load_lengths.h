// How long prompts and outputs are, in tokens.
#ifndef BLOCKSERVE_BENCH_LOAD_LENGTHS_H_
#define BLOCKSERVE_BENCH_LOAD_LENGTHS_H_

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "bench/load_random.h"

namespace blockserve {

// Of a prompt or an output: above every context, far from overflow, and it fits the int32 that
// requests have.
inline constexpr double kMostTokens = 1e9;

class LengthDistribution {
 public:
  // "128"; "uniform:16:256"; "normal:MEAN:DEVIATION"; "lognormal:MEDIAN:SIGMA" (of the logarithm);
  // "exponential:MEAN"; "file:PATH" with one length a line, drawn with equal chances.
  // INVALID_ARGUMENT: what is wrong with it; NOT_FOUND: the file.
  static absl::StatusOr<LengthDistribution> Parse(absl::string_view text);

  // At least 1.
  int64_t Draw(LoadRandom& random) const;
  // What no draw is below.
  int64_t shortest() const;

 private:
  enum class Kind { kConstant, kUniform, kNormal, kLognormal, kExponential, kList };
  Kind kind_ = Kind::kConstant;
  double a_ = 1;
  double b_ = 0;
  std::vector<int64_t> list_;
};

}  // namespace blockserve

#endif  // BLOCKSERVE_BENCH_LOAD_LENGTHS_H_
