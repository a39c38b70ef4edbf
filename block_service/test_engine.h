// A block engine for tests of the policy: cheap, exact, and honest about pages. It keeps one 64-bit
// number per block in its pages and computes a context row from what it reads there through the
// page table, so that a wrong page, a missing copy or a skipped block shows in the row. Rows are
// there when their step is finished, and not before.
#ifndef BLOCKSERVE_BLOCK_SERVICE_TEST_ENGINE_H_
#define BLOCKSERVE_BLOCK_SERVICE_TEST_ENGINE_H_

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <cstdlib>
#include <deque>
#include <functional>
#include <limits>
#include <thread>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/types/span.h"
#include "model/engine.h"

namespace blockserve {

class TestBlockEngine final : public BlockEngine {
 public:
  static constexpr int32_t kWidth = 4;
  // A block that begins with this id gives a row that is not finite.
  static constexpr int32_t kPoison = 99;

  TestBlockEngine(int32_t block_length, int32_t vocab_size, int32_t in_flight = 1)
      : in_flight_(in_flight) {
    config_.block_length = block_length;
    config_.vocab_size = vocab_size;
    config_.block.hidden_size = kWidth;
  }

  // Every AllocateKv is answered so.
  void RefuseKv(absl::Status status) { kv_status_ = std::move(status); }

  // The row of the last block of `tokens` [blocks, L].
  static std::vector<float> Row(absl::Span<const int32_t> tokens, int32_t block_length) {
    uint64_t state = 0;
    const int64_t blocks = static_cast<int64_t>(tokens.size()) / block_length;
    for (int64_t block = 0; block < blocks; ++block) {
      state = Mix(state, Entry(tokens.subspan(static_cast<size_t>(block * block_length),
                                              static_cast<size_t>(block_length)),
                               block));
    }
    return ToRow(state);
  }

  const ModelConfig& config() const override { return config_; }
  Arithmetic arithmetic() const override { return Arithmetic::kF32; }
  absl::Status AllocateKv(int64_t num_pages, int32_t page_blocks) override {
    page_blocks_ = page_blocks;
    kv_.assign(static_cast<size_t>(num_pages * page_blocks), kUnwritten);
    return kv_status_;
  }
  int64_t KvBytesPerPage(int32_t page_blocks) const override {
    return page_blocks * static_cast<int64_t>(sizeof(uint64_t));
  }
  void CopyPage(int32_t from, int32_t to, int32_t blocks) override {
    for (int32_t i = 0; i < blocks; ++i) Slot(to, i) = Slot(from, i);
    for (int32_t i = blocks; i < page_blocks_; ++i) Slot(to, i) = kUnwritten;
    ++copies_;
  }
  int32_t max_in_flight() const override { return in_flight_; }
  absl::Status Start(absl::Span<const BlockChunk> chunks, absl::Span<float> contexts) override {
    stepping_thread_ = std::this_thread::get_id();
    StepUnderWay step{contexts, {}};
    const int64_t length = config_.block_length;
    for (const BlockChunk& chunk : chunks) {
      const int64_t count = static_cast<int64_t>(chunk.tokens.size()) / length;
      computed_blocks_ += count;
      for (int64_t i = 0; i < count; ++i) {
        const int64_t block = chunk.first_block + i;
        const auto tokens =
            chunk.tokens.subspan(static_cast<size_t>(i * length), static_cast<size_t>(length));
        SlotOf(chunk.pages, block) = Entry(tokens, block);
        if (block < chunk.first_context) continue;
        uint64_t state = 0;
        for (int64_t past = 0; past <= block; ++past) {
          state = Mix(state, SlotOf(chunk.pages, past));
        }
        std::vector<float> row = ToRow(state);
        if (tokens[0] == kPoison) row[0] = std::numeric_limits<float>::quiet_NaN();
        step.values.insert(step.values.end(), row.begin(), row.end());
      }
    }
    // Fuzzers use it, too: no assertions of GoogleTest.
    if (step.values.size() != contexts.size()) std::abort();
    if (!refusal_.ok() && accepted_-- == 0) return std::exchange(refusal_, absl::OkStatus());
    under_way_.push_back(std::move(step));
    most_under_way_ = std::max(most_under_way_, static_cast<int32_t>(under_way_.size()));
    if (most_under_way_ > in_flight_) std::abort();
    steps_.fetch_add(1);
    return absl::OkStatus();
  }
  absl::Status Finish() override {
    if (before_finish_) before_finish_();
    const StepUnderWay step = std::move(under_way_.front());
    under_way_.pop_front();
    std::copy(step.values.begin(), step.values.end(), step.contexts.begin());
    return next_status_;
  }

  void FailNextSteps(absl::Status status) { next_status_ = std::move(status); }
  // So many steps from now one is not even begun.
  void RefuseStep(int64_t after, absl::Status status) {
    accepted_ = after;
    refusal_ = std::move(status);
  }
  // Called before each step is finished, on the loop's thread.
  void SetBeforeFinish(std::function<void()> call) { before_finish_ = std::move(call); }
  absl::Status Lost() const override { return lost_; }
  // From the next step on.
  void Lose(absl::Status why) { lost_ = next_status_ = std::move(why); }
  int64_t computed_blocks() const { return computed_blocks_; }
  int32_t most_under_way() const { return most_under_way_; }
  int64_t copies() const { return copies_; }
  int64_t steps() const { return steps_.load(); }                       // begun; from any thread
  std::thread::id stepping_thread() const { return stepping_thread_; }  // of the last step

 private:
  static constexpr uint64_t kUnwritten = 0xdeadbeefdeadbeefu;

  struct StepUnderWay {
    absl::Span<float> contexts;
    std::vector<float> values;
  };

  static uint64_t Mix(uint64_t state, uint64_t value) {
    state = (state ^ value) * 0x9e3779b97f4a7c15u;
    return state ^ (state >> 29);
  }
  static uint64_t Entry(absl::Span<const int32_t> tokens, int64_t block) {
    uint64_t entry = Mix(1, static_cast<uint64_t>(block));
    for (const int32_t token : tokens) entry = Mix(entry, static_cast<uint64_t>(token) + 7);
    return entry;
  }
  static std::vector<float> ToRow(uint64_t state) {
    std::vector<float> row(kWidth);
    for (int32_t i = 0; i < kWidth; ++i) {
      row[static_cast<size_t>(i)] = static_cast<float>((state >> (16 * i)) & 0xffff);
    }
    return row;
  }
  uint64_t& Slot(int32_t page, int32_t index) {
    return kv_[static_cast<size_t>(page) * static_cast<size_t>(page_blocks_) +
               static_cast<size_t>(index)];
  }
  uint64_t& SlotOf(absl::Span<const int32_t> pages, int64_t block) {
    return Slot(pages.at(static_cast<size_t>(block / page_blocks_)),
                static_cast<int32_t>(block % page_blocks_));
  }

  absl::Status kv_status_;
  ModelConfig config_;
  const int32_t in_flight_;
  std::deque<StepUnderWay> under_way_;
  std::function<void()> before_finish_;
  absl::Status refusal_;
  int64_t accepted_ = 0;  // steps before it
  int32_t most_under_way_ = 0;
  int32_t page_blocks_ = 0;
  std::vector<uint64_t> kv_;  // [pages, page_blocks]
  absl::Status next_status_;
  absl::Status lost_;
  int64_t computed_blocks_ = 0;
  int64_t copies_ = 0;
  std::atomic<int64_t> steps_{0};
  std::thread::id stepping_thread_;
};

}  // namespace blockserve

#endif  // BLOCKSERVE_BLOCK_SERVICE_TEST_ENGINE_H_
