// Why a worker cannot be connected, as the log tells it: nothing of one that is back within a few
// seconds, and each reason once a minute.
#ifndef BLOCKSERVE_GATEWAY_CONNECT_FAILURES_H_
#define BLOCKSERVE_GATEWAY_CONNECT_FAILURES_H_

#include <cstddef>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"

namespace blockserve {

// Of one address.
class ConnectFailures {
 public:
  // A restart takes less; and it is told before requests are given up (TierOptions::tier_wait).
  static constexpr absl::Duration kQuiet = absl::Seconds(5);
  static constexpr absl::Duration kRepeat = absl::Minutes(1);
  // In one kRepeat: texts of errors may hold what is never the same twice.
  static constexpr size_t kMostLines = 4;
  static constexpr size_t kMostReasonBytes = 300;

  // A stream was lost, or could not be made, with this status. What to log, if anything. `left`: it
  // was seen to drain, so that nobody is expected there; if somebody is, why it is not connected is
  // told all the same.
  std::string Lost(absl::string_view tier, absl::string_view address, const absl::Status& status,
                   bool left, absl::Time now);
  void Connected() { away_since_ = absl::InfiniteFuture(); }

 private:
  struct Line {
    std::string text;
    absl::Time at;
  };
  absl::Time away_since_ = absl::InfiniteFuture();
  std::vector<Line> said_;  // in the last kRepeat
};

}  // namespace blockserve

#endif  // BLOCKSERVE_GATEWAY_CONNECT_FAILURES_H_
