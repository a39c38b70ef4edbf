// The service over real in-process gRPC, on an engine that can be held.
#include "token_service/token_service.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <thread>

#include "absl/strings/str_split.h"
#include "common/log_budget.h"
#include "common/logging.h"
#include "rpc/server.h"
#include "token_service/fake_token_engine.h"
#include "token_service/token_client_for_test.h"

namespace blockserve {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;

class TokenServiceTest : public testing::Test {
 protected:
  void Start(const TokenServiceConfig& config = {}, Gate* hash_gate = nullptr,
             int32_t block_length = 4) {
    TokenServiceIdentity identity;
    identity.config_hash = "config";
    identity.tokenizer_hash = "tokenizer";
    identity.numeric_id = "f32-0123";
    identity.part_hash = [hash_gate] {
      if (hash_gate != nullptr) hash_gate->Pass();
      return std::string("part");
    };
    auto service = TokenService::CreateOnEngine(
        config, std::make_unique<FakeTokenEngine>(&gate_, block_length), std::move(identity));
    ASSERT_TRUE(service.ok()) << service.status();
    service_ = *std::move(service);
    auto server = RpcServer::Start(ServerOptions(), {service_->service()});
    ASSERT_TRUE(server.ok()) << server.status();
    server_ = *std::move(server);
    channel_ = server_->InProcessChannel();
  }
  void TearDown() override {
    gate_.Open();
    if (service_ != nullptr) service_->Stop();
    if (server_ != nullptr) server_->Shutdown(absl::ZeroDuration());
    if (service_ != nullptr) {
      EXPECT_EQ(service_->stats().streams, 0);
    }
    service_.reset();
    channel_.reset();
    server_.reset();
  }
  // Rows first, first + 1, …; the fake engine writes id, id + 1, ….
  static v1::TokenRequestBatch Rows(uint64_t first, int count) {
    v1::TokenRequestBatch batch;
    for (uint64_t id = first; id < first + count; ++id) {
      AddRow(batch, id, {static_cast<float>(id), 0.0f}, 4);
    }
    return batch;
  }

  Gate gate_;
  std::unique_ptr<TokenService> service_;
  std::unique_ptr<RpcServer> server_;
  std::shared_ptr<grpc::Channel> channel_;
};

TEST_F(TokenServiceTest, SaysHello) {
  Start({.name = "worker-7", .max_rows = 8, .max_queued_rows = 33});
  TokenClient client(channel_);
  const auto hello = client.Hello();
  ASSERT_TRUE(hello.has_value());
  EXPECT_EQ(hello->tier().protocol_version(), kTierProtocolVersion);
  EXPECT_NE(hello->tier().incarnation(), 0u);
  EXPECT_EQ(hello->tier().config_hash(), "config");
  EXPECT_EQ(hello->tier().tokenizer_hash(), "tokenizer");
  EXPECT_EQ(hello->tier().part_hash(), "part");
  EXPECT_EQ(hello->tier().numeric_id(), "f32-0123");
  EXPECT_EQ(hello->tier().name(), "worker-7");
  EXPECT_FALSE(hello->tier().version().empty());
  EXPECT_EQ(hello->block_length(), 4);
  EXPECT_EQ(hello->context_width(), 2);
  EXPECT_EQ(hello->vocab_size(), 100);
  EXPECT_EQ(hello->max_rows(), 8);
  EXPECT_EQ(hello->max_queued_rows(), 33);
}

TEST_F(TokenServiceTest, SaysHelloWhenTheHashIsKnownAndAnswersAfterIt) {
  Gate hash_gate;
  hash_gate.Close();
  Start({}, &hash_gate);
  TokenClient early(channel_);
  early.Send(HelloMessage());
  early.Send(Rows(1, 3));
  // The rows are worked on meanwhile.
  ASSERT_TRUE(gate_.WaitForArrivals(1));
  ASSERT_TRUE(service_->WaitUntilDrained(absl::Minutes(1)));
  hash_gate.Open();
  ASSERT_TRUE(early.WaitForHello().has_value());
  EXPECT_EQ(early.WaitForRows(3).size(), 3u);
  EXPECT_EQ(early.faults(), 0);
}

TEST_F(TokenServiceTest, RefusesAHelloThatDoesNotFit) {
  Start();
  const auto refusal = [&](const std::function<void(v1::TokenRequestBatch&)>& change) {
    v1::TokenRequestBatch hello = HelloMessage();
    change(hello);
    TokenClient client(channel_);
    client.Send(hello);
    return client.WaitForEnd();
  };
  absl::Status status =
      refusal([](auto& message) { message.mutable_hello()->set_config_hash("other"); });
  EXPECT_EQ(status.code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(std::string(status.message()), HasSubstr("config_hash"));
  status = refusal([](auto& message) { message.mutable_hello()->set_tokenizer_hash("other"); });
  EXPECT_EQ(status.code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(std::string(status.message()), HasSubstr("tokenizer_hash"));
  status = refusal([](auto& message) { message.mutable_hello()->set_protocol_version(0); });
  EXPECT_EQ(status.code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(std::string(status.message()), HasSubstr("protocol_version is 0"));
  status = refusal([](auto& message) {
    message.mutable_hello()->set_protocol_version(kTierProtocolVersion + 2);
  });
  EXPECT_EQ(status.code(), absl::StatusCode::kFailedPrecondition);
  status = refusal([](auto& message) { message.clear_hello(); });
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(status.message()), HasSubstr("hello"));
}

TEST_F(TokenServiceTest, AGatewayThatComesAgainAndAgainFillsNoLog) {
  Start();
  v1::TokenRequestBatch hello = HelloMessage();
  hello.mutable_hello()->set_config_hash("other");
  testing::internal::CaptureStderr();
  ASSERT_TRUE(ConfigureLogging({.program = "p"}).ok());
  for (int i = 0; i < 3 * LogBudget::kLines; ++i) {
    TokenClient client(channel_);
    client.Send(hello);
    EXPECT_FALSE(client.WaitForEnd().ok());
  }
  const std::vector<std::string> lines =
      absl::StrSplit(testing::internal::GetCapturedStderr(), '\n', absl::SkipEmpty());
  ASSERT_EQ(lines.size(), LogBudget::kLines);
  EXPECT_THAT(lines.front(), HasSubstr("refused: config_hash is other"));
  EXPECT_THAT(lines.back(), HasSubstr("left_out=\"the next ones, for some minutes\""));
}

TEST_F(TokenServiceTest, TakesHellosOfTheSameHashesAndTheNextVersion) {
  Start();
  v1::TokenRequestBatch hello = HelloMessage();
  hello.mutable_hello()->set_config_hash("config");
  hello.mutable_hello()->set_tokenizer_hash("tokenizer");
  hello.mutable_hello()->set_protocol_version(kTierProtocolVersion + 1);
  TokenClient client(channel_);
  EXPECT_TRUE(client.Hello(hello).has_value());
}

TEST_F(TokenServiceTest, EndsAStreamWithASecondHello) {
  Start();
  TokenClient client(channel_);
  ASSERT_TRUE(client.Hello().has_value());
  client.Send(HelloMessage());
  EXPECT_EQ(client.WaitForEnd().code(), absl::StatusCode::kInvalidArgument);
}

TEST_F(TokenServiceTest, AnswersEveryRowOfEveryStream) {
  Start({.max_rows = 8});
  TokenClient first(channel_), second(channel_);
  ASSERT_TRUE(first.Hello().has_value());
  ASSERT_TRUE(second.Hello().has_value());
  for (int i = 0; i < 20; ++i) {
    ASSERT_TRUE(first.Send(Rows(i * 10, 10)));
    ASSERT_TRUE(second.Send(Rows(i * 10, 10)));  // the same ids: they are each stream's own
  }
  for (TokenClient* client : {&first, &second}) {
    const auto rows = client->WaitForRows(200);
    ASSERT_EQ(rows.size(), 200u);
    for (const auto& [id, row] : rows) {
      EXPECT_EQ(row.status().code(), 0);
      EXPECT_THAT(row.tokens(),
                  ElementsAre(id % 100, (id + 1) % 100, (id + 2) % 100, (id + 3) % 100));
    }
    EXPECT_EQ(client->faults(), 0);
    EXPECT_GT(client->load().steps(), 0u);
  }
}

TEST_F(TokenServiceTest, RowsOfAStepThatAreTooLargeForOneMessageComeInSeveral) {
  constexpr int32_t kLength = 8192;
  constexpr int32_t kMostBytes = 1 << 20;
  Start({.max_rows = 64, .max_reply_bytes = kMostBytes}, nullptr, kLength);
  TokenClient client(channel_);
  ASSERT_TRUE(client.Hello().has_value());
  v1::TokenRequestBatch batch;
  for (uint64_t id = 0; id < 60; ++id) {
    AddRow(batch, id, {static_cast<float>(id), 0.0f}, kLength);
  }
  client.Send(std::move(batch));
  const auto rows = client.WaitForRows(60);
  ASSERT_EQ(rows.size(), 60u);
  size_t bytes = 0;
  for (const auto& [id, row] : rows) {
    EXPECT_EQ(row.tokens_size(), kLength);
    bytes += row.ByteSizeLong();
  }
  EXPECT_GT(bytes, 2u * kMostBytes);
  EXPECT_LE(client.largest_message_bytes(), size_t{kMostBytes} + 1000) << "and what frames rows";
  EXPECT_EQ(client.faults(), 0);
}

TEST_F(TokenServiceTest, AnswersAPingWhileTheEngineHangs) {
  Start();
  TokenClient client(channel_);
  const auto hello = client.Hello();
  ASSERT_TRUE(hello.has_value());
  EXPECT_TRUE(hello->tier().answers_pings());
  gate_.Close();
  ASSERT_TRUE(client.Send(Rows(0, 3)));
  ASSERT_TRUE(gate_.WaitForArrivals(1));
  v1::TokenRequestBatch ping;
  ping.set_ping(17);
  ASSERT_TRUE(client.Send(std::move(ping)));
  EXPECT_TRUE(client.WaitForPong(17));
  gate_.Open();
  EXPECT_EQ(client.WaitForRows(3).size(), 3u);
}

TEST_F(TokenServiceTest, AnswersBadRowsByThemselves) {
  Start();
  TokenClient client(channel_);
  ASSERT_TRUE(client.Hello().has_value());
  v1::TokenRequestBatch batch = Rows(0, 5);
  batch.mutable_rows(1)->set_limit(9);
  batch.mutable_rows(3)->mutable_sampling()->set_temperature(-1);
  client.Send(batch);
  const auto rows = client.WaitForRows(5);
  ASSERT_EQ(rows.size(), 5u);
  for (const auto& [id, row] : rows) {
    EXPECT_EQ(row.status().code(), id == 1 || id == 3 ? 3 : 0) << id;
    EXPECT_EQ(row.tokens_size(), id == 1 || id == 3 ? 0 : 4) << id;
  }
  EXPECT_THAT(rows.at(1).status().message(), HasSubstr("limit"));
  EXPECT_THAT(rows.at(3).status().message(), HasSubstr("temperature"));

  // Contexts that do not fit are every row's fault, and the stream goes on.
  client.Forget();
  batch = Rows(10, 2);
  batch.mutable_contexts()->pop_back();
  client.Send(batch);
  for (const auto& [id, row] : client.WaitForRows(2)) {
    EXPECT_EQ(row.status().code(), 3);
    EXPECT_THAT(row.status().message(), HasSubstr("contexts"));
  }
  client.Forget();
  client.Send(Rows(20, 1));
  EXPECT_EQ(client.WaitForRows(1).at(20).tokens_size(), 4);
}

TEST_F(TokenServiceTest, RowsWithoutNumbersFailAlone) {
  Start();
  TokenClient client(channel_);
  ASSERT_TRUE(client.Hello().has_value());
  v1::TokenRequestBatch batch = Rows(0, 2);
  AddRow(batch, 2, {5.0f, 1.0f}, 4);  // the fake's logits are not finite
  client.Send(batch);
  const auto rows = client.WaitForRows(3);
  ASSERT_EQ(rows.size(), 3u);
  EXPECT_EQ(rows.at(0).status().code(), 0);
  EXPECT_EQ(rows.at(1).status().code(), 0);
  EXPECT_EQ(rows.at(2).status().code(), 13);
}

TEST_F(TokenServiceTest, CancelsRefusesAndExpiresWaitingRows) {
  Start({.max_rows = 1, .max_queued_rows = 3});
  gate_.Close();
  TokenClient client(channel_);
  ASSERT_TRUE(client.Hello().has_value());
  client.Send(Rows(0, 1));
  ASSERT_TRUE(gate_.WaitForArrivals(1));
  v1::TokenRequestBatch batch = Rows(1, 4);
  batch.add_cancel(1);
  batch.add_cancel(0);  // being decoded: goes on
  client.Send(batch);
  auto rows = client.WaitForRows(2);
  ASSERT_EQ(rows.size(), 2u);
  EXPECT_EQ(rows.at(1).status().code(), static_cast<int>(absl::StatusCode::kCancelled));
  EXPECT_EQ(rows.at(4).status().code(), static_cast<int>(absl::StatusCode::kResourceExhausted));
  EXPECT_EQ(client.load().running(), 1);
  EXPECT_EQ(client.load().waiting(), 2);
  // Already over when the engine is free again: the gate opens later than that.
  v1::TokenRequestBatch late = Rows(5, 1);
  late.mutable_rows(0)->mutable_header()->set_remaining_ms(1);
  client.Send(late);
  // It waits, unless the machine was so slow that it is over at once.
  while (service_->stats().waiting < 3 && client.WaitForRows(2).size() < 3) {
    std::this_thread::yield();
  }
  const absl::Time over = absl::Now() + absl::Milliseconds(2);
  while (absl::Now() < over) std::this_thread::yield();
  gate_.Open();
  rows = client.WaitForRows(6);
  ASSERT_EQ(rows.size(), 6u);
  EXPECT_EQ(rows.at(5).status().code(), static_cast<int>(absl::StatusCode::kDeadlineExceeded));
  for (const uint64_t id : {0, 2, 3}) EXPECT_EQ(rows.at(id).status().code(), 0) << id;
}

TEST_F(TokenServiceTest, AMessageOfFarTooManyRowsEndsItsStreamAlone) {
  Start({.max_rows = 1});
  TokenClient other(channel_);
  ASSERT_TRUE(other.Hello().has_value());
  v1::TokenRequestBatch rows, cancels;
  for (uint64_t i = 0; i <= 1 << 16; ++i) {
    rows.add_rows()->set_id(i);
    cancels.add_cancel(i);
  }
  for (const v1::TokenRequestBatch& message : {rows, cancels}) {
    TokenClient client(channel_);
    ASSERT_TRUE(client.Hello().has_value());
    client.Send(message);
    EXPECT_EQ(client.WaitForEnd().code(), absl::StatusCode::kResourceExhausted);
    EXPECT_TRUE(client.WaitForRows(0).empty()) << "no row is answered";
  }
  other.Send(Rows(7, 1));
  EXPECT_EQ(other.WaitForRows(1).at(7).tokens(0), 7);
}

TEST_F(TokenServiceTest, DropsTheRowsOfAGatewayThatIsGone) {
  Start({.max_rows = 1});
  gate_.Close();
  TokenClient other(channel_);
  ASSERT_TRUE(other.Hello().has_value());
  {
    TokenClient client(channel_);
    ASSERT_TRUE(client.Hello().has_value());
    client.Send(Rows(0, 50));
    ASSERT_TRUE(gate_.WaitForArrivals(1));
  }
  while (service_->stats().streams > 1) std::this_thread::yield();
  EXPECT_EQ(service_->stats().waiting, 0);
  gate_.Open();
  other.Send(Rows(7, 1));
  EXPECT_EQ(other.WaitForRows(1).at(7).tokens(0), 7);
}

TEST_F(TokenServiceTest, DrainsWithinABlockAndGivesBackWhatWaits) {
  Start({.max_rows = 2});
  gate_.Close();
  TokenClient client(channel_), idle(channel_);
  ASSERT_TRUE(client.Hello().has_value());
  ASSERT_TRUE(idle.Hello().has_value());
  client.Send(Rows(0, 5));
  ASSERT_TRUE(gate_.WaitForArrivals(1));
  service_->StartDraining();
  EXPECT_TRUE(client.WaitForDraining());
  EXPECT_TRUE(idle.WaitForDraining());
  client.Send(Rows(10, 1));
  for (const auto& [id, row] : client.WaitForRows(4)) {
    EXPECT_EQ(row.status().code(), static_cast<int>(absl::StatusCode::kUnavailable)) << id;
  }
  EXPECT_FALSE(service_->WaitUntilDrained(absl::ZeroDuration()));
  gate_.Open();
  EXPECT_TRUE(service_->WaitUntilDrained(absl::Minutes(1)));
  service_->Stop();
  const auto rows = client.WaitForRows(6);
  ASSERT_EQ(rows.size(), 6u);
  for (const auto& [id, row] : rows) EXPECT_EQ(row.status().code(), id < 2 ? 0 : 14);
  EXPECT_EQ(client.WaitForEnd().code(), absl::StatusCode::kUnavailable);
  EXPECT_EQ(idle.WaitForEnd().code(), absl::StatusCode::kUnavailable);
  TokenClient late(channel_);
  EXPECT_EQ(late.WaitForEnd().code(), absl::StatusCode::kUnavailable);
}

TEST(TokenServiceConfig, NamesTheFlagThatIsBad) {
  const auto message = [](TokenServiceConfig config) {
    return std::string(config.Validate().message());
  };
  EXPECT_TRUE(TokenServiceConfig().Validate().ok());
  EXPECT_THAT(message({.arithmetic = "f64"}), HasSubstr("--arithmetic"));
  EXPECT_THAT(message({.max_rows = -1}), HasSubstr("--max-rows is -1"));
  EXPECT_THAT(message({.max_queued_rows = -1}), HasSubstr("--max-queued-rows is -1"));
  EXPECT_THAT(message({.faults = {.allowed = true, .wrong_bits = 2}}),
              HasSubstr("--inject-wrong-bits"));
  EXPECT_THAT(message({.faults = {.allowed = true, .errors = -1}}), HasSubstr("--inject-errors"));
  EXPECT_TRUE(TokenServiceConfig({.faults = {.allowed = true, .wrong_bits = 1}}).Validate().ok());
  // Nobody misbehaves by accident.
  EXPECT_THAT(message({.faults = {.wrong_bits = 0.1}}), HasSubstr("--allow-fault-injection"));
  EXPECT_THAT(message({.faults = {.errors = 0.1}}), HasSubstr("--allow-fault-injection"));
  EXPECT_THAT(message({.faults = {.crash_seed = 1}}), HasSubstr("--allow-fault-injection"));
}

}  // namespace
}  // namespace blockserve
