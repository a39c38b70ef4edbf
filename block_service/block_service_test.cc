// The service over an in-process channel: with real engines on the golden models, and with the test
// engine where the stream itself is the subject.
#include "block_service/block_service.h"

#include <grpcpp/client_context.h>

#include <cmath>
#include <cstring>
#include <fstream>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/synchronization/notification.h"
#include "block_service/test_engine.h"
#include "blockserve/v1/block_decoder.grpc.pb.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "model/alignment.h"
#include "model/fingerprint.h"
#include "model/safetensors.h"
#include "nlohmann/json.hpp"
#include "rpc/server.h"
#include "rpc/tier_protocol.h"

namespace blockserve {
namespace {

using absl::StatusCode;
using testing::HasSubstr;
using testing::StartsWith;

// All replies to one item, joined.
struct Answer {
  StatusCode code = StatusCode::kOk;
  std::string message;
  std::string rows;  // bytes
  int64_t first_block = 0;
  int64_t cached_blocks = 0;
  bool done = false;
  bool suspended = false;
  int replies = 0;
};

// One gateway's stream.
class Gateway {
 public:
  explicit Gateway(const std::shared_ptr<grpc::Channel>& channel, uint64_t incarnation = 1,
                   v1::GatewayHello hello = DefaultHello())
      : stub_(v1::BlockDecoder::NewStub(channel)) {
    context_.set_deadline(std::chrono::system_clock::now() + std::chrono::seconds(120));
    stream_ = stub_->Run(&context_);
    v1::BlockRequestBatch batch;
    hello.set_gateway_incarnation(incarnation);
    *batch.mutable_hello() = std::move(hello);
    stream_->Write(batch);
  }
  ~Gateway() {
    if (stream_ != nullptr) Vanish();
  }

  static v1::GatewayHello DefaultHello() {
    v1::GatewayHello hello;
    hello.set_protocol_version(kTierProtocolVersion);
    return hello;
  }

  v1::BlockRequest& Add(uint64_t sequence) {
    v1::BlockRequest& request = *batch_.add_items();
    request.set_id(++last_id_);
    request.set_sequence(sequence);
    return request;
  }
  uint64_t Open(uint64_t sequence, absl::Span<const int32_t> tokens, int64_t first_context = -1,
                bool close_after = false, int64_t reserve_blocks = 64) {
    v1::OpenSequence& open = *Add(sequence).mutable_open();
    open.mutable_tokens()->Add(tokens.begin(), tokens.end());
    open.set_first_context(first_context);
    open.set_close_after(close_after);
    open.set_reserve_blocks(reserve_blocks);
    return last_id_;
  }
  uint64_t Append(uint64_t sequence, int64_t index, absl::Span<const int32_t> tokens) {
    v1::AppendBlock& append = *Add(sequence).mutable_append();
    append.set_block_index(index);
    append.mutable_tokens()->Add(tokens.begin(), tokens.end());
    return last_id_;
  }
  uint64_t Fork(uint64_t child, uint64_t parent, int64_t blocks) {
    v1::ForkSequence& fork = *Add(child).mutable_fork();
    fork.set_parent(parent);
    fork.set_blocks(blocks);
    fork.set_reserve_blocks(64);
    return last_id_;
  }
  uint64_t Close(uint64_t sequence) {
    Add(sequence).mutable_close();
    return last_id_;
  }
  // Sends what was added.
  void Flush() {
    stream_->Write(batch_);
    batch_.Clear();
  }

  void Ping(uint64_t ping) {
    v1::BlockRequestBatch batch;
    batch.set_ping(ping);
    stream_->Write(batch);
  }

  // Reads one message; false at the end of the stream.
  bool Read() {
    v1::BlockReplyBatch batch;
    if (!stream_->Read(&batch)) return false;
    ++messages;
    if (messages == 1) {
      EXPECT_TRUE(batch.has_hello());
      hello = batch.hello();
    } else {
      EXPECT_FALSE(batch.has_hello());
    }
    draining |= batch.draining();
    if (batch.pong() != 0) pong = batch.pong();
    if (batch.has_load()) load = batch.load();
    largest_message = std::max(largest_message, batch.ByteSizeLong());
    const size_t row_bytes = static_cast<size_t>(hello.context_width()) *
                             (hello.context_type() == v1::CONTEXT_TYPE_BFLOAT16 ? 2 : 4);
    size_t offset = 0;
    for (const v1::BlockReply& reply : batch.items()) {
      Answer& answer = answers_[reply.id()];
      EXPECT_FALSE(answer.done) << "item " << reply.id() << " is answered twice";
      if (answer.replies++ == 0) answer.first_block = reply.first_block();
      const size_t bytes = static_cast<size_t>(reply.rows()) * row_bytes;
      answer.rows += batch.contexts().substr(offset, bytes);
      offset += bytes;
      answer.code = static_cast<StatusCode>(reply.status().code());
      answer.message = reply.status().message();
      answer.done = reply.last();
      answer.suspended = reply.suspended();
      answer.cached_blocks = reply.cached_blocks();
    }
    EXPECT_EQ(offset, batch.contexts().size());
    return true;
  }
  const Answer& Wait(uint64_t id) {
    while (!answers_[id].done) {
      if (!Read()) {
        ADD_FAILURE() << "the stream ended before item " << id << " was answered";
        break;
      }
    }
    return answers_[id];
  }
  // The last row of an answer that must be OK.
  std::string Rows(uint64_t id) {
    const Answer& answer = Wait(id);
    EXPECT_EQ(answer.code, StatusCode::kOk) << answer.message;
    return answer.rows;
  }
  // Ends the stream in order; its status.
  grpc::Status Finish() {
    stream_->WritesDone();
    while (Read()) {
    }
    const grpc::Status status = stream_->Finish();
    stream_.reset();
    return status;
  }
  // Breaks the stream off.
  void Vanish() {
    context_.TryCancel();
    v1::BlockReplyBatch ignored;
    while (stream_->Read(&ignored)) {
    }
    stream_->Finish();
    stream_.reset();
  }

  v1::BlockServiceHello hello;
  v1::BlockLoad load;
  bool draining = false;
  uint64_t pong = 0;
  int messages = 0;
  size_t largest_message = 0;

 private:
  std::unique_ptr<v1::BlockDecoder::Stub> stub_;
  grpc::ClientContext context_;
  std::unique_ptr<grpc::ClientReaderWriter<v1::BlockRequestBatch, v1::BlockReplyBatch>> stream_;
  v1::BlockRequestBatch batch_;
  uint64_t last_id_ = 0;
  std::map<uint64_t, Answer> answers_;
};

std::unique_ptr<RpcServer> Serve(BlockService& service) {
  absl::StatusOr<std::unique_ptr<RpcServer>> server = RpcServer::Start({}, {service.service()});
  EXPECT_TRUE(server.ok()) << server.status();
  return *std::move(server);
}

// ---- with real engines

struct Case {
  std::vector<int32_t> blocks;  // [n, L], pads included
  std::vector<float> contexts;  // [n, D]; empty for the vanilla model
  std::vector<float> logits;    // [steps, V], before each of the first greedy tokens
};

struct Model {
  explicit Model(const std::string& name, BlockServiceConfig config = {}, int threads = 2)
      : directory(absl::StrCat("tests/golden/", name)), pool(threads) {
    absl::StatusOr<std::unique_ptr<Checkpoint>> opened = Checkpoint::Open(directory);
    EXPECT_TRUE(opened.ok()) << opened.status();
    checkpoint = *std::move(opened);
    if (config.kv_pages == 0) config.kv_pages = 256;
    absl::StatusOr<std::unique_ptr<BlockService>> created =
        BlockService::Create(config, *checkpoint, &pool);
    EXPECT_TRUE(created.ok()) << created.status();
    service = *std::move(created);
    server = Serve(*service);
  }
  ~Model() {
    service->Stop();
    server->Shutdown(absl::ZeroDuration());
  }

  static std::vector<float> Floats(const TensorView* tensor) {
    if (tensor == nullptr) return {};
    std::vector<float> values(static_cast<size_t>(tensor->num_elements()));
    std::memcpy(values.data(), tensor->data.data(), tensor->data.size());
    return values;
  }

  // The vanilla model's golden numbers hold no contexts: its head turns them into logits, [V].
  std::vector<float> HeadOf(absl::Span<const float> context) const {
    const TensorView head = checkpoint->Find("embed_out.weight").value();
    const std::vector<float> weights = Floats(&head);
    std::vector<float> logits(weights.size() / context.size());
    for (size_t v = 0; v < logits.size(); ++v) {
      double sum = 0;
      for (size_t i = 0; i < context.size(); ++i) {
        sum += double{weights[v * context.size() + i]} * context[i];
      }
      logits[v] = static_cast<float>(sum);
    }
    return logits;
  }

  std::vector<Case> Cases() const {
    std::ifstream file(absl::StrCat(directory, "/expected.json"));
    const nlohmann::json expected = nlohmann::json::parse(file);
    absl::StatusOr<SafetensorsSet> tensors =
        SafetensorsSet::OpenFile(absl::StrCat(directory, "/expected.safetensors"));
    EXPECT_TRUE(tensors.ok()) << tensors.status();
    std::vector<Case> cases;
    for (size_t i = 0; i < expected["cases"].size(); ++i) {
      const auto prompt = expected["cases"][i]["prompt"].get<std::vector<int32_t>>();
      Case& golden = cases.emplace_back();
      golden.blocks = LayoutPrompt(checkpoint->config(), Alignment::kEnd, prompt).block_tokens;
      golden.contexts = Floats(tensors->Find(absl::StrCat("context.", i)));
      golden.logits = Floats(tensors->Find(absl::StrCat("logits.", i)));
    }
    return cases;
  }

  int32_t length() const { return checkpoint->config().block_length; }
  size_t row_bytes() const {
    return static_cast<size_t>(checkpoint->config().block.hidden_size) * sizeof(float);
  }

  std::string directory;
  std::unique_ptr<Checkpoint> checkpoint;
  ThreadPool pool;
  std::unique_ptr<BlockService> service;
  std::unique_ptr<RpcServer> server;
};

// Within 1e-5 of the largest magnitude.
void ExpectClose(absl::Span<const float> values, absl::Span<const float> expected) {
  ASSERT_EQ(values.size(), expected.size());
  float largest = 0, worst = 0;
  for (size_t i = 0; i < values.size(); ++i) {
    largest = std::max(largest, std::abs(expected[i]));
    worst = std::max(worst, std::abs(values[i] - expected[i]));
  }
  EXPECT_GT(largest, 0);
  EXPECT_LE(worst, 1e-5f * largest);
}

class BlockServiceGolden : public testing::TestWithParam<std::string> {};

TEST_P(BlockServiceGolden, TheHelloTellsModelAndCapacity) {
  BlockServiceConfig config;
  config.name = "replica 7";
  Model model(GetParam(), config);
  Gateway gateway(model.server->InProcessChannel());
  ASSERT_TRUE(gateway.Read());
  const v1::BlockServiceHello& hello = gateway.hello;
  EXPECT_EQ(hello.tier().protocol_version(), kTierProtocolVersion);
  EXPECT_EQ(hello.tier().config_hash(), ConfigHash(model.checkpoint->config()));
  EXPECT_EQ(hello.tier().part_hash(), model.checkpoint->HashTensors(Checkpoint::Part::kBlock));
  EXPECT_THAT(hello.tier().numeric_id(), StartsWith("f32-"));
  EXPECT_EQ(hello.tier().name(), "replica 7");
  EXPECT_EQ(hello.block_length(), model.length());
  EXPECT_EQ(hello.context_width(), 64);
  EXPECT_EQ(hello.context_type(), v1::CONTEXT_TYPE_FLOAT32);
  EXPECT_EQ(hello.pages(), 256);
  EXPECT_EQ(hello.page_blocks(), 16);
  EXPECT_EQ(hello.max_blocks_per_sequence(), 2048);
}

TEST_P(BlockServiceGolden, ContextsAreThoseOfTheReference) {
  Model model(GetParam());
  Gateway gateway(model.server->InProcessChannel());
  const std::vector<Case> cases = model.Cases();
  std::vector<uint64_t> ids;
  for (size_t i = 0; i < cases.size(); ++i) {
    ids.push_back(gateway.Open(i, cases[i].blocks, 0, /*close_after=*/true));
  }
  gateway.Flush();
  for (size_t i = 0; i < cases.size(); ++i) {
    const std::string rows = gateway.Rows(ids[i]);
    std::vector<float> contexts(rows.size() / sizeof(float));
    std::memcpy(contexts.data(), rows.data(), rows.size());
    if (cases[i].contexts.empty()) {
      const std::vector<float> logits =
          model.HeadOf(absl::MakeConstSpan(contexts).last(model.row_bytes() / sizeof(float)));
      ExpectClose(logits, absl::MakeConstSpan(cases[i].logits).subspan(0, logits.size()));
    } else {
      ExpectClose(contexts, cases[i].contexts);
    }
  }
  EXPECT_EQ(model.service->stats().load.pages.sequences, 0);
}

// The contract: a row does not depend on how its blocks came to be.
TEST_P(BlockServiceGolden, RowsAreBitwiseTheSameWhicheverWayTheyCome) {
  BlockServiceConfig small_chunks;
  small_chunks.prefill_chunk = 3;
  small_chunks.page_blocks = 4;
  small_chunks.groups = 1;
  Model model(GetParam());
  Model other(GetParam(), small_chunks, /*threads=*/1);
  const std::vector<int32_t> tokens = model.Cases().back().blocks;
  const size_t length = static_cast<size_t>(model.length());
  const size_t row_bytes = model.row_bytes();
  const int64_t blocks = static_cast<int64_t>(tokens.size() / length);
  const auto block = [&](int64_t i) {
    return absl::MakeConstSpan(tokens).subspan(static_cast<size_t>(i) * length, length);
  };
  const auto first = [&](int64_t n) {
    return absl::MakeConstSpan(tokens).subspan(0, static_cast<size_t>(n) * length);
  };
  // The reference: one prefill of everything, alone.
  Gateway gateway(model.server->InProcessChannel());
  const uint64_t all = gateway.Open(1, tokens, 0);
  gateway.Flush();
  const std::string reference = gateway.Rows(all);
  ASSERT_EQ(reference.size(), static_cast<size_t>(blocks) * row_bytes);
  const auto row = [&](int64_t i) {
    return reference.substr(static_cast<size_t>(i) * row_bytes, row_bytes);
  };

  // Prefilled in small chunks on other pages, with other work in the batch.
  Gateway elsewhere(other.server->InProcessChannel());
  std::vector<int32_t> noise(tokens.rbegin(), tokens.rend());
  elsewhere.Open(50, noise);
  elsewhere.Open(51, first(5));
  const uint64_t chunked = elsewhere.Open(1, tokens, 0);
  elsewhere.Flush();
  EXPECT_TRUE(elsewhere.Rows(chunked) == reference);

  // Decoded block by block, together with forks and another sequence.
  const uint64_t start = gateway.Open(2, first(1));
  gateway.Open(3, noise);
  gateway.Flush();
  EXPECT_TRUE(gateway.Rows(start) == row(0));
  const int64_t fork_at = blocks / 2;
  for (int64_t i = 1; i < blocks; ++i) {
    const uint64_t append = gateway.Append(2, i, block(i));
    uint64_t on_fork = 0;
    if (i == fork_at) gateway.Fork(4, 2, fork_at);
    if (i >= fork_at) on_fork = gateway.Append(4, i, block(i));
    gateway.Flush();
    EXPECT_TRUE(gateway.Rows(append) == row(i)) << "decoded block " << i;
    if (on_fork != 0) {
      EXPECT_TRUE(gateway.Rows(on_fork) == row(i)) << "forked block " << i;
    }
  }

  // With a hit in the prefix cache, for each length of prompt.
  gateway.Close(1);
  gateway.Flush();
  int64_t hits = 0;
  for (int64_t n = 1; n <= blocks; ++n) {
    const uint64_t again = gateway.Open(100 + static_cast<uint64_t>(n), first(n));
    gateway.Flush();
    EXPECT_TRUE(gateway.Rows(again) == row(n - 1)) << n << " blocks";
    hits += gateway.Wait(again).cached_blocks;
    gateway.Close(100 + static_cast<uint64_t>(n));
  }
  EXPECT_GT(hits, 0);

  // And repeated.
  const uint64_t repeated = gateway.Append(2, blocks - 1, block(blocks - 1));
  gateway.Flush();
  EXPECT_TRUE(gateway.Rows(repeated) == row(blocks - 1));
}

TEST_P(BlockServiceGolden, Bfloat16RowsTravelAsBfloat16) {
  BlockServiceConfig config;
  config.arithmetic = "bf16";
  Model model(GetParam(), config);
  Gateway gateway(model.server->InProcessChannel());
  const std::vector<int32_t> tokens = model.Cases().back().blocks;
  const uint64_t all = gateway.Open(1, tokens, 0);
  gateway.Flush();
  const std::string rows = gateway.Rows(all);
  EXPECT_EQ(gateway.hello.context_type(), v1::CONTEXT_TYPE_BFLOAT16);
  EXPECT_THAT(gateway.hello.tier().numeric_id(), StartsWith("bf16-"));
  EXPECT_EQ(rows.size(), tokens.size() / static_cast<size_t>(model.length()) * 64 * 2);
}

INSTANTIATE_TEST_SUITE_P(Models, BlockServiceGolden, testing::Values("concat_l4", "vanilla"),
                         [](const auto& info) { return info.param; });

TEST(BlockServiceCreate, NamesTheFlagThatIsWrong) {
  absl::StatusOr<std::unique_ptr<Checkpoint>> checkpoint =
      Checkpoint::Open("tests/golden/concat_l4");
  ASSERT_TRUE(checkpoint.ok());
  ThreadPool pool(1);
  const auto message = [&](auto change) {
    BlockServiceConfig config;
    change(config);
    const auto service = BlockService::Create(config, **checkpoint, &pool);
    EXPECT_FALSE(service.ok());
    return std::string(service.status().message());
  };
  EXPECT_THAT(message([](auto& c) { c.arithmetic = "f64"; }), HasSubstr("--arithmetic"));
  EXPECT_THAT(message([](auto& c) { c.page_blocks = 0; }), HasSubstr("--page-blocks"));
  EXPECT_THAT(message([](auto& c) { c.max_sequences = 0; }), HasSubstr("--max-sequences"));
  EXPECT_THAT(message([](auto& c) { c.prefill_chunk = 0; }), HasSubstr("--prefill-chunk"));
  EXPECT_THAT(message([](auto& c) { c.groups = 0; }), HasSubstr("--groups"));
  EXPECT_THAT(message([](auto& c) { c.kv_memory_mib = -1; }), HasSubstr("--kv-memory-mib"));
  EXPECT_THAT(message([](auto& c) { c.kv_pages = 2'000'000'000; }), HasSubstr("--kv-pages"));
  EXPECT_THAT(message([](auto& c) {
                c.kv_pages = 1;
                c.page_blocks = 2;
              }),
              HasSubstr("at least"));
}

// ---- with the test engine: L 2, D 4

struct Fake {
  explicit Fake(BlockServiceConfig config = {}, std::function<std::string()> hash = nullptr) {
    BlockServiceParts parts;
    auto owned = std::make_unique<TestBlockEngine>(2, 100);
    parts.engine = std::move(owned);
    parts.config_hash = "the config";
    parts.tokenizer_hash = "the tokenizer";
    parts.numeric_id = "test-1";
    parts.hash_part = hash ? std::move(hash) : [] { return std::string("the tensors"); };
    if (config.kv_pages == 0) config.kv_pages = 64;
    config.page_blocks = 4;
    absl::StatusOr<std::unique_ptr<BlockService>> created =
        BlockService::Create(config, std::move(parts));
    EXPECT_TRUE(created.ok()) << created.status();
    service = *std::move(created);
    server = Serve(*service);
  }
  ~Fake() {
    service->Stop();
    server->Shutdown(absl::ZeroDuration());
  }
  std::shared_ptr<grpc::Channel> channel() { return server->InProcessChannel(); }
  static std::string Expected(const std::vector<int32_t>& tokens) {
    const std::vector<float> row = TestBlockEngine::Row(tokens, 2);
    return std::string(reinterpret_cast<const char*>(row.data()), row.size() * sizeof(float));
  }

  std::unique_ptr<BlockService> service;
  std::unique_ptr<RpcServer> server;
};

TEST(BlockServiceStream, AMalformedItemFailsAloneWhileOthersGoOn) {
  Fake fake;
  Gateway gateway(fake.channel());
  const uint64_t good = gateway.Open(1, {1, 2, 3, 4});
  const uint64_t odd = gateway.Open(2, {1, 2, 3});
  const uint64_t outside = gateway.Open(3, {1, 100});
  const uint64_t unknown = gateway.Append(9, 0, {1, 2});
  gateway.Add(1);  // no call
  const uint64_t poison = gateway.Open(4, {1, 2, TestBlockEngine::kPoison, 1});
  const uint64_t last = gateway.Open(5, {5, 6});
  gateway.Flush();
  EXPECT_EQ(gateway.Rows(good), Fake::Expected({1, 2, 3, 4}));
  EXPECT_EQ(gateway.Rows(last), Fake::Expected({5, 6}));
  EXPECT_EQ(gateway.Wait(odd).code, StatusCode::kInvalidArgument);
  EXPECT_THAT(gateway.Wait(odd).message, HasSubstr("open.tokens has 3 ids"));
  EXPECT_EQ(gateway.Wait(outside).code, StatusCode::kInvalidArgument);
  EXPECT_EQ(gateway.Wait(unknown).code, StatusCode::kNotFound);
  EXPECT_EQ(gateway.Wait(unknown + 1).code, StatusCode::kInvalidArgument);
  EXPECT_EQ(gateway.Wait(poison).code, StatusCode::kInternal);
  EXPECT_TRUE(gateway.Finish().ok());
}

TEST(BlockServiceStream, HellosThatDoNotFitEndTheStreamNamingWhatDiffers) {
  Fake fake;
  const auto status_of = [&](auto change) {
    v1::GatewayHello hello = Gateway::DefaultHello();
    change(hello);
    Gateway gateway(fake.channel(), 1, hello);
    EXPECT_FALSE(gateway.Read());
    return gateway.Finish();
  };
  grpc::Status status = status_of([](auto& hello) { hello.set_config_hash("another"); });
  EXPECT_EQ(status.error_code(), grpc::StatusCode::FAILED_PRECONDITION);
  EXPECT_THAT(status.error_message(), HasSubstr("config_hash is another"));
  status = status_of([](auto& hello) { hello.set_tokenizer_hash("another"); });
  EXPECT_EQ(status.error_code(), grpc::StatusCode::FAILED_PRECONDITION);
  EXPECT_THAT(status.error_message(), HasSubstr("tokenizer_hash is another"));
  status = status_of([](auto& hello) { hello.set_protocol_version(kTierProtocolVersion + 2); });
  EXPECT_EQ(status.error_code(), grpc::StatusCode::FAILED_PRECONDITION);
  EXPECT_THAT(status.error_message(), HasSubstr("protocol_version"));
  v1::GatewayHello fits = Gateway::DefaultHello();
  fits.set_protocol_version(kTierProtocolVersion + 1);
  fits.set_config_hash("the config");
  fits.set_tokenizer_hash("the tokenizer");
  Gateway gateway(fake.channel(), 1, fits);
  EXPECT_TRUE(gateway.Read());
  EXPECT_EQ(gateway.hello.tier().part_hash(), "the tensors");
}

TEST(BlockServiceStream, AStreamWithoutHelloIsRefused) {
  Fake fake;
  auto stub = v1::BlockDecoder::NewStub(fake.channel());
  grpc::ClientContext context;
  auto stream = stub->Run(&context);
  v1::BlockRequestBatch batch;
  batch.add_items()->mutable_close();
  stream->Write(batch);
  v1::BlockReplyBatch reply;
  EXPECT_FALSE(stream->Read(&reply));
  const grpc::Status status = stream->Finish();
  EXPECT_EQ(status.error_code(), grpc::StatusCode::INVALID_ARGUMENT);
  EXPECT_THAT(status.error_message(), HasSubstr("hello"));
}

TEST(BlockServiceStream, HashingDoesNotDelayListeningAndTheHelloComesFirst) {
  absl::Notification go_on;
  Fake fake({}, [&] {
    go_on.WaitForNotification();
    return std::string("late");
  });
  Gateway gateway(fake.channel());
  const uint64_t open = gateway.Open(1, {1, 2});
  gateway.Flush();
  go_on.Notify();
  EXPECT_EQ(gateway.Rows(open), Fake::Expected({1, 2}));
  EXPECT_EQ(gateway.hello.tier().part_hash(), "late");
}

TEST(BlockServiceStream, ItemsBeyondTheBoundAreRefusedAtOnce) {
  absl::Notification go_on;
  BlockServiceConfig config;
  config.max_items_per_stream = 3;
  Fake fake(config, [&] {
    go_on.WaitForNotification();
    return std::string();
  });
  Gateway gateway(fake.channel());
  std::vector<uint64_t> ids;
  for (uint64_t sequence = 1; sequence <= 5; ++sequence)
    ids.push_back(gateway.Open(sequence, {1, 2}));
  const uint64_t close = gateway.Close(1);
  gateway.Flush();
  go_on.Notify();
  for (size_t i = 1; i < 5; ++i) {
    const StatusCode expected = i < 3 ? StatusCode::kOk : StatusCode::kResourceExhausted;
    EXPECT_EQ(gateway.Wait(ids[i]).code, expected) << i;
  }
  EXPECT_EQ(gateway.Wait(close).code, StatusCode::kOk) << "what frees something is never refused";
  const uint64_t later = gateway.Open(9, {1, 2});
  gateway.Flush();
  EXPECT_EQ(gateway.Wait(later).code, StatusCode::kOk);
}

TEST(BlockServiceStream, LongScoresComeInMessagesOfBoundedSize) {
  BlockServiceConfig config;
  config.max_reply_bytes = 5 * 16;  // rows of D 4
  Fake fake(config);
  Gateway gateway(fake.channel());
  std::vector<int32_t> tokens;
  for (int32_t i = 0; i < 200; ++i) tokens.push_back(i % 90);
  const uint64_t score = gateway.Open(1, tokens, 3, /*close_after=*/true);
  const uint64_t other = gateway.Open(2, {1, 2});
  gateway.Flush();
  const std::string rows = gateway.Rows(score);
  ASSERT_EQ(rows.size(), 97u * 16);
  EXPECT_EQ(gateway.Wait(score).first_block, 3);
  for (size_t i = 0; i < 97; ++i) {
    EXPECT_EQ(rows.substr(i * 16, 16),
              Fake::Expected({tokens.begin(), tokens.begin() + static_cast<long>(2 * (i + 4))}));
  }
  EXPECT_GE(gateway.Wait(score).replies, 97 / 5);
  EXPECT_EQ(gateway.Rows(other), Fake::Expected({1, 2}));
  EXPECT_LT(gateway.largest_message, 400u);
}

TEST(BlockServiceStream, RepliesTellLoadAndSteps) {
  Fake fake;
  Gateway gateway(fake.channel());
  const uint64_t open = gateway.Open(1, {1, 2, 3, 4, 5, 6, 7, 8, 9, 10}, -1, false, 0);
  gateway.Flush();
  gateway.Wait(open);
  EXPECT_EQ(gateway.load.steps(), 1u);
  EXPECT_EQ(gateway.load.sequences(), 1);
  EXPECT_EQ(gateway.load.free_pages(), 62);
  EXPECT_EQ(gateway.load.waiting(), 0);
  const uint64_t close = gateway.Close(1);
  gateway.Flush();
  gateway.Wait(close);
  EXPECT_EQ(gateway.load.sequences(), 0);
  EXPECT_EQ(gateway.load.free_pages(), 63);
  EXPECT_EQ(gateway.load.cached_pages(), 1);
}

TEST(BlockServiceStream, APingIsAnsweredWithItsNumberAndNeverBeforeTheHello) {
  Fake fake;
  Gateway gateway(fake.channel());
  gateway.Ping(41);  // comes before the hello is said, or after it
  ASSERT_TRUE(gateway.Read());
  EXPECT_TRUE(gateway.hello.tier().answers_pings());
  gateway.Ping(42);
  while (gateway.pong != 42) ASSERT_TRUE(gateway.Read());
}

TEST(BlockServiceStream, ASequenceSurvivesABrokenStream) {
  Fake fake;
  {
    Gateway gateway(fake.channel(), 42);
    const uint64_t open = gateway.Open(1, {1, 2});
    gateway.Flush();
    gateway.Wait(open);
    gateway.Vanish();
  }
  Gateway other(fake.channel(), 43);
  const uint64_t foreign = other.Append(1, 1, {3, 4});
  other.Flush();
  EXPECT_EQ(other.Wait(foreign).code, StatusCode::kNotFound);
  Gateway again(fake.channel(), 42);
  const uint64_t append = again.Append(1, 1, {3, 4});
  again.Flush();
  EXPECT_EQ(again.Rows(append), Fake::Expected({1, 2, 3, 4}));
}

TEST(BlockServiceStream, AGatewayThatVanishesLeavesNothingBehind) {
  BlockServiceConfig config;
  config.lease = absl::ZeroDuration();
  Fake fake(config);
  {
    Gateway gateway(fake.channel());
    const uint64_t open = gateway.Open(1, {1, 2});
    gateway.Open(2, {1, 2, 3, 4});
    gateway.Flush();
    gateway.Wait(open);
    gateway.Vanish();
  }
  EXPECT_TRUE(fake.service->WaitUntilEmpty(absl::Seconds(60)));
  const BlockSchedulerLoad pages = fake.service->stats().load.pages;
  EXPECT_EQ(pages.free_pages + pages.cached_pages, 64);
}

TEST(BlockServiceStream, DrainingIsToldToAllAndSequencesFinish) {
  Fake fake;
  Gateway one(fake.channel(), 1), two(fake.channel(), 2);
  const uint64_t open = one.Open(1, {1, 2});
  one.Flush();
  one.Wait(open);
  EXPECT_TRUE(two.Read());
  fake.service->StartDraining();
  while (!two.draining) ASSERT_TRUE(two.Read());
  const uint64_t refused = two.Open(1, {1, 2});
  two.Flush();
  EXPECT_EQ(two.Wait(refused).code, StatusCode::kUnavailable);
  const uint64_t append = one.Append(1, 1, {3, 4});
  one.Flush();
  EXPECT_EQ(one.Rows(append), Fake::Expected({1, 2, 3, 4}));
  EXPECT_TRUE(one.draining);
  EXPECT_FALSE(fake.service->WaitUntilEmpty(absl::ZeroDuration()));
  one.Close(1);
  one.Flush();
  EXPECT_TRUE(fake.service->WaitUntilEmpty(absl::Seconds(60)));
  fake.service->Stop();
  EXPECT_EQ(one.Finish().error_code(), grpc::StatusCode::UNAVAILABLE);
  EXPECT_EQ(two.Finish().error_code(), grpc::StatusCode::UNAVAILABLE);
  Gateway late(fake.channel(), 3);
  EXPECT_EQ(late.Finish().error_code(), grpc::StatusCode::UNAVAILABLE);
}

TEST(BlockServiceStream, StoppingWhileHashingWaitsForTheHashAlone) {
  absl::Notification hashing, go_on;
  auto fake = std::make_unique<Fake>(BlockServiceConfig{}, [&] {
    hashing.Notify();
    go_on.WaitForNotification();
    return std::string();
  });
  hashing.WaitForNotification();
  auto gateway = std::make_unique<Gateway>(fake->channel());
  gateway->Open(1, {1, 2});
  gateway->Flush();
  go_on.Notify();
  fake->service->Stop();
  const grpc::StatusCode code = gateway->Finish().error_code();
  EXPECT_EQ(code, grpc::StatusCode::UNAVAILABLE);
}

}  // namespace
}  // namespace blockserve
