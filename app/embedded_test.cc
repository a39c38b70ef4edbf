// The embedded tiers against the golden numbers, through the client library: the way that
// `blockserve generate --model` and `blockserve serve` take.
#include "app/embedded.h"

#include <fstream>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "absl/time/clock.h"
#include "client/client.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "model/model_folder_for_test.h"

namespace blockserve {
namespace {

using nlohmann::json;
using ::testing::AllOf;
using ::testing::ElementsAreArray;
using ::testing::HasSubstr;

constexpr double kLogprobTolerance = 5e-5;  // tests/golden/README.md

EmbeddedOptions Options(const std::string& folder) {
  EmbeddedOptions options;
  options.model_directory = "tests/golden/" + folder;
  options.arithmetic = "f32";
  options.threads = 2;
  options.kv_memory_mib = 16;
  return options;
}

class EmbeddedGoldenTest : public ::testing::TestWithParam<std::string> {
 protected:
  void SetUp() override {
    auto embedded = Embedded::Start(Options(GetParam()));
    ASSERT_TRUE(embedded.ok()) << embedded.status();
    embedded_ = *std::move(embedded);
    client_ = std::make_unique<Client>(embedded_->channel());
    cases_ = json::parse(std::ifstream("tests/golden/" + GetParam() + "/expected.json"))["cases"];
  }
  static void ExpectNear(const std::vector<double>& found, const std::vector<double>& expected) {
    ASSERT_EQ(found.size(), expected.size());
    for (size_t i = 0; i < found.size(); ++i) {
      EXPECT_NEAR(found[i], expected[i], kLogprobTolerance) << "token " << i;
    }
  }

  std::unique_ptr<Embedded> embedded_;
  std::unique_ptr<Client> client_;
  json cases_;
};

TEST_P(EmbeddedGoldenTest, GeneratesTheGoldenTokens) {
  for (const json& golden : cases_) {
    v1::GenerateRequest request;
    for (const int32_t id : golden["prompt"]) request.mutable_tokens()->add_ids(id);
    request.mutable_stop()->set_max_tokens(64);
    request.mutable_stop()->set_ignore_eos(true);
    request.mutable_sampling()->set_temperature(0);
    request.set_logprobs(0);
    request.set_alignment(v1::ALIGNMENT_END);
    std::vector<int32_t> tokens;
    std::vector<double> logprobs;
    const absl::Status status = client_->Generate(request, [&](const auto& event) {
      tokens.insert(tokens.end(), event.output().tokens().begin(), event.output().tokens().end());
      for (const auto& entry : event.output().logprobs()) logprobs.push_back(entry.logprob());
      return true;
    });
    ASSERT_TRUE(status.ok()) << status;
    EXPECT_THAT(tokens, ElementsAreArray(golden["greedy"].get<std::vector<int32_t>>()));
    ExpectNear(logprobs, golden["greedy_logprobs"].get<std::vector<double>>());
  }
}

TEST_P(EmbeddedGoldenTest, ScoresTheGoldenContinuation) {
  const json& golden = cases_[3];
  v1::ScoreRequest request;
  for (const int32_t id : golden["prompt"]) request.mutable_context_tokens()->add_ids(id);
  for (const int32_t id : golden["continuation"])
    request.mutable_continuation_tokens()->add_ids(id);
  request.set_alignment(v1::ALIGNMENT_END);
  auto response = client_->Score(request);
  ASSERT_TRUE(response.ok()) << response.status();
  std::vector<double> logprobs;
  for (const auto& entry : response->logprobs()) logprobs.push_back(entry.logprob());
  ExpectNear(logprobs, golden["continuation_logprobs"].get<std::vector<double>>());
}

INSTANTIATE_TEST_SUITE_P(Folders, EmbeddedGoldenTest,
                         ::testing::Values("concat_l4", "widths_differ_l8", "summation",
                                           "vanilla"));

std::vector<int32_t> GreedyTokens(std::shared_ptr<grpc::Channel> channel, const json& golden) {
  Client client(std::move(channel));
  v1::GenerateRequest request;
  for (const int32_t id : golden["prompt"]) request.mutable_tokens()->add_ids(id);
  request.mutable_stop()->set_max_tokens(64);
  request.mutable_stop()->set_ignore_eos(true);
  request.mutable_sampling()->set_temperature(0);
  request.set_alignment(v1::ALIGNMENT_END);
  std::vector<int32_t> tokens;
  const absl::Status status = client.Generate(request, [&](const auto& event) {
    tokens.insert(tokens.end(), event.output().tokens().begin(), event.output().tokens().end());
    return true;
  });
  EXPECT_TRUE(status.ok()) << status;
  return tokens;
}

TEST(Embedded, OtherGatewaysUseItsTiersUntilItLeaves) {
  const json golden =
      json::parse(std::ifstream("tests/golden/concat_l4/expected.json"))["cases"][1];
  EmbeddedOptions options = Options("concat_l4");
  options.tiers_address = "127.0.0.1:0";
  auto embedded = Embedded::Start(options);
  ASSERT_TRUE(embedded.ok()) << embedded.status();
  GatewayConfig config;
  config.model_directory = options.model_directory;
  config.block_services = (*embedded)->tiers_address();
  config.token_services = (*embedded)->tiers_address();
  config.log_requests = false;
  auto gateway = Gateway::Create(config);
  ASSERT_TRUE(gateway.ok()) << gateway.status();
  auto front = RpcServer::Start({}, {(*gateway)->service()});
  ASSERT_TRUE(front.ok()) << front.status();

  const auto expected = golden["greedy"].get<std::vector<int32_t>>();
  EXPECT_THAT(GreedyTokens((*front)->InProcessChannel(), golden), ElementsAreArray(expected));
  EXPECT_THAT(GreedyTokens((*embedded)->channel(), golden), ElementsAreArray(expected));

  (*embedded)->Stop(absl::Minutes(1));
  v1::GetModelResponse status;
  const absl::Time limit = absl::Now() + absl::Minutes(1);
  do {
    (*gateway)->core().FillModelStatus(status);
  } while (status.block_services() + status.token_workers() > 0 && absl::Now() < limit);
  EXPECT_EQ(status.block_services() + status.token_workers(), 0);
  (*front)->Shutdown(absl::ZeroDuration());
}

TEST(Embedded, NamesWhatIsWrong) {
  EmbeddedOptions options = Options("concat_l4");
  options.arithmetic = "f8";
  EXPECT_THAT(std::string(Embedded::Start(options).status().message()), HasSubstr("--arithmetic"));
  options = Options("concat_l4");
  options.threads = -1;
  EXPECT_THAT(std::string(Embedded::Start(options).status().message()), HasSubstr("--threads"));
  EXPECT_THAT(std::string(Embedded::Start(Options("nowhere")).status().message()),
              HasSubstr("tests/golden/nowhere"));
  options = Options("concat_l4");
  options.tiers_address = "0.0.0.0:7075";
  EXPECT_TRUE(options.Validate().ok());
  options.gateway.api_keys = "keys.jsonl";
  EXPECT_THAT(std::string(options.Validate().message()),
              AllOf(HasSubstr("--tiers-address"), HasSubstr("--tls-client-ca")));
  options.tiers_address = "127.0.0.1:7075";
  EXPECT_TRUE(options.Validate().ok()) << options.Validate();
  options = Options("concat_l4");
  options.grpc_address = "nonsense";
  EXPECT_THAT(std::string(Embedded::Start(options).status().message()),
              HasSubstr("--grpc-address"));
}

TEST(Embedded, ATokenDecoderOfTooFewPositionsIsServedWhereLongContextsAre) {
  for (const auto& [golden, enough] : {std::pair("concat_l4", 5), std::pair("summation", 4)}) {
    const TestFolder folder;
    folder.CopyAllFrom(std::string("tests/golden/") + golden);
    json config = json::parse(folder.Read("config.json"));
    EmbeddedOptions options = Options(golden);
    options.model_directory = folder.path();
    const auto start_with = [&](int positions) {
      config["token_decoder"]["max_position_embeddings"] = positions;
      folder.Write("config.json", config.dump());
      return Embedded::Start(options).status();
    };
    EXPECT_TRUE(start_with(enough).ok()) << golden;
    EXPECT_THAT(std::string(start_with(enough - 1).message()),
                HasSubstr("token_decoder.max_position_embeddings"));
    options.gateway.allow_beyond_positions = true;
    EXPECT_TRUE(start_with(enough - 1).ok()) << golden;
  }
}

TEST(Embedded, NamesAnAddressThatIsTaken) {
  EmbeddedOptions options = Options("concat_l4");
  options.grpc_address = "127.0.0.1:0";
  auto first = Embedded::Start(options);
  ASSERT_TRUE(first.ok()) << first.status();
  options.grpc_address = (*first)->address();
  const absl::Status status = Embedded::Start(options).status();
  EXPECT_FALSE(status.ok());
  EXPECT_THAT(std::string(status.message()), HasSubstr("--grpc-address " + options.grpc_address));
}

TEST(Embedded, FinishesRunningRequestsBeforeItStops) {
  // Over a socket: gRPC's in-process channels break when their server begins to shut down.
  EmbeddedOptions options = Options("concat_l4");
  options.grpc_address = "127.0.0.1:0";
  auto embedded = Embedded::Start(options);
  ASSERT_TRUE(embedded.ok()) << embedded.status();
  Client client((*embedded)->address());
  v1::GenerateRequest request;
  request.mutable_tokens()->add_ids(1);
  request.mutable_stop()->set_max_tokens(400);
  request.mutable_stop()->set_ignore_eos(true);
  auto stream = client.Generate(request);
  v1::GenerateResponse event;
  ASSERT_TRUE(stream->Next(&event));
  EXPECT_TRUE(event.has_started());
  int tokens = 0;
  std::thread stopper([&] { (*embedded)->Stop(absl::Minutes(1)); });
  while (stream->Next(&event)) tokens += event.output().tokens_size();
  const absl::Status status = stream->Finish();
  EXPECT_TRUE(status.ok()) << status;
  stopper.join();
  EXPECT_EQ(tokens, 400);
}

}  // namespace
}  // namespace blockserve
