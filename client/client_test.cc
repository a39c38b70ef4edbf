#include "client/client.h"

#include <grpcpp/grpcpp.h>

#include <memory>
#include <vector>

#include "absl/synchronization/notification.h"
#include "absl/time/clock.h"
#include "common/wall_clock_for_test.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace blockserve {
namespace {

using ::testing::ElementsAre;

// Answers from what the requests hold, so that tests see what was sent.
class EchoService final : public v1::Generation::Service {
 public:
  grpc::Status Generate(grpc::ServerContext* context, const v1::GenerateRequest* request,
                        grpc::ServerWriter<v1::GenerateResponse>* writer) override {
    deadline = absl::FromChrono(context->deadline());
    v1::GenerateResponse event;
    event.mutable_started()->set_request_id(request->request_id());
    writer->Write(event);
    for (int32_t id : request->tokens().ids()) {
      event.mutable_output()->clear_tokens();
      event.mutable_output()->add_tokens(id);
      writer->Write(event);
    }
    if (request->request_id() == "endless") {
      while (!context->IsCancelled()) writer->Write(event);
      cancelled.Notify();
    }
    if (request->request_id() == "bad") {
      return {grpc::StatusCode::INVALID_ARGUMENT, "n: must be 1 to 64, not 0"};
    }
    event.mutable_usage()->set_completion_tokens(request->tokens().ids_size());
    writer->Write(event);
    return grpc::Status::OK;
  }
  grpc::Status Score(grpc::ServerContext*, const v1::ScoreRequest* request,
                     v1::ScoreResponse* response) override {
    *response->mutable_tokens() = request->continuation_tokens().ids();
    return grpc::Status::OK;
  }
  grpc::Status Tokenize(grpc::ServerContext*, const v1::TokenizeRequest* request,
                        v1::TokenizeResponse* response) override {
    for (const char c : request->text()) response->add_tokens(c);
    return grpc::Status::OK;
  }
  grpc::Status Detokenize(grpc::ServerContext*, const v1::DetokenizeRequest* request,
                          v1::DetokenizeResponse* response) override {
    for (int32_t id : request->tokens()) {
      if (id != 0 || !request->skip_special_tokens()) {
        response->mutable_text()->push_back(static_cast<char>('a' + id));
      }
    }
    return grpc::Status::OK;
  }
  grpc::Status GetModel(grpc::ServerContext*, const v1::GetModelRequest*,
                        v1::GetModelResponse*) override {
    return {grpc::StatusCode::UNAVAILABLE, "draining"};
  }

  absl::Time deadline;
  absl::Notification cancelled;
};

class ClientTest : public ::testing::Test {
 protected:
  ClientTest() {
    grpc::ServerBuilder builder;
    builder.RegisterService(&service_);
    server_ = builder.BuildAndStart();
    client_ = std::make_unique<Client>(server_->InProcessChannel({}));
  }
  ~ClientTest() override { server_->Shutdown(); }

  static v1::GenerateRequest Request(const std::string& id) {
    v1::GenerateRequest request;
    request.set_request_id(id);
    request.mutable_tokens()->add_ids(3);
    request.mutable_tokens()->add_ids(4);
    return request;
  }

  EchoService service_;
  std::unique_ptr<grpc::Server> server_;
  std::unique_ptr<Client> client_;
};

TEST_F(ClientTest, GivesTheEventsInOrder) {
  std::vector<int> kinds;
  const absl::Status status =
      client_->Generate(Request("r"), [&](const v1::GenerateResponse& event) {
        kinds.push_back(event.event_case());
        return true;
      });
  EXPECT_TRUE(status.ok()) << status;
  EXPECT_THAT(kinds, ElementsAre(v1::GenerateResponse::kStarted, v1::GenerateResponse::kOutput,
                                 v1::GenerateResponse::kOutput, v1::GenerateResponse::kUsage));
}

TEST_F(ClientTest, GivesTheOneErrorOfAStream) {
  auto stream = client_->Generate(Request("bad"));
  v1::GenerateResponse event;
  while (stream->Next(&event)) {
  }
  const absl::Status status = stream->Finish();
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(status.message(), "n: must be 1 to 64, not 0");
}

TEST_F(ClientTest, StopsTheServerWhenTheCallbackHasEnough) {
  const absl::Status status =
      client_->Generate(Request("endless"), [](const v1::GenerateResponse&) { return false; });
  EXPECT_EQ(status.code(), absl::StatusCode::kCancelled);
  service_.cancelled.WaitForNotification();
}

TEST_F(ClientTest, StopsTheServerWhenTheStreamIsDropped) {
  {
    auto stream = client_->Generate(Request("endless"));
    v1::GenerateResponse event;
    EXPECT_TRUE(stream->Next(&event));
  }
  service_.cancelled.WaitForNotification();
}

TEST_F(ClientTest, GivesEveryCallADeadline) {
  const absl::Time before = absl::Now();
  ASSERT_TRUE(client_->Generate(Request("r"), [](const auto&) { return true; }).ok());
  EXPECT_GT(service_.deadline, before + absl::Minutes(9));
  EXPECT_LT(service_.deadline, before + absl::Minutes(20));
  CallOptions options;
  options.timeout = absl::Hours(1);
  ASSERT_TRUE(client_
                  ->Generate(
                      Request("r"), [](const auto&) { return true; }, options)
                  .ok());
  EXPECT_GT(service_.deadline, before + absl::Minutes(50));
}

TEST_F(ClientTest, CallsWhileTheWallClockIsSet) {
  const WallClockThatIsSet clock(absl::Hours(1));
  CallOptions options;
  options.timeout = absl::Minutes(5);
  const absl::Status status = client_->Tokenize("A", options).status();
  EXPECT_TRUE(status.ok()) << status;
}

TEST_F(ClientTest, CallsTheOtherMethods) {
  v1::ScoreRequest score;
  score.mutable_continuation_tokens()->add_ids(9);
  EXPECT_THAT(client_->Score(score)->tokens(), ElementsAre(9));
  EXPECT_THAT(*client_->Tokenize("AB"), ElementsAre('A', 'B'));
  EXPECT_EQ(*client_->Detokenize({1, 0}), "ba");
  EXPECT_EQ(*client_->Detokenize({1, 0}, /*skip_special_tokens=*/true), "b");
  EXPECT_EQ(client_->GetModel().status(), absl::UnavailableError("draining"));
}

}  // namespace
}  // namespace blockserve
