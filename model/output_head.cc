#include "model/output_head.h"

#include <algorithm>
#include <limits>

#include "absl/strings/str_cat.h"

namespace blockserve {
namespace {

constexpr int64_t kSegmentPanels = kLogitSegment / kPanelWidth;
constexpr float kInfinity = std::numeric_limits<float>::infinity();

// Ids in a list before it is cut down to the best `wanted`.
size_t MostKept(int32_t wanted) { return wanted <= 1 ? 2 * wanted : 3 * wanted + kLogitSegment; }

void CutToBest(std::vector<TokenLogit>& ids, size_t wanted) {
  if (ids.size() <= wanted) return;
  std::nth_element(ids.begin(), ids.begin() + wanted, ids.end(), IsBetter);
  ids.resize(wanted);
}

}  // namespace

absl::Status OutputHead::Allocate(const CpuKernels& kernels, const PackedMatrix& weights,
                                  int64_t max_rows, int num_threads) {
  kernels_ = &kernels;
  weights_ = &weights;
  max_rows_ = std::min(max_rows, kMaxRows);
  num_threads_ = num_threads;
  num_segments_ = (weights.n() + kLogitSegment - 1) / kLogitSegment;
  statistics_.resize(max_rows_ * num_segments_);
  named_.resize(max_rows_);
  kept_.resize(num_threads * max_rows_);
  segments_ = AlignedBuffer(num_threads * max_rows_ * RowStride(kLogitSegment) * sizeof(float));
  logits_ = AlignedBuffer(max_rows_ * RowStride(weights.n()) * sizeof(float));
  if (segments_.data() == nullptr || logits_.data() == nullptr) {
    return absl::ResourceExhaustedError(
        absl::StrCat("no memory for ", weights.n(), " logits of ", max_rows_, " rows"));
  }
  return absl::OkStatus();
}

void OutputHead::Run(ThreadPool& pool, const QuantizedRows& quantized, const float* x,
                     int64_t x_stride, absl::Span<const LogitsWanted> wanted) {
  wanted_ = wanted;
  for (int thread = 0; thread < num_threads_; ++thread) {
    for (size_t r = 0; r < wanted.size(); ++r) {
      Kept& kept = kept_[thread * max_rows_ + r];
      kept.ids.clear();
      kept.ids.reserve(MostKept(wanted[r].best.count));
      kept.least = -kInfinity;
    }
  }
  const bool all =
      std::any_of(wanted.begin(), wanted.end(), [](const LogitsWanted& w) { return w.all; });
  MatmulArgs args;
  args.x = x;
  args.x_stride = x_stride;
  args.rows = static_cast<int64_t>(wanted.size());
  args.weights = weights_;
  args.y_stride = all ? RowStride(weights_->n()) : RowStride(kLogitSegment);
  RunMatmulInPieces(
      *kernels_, pool, quantized, args, kSegmentPanels,
      [&](MatmulArgs& mine, PanelKernel kernel, int64_t begin, int64_t end, int thread) {
        const int64_t first = begin * kPanelWidth;
        const float* logits = nullptr;
        if (all) {
          mine.y = logits_.as<float>();
          logits = mine.y + first;
        } else {
          mine.y = segments_.as<float>() + thread * max_rows_ * mine.y_stride;
          mine.y_first_panel = begin;
          logits = mine.y;
        }
        kernel(mine, begin, end);
        TakeSegment(wanted, logits, mine.y_stride, first,
                    std::min(kLogitSegment, weights_->n() - first), thread);
      });
}

void OutputHead::TakeSegment(absl::Span<const LogitsWanted> wanted, const float* logits,
                             int64_t stride, int64_t begin, int64_t count, int thread) {
  const int64_t rows = static_cast<int64_t>(wanted.size());
  for (int64_t r = 0; r < rows; ++r) {
    const float* row = logits + r * stride;
    const SegmentStatistics statistics = kernels_->segment_statistics(row, count);
    statistics_[r * num_segments_ + begin / kLogitSegment] = statistics;
    const LogitsWanted& want = wanted[r];
    if (want.id >= begin && want.id < begin + count) named_[r] = row[want.id - begin];
    if (want.best.count > 0 && statistics.finite && begin < want.best.limit) {
      const int64_t below = std::min(count, want.best.limit - begin);
      const float max = below < count ? kernels_->max_value(row, below) : statistics.max;
      KeepBest(want.best, row, begin, below, max, kept_[thread * max_rows_ + r]);
    }
  }
}

void OutputHead::KeepBest(const BestNeeded& best, const float* logits, int64_t begin, int64_t count,
                          float max, Kept& kept) const {
  // A thread sees segments in any order: among equals all are kept until the lowest ids are known.
  if (max < kept.least) return;
  if (best.count == 1) {
    const TokenLogit found = {
        max, static_cast<int32_t>(begin + kernels_->first_index_of(logits, count, max))};
    if (kept.ids.empty()) kept.ids.push_back(found);
    if (IsBetter(found, kept.ids.front())) kept.ids.front() = found;
    kept.least = kept.ids.front().value;
    return;
  }
  for (int64_t i = 0; i < count; ++i) {
    if (logits[i] >= kept.least) kept.ids.push_back({logits[i], static_cast<int32_t>(begin + i)});
  }
  const size_t wanted = best.count;
  const bool first_full = kept.least == -kInfinity && kept.ids.size() >= wanted;
  if (!first_full && kept.ids.size() <= 2 * wanted) return;
  CutToBest(kept.ids, wanted);
  // The worst of them.
  kept.least = std::max_element(kept.ids.begin(), kept.ids.end(), IsBetter)->value;
}

LogitStatistics OutputHead::Statistics(int64_t row) const {
  return kernels_->join_segments(statistics_.data() + row * num_segments_, num_segments_);
}

absl::Span<const TokenLogit> OutputHead::Best(int64_t row) {
  const size_t wanted = wanted_[row].best.count;
  std::vector<TokenLogit>& ids = kept_[row].ids;
  CutToBest(ids, wanted);
  for (int thread = 1; thread < num_threads_; ++thread) {
    std::vector<TokenLogit>& more = kept_[thread * max_rows_ + row].ids;
    ids.insert(ids.end(), more.begin(), more.end());
    more.clear();
    CutToBest(ids, wanted);
  }
  std::sort(ids.begin(), ids.end(), IsBetter);
  return ids;
}

}  // namespace blockserve
