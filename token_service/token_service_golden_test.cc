// The service on real engines against the golden numbers: each context row of a generation goes
// through gRPC as a row of its own, and the blocks that come back must be those of the reference.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <bit>
#include <cmath>
#include <cstring>
#include <fstream>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "model/engine_test_util.h"
#include "model/safetensors.h"
#include "nlohmann/json.hpp"
#include "rpc/server.h"
#include "token_service/token_client_for_test.h"
#include "token_service/token_service.h"

namespace blockserve {
namespace {

constexpr double kLogprobTolerance = 5e-5;  // tests/golden/README.md
constexpr int kTokens = 64;                 // of each golden case

// A row to be sent: a context and what the reference writes after it.
struct GoldenRow {
  std::vector<float> context;
  std::vector<int32_t> tokens;
  std::vector<float> logprobs;
};

class TokenServiceGolden : public testing::TestWithParam<std::string> {
 protected:
  void SetUp() override {
    const std::string folder = absl::StrCat("tests/golden/", GetParam());
    auto checkpoint = Checkpoint::Open(folder);
    ASSERT_TRUE(checkpoint.ok()) << checkpoint.status();
    checkpoint_ = *std::move(checkpoint);
    pool_ = std::make_unique<ThreadPool>(2);
    auto service = TokenService::Create({}, *checkpoint_, pool_.get());
    ASSERT_TRUE(service.ok()) << service.status();
    service_ = *std::move(service);
    auto server = RpcServer::Start(ServerOptions(), {service_->service()});
    ASSERT_TRUE(server.ok()) << server.status();
    server_ = *std::move(server);
    channel_ = server_->InProcessChannel();
    LoadRows(folder);
  }
  void TearDown() override {
    if (service_ != nullptr) service_->Stop();
    if (server_ != nullptr) server_->Shutdown(absl::ZeroDuration());
    service_.reset();
  }

  int32_t length() const { return checkpoint_->config().block_length; }

  // All blocks of all cases. The contexts are the reference's where it tells them (those of the
  // prompt's last block), else the block engine's.
  void LoadRows(const std::string& folder) {
    auto model = TestModel::Load(folder, TestModelOptions());
    ASSERT_TRUE(model.ok()) << model.status();
    auto tensors = SafetensorsSet::OpenFile(absl::StrCat(folder, "/expected.safetensors"));
    ASSERT_TRUE(tensors.ok()) << tensors.status();
    std::ifstream file(absl::StrCat(folder, "/expected.json"));
    const nlohmann::json cases = nlohmann::json::parse(file)["cases"];
    const int64_t width = checkpoint_->config().block.hidden_size;
    for (size_t n = 0; n < cases.size(); ++n) {
      const auto prompt = cases[n]["prompt"].get<std::vector<int32_t>>();
      const auto greedy = cases[n]["greedy"].get<std::vector<int32_t>>();
      const auto logprobs = cases[n]["greedy_logprobs"].get<std::vector<float>>();
      ASSERT_EQ(greedy.size(), static_cast<size_t>(kTokens));
      std::vector<int32_t> tokens((length() - prompt.size() % length()) % length(),
                                  checkpoint_->config().pad_token_id);
      tokens.insert(tokens.end(), prompt.begin(), prompt.end());
      const int64_t prompt_blocks = static_cast<int64_t>(tokens.size()) / length();
      tokens.insert(tokens.end(), greedy.begin(), greedy.end());
      auto contexts = (*model)->Prefill(tokens, 1 << 20);
      ASSERT_TRUE(contexts.ok()) << contexts.status();
      const TensorView* golden = tensors->Find(absl::StrCat("context.", n));
      ASSERT_TRUE(golden != nullptr || GetParam() == "vanilla");
      for (int64_t block = 0; block < kTokens / length(); ++block) {
        GoldenRow row;
        const float* context = contexts->data() + (prompt_blocks - 1 + block) * width;
        row.context.assign(context, context + width);
        if (block == 0 && golden != nullptr) {
          std::memcpy(row.context.data(),
                      golden->data.data() + (prompt_blocks - 1) * width * sizeof(float),
                      width * sizeof(float));
        }
        row.tokens.assign(greedy.begin() + block * length(),
                          greedy.begin() + (block + 1) * length());
        row.logprobs.assign(logprobs.begin() + block * length(),
                            logprobs.begin() + (block + 1) * length());
        rows_.push_back(std::move(row));
      }
    }
  }

  static void ExpectGolden(const GoldenRow& expected, const v1::TokenRowReply& reply) {
    ASSERT_EQ(reply.status().code(), 0) << reply.status().message();
    EXPECT_EQ(std::vector<int32_t>(reply.tokens().begin(), reply.tokens().end()), expected.tokens);
    ASSERT_EQ(reply.logprobs_size(), static_cast<int>(expected.logprobs.size()));
    for (int i = 0; i < reply.logprobs_size(); ++i) {
      EXPECT_NEAR(reply.logprobs(i), expected.logprobs[i], kLogprobTolerance);
    }
  }

  std::unique_ptr<Checkpoint> checkpoint_;
  std::unique_ptr<ThreadPool> pool_;
  std::unique_ptr<TokenService> service_;
  std::unique_ptr<RpcServer> server_;
  std::shared_ptr<grpc::Channel> channel_;
  std::vector<GoldenRow> rows_;
};

TEST_P(TokenServiceGolden, WritesTheBlocksOfTheReference) {
  TokenClient client(channel_);
  const auto hello = client.Hello();
  ASSERT_TRUE(hello.has_value());
  EXPECT_EQ(hello->block_length(), length());
  EXPECT_EQ(hello->tier().part_hash(), checkpoint_->HashTensors(Checkpoint::Part::kToken));
  for (size_t begin = 0; begin < rows_.size(); begin += 50) {
    v1::TokenRequestBatch batch;
    for (size_t i = begin; i < std::min(begin + 50, rows_.size()); ++i) {
      AddRow(batch, i, rows_[i].context, length());  // greedy: no sampling
    }
    ASSERT_TRUE(client.Send(std::move(batch)));
  }
  const auto replies = client.WaitForRows(rows_.size());
  ASSERT_EQ(replies.size(), rows_.size());
  for (const auto& [id, reply] : replies) ExpectGolden(rows_[id], reply);
}

TEST_P(TokenServiceGolden, ScoresForcedTokensAsItWroteThem) {
  TokenClient client(channel_);
  ASSERT_TRUE(client.Hello().has_value());
  v1::TokenRequestBatch batch;
  for (size_t i = 0; i < rows_.size(); ++i) {
    v1::TokenRowRequest& row = AddRow(batch, i, rows_[i].context, length());
    for (const int32_t token : rows_[i].tokens) row.add_forced(token);
    row.set_forced_in_prompt(length());
    row.set_score_forced(true);
  }
  ASSERT_TRUE(client.Send(std::move(batch)));
  const auto replies = client.WaitForRows(rows_.size());
  ASSERT_EQ(replies.size(), rows_.size());
  for (const auto& [id, reply] : replies) {
    EXPECT_EQ(reply.tokens_size(), 0);
    v1::TokenRowReply whole = reply;
    for (const int32_t token : rows_[id].tokens) whole.add_tokens(token);
    ExpectGolden(rows_[id], whole);
  }
}

TEST_P(TokenServiceGolden, GivesTheSameBitsAloneAndAmongOthers) {
  const auto add = [&](v1::TokenRequestBatch& batch, uint64_t id) {
    v1::TokenRowRequest& row = AddRow(batch, id, rows_[id % rows_.size()].context, length());
    row.mutable_sampling()->set_temperature(0.9f);
    row.mutable_sampling()->set_top_k(40);
    row.mutable_sampling()->set_top_p(0.95f);
    row.set_seed(1000 + id);
    row.set_choice(id % 5);
    row.set_position(17 * id);
    row.set_top_logprobs(3);
  };
  TokenClient together(channel_);
  ASSERT_TRUE(together.Hello().has_value());
  v1::TokenRequestBatch batch;
  for (uint64_t id = 0; id < 64; ++id) add(batch, id);
  ASSERT_TRUE(together.Send(std::move(batch)));
  const auto among_others = together.WaitForRows(64);
  ASSERT_EQ(among_others.size(), 64u);

  TokenClient single(channel_);
  ASSERT_TRUE(single.Hello().has_value());
  for (uint64_t id = 0; id < 64; id += 9) {
    single.Forget();
    v1::TokenRequestBatch one;
    add(one, id);
    ASSERT_TRUE(single.Send(std::move(one)));
    const auto alone = single.WaitForRows(1);
    ASSERT_EQ(alone.size(), 1u);
    EXPECT_EQ(alone.at(id).SerializeAsString(), among_others.at(id).SerializeAsString()) << id;
    EXPECT_EQ(alone.at(id).tokens_size(), length());
    EXPECT_EQ(alone.at(id).top_tokens_size(), 3 * length());
  }
}

INSTANTIATE_TEST_SUITE_P(Models, TokenServiceGolden,
                         testing::Values("concat_l4", "summation", "vanilla"),
                         [](const auto& info) { return info.param; });

TEST(TokenServiceCreate, RefusesArithmeticsThatItDoesNotKnow) {
  auto checkpoint = Checkpoint::Open("tests/golden/concat_l4");
  ASSERT_TRUE(checkpoint.ok()) << checkpoint.status();
  ThreadPool pool(1);
  const auto service = TokenService::Create({.arithmetic = "f64"}, **checkpoint, &pool);
  EXPECT_EQ(service.status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(service.status().message()), testing::HasSubstr("--arithmetic"));
}

}  // namespace
}  // namespace blockserve
