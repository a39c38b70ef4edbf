// How many choices are generated at a time: as many as the token tier can use.
//
// Beyond some batches in flight a tier does no more work in a second; every further request only
// makes all the others slower, until none ends in time. So what the workers cannot use waits in the
// gateway's queue, where it costs nothing, keeps its order and can still be refused.
//
// Policy alone: no threads, no clock.
#ifndef BLOCKSERVE_GATEWAY_LIVE_LIMIT_H_
#define BLOCKSERVE_GATEWAY_LIVE_LIMIT_H_

#include <algorithm>
#include <cstdint>

namespace blockserve {

// Of all workers of the token tier that take rows.
struct TokenCapacity {
  int64_t best_rows = 0;     // best batches, as the workers tell them; 0: nobody is there
  int64_t waiting_rows = 0;  // of everybody's rows, those that no worker has begun
  // Of this gateway's texts, begun or not: they have a bound of their own (gateway/scoring_rows.h),
  // and are no sign of other gateways.
  int64_t scoring_rows = 0;
};

struct LiveLimitOptions {
  int64_t most = 16384;  // whatever the tier can use
  // Best batches of all workers that may be under way: one in each tier, and one that waits, so
  // that neither tier does. 0: `most` alone.
  double batches = 3;

  // Those of them that may wait while one runs; one at least.
  double waiting_batches() const { return std::max(1.0, batches - 1); }
};

class LiveLimit {
 public:
  // Never less, unless `most` is: all choices of one request.
  static constexpr int64_t kLeast = 64;

  explicit LiveLimit(const LiveLimitOptions& options) : options_(options), limit_(options.most) {}

  // While nobody is there the limit stays what it was: requests then end as the tier's absence
  // asks for, and are not to pile up before it.
  void Update(const TokenCapacity& capacity) {
    if (options_.batches <= 0 || capacity.best_rows <= 0) return;
    const double rows = static_cast<double>(capacity.best_rows);
    // More waits than would if this gateway were alone and all but the batches that run stood
    // there: there are others, and the workers have enough. Half a batch each gateway may have in
    // any case, so that the others cannot shut it out.
    const bool others = static_cast<double>(capacity.waiting_rows - capacity.scoring_rows) >
                        options_.waiting_batches() * rows;
    const double batches = others ? 0.5 : options_.batches;
    limit_ = std::min(options_.most, std::max(kLeast, static_cast<int64_t>(rows * batches)));
  }

  int64_t limit() const { return limit_; }

 private:
  const LiveLimitOptions options_;
  int64_t limit_;
};

}  // namespace blockserve

#endif  // BLOCKSERVE_GATEWAY_LIVE_LIMIT_H_
