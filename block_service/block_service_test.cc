// The service's streams over an in-process channel, with the test engine: L 2, D 4.
#include "block_service/block_service.h"

#include <memory>
#include <string>
#include <vector>

#include "absl/strings/str_split.h"
#include "absl/synchronization/notification.h"
#include "block_service/test_engine.h"
#include "block_service/test_gateway.h"
#include "common/log_budget.h"
#include "common/logging.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace blockserve {
namespace {

using absl::StatusCode;
using testing::HasSubstr;

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

TEST(BlockService, TakesNoMoreKvByItselfThanAProcessOfThatMuchMemoryCanHave) {
  EXPECT_EQ(DefaultKvBytes(int64_t{768} << 20), int64_t{192} << 20);  // of a small container, say
  EXPECT_EQ(DefaultKvBytes(int64_t{64} << 30), int64_t{1} << 30);
}

TEST(BlockService, NamesTheFlagOfWhatAnEngineRefuses) {
  const auto refusal = [](absl::Status status, int64_t kv_pages) {
    BlockServiceParts parts;
    auto engine = std::make_unique<TestBlockEngine>(2, 100);
    engine->RefuseKv(std::move(status));
    parts.engine = std::move(engine);
    BlockServiceConfig config;
    config.kv_pages = kv_pages;
    return std::string(BlockService::Create(config, std::move(parts)).status().message());
  };
  EXPECT_EQ(refusal(absl::InvalidArgumentError("odd"), 0), "odd (--page-blocks)");
  EXPECT_EQ(refusal(absl::InvalidArgumentError("odd"), 64), "odd (--page-blocks)");
  EXPECT_EQ(refusal(absl::ResourceExhaustedError("full"), 0), "full (--kv-memory-mib)");
  EXPECT_EQ(refusal(absl::ResourceExhaustedError("full"), 64), "full (--kv-pages)");
}

TEST(BlockServiceStream, AMalformedItemFailsAloneWhileOthersGoOn) {
  Fake fake;
  TestGateway gateway(fake.channel());
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
    v1::GatewayHello hello = TestGateway::DefaultHello();
    change(hello);
    TestGateway gateway(fake.channel(), 1, hello);
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
  v1::GatewayHello fits = TestGateway::DefaultHello();
  fits.set_protocol_version(kTierProtocolVersion + 1);
  fits.set_config_hash("the config");
  fits.set_tokenizer_hash("the tokenizer");
  TestGateway gateway(fake.channel(), 1, fits);
  EXPECT_TRUE(gateway.Read());
  EXPECT_EQ(gateway.hello.tier().part_hash(), "the tensors");
}

TEST(BlockServiceStream, AGatewayThatComesAgainAndAgainFillsNoLog) {
  Fake fake;
  v1::GatewayHello hello = TestGateway::DefaultHello();
  hello.set_config_hash("another");
  testing::internal::CaptureStderr();
  ASSERT_TRUE(ConfigureLogging({.program = "p"}).ok());
  for (int i = 0; i < 3 * LogBudget::kLines; ++i) {
    TestGateway gateway(fake.channel(), 1, hello);
    EXPECT_FALSE(gateway.Read());
    EXPECT_FALSE(gateway.Finish().ok());
  }
  const std::vector<std::string> lines =
      absl::StrSplit(testing::internal::GetCapturedStderr(), '\n', absl::SkipEmpty());
  ASSERT_EQ(lines.size(), LogBudget::kLines);
  EXPECT_THAT(lines.front(), HasSubstr("does not fit: config_hash is another"));
  EXPECT_THAT(lines.back(), HasSubstr("left_out=\"the next ones, for some minutes\""));
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
  TestGateway gateway(fake.channel());
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
  TestGateway gateway(fake.channel());
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

TEST(BlockServiceStream, EverySequenceOfALargeServiceMayHaveItsItems) {
  constexpr int32_t kSequences = 5000;
  absl::Notification go_on;
  BlockServiceConfig config;
  config.max_sequences = kSequences;
  config.kv_pages = kSequences;
  Fake fake(config, [&] {
    go_on.WaitForNotification();
    return std::string();
  });
  TestGateway gateway(fake.channel());
  std::vector<uint64_t> opens;
  for (uint64_t sequence = 1; sequence <= kSequences; ++sequence) {
    opens.push_back(gateway.Open(sequence, {1, 2}, -1, false, /*reserve_blocks=*/0));
  }
  gateway.Flush();
  go_on.Notify();
  for (const uint64_t open : opens) ASSERT_EQ(gateway.Wait(open).code, StatusCode::kOk);
}

TEST(BlockServiceStream, LongScoresComeInMessagesOfBoundedSize) {
  BlockServiceConfig config;
  config.max_reply_bytes = 5 * 16;  // rows of D 4
  Fake fake(config);
  TestGateway gateway(fake.channel());
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
  TestGateway gateway(fake.channel());
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
  TestGateway gateway(fake.channel());
  gateway.Ping(41);  // comes before the hello is said, or after it
  ASSERT_TRUE(gateway.Read());
  EXPECT_TRUE(gateway.hello.tier().answers_pings());
  while (gateway.pong != 41) ASSERT_TRUE(gateway.Read());
  gateway.Ping(42);
  while (gateway.pong != 42) ASSERT_TRUE(gateway.Read());
}

TEST(BlockServiceStream, ASequenceSurvivesABrokenStream) {
  Fake fake;
  {
    TestGateway gateway(fake.channel(), 42);
    const uint64_t open = gateway.Open(1, {1, 2});
    gateway.Flush();
    gateway.Wait(open);
    gateway.Vanish();
  }
  TestGateway other(fake.channel(), 43);
  const uint64_t foreign = other.Append(1, 1, {3, 4});
  other.Flush();
  EXPECT_EQ(other.Wait(foreign).code, StatusCode::kNotFound);
  TestGateway again(fake.channel(), 42);
  const uint64_t append = again.Append(1, 1, {3, 4});
  again.Flush();
  EXPECT_EQ(again.Rows(append), Fake::Expected({1, 2, 3, 4}));
}

TEST(BlockServiceStream, AGatewayThatVanishesLeavesNothingBehind) {
  BlockServiceConfig config;
  config.lease = absl::ZeroDuration();
  Fake fake(config);
  {
    TestGateway gateway(fake.channel());
    const uint64_t open = gateway.Open(1, {1, 2});
    gateway.Open(2, {1, 2, 3, 4});
    gateway.Flush();
    gateway.Wait(open);
    gateway.Vanish();
  }
  EXPECT_TRUE(fake.service->WaitUntilDrained(absl::Seconds(60)));
  const BlockSchedulerLoad pages = fake.service->stats().load.pages;
  EXPECT_EQ(pages.free_pages + pages.cached_pages, 64);
}

TEST(BlockServiceStream, DrainingIsToldToAllAndSequencesFinish) {
  Fake fake;
  TestGateway one(fake.channel(), 1), two(fake.channel(), 2);
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
  EXPECT_FALSE(fake.service->WaitUntilDrained(absl::ZeroDuration()));
  one.Close(1);
  one.Flush();
  EXPECT_TRUE(fake.service->WaitUntilDrained(absl::Seconds(60)));
  fake.service->Stop();
  EXPECT_EQ(one.Finish().error_code(), grpc::StatusCode::UNAVAILABLE);
  EXPECT_EQ(two.Finish().error_code(), grpc::StatusCode::UNAVAILABLE);
  TestGateway late(fake.channel(), 3);
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
  auto gateway = std::make_unique<TestGateway>(fake->channel());
  gateway->Open(1, {1, 2});
  gateway->Flush();
  go_on.Notify();
  fake->service->Stop();
  const grpc::StatusCode code = gateway->Finish().error_code();
  EXPECT_EQ(code, grpc::StatusCode::UNAVAILABLE);
}

}  // namespace
}  // namespace blockserve
