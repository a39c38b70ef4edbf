// Tests: a core over simulated tiers, what it should answer, and a client that writes everything
// down.
#ifndef BLOCKSERVE_GATEWAY_CORE_FIXTURE_H_
#define BLOCKSERVE_GATEWAY_CORE_FIXTURE_H_

#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "gateway/core.h"
#include "gateway/simulated_tiers.h"
#include "model/alignment.h"

namespace blockserve {

class RecordingSink : public GenerationSink {
 public:
  void OnStarted(v1::Started message) override {
    ++started;
    first = std::move(message);
  }
  void OnOutput(v1::Output message, OutputDetail /*detail*/) override {
    EXPECT_EQ(started, 1);
    EXPECT_FALSE(finished.contains(message.choice()));
    EXPECT_LE(message.tokens_size(), kSimulatedLength);
    std::vector<int32_t>& choice = tokens[message.choice()];
    const auto had = received_before.find(message.choice());
    EXPECT_EQ(message.position(), first.prompt_tokens() + static_cast<int64_t>(choice.size()) +
                                      (had == received_before.end() ? 0 : had->second));
    choice.insert(choice.end(), message.tokens().begin(), message.tokens().end());
    text[message.choice()] += message.text();
    for (const v1::TokenLogprobs& l : message.logprobs()) {
      logprobs[message.choice()].push_back(l.logprob());
    }
  }
  void OnFinished(v1::Finished message) override {
    EXPECT_FALSE(finished.contains(message.choice()));
    text[message.choice()] += message.text();
    finished[message.choice()] = std::move(message);
  }
  void OnDone(absl::Status outcome, v1::Usage total) override {
    ++done;
    status = std::move(outcome);
    usage = std::move(total);
  }
  bool WantsMore() const override { return wants_more; }

  int started = 0;
  int done = 0;
  v1::Started first;
  std::map<uint32_t, std::vector<int32_t>> tokens;
  std::map<uint32_t, std::string> text;
  std::map<uint32_t, std::vector<float>> logprobs;
  std::map<uint32_t, v1::Finished> finished;
  absl::Status status = absl::UnknownError("not over");
  v1::Usage usage;
  bool wants_more = true;
  std::map<uint32_t, int64_t> received_before;  // tokens of each choice, by a stream that goes on
};

class RecordingScoreSink final : public ScoringSink {
 public:
  void OnDone(absl::StatusOr<v1::ScoreResponse> outcome) override {
    ++done;
    response = std::move(outcome);
  }
  int done = 0;
  absl::StatusOr<v1::ScoreResponse> response = absl::UnknownError("not over");
};

class CoreFixture : public ::testing::Test {
 protected:
  CoreFixture() {
    config_.block_length = kSimulatedLength;
    config_.vocab_size = kSimulatedVocab;
    config_.pad_token_id = 900;
    config_.block.hidden_size = kSimulatedWidth;
  }

  void MakeCore(int block_replicas, int token_workers) {
    for (int i = 0; i < block_replicas; ++i) {
      blocks_.push_back(
          std::make_unique<SimulatedBlockReplica>(loop_, "block" + std::to_string(i)));
    }
    for (int i = 0; i < token_workers; ++i) {
      workers_.push_back(
          std::make_unique<SimulatedTokenWorker>(loop_, "token" + std::to_string(i)));
    }
    core_ = NewCore();
    TellOfAll(*core_);
  }
  void TellOfAll(Core& core) const {
    for (const auto& replica : blocks_) core.block_tier().AddReplica(replica->name);
    for (const auto& worker : workers_) core.token_tier().AddWorker(worker->name);
  }
  // Over the workers that are there; it has not been told of them. `gateway`: no two have the same.
  std::unique_ptr<Core> NewCore(uint64_t gateway = 0) {
    return std::make_unique<Core>(
        loop_, config_, tokenizer_,
        ExpectedModel{"config", "tokenizer", kSimulatedLength, kSimulatedWidth, kSimulatedVocab},
        options_,
        [this, gateway](const std::string& address) {
          return Find(blocks_, address).MakeLink(gateway);
        },
        [this, gateway](const std::string& address) {
          return Find(workers_, address).MakeLink(gateway);
        });
  }
  void Connect() { loop_.Advance(absl::Milliseconds(1)); }

  template <class Worker>
  static Worker& Find(std::vector<std::unique_ptr<Worker>>& workers, const std::string& name) {
    for (const auto& worker : workers) {
      if (worker->name == name) return *worker;
    }
    ADD_FAILURE() << name;
    return *workers[0];
  }

  GenerationRequest Request(int32_t prompt_tokens, int32_t max_tokens, uint64_t seed) const {
    GenerationRequest request;
    request.request_id = "request-" + std::to_string(seed);
    for (int32_t i = 0; i < prompt_tokens; ++i) {
      request.prompt.push_back(
          static_cast<int32_t>((seed * 31 + static_cast<uint64_t>(i) * 7) % kSimulatedVocab));
    }
    request.max_tokens = max_tokens;
    request.seed = seed;
    request.deadline = loop_.Now() + absl::Minutes(10);
    return request;
  }

  // What the simulated tiers answer when nothing fails.
  std::vector<int32_t> Expected(const GenerationRequest& request, uint32_t choice) const {
    const PromptLayout layout = LayoutPrompt(config_, request.alignment, request.prompt);
    uint64_t context = SimulatedContext(layout.block_tokens);
    std::vector<int32_t> block = layout.forced;
    std::vector<int32_t> output;
    while (static_cast<int32_t>(output.size()) < request.max_tokens) {
      const int64_t position = static_cast<int64_t>(request.prompt.size() + output.size());
      const int32_t token = static_cast<int32_t>(
          SimulatedNext(context, block, request.seed, choice, position) % kSimulatedVocab);
      output.push_back(token);
      block.push_back(token);
      if (std::count(request.stop_ids.begin(), request.stop_ids.end(), token) > 0) break;
      if (block.size() == kSimulatedLength) {
        context = SimulatedContext(block, context);
        block.clear();
      }
    }
    return output;
  }

  struct Stream {
    GenerationRequest request;
    std::shared_ptr<RecordingSink> sink;
    GenerationId id = 0;
  };
  Stream Generate(GenerationRequest request) {
    Stream stream{request, std::make_shared<RecordingSink>(), 0};
    stream.id = core_->Generate(std::move(request), stream.sink);
    return stream;
  }
  bool RunUntilDone(const std::vector<Stream>& streams, absl::Duration limit = absl::Minutes(5)) {
    return loop_.RunUntil(
        [&] {
          return std::all_of(streams.begin(), streams.end(),
                             [](const Stream& stream) { return stream.sink->done > 0; });
        },
        limit);
  }
  void ExpectExact(const Stream& stream) const {
    const RecordingSink& sink = *stream.sink;
    ASSERT_EQ(sink.done, 1);
    ASSERT_TRUE(sink.status.ok()) << sink.status;
    int64_t completion = 0;
    for (uint32_t i = 0; i < static_cast<uint32_t>(stream.request.n); ++i) {
      ASSERT_TRUE(sink.finished.contains(i));
      const std::vector<int32_t> expected = Expected(stream.request, i);
      EXPECT_EQ(sink.tokens.at(i), expected) << stream.request.request_id << " choice " << i;
      completion += static_cast<int64_t>(expected.size());
    }
    EXPECT_EQ(sink.usage.completion_tokens(), completion);
  }
  // Nothing is left anywhere, a little after the last stream ended.
  void ExpectNothingLeft() {
    loop_.Advance(absl::Seconds(1));
    ExpectNothingLeftOf(*core_);
    ExpectNothingHeld();
  }
  static void ExpectNothingLeftOf(Core& core) {
    EXPECT_EQ(core.live_requests(), 0);
    EXPECT_EQ(core.block_tier().sequences(), 0);
    EXPECT_EQ(core.token_tier().rows(), 0);
  }
  void ExpectNothingHeld() const {
    for (const auto& replica : blocks_) {
      if (replica->up && !replica->frozen) {
        EXPECT_EQ(replica->sequences.size(), 0u) << replica->name;
      }
    }
  }

  ManualLoop loop_;
  ModelConfig config_;
  const Tokenizer* tokenizer_ = nullptr;
  CoreOptions options_;
  std::vector<std::unique_ptr<SimulatedBlockReplica>> blocks_;
  std::vector<std::unique_ptr<SimulatedTokenWorker>> workers_;
  std::unique_ptr<Core> core_;
};

}  // namespace blockserve

#endif  // BLOCKSERVE_GATEWAY_CORE_FIXTURE_H_
