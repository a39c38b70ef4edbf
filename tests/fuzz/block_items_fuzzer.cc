// Items for a block service, of any bytes, through the scheduler and an engine that checks its
// pages: every item that waits for an answer gets one, and no page is lost.
//
// The input is a number of messages, each with its length before it (two bytes, little endian).
#include <google/protobuf/stubs/logging.h>

#include <cstddef>
#include <cstdint>
#include <deque>
#include <memory>
#include <set>
#include <vector>

#include "block_service/item_codec.h"
#include "block_service/scheduler.h"
#include "block_service/test_engine.h"
#include "blockserve/v1/block_decoder.pb.h"

namespace blockserve {
namespace {

constexpr int kMaxItems = 64;  // of one input: bounds its time

void Require(bool holds) {
  if (!holds) __builtin_trap();
}

class Replica {
 public:
  Replica() : engine_(2, 100, /*in_flight=*/2), scheduler_(Options()) {
    scheduler_.OpenStream(1, 7, now_);
  }

  void Submit(v1::BlockRequest& request) {
    // The gateway's ids are its own affair, but an answer is found by them.
    if (!waiting_.insert(request.id()).second) return;
    scheduler_.Submit(ToItem(request, 1, 7, now_), now_);
    Collect();
  }
  // Begins a step where there is something to compute, and leaves it under way while the next
  // message is read.
  void Step() {
    const BlockStep& step = scheduler_.PlanStep(now_);
    const bool begun = !step.chunks.empty();
    if (begun) {
      const size_t values = static_cast<size_t>(step.context_rows) * TestBlockEngine::kWidth;
      const auto rows = std::make_shared<float[]>(values);
      Require(engine_.Start(step.chunks, absl::MakeSpan(rows.get(), values)).ok());
      under_way_.push_back(rows);
    }
    idle_ = under_way_.empty();
    Collect();
    Require(scheduler_.CheckInvariants().ok());
    if (under_way_.size() == 2 || (!begun && !idle_)) {
      const absl::Status status = engine_.Finish();
      scheduler_.FinishStep(status, under_way_.front());
      under_way_.pop_front();
      Collect();
      Require(scheduler_.CheckInvariants().ok());
    }
    now_ += absl::Milliseconds(5);
  }
  bool idle() const { return idle_; }

 private:
  BlockSchedulerOptions Options() {
    BlockSchedulerOptions options;
    options.block_length = 2;
    options.vocab_size = 100;
    options.context_width = TestBlockEngine::kWidth;
    options.num_pages = 24;
    options.page_blocks = 4;
    options.max_sequences = 6;
    options.groups = 2;
    options.reserve_tokens = 8;
    Require(engine_.AllocateKv(options.num_pages, options.page_blocks).ok());
    options.copy_page = [this](int32_t from, int32_t to, int32_t blocks) {
      engine_.CopyPage(from, to, blocks);
    };
    return options;
  }
  void Collect() {
    BlockOutbox& outbox = scheduler_.outbox();
    for (const BlockItemReply& reply : outbox.items) {
      Require(waiting_.contains(reply.id));
      if (reply.last) waiting_.erase(reply.id);
      Require(reply.contexts.size() == static_cast<size_t>(reply.rows) * TestBlockEngine::kWidth);
    }
    outbox.Clear();
  }

  TestBlockEngine engine_;
  absl::Time now_ = absl::UnixEpoch();
  BlockScheduler scheduler_;
  std::deque<std::shared_ptr<const float[]>> under_way_;
  std::set<uint64_t> waiting_;
  bool idle_ = false;
};

}  // namespace
}  // namespace blockserve

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace blockserve;  // NOLINT: the one function outside
  // Else every string that is no UTF-8 is a line of the log.
  static const google::protobuf::LogSilencer& silence = *new google::protobuf::LogSilencer;
  (void)silence;
  Replica replica;
  int items = 0;
  while (size >= 2) {
    const size_t length = std::min<size_t>(size - 2, data[0] | size_t{data[1]} << 8);
    v1::BlockRequestBatch batch;
    if (!batch.ParseFromArray(data + 2, static_cast<int>(length))) return 0;
    for (v1::BlockRequest& request : *batch.mutable_items()) {
      if (++items > kMaxItems) return 0;
      replica.Submit(request);
    }
    replica.Step();
    data += 2 + length;
    size -= 2 + length;
  }
  for (int i = 0; i < 2000 && !replica.idle(); ++i) replica.Step();
  return 0;
}
