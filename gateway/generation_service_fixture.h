// Tests: the gRPC front in the test's process, over a core that the test plays.
#ifndef BLOCKSERVE_GATEWAY_GENERATION_SERVICE_FIXTURE_H_
#define BLOCKSERVE_GATEWAY_GENERATION_SERVICE_FIXTURE_H_

#include <grpcpp/grpcpp.h>
#include <gtest/gtest.h>

#include <cstdint>
#include <functional>
#include <memory>
#include <string>

#include "absl/synchronization/notification.h"
#include "absl/time/time.h"
#include "blockserve/v1/generation.grpc.pb.h"
#include "gateway/generation_service.h"

namespace blockserve {

// Hands requests to the test, which plays the core's part.
class FakeCore : public GenerationCore {
 public:
  using GenerateHandler =
      std::function<void(const GenerationRequest&, const std::shared_ptr<GenerationSink>&)>;
  using ScoreHandler =
      std::function<void(const ScoringRequest&, const std::shared_ptr<ScoringSink>&)>;

  GenerationId Generate(GenerationRequest request, std::shared_ptr<GenerationSink> sink) override {
    ++generated;
    on_generate(request, sink);
    return 7;
  }
  GenerationId Score(ScoringRequest request, std::shared_ptr<ScoringSink> sink) override {
    on_score(request, sink);
    return 8;
  }
  void Cancel(GenerationId id, absl::Status /*why*/) override {
    if (!expects_cancel) return;
    cancelled_id = id;
    cancelled.Notify();  // aborts on a second call
  }
  void Resume(GenerationId id) override {
    EXPECT_EQ(id, 7u);
    if (on_resume) on_resume();
  }
  void FillModelStatus(v1::GetModelResponse& response) const override {
    response.set_model_id("id-of-model");
    response.set_token_workers(3);
  }

  void OnRefused(const RefusedRequest& request) override { refused.push_back(request); }
  absl::Status TakeFromRate(const std::string& key) override {
    ++taken_from_rate;
    return rate;
  }

  absl::Time Now() const override { return now; }

  // Far from the wall clock.
  const absl::Time now = absl::FromUnixSeconds(1'000'000);
  GenerateHandler on_generate;
  ScoreHandler on_score;
  std::function<void()> on_resume;
  int generated = 0;
  std::vector<RefusedRequest> refused;
  absl::Status rate;
  int taken_from_rate = 0;
  GenerationId cancelled_id = 0;
  bool expects_cancel = true;
  absl::Notification cancelled;
};

class GenerationServiceFixture : public ::testing::Test {
 protected:
  GenerationServiceFixture() : validator_(Config(), nullptr, {"tiny", false}) {
    service_ = std::make_unique<GenerationService>(&core_, &validator_);
    grpc::ServerBuilder builder;
    builder.RegisterService(service_.get());
    server_ = builder.BuildAndStart();
    stub_ = v1::Generation::NewStub(server_->InProcessChannel({}));
  }
  ~GenerationServiceFixture() override { server_->Shutdown(); }

  static ModelConfig Config() {
    auto config = LoadModelConfig("tests/golden/concat_l4");
    EXPECT_TRUE(config.ok()) << config.status();
    return *config;
  }
  static v1::GenerateRequest OneToken() {
    v1::GenerateRequest request;
    request.mutable_tokens()->add_ids(1);
    return request;
  }
  static v1::Output Block(int64_t position) {
    v1::Output output;
    output.set_position(position);
    for (int i = 0; i < 4; ++i) output.add_tokens(i);
    output.set_text(std::string(100, 'x'));  // more than gRPC keeps in a slice without memory
    return output;
  }

  FakeCore core_;
  RequestValidator validator_;
  std::unique_ptr<GenerationService> service_;
  std::unique_ptr<grpc::Server> server_;
  std::unique_ptr<v1::Generation::Stub> stub_;
};

}  // namespace blockserve

#endif  // BLOCKSERVE_GATEWAY_GENERATION_SERVICE_FIXTURE_H_
