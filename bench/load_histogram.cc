#include "bench/load_histogram.h"

#include <algorithm>
#include <bit>
#include <cmath>

#include "absl/strings/str_cat.h"

namespace blockserve {
namespace {

// Values below 2 * kHalf have a bucket each; every doubling above has kHalf buckets.
constexpr int64_t kHalf = 128;
constexpr int kHalfBits = 7;
constexpr int64_t kLargest = int64_t{1} << 42;

int32_t BucketOf(int64_t value) {
  if (value < 2 * kHalf) return static_cast<int32_t>(value);
  const int shift = std::bit_width(static_cast<uint64_t>(value)) - (kHalfBits + 1);
  return static_cast<int32_t>(shift * kHalf + (value >> shift));
}

}  // namespace

int64_t LoadHistogram::BucketEnd(int32_t index) {
  if (index < 2 * kHalf) return index;
  const int shift = static_cast<int>(index / kHalf) - 1;
  const int64_t high = index - shift * kHalf;
  return ((high + 1) << shift) - 1;
}

void LoadHistogram::Add(int64_t micros, int64_t count) {
  if (count <= 0) return;
  const int64_t value = std::clamp<int64_t>(micros, 0, kLargest);
  const auto bucket = static_cast<size_t>(BucketOf(value));
  if (counts_.size() <= bucket) counts_.resize(bucket + 1);
  counts_[bucket] += count;
  count_ += count;
  min_ = std::min(min_, value);
  max_ = std::max(max_, value);
  sum_ += static_cast<double>(value) * static_cast<double>(count);
}

void LoadHistogram::Merge(const LoadHistogram& other) {
  if (counts_.size() < other.counts_.size()) counts_.resize(other.counts_.size());
  for (size_t i = 0; i < other.counts_.size(); ++i) counts_[i] += other.counts_[i];
  count_ += other.count_;
  min_ = std::min(min_, other.min_);
  max_ = std::max(max_, other.max_);
  sum_ += other.sum_;
}

int64_t LoadHistogram::Percentile(double percent) const {
  if (count_ == 0) return 0;
  const double share = std::clamp(percent, 0.0, 100.0) / 100;
  const auto wanted =
      std::max<int64_t>(1, static_cast<int64_t>(std::ceil(share * static_cast<double>(count_))));
  int64_t seen = 0;
  for (size_t i = 0; i < counts_.size(); ++i) {
    seen += counts_[i];
    if (seen >= wanted) return std::min(BucketEnd(static_cast<int32_t>(i)), max_);
  }
  return max_;
}

std::vector<std::pair<int32_t, int64_t>> LoadHistogram::Buckets() const {
  std::vector<std::pair<int32_t, int64_t>> buckets;
  for (size_t i = 0; i < counts_.size(); ++i) {
    if (counts_[i] > 0) buckets.emplace_back(static_cast<int32_t>(i), counts_[i]);
  }
  return buckets;
}

absl::Status LoadHistogram::Restore(absl::Span<const std::pair<int32_t, int64_t>> buckets,
                                    int64_t min, int64_t max, double mean,
                                    LoadHistogram* histogram) {
  LoadHistogram made;
  for (const auto& [index, count] : buckets) {
    if (index < 0 || index > BucketOf(kLargest) || count < 0) {
      return absl::InvalidArgumentError(absl::StrCat("bucket ", index, " with count ", count));
    }
    made.Add(BucketEnd(index), count);
  }
  if (made.count_ > 0) {
    if (min > max || BucketOf(std::clamp<int64_t>(max, 0, kLargest)) != BucketOf(made.max_)) {
      return absl::InvalidArgumentError(
          absl::StrCat("min ", min, " and max ", max, " do not fit the buckets"));
    }
    made.min_ = min;
    made.max_ = max;
    made.sum_ = mean * static_cast<double>(made.count_);
  }
  *histogram = std::move(made);
  return absl::OkStatus();
}

}  // namespace blockserve
