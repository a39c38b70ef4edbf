// A gateway's core whose tiers answer whatever the input says: every request ends once, with tokens
// that exist and no more of them than it asked for, and nothing is left.
//
// The first bytes say what is asked for. Then every answer of a simulated worker, its hello too,
// takes a byte that says what becomes of it; at the input's end all answers are as they should be.
#include <google/protobuf/stubs/logging.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "common/logging.h"
#include "gateway/core.h"
#include "gateway/simulated_tiers.h"

namespace blockserve {
namespace {

constexpr int kWorkers = 2;  // of each tier
constexpr int kRequests = 3;

void Require(bool holds) {
  if (!holds) __builtin_trap();
}

class Input {
 public:
  Input(const uint8_t* data, size_t size) : data_(data), size_(size) {}

  bool empty() const { return size_ == 0; }
  uint8_t Byte() {
    if (size_ == 0) return 0;
    --size_;
    return *data_++;
  }
  std::string Bytes(size_t count) {
    count = std::min(count, size_);
    std::string bytes(reinterpret_cast<const char*>(data_), count);
    data_ += count;
    size_ -= count;
    return bytes;
  }

 private:
  const uint8_t* data_;
  size_t size_;
};

// What does not parse gets no further than gRPC.
template <class Reply>
void Garble(Input& input, Reply& reply) {
  if (input.empty()) return;
  const uint8_t what = input.Byte();
  Reply changed;
  if (what < 128) return;
  if (what < 160) {  // another message
    if (changed.ParseFromString(input.Bytes(input.Byte()))) reply = std::move(changed);
    return;
  }
  if (what < 192) {  // more than it says: repeated fields grow, others are replaced
    if (changed.ParseFromString(input.Bytes(input.Byte()))) reply.MergeFrom(changed);
    return;
  }
  std::string bytes = reply.SerializeAsString();
  if (bytes.empty()) return;
  const size_t at = (input.Byte() | size_t{input.Byte()} << 8) % bytes.size();
  if (what < 224) {
    bytes[at] = static_cast<char>(input.Byte());
  } else {  // a piece of it
    bytes.erase(at, input.Byte());
  }
  if (changed.ParseFromString(bytes)) reply = std::move(changed);
}

class Sink final : public GenerationSink {
 public:
  Sink(int32_t choices, int32_t max_tokens, int32_t prompt_tokens)
      : choices_(choices), max_tokens_(max_tokens), prompt_tokens_(prompt_tokens) {}

  void OnStarted(v1::Started) override {
    Require(!started_ && !done_);
    started_ = true;
  }
  void OnOutput(v1::Output output, OutputDetail) override {
    Require(started_ && !done_ && output.choice() < static_cast<uint32_t>(choices_));
    int32_t& tokens = tokens_[output.choice()];
    Require(output.position() == prompt_tokens_ + tokens);
    for (const int32_t token : output.tokens()) Require(token >= 0 && token < kSimulatedVocab);
    tokens += output.tokens_size();
    Require(tokens <= max_tokens_);
  }
  void OnFinished(v1::Finished finished) override {
    Require(!done_ && ++finished_[finished.choice()] == 1);
  }
  void OnDone(absl::Status status, v1::Usage) override {
    Require(!done_);
    done_ = true;
    if (status.ok()) Require(finished_.size() == static_cast<size_t>(choices_));
  }
  bool WantsMore() const override { return true; }
  bool done() const { return done_; }

 private:
  const int32_t choices_;
  const int32_t max_tokens_;
  const int64_t prompt_tokens_;
  bool started_ = false;
  bool done_ = false;
  std::map<uint32_t, int32_t> tokens_;
  std::map<uint32_t, int> finished_;
};

class ScoreSink final : public ScoringSink {
 public:
  void OnDone(absl::StatusOr<v1::ScoreResponse>) override {
    Require(!done_);
    done_ = true;
  }
  bool done() const { return done_; }

 private:
  bool done_ = false;
};

template <class Worker>
std::vector<std::unique_ptr<Worker>> MakeWorkers(ManualLoop& loop, Input& input) {
  std::vector<std::unique_ptr<Worker>> workers;
  for (int i = 0; i < kWorkers; ++i) {
    workers.push_back(std::make_unique<Worker>(loop, std::to_string(i)));
    workers.back()->garble = [&input](auto& reply) { Garble(input, reply); };
  }
  return workers;
}

std::vector<int32_t> Tokens(int32_t count) {
  std::vector<int32_t> tokens(static_cast<size_t>(count));
  for (int32_t i = 0; i < count; ++i) tokens[static_cast<size_t>(i)] = i * 7 % kSimulatedVocab;
  return tokens;
}

void ServeAll(Input input) {
  ManualLoop loop;
  auto blocks = MakeWorkers<SimulatedBlockReplica>(loop, input);
  auto workers = MakeWorkers<SimulatedTokenWorker>(loop, input);
  ModelConfig config;
  config.block_length = kSimulatedLength;
  config.vocab_size = kSimulatedVocab;
  config.pad_token_id = 900;
  config.block.hidden_size = kSimulatedWidth;
  Core core(
      loop, config, /*tokenizer=*/nullptr,
      ExpectedModel{"config", "tokenizer", kSimulatedLength, kSimulatedWidth, kSimulatedVocab}, {},
      [&](const std::string& name) { return blocks[name == "0" ? 0 : 1]->MakeLink(); },
      [&](const std::string& name) { return workers[name == "0" ? 0 : 1]->MakeLink(); });
  for (const auto& replica : blocks) core.block_tier().AddReplica(replica->name);
  for (const auto& worker : workers) core.token_tier().AddWorker(worker->name);

  std::vector<std::shared_ptr<Sink>> sinks;
  for (uint64_t i = 0; i < kRequests; ++i) {
    const uint8_t form = input.Byte();
    GenerationRequest request;
    request.request_id = std::to_string(i);
    request.prompt = Tokens(1 + form % 16);
    request.max_tokens = 1 + form / 16;
    request.n = 1 + form % 2;
    if (form % 3 == 0) request.logprobs = form % 4;
    request.seed = i;
    request.deadline = loop.Now() + absl::Seconds(5);
    sinks.push_back(std::make_shared<Sink>(request.n, request.max_tokens, 1 + form % 16));
    core.Generate(std::move(request), sinks.back());
  }
  ScoringRequest scoring;
  scoring.tokens = Tokens(10);
  scoring.first_scored = 1;
  scoring.top_logprobs = input.Byte() % 3;
  scoring.deadline = loop.Now() + absl::Seconds(5);
  const auto scored = std::make_shared<ScoreSink>();
  core.Score(std::move(scoring), scored);

  Require(loop.RunUntil(
      [&] {
        return scored->done() &&
               std::all_of(sinks.begin(), sinks.end(), [](const auto& s) { return s->done(); });
      },
      absl::Seconds(10)));
  loop.Advance(absl::Seconds(1));
  Require(core.live_requests() == 0 && core.token_tier().rows() == 0 &&
          core.block_tier().sequences() == 0);
}

}  // namespace
}  // namespace blockserve

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  // Else every string that is no UTF-8 is a line of the log.
  static const google::protobuf::LogSilencer& silence = *new google::protobuf::LogSilencer;
  static const absl::Status quiet = blockserve::ConfigureLogging({.level = "off"});
  (void)silence;
  blockserve::Require(quiet.ok());
  blockserve::ServeAll({data, size});
  return 0;
}
