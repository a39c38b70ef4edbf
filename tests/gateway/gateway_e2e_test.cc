// The gateway over the real services, all in one process: the golden tokens through three tiers,
// and the same tokens while services are destroyed under their streams.
#include <gmock/gmock.h>
#include <grpcpp/grpcpp.h>
#include <gtest/gtest.h>

#include <cmath>
#include <fstream>
#include <map>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "block_service/block_service.h"
#include "blockserve/v1/generation.grpc.pb.h"
#include "common/mutex.h"
#include "common/thread_pool.h"
#include "gateway/gateway.h"
#include "model/checkpoint.h"
#include "rpc/server.h"
#include "token_service/token_service.h"

namespace blockserve {
namespace {

constexpr char kModel[] = "tests/golden/concat_l4";

// A service and the server that it is reached through.
template <class Service>
struct Tier {
  std::unique_ptr<Service> service;
  std::unique_ptr<RpcServer> server;

  void Destroy() {
    if (server != nullptr) server->Shutdown(absl::ZeroDuration());
    if (service != nullptr) service->Stop();
    server.reset();
    service.reset();
  }
};

// What one stream brought.
struct Answer {
  std::map<uint32_t, std::vector<int32_t>> tokens;
  std::map<uint32_t, std::vector<float>> logprobs;
  std::map<uint32_t, v1::FinishReason> finished;
  v1::Started started;
  v1::Usage usage;
  grpc::Status status;
};

// Lets a test wait until its streams have come so far.
class Progress {
 public:
  void Add() {
    MutexLock lock(&mutex_);
    ++outputs_;
    changed_.SignalAll();
  }
  void WaitFor(int outputs) {
    MutexLock lock(&mutex_);
    while (outputs_ < outputs) changed_.Wait(&mutex_);
  }

 private:
  Mutex mutex_;
  CondVar changed_;
  int outputs_ ABSL_GUARDED_BY(mutex_) = 0;
};

class GatewayE2eTest : public ::testing::Test {
 protected:
  void SetUp() override {
    absl::StatusOr<std::unique_ptr<Checkpoint>> checkpoint = Checkpoint::Open(kModel);
    ASSERT_TRUE(checkpoint.ok()) << checkpoint.status();
    checkpoint_ = *std::move(checkpoint);
    std::ifstream file(std::string(kModel) + "/expected.json");
    cases_ = nlohmann::json::parse(file)["cases"];
  }
  void TearDown() override {
    channel_.reset();
    if (front_ != nullptr) front_->Shutdown(absl::ZeroDuration());
    front_.reset();
    gateway_.reset();
    MutexLock lock(&mutex_);
    for (auto& [address, tier] : blocks_) tier.Destroy();
    for (auto& [address, tier] : workers_) tier.Destroy();
  }

  void StartBlock(const std::string& address) {
    BlockServiceConfig config;
    config.name = address;
    config.kv_pages = 400;
    config.min_group_blocks = 1;
    config.lease = absl::Hours(1);  // so that no test passes by its end
    auto service = BlockService::Create(config, *checkpoint_, &pool_);
    ASSERT_TRUE(service.ok()) << service.status();
    auto server = RpcServer::Start({}, {(*service)->service()});
    ASSERT_TRUE(server.ok()) << server.status();
    MutexLock lock(&mutex_);
    blocks_[address] = {*std::move(service), *std::move(server)};
  }
  void StartWorker(const std::string& address) {
    TokenServiceConfig config;
    config.name = address;
    auto service = TokenService::Create(config, *checkpoint_, &pool_);
    ASSERT_TRUE(service.ok()) << service.status();
    auto server = RpcServer::Start({}, {(*service)->service()});
    ASSERT_TRUE(server.ok()) << server.status();
    MutexLock lock(&mutex_);
    workers_[address] = {*std::move(service), *std::move(server)};
  }
  template <class Tiers>
  void Destroy(Tiers& tiers, const std::string& address) {
    typename Tiers::mapped_type gone;
    {
      MutexLock lock(&mutex_);
      gone = std::move(tiers.at(address));
      tiers.erase(address);
    }
    gone.Destroy();
  }
  // A channel to whoever is there; to nobody where a service was destroyed.
  std::shared_ptr<grpc::Channel> Channel(const std::string& address) {
    MutexLock lock(&mutex_);
    if (const auto found = blocks_.find(address); found != blocks_.end()) {
      return found->second.server->InProcessChannel();
    }
    if (const auto found = workers_.find(address); found != workers_.end()) {
      return found->second.server->InProcessChannel();
    }
    return grpc::CreateChannel("unix:/nonexistent/socket", grpc::InsecureChannelCredentials());
  }

  void StartAll(int blocks, int workers) {
    GatewayConfig config;
    config.model_directory = kModel;
    config.tier_wait = absl::Seconds(60);
    for (int i = 0; i < blocks; ++i) {
      const std::string address = "inproc:block" + std::to_string(i);
      StartBlock(address);
      config.block_services += (i == 0 ? "" : ",") + address;
    }
    for (int i = 0; i < workers; ++i) {
      const std::string address = "inproc:token" + std::to_string(i);
      StartWorker(address);
      config.token_services += (i == 0 ? "" : ",") + address;
    }
    config.channel_factory = [this](const std::string& address) { return Channel(address); };
    auto gateway = Gateway::Create(config);
    ASSERT_TRUE(gateway.ok()) << gateway.status();
    gateway_ = *std::move(gateway);
    auto front = RpcServer::Start({}, {gateway_->service()});
    ASSERT_TRUE(front.ok()) << front.status();
    front_ = *std::move(front);
    channel_ = front_->InProcessChannel();
  }

  static v1::GenerateRequest Greedy(const std::vector<int32_t>& prompt, int32_t max_tokens) {
    v1::GenerateRequest request;
    request.mutable_tokens()->mutable_ids()->Add(prompt.begin(), prompt.end());
    request.mutable_sampling()->set_temperature(0);
    request.mutable_stop()->set_max_tokens(max_tokens);
    request.mutable_stop()->set_ignore_eos(true);
    return request;
  }
  static v1::GenerateRequest Sampled(const std::vector<int32_t>& prompt, int32_t max_tokens,
                                     uint64_t seed, int32_t n) {
    v1::GenerateRequest request = Greedy(prompt, max_tokens);
    request.mutable_sampling()->set_temperature(1);
    request.mutable_sampling()->set_top_p(0.95f);
    request.mutable_sampling()->set_repetition_penalty(1.1f);
    request.set_seed(seed);
    request.set_n(n);
    return request;
  }

  Answer Generate(const v1::GenerateRequest& request, Progress* progress = nullptr) {
    const auto stub = v1::Generation::NewStub(channel_);
    grpc::ClientContext context;
    const auto reader = stub->Generate(&context, request);
    Answer answer;
    v1::GenerateResponse event;
    while (reader->Read(&event)) {
      if (event.has_started()) answer.started = event.started();
      if (event.has_usage()) answer.usage = event.usage();
      if (event.has_finished()) {
        answer.finished[event.finished().choice()] = event.finished().reason();
      }
      if (!event.has_output()) continue;
      const v1::Output& output = event.output();
      std::vector<int32_t>& tokens = answer.tokens[output.choice()];
      EXPECT_EQ(output.position(),
                answer.started.prompt_tokens() + static_cast<int64_t>(tokens.size()));
      tokens.insert(tokens.end(), output.tokens().begin(), output.tokens().end());
      for (const v1::TokenLogprobs& entry : output.logprobs()) {
        answer.logprobs[output.choice()].push_back(entry.logprob());
      }
      if (progress != nullptr) progress->Add();
    }
    answer.status = reader->Finish();
    return answer;
  }

  std::vector<v1::GenerateRequest> LongRequests() const {
    std::vector<v1::GenerateRequest> requests;
    for (size_t i = 0; i < cases_.size(); ++i) {
      const std::vector<int32_t> prompt = cases_[i]["prompt"];
      requests.push_back(Greedy(prompt, 300));
      requests.push_back(Sampled(prompt, 300, 100 + i, 2));
      requests.back().set_alignment(i % 2 == 0 ? v1::ALIGNMENT_START : v1::ALIGNMENT_END);
    }
    return requests;
  }
  // Runs the requests calmly, then once more together while `fault` happens after `outputs`
  // outputs: both must give the same.
  void ExpectSameUnderFault(int outputs, const std::function<void()>& fault) {
    const std::vector<v1::GenerateRequest> requests = LongRequests();
    std::vector<Answer> calm;
    for (const v1::GenerateRequest& request : requests) calm.push_back(Generate(request));
    Progress progress;
    std::vector<Answer> stormy(requests.size());
    std::vector<std::thread> clients;
    for (size_t i = 0; i < requests.size(); ++i) {
      clients.emplace_back([&, i] { stormy[i] = Generate(requests[i], &progress); });
    }
    progress.WaitFor(outputs);
    fault();
    for (std::thread& client : clients) client.join();
    for (size_t i = 0; i < requests.size(); ++i) {
      ASSERT_TRUE(calm[i].status.ok()) << calm[i].status.error_message();
      EXPECT_TRUE(stormy[i].status.ok()) << stormy[i].status.error_message();
      EXPECT_EQ(stormy[i].tokens, calm[i].tokens) << "request " << i;
      EXPECT_EQ(stormy[i].usage.completion_tokens(), calm[i].usage.completion_tokens());
    }
    const std::vector<int32_t> golden = cases_[0]["greedy"];
    EXPECT_TRUE(std::equal(golden.begin(), golden.end(), stormy[0].tokens.at(0).begin()));
  }

  ThreadPool pool_{2};
  std::unique_ptr<Checkpoint> checkpoint_;
  nlohmann::json cases_;
  Mutex mutex_;
  std::map<std::string, Tier<BlockService>> blocks_;   // by address; guarded by mutex_
  std::map<std::string, Tier<TokenService>> workers_;  // as blocks_
  std::unique_ptr<Gateway> gateway_;
  std::unique_ptr<RpcServer> front_;
  std::shared_ptr<grpc::Channel> channel_;
};

TEST_F(GatewayE2eTest, GoldenTokensOfEveryPromptAndAlignment) {
  StartAll(1, 1);
  const std::vector<std::pair<v1::Alignment, std::string>> alignments = {
      {v1::ALIGNMENT_END, "greedy"},
      {v1::ALIGNMENT_START, "greedy_start"},
      {v1::ALIGNMENT_NONE, "greedy_none"}};
  for (const nlohmann::json& golden : cases_) {
    for (const auto& [alignment, name] : alignments) {
      v1::GenerateRequest request = Greedy(golden["prompt"], 64);
      request.set_alignment(alignment);
      request.set_logprobs(0);
      const Answer answer = Generate(request);
      ASSERT_TRUE(answer.status.ok()) << answer.status.error_message();
      EXPECT_EQ(answer.tokens.at(0), golden[name].get<std::vector<int32_t>>()) << name;
      EXPECT_EQ(answer.finished.at(0), v1::FINISH_REASON_LENGTH);
      EXPECT_EQ(answer.usage.completion_tokens(), 64);
      if (!golden.contains(name + "_logprobs")) continue;
      const std::vector<float> expected = golden[name + "_logprobs"];
      const std::vector<float>& got = answer.logprobs.at(0);
      ASSERT_EQ(got.size(), expected.size());
      for (size_t i = 0; i < got.size(); ++i) EXPECT_NEAR(got[i], expected[i], 5e-5) << name;
    }
  }
}

TEST_F(GatewayE2eTest, ChoicesAreThoseOfEveryOtherNumberOfChoices) {
  StartAll(1, 2);
  const std::vector<int32_t> prompt = cases_[3]["prompt"];
  const Answer one = Generate(Sampled(prompt, 50, 7, 1));
  const Answer two = Generate(Sampled(prompt, 50, 7, 2));
  const Answer four = Generate(Sampled(prompt, 50, 7, 4));
  ASSERT_TRUE(one.status.ok() && two.status.ok() && four.status.ok());
  EXPECT_EQ(one.tokens.at(0), two.tokens.at(0));
  EXPECT_EQ(one.tokens.at(0), four.tokens.at(0));
  EXPECT_EQ(two.tokens.at(1), four.tokens.at(1));
  EXPECT_NE(two.tokens.at(0), two.tokens.at(1));
  EXPECT_EQ(four.usage.completion_tokens(), 200);
}

TEST_F(GatewayE2eTest, GoldenScores) {
  StartAll(1, 1);
  const auto stub = v1::Generation::NewStub(channel_);
  const auto score = [&](const v1::ScoreRequest& request) {
    grpc::ClientContext context;
    v1::ScoreResponse response;
    const grpc::Status status = stub->Score(&context, request, &response);
    EXPECT_TRUE(status.ok()) << status.error_message();
    return response;
  };
  for (const nlohmann::json& golden : cases_) {
    const std::vector<int32_t> prompt = golden["prompt"];
    const std::vector<int32_t> continuation = golden["continuation"];
    v1::ScoreRequest request;
    request.mutable_context_tokens()->mutable_ids()->Add(prompt.begin(), prompt.end());
    request.mutable_continuation_tokens()->mutable_ids()->Add(continuation.begin(),
                                                              continuation.end());
    const v1::ScoreResponse after = score(request);
    ASSERT_EQ(after.logprobs_size(), static_cast<int>(continuation.size()));
    for (int i = 0; i < after.logprobs_size(); ++i) {
      EXPECT_NEAR(after.logprobs(i).logprob(), golden["continuation_logprobs"][i].get<float>(),
                  5e-5);
    }
    request.Clear();
    request.mutable_continuation_tokens()->mutable_ids()->Add(prompt.begin(), prompt.end());
    const v1::ScoreResponse alone = score(request);
    ASSERT_EQ(alone.logprobs_size(), static_cast<int>(prompt.size()));
    EXPECT_FALSE(alone.logprobs(0).has_logprob());
    for (int i = 1; i < alone.logprobs_size(); ++i) {
      EXPECT_NEAR(alone.logprobs(i).logprob(), golden["text_logprobs"][i].get<float>(), 5e-5);
    }
  }
}

TEST_F(GatewayE2eTest, CancelFreesSequences) {
  StartAll(1, 1);
  const auto stub = v1::Generation::NewStub(channel_);
  v1::GenerateRequest request = Sampled(cases_[3]["prompt"], 4000, 1, 3);
  grpc::ClientContext context;
  const auto reader = stub->Generate(&context, request);
  v1::GenerateResponse event;
  for (int i = 0; i < 10; ++i) ASSERT_TRUE(reader->Read(&event));
  BlockService& service = *blocks_.at("inproc:block0").service;
  EXPECT_FALSE(service.WaitUntilDrained(absl::ZeroDuration()));
  context.TryCancel();
  while (reader->Read(&event)) {
  }
  EXPECT_EQ(reader->Finish().error_code(), grpc::StatusCode::CANCELLED);
  EXPECT_TRUE(service.WaitUntilDrained(absl::Seconds(60)));
}

TEST_F(GatewayE2eTest, ATokenWorkerDestroyedUnderItsStreams) {
  StartAll(1, 2);
  ExpectSameUnderFault(100, [&] { Destroy(workers_, "inproc:token0"); });
}

TEST_F(GatewayE2eTest, ABlockReplicaDestroyedUnderItsStreams) {
  StartAll(2, 1);
  ExpectSameUnderFault(100, [&] { Destroy(blocks_, "inproc:block0"); });
}

TEST_F(GatewayE2eTest, BothTiersGoneAndBack) {
  StartAll(1, 1);
  ExpectSameUnderFault(100, [&] {
    Destroy(workers_, "inproc:token0");
    Destroy(blocks_, "inproc:block0");
    StartBlock("inproc:block0");
    StartWorker("inproc:token0");
  });
}

TEST_F(GatewayE2eTest, StoppingEndsStreamsUnavailable) {
  StartAll(1, 1);
  Progress progress;
  Answer answer;
  std::thread client([&] { answer = Generate(Greedy(cases_[0]["prompt"], 4000), &progress); });
  progress.WaitFor(5);
  gateway_->StartDraining(absl::InfiniteDuration());
  EXPECT_EQ(Generate(Greedy(cases_[0]["prompt"], 4)).status.error_code(),
            grpc::StatusCode::UNAVAILABLE);
  gateway_->Stop();
  client.join();
  EXPECT_EQ(answer.status.error_code(), grpc::StatusCode::UNAVAILABLE);
  EXPECT_TRUE(blocks_.at("inproc:block0").service->WaitUntilDrained(absl::Seconds(60)))
      << "its replicas know which sequences are over";
}

}  // namespace
}  // namespace blockserve
