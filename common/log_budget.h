// How many lines of one kind the log gets: strangers cause some as fast as they can connect.
#ifndef BLOCKSERVE_COMMON_LOG_BUDGET_H_
#define BLOCKSERVE_COMMON_LOG_BUDGET_H_

#include <cstdint>
#include <optional>
#include <string>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/time/time.h"

namespace blockserve {

// Of one kind of line. Not thread-safe.
class LogBudget {
 public:
  static constexpr int kLines = 10;
  static constexpr absl::Duration kPeriod = absl::Seconds(10);

  explicit LogBudget(absl::Duration period = kPeriod) : period_(period) {}

  // There is a line. Null: it is to be left out. Else what its field `left_out` is to say, which
  // mostly is nothing.
  std::optional<std::string> Take(absl::Time now) {
    if (now - begun_ >= period_) {
      begun_ = now;
      written_ = 0;
    }
    if (written_ == kLines) {
      ++left_out_;
      return std::nullopt;
    }
    if (++written_ == kLines) {
      return absl::StrCat("the next ones, for some ",
                          period_ < absl::Minutes(1) ? "seconds" : "minutes");
    }
    const int64_t before = std::exchange(left_out_, 0);
    return before == 0 ? "" : absl::StrCat(before, " before this one");
  }

 private:
  absl::Duration period_;
  absl::Time begun_ = absl::InfinitePast();
  int written_ = 0;
  int64_t left_out_ = 0;
};

}  // namespace blockserve

#endif  // BLOCKSERVE_COMMON_LOG_BUDGET_H_
