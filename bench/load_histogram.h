// Counts of latencies in buckets whose width grows with the value: at most 0.8 % too high, whatever
// the range, and two of them can be added without loss.
#ifndef BLOCKSERVE_BENCH_LOAD_HISTOGRAM_H_
#define BLOCKSERVE_BENCH_LOAD_HISTOGRAM_H_

#include <cstdint>
#include <limits>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/types/span.h"

namespace blockserve {

class LoadHistogram {
 public:
  // Microseconds; negative values count as 0, values beyond 2^42 (50 days) as that.
  void Add(int64_t micros, int64_t count = 1);
  void Merge(const LoadHistogram& other);

  int64_t count() const { return count_; }
  int64_t min() const { return count_ > 0 ? min_ : 0; }
  int64_t max() const { return count_ > 0 ? max_ : 0; }
  double mean() const { return count_ > 0 ? sum_ / static_cast<double>(count_) : 0; }
  // The smallest value that `percent` of 100 of the values do not exceed, rounded up to the end of
  // its bucket; never more than max(). 0 where nothing was added.
  int64_t Percentile(double percent) const;

  // The buckets that are not empty: (index, count), by index.
  std::vector<std::pair<int32_t, int64_t>> Buckets() const;
  // The reverse of Buckets, min, max and mean. INVALID_ARGUMENT: they do not fit together.
  static absl::Status Restore(absl::Span<const std::pair<int32_t, int64_t>> buckets, int64_t min,
                              int64_t max, double mean, LoadHistogram* histogram);
  // The largest value of a bucket.
  static int64_t BucketEnd(int32_t index);

 private:
  std::vector<int64_t> counts_;  // by bucket; as long as needed
  int64_t count_ = 0;
  int64_t min_ = std::numeric_limits<int64_t>::max();
  int64_t max_ = 0;
  double sum_ = 0;
};

}  // namespace blockserve

#endif  // BLOCKSERVE_BENCH_LOAD_HISTOGRAM_H_
