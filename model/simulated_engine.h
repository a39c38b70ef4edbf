// Engines without weights, for measuring what is around them: a step takes the time that a table
// of measured steps says, asleep, and its results are a hash of its inputs. So one machine runs
// hundreds of workers, and whoever checks answers still finds a row that was lost, repeated, taken
// from another sequence or computed from a wrong page.
#ifndef BLOCKSERVE_MODEL_SIMULATED_ENGINE_H_
#define BLOCKSERVE_MODEL_SIMULATED_ENGINE_H_

#include <atomic>
#include <chrono>
#include <cstdint>
#include <deque>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "absl/types/span.h"
#include "common/mutex.h"
#include "model/config.h"
#include "model/engine.h"

namespace blockserve {

// Time of a step by the rows in it.
class StepTable {
 public:
  // Every step takes no time.
  StepTable() = default;
  // So many milliseconds, and so many for each row.
  StepTable(double step, double row) : points_{{1, step + row}, {2, step + 2 * row}} {}

  // A number of milliseconds for every step, or the path of a file: one "rows milliseconds" a line
  // (blanks or a comma between them), rows rising; # begins a comment. INVALID_ARGUMENT, NOT_FOUND:
  // naming file and line.
  static absl::StatusOr<StepTable> Parse(const std::string& text);

  // Between the rows of the table and beyond its last two: on the straight line. Before the first:
  // as the first.
  absl::Duration Time(int64_t rows) const;

 private:
  std::vector<std::pair<int64_t, double>> points_;  // rows, milliseconds
};

// What an engine has done; read from any thread.
struct SimulatedWork {
  std::atomic<int64_t> steps{0};
  std::atomic<int64_t> rows{0};
  std::atomic<int64_t> busy_us{0};
};

// What contexts travel as: bf16 for models of that type, as with the engines that compute.
inline Arithmetic SimulatedArithmetic(const ModelConfig& config) {
  return config.torch_dtype == "bfloat16" ? Arithmetic::kBf16 : Arithmetic::kF32;
}

// A card that computes: steps that are given to it follow one another, whichever engine they are
// of. Thread-safe.
class SimulatedDevice {
 public:
  using Time = std::chrono::steady_clock::time_point;

  // A step is given to it at `begin`; returns when it is done.
  Time Run(Time begin, absl::Duration time);

 private:
  Mutex mutex_;
  Time free_ ABSL_GUARDED_BY(mutex_);  // when the last step is done
};

// Tokens are a function of the row alone: context, forced tokens, seed, choice, position, and
// greedy or not. Stop ids, the limit, min_tokens_position and vocab_limit are kept; other
// parameters of sampling do not matter. Log-probabilities are numbers in (-10, 0).
class SimulatedTokenEngine final : public TokenEngine {
 public:
  // `in_flight` batches may be under way. `device`: one of its own where null.
  SimulatedTokenEngine(ModelConfig config, StepTable table, int32_t max_rows, int32_t in_flight = 1,
                       std::shared_ptr<SimulatedDevice> device = nullptr);

  const ModelConfig& config() const override { return config_; }
  Arithmetic arithmetic() const override { return SimulatedArithmetic(config_); }
  int32_t max_rows() const override { return max_rows_; }
  // Rows of the table are rows of a batch; the time is that of whole blocks.
  void Decode(absl::Span<const TokenRow> rows, absl::Span<TokenRowResult> results) override {
    Start(rows, results);
    Finish();
  }
  int32_t max_in_flight() const override { return in_flight_; }
  int32_t batch_rows() const override { return (max_rows_ + in_flight_ - 1) / in_flight_; }
  void Start(absl::Span<const TokenRow> rows, absl::Span<TokenRowResult> results) override;
  void Finish() override;

  const SimulatedWork& work() const { return work_; }

 private:
  void DecodeRow(const TokenRow& row, TokenRowResult& result) const;

  const ModelConfig config_;
  const StepTable table_;
  const int32_t max_rows_;
  const int32_t in_flight_;
  const std::shared_ptr<SimulatedDevice> device_;
  std::deque<SimulatedDevice::Time> ends_;  // of the batches under way, oldest first
  SimulatedWork work_;
};

// A context row is a hash of every block up to it, read through the page table: pages hold one
// number for each block.
class SimulatedBlockEngine final : public BlockEngine {
 public:
  // As of the token engine.
  SimulatedBlockEngine(ModelConfig config, StepTable table, int32_t in_flight = 1,
                       std::shared_ptr<SimulatedDevice> device = nullptr);

  const ModelConfig& config() const override { return config_; }
  Arithmetic arithmetic() const override { return SimulatedArithmetic(config_); }
  absl::Status AllocateKv(int64_t num_pages, int32_t page_blocks) override;
  int64_t KvBytesPerPage(int32_t page_blocks) const override {
    return page_blocks * static_cast<int64_t>(sizeof(uint64_t));
  }
  void CopyPage(int32_t from, int32_t to, int32_t blocks) override;
  int32_t max_in_flight() const override { return in_flight_; }
  // Rows of the table are blocks of a step, prefilled and decoded ones alike.
  absl::Status Start(absl::Span<const BlockChunk> chunks, absl::Span<float> contexts) override;
  absl::Status Finish() override;

  const SimulatedWork& work() const { return work_; }

 private:
  uint64_t& Slot(int32_t page, int64_t index) {
    return kv_[static_cast<size_t>(page) * static_cast<size_t>(page_blocks_) +
               static_cast<size_t>(index)];
  }

  const ModelConfig config_;
  const StepTable table_;
  const int32_t in_flight_;
  const std::shared_ptr<SimulatedDevice> device_;
  int32_t page_blocks_ = 0;
  std::vector<uint64_t> kv_;  // [pages, page_blocks]: hash of all blocks up to this one
  std::deque<SimulatedDevice::Time> ends_;  // of the steps under way, oldest first
  SimulatedWork work_;
};

}  // namespace blockserve

#endif  // BLOCKSERVE_MODEL_SIMULATED_ENGINE_H_
