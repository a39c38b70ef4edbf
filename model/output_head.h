// The product with the output head, and what decoding needs of it: a row's statistics, its best
// ids, the logits of named ones. Logits are looked at segment by segment while they are in the
// cache, and all of them are written to memory only for rows that ask for it.
#ifndef BLOCKSERVE_MODEL_OUTPUT_HEAD_H_
#define BLOCKSERVE_MODEL_OUTPUT_HEAD_H_

#include <cstdint>
#include <vector>

#include "absl/status/status.h"
#include "absl/types/span.h"
#include "common/thread_pool.h"
#include "kernels/aligned_buffer.h"
#include "kernels/cpu/cpu_kernels.h"
#include "model/run_matmul.h"
#include "model/sampler.h"

namespace blockserve {

// What is wanted of one row besides its statistics.
struct LogitsWanted {
  BestNeeded best;   // so many best ids below a limit, if any
  int32_t id = -1;   // whose logit, if any
  bool all = false;  // the whole row
};

class OutputHead {
 public:
  // Rows of one Run.
  static constexpr int64_t kMaxRows = 64;

  // Both outlive the head. Errors: RESOURCE_EXHAUSTED.
  absl::Status Allocate(const CpuKernels& kernels, const PackedMatrix& weights, int64_t max_rows,
                        int num_threads);

  // x [wanted.size(), x_stride], at most kMaxRows rows.
  void Run(ThreadPool& pool, const QuantizedRows& quantized, const float* x, int64_t x_stride,
           absl::Span<const LogitsWanted> wanted);

  // Of the last Run, for each row; may be called for different rows at the same time.
  LogitStatistics Statistics(int64_t row) const;
  // Those wanted, best first; fewer when there are fewer. The row's statistics must be finite.
  // Valid until the next Run.
  absl::Span<const TokenLogit> Best(int64_t row);
  float LogitOfId(int64_t row) const { return named_[row]; }
  const float* All(int64_t row) const {
    return logits_.as<float>() + row * RowStride(weights_->n());
  }

 private:
  // The best ids of a row that one thread has seen, more than are wanted at times: never fewer than
  // the best of what it has seen.
  struct Kept {
    std::vector<TokenLogit> ids;
    float least = 0;  // what is less cannot be among the best
  };

  void TakeSegment(absl::Span<const LogitsWanted> wanted, const float* logits, int64_t stride,
                   int64_t begin, int64_t count, int thread);
  void KeepBest(const BestNeeded& best, const float* logits, int64_t begin, int64_t count,
                float max, Kept& kept) const;

  const CpuKernels* kernels_ = nullptr;
  const PackedMatrix* weights_ = nullptr;
  int64_t max_rows_ = 0;
  int64_t num_segments_ = 0;
  absl::Span<const LogitsWanted> wanted_;      // of the last Run
  std::vector<SegmentStatistics> statistics_;  // [max_rows, num_segments]
  std::vector<float> named_;                   // [max_rows]
  std::vector<Kept> kept_;                     // [threads, max_rows]
  int num_threads_ = 0;
  AlignedBuffer segments_;  // [threads, max_rows, RowStride(kLogitSegment)]
  AlignedBuffer logits_;    // [max_rows, RowStride(V)]; takes memory when a row is first written
};

}  // namespace blockserve

#endif  // BLOCKSERVE_MODEL_OUTPUT_HEAD_H_
