#include "gateway/generation_service.h"

#include <grpcpp/grpcpp.h>
#include <pthread.h>

#include <memory>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/synchronization/notification.h"
#include "absl/time/clock.h"
#include "common/wall_clock_for_test.h"
#include "gateway/generation_service_fixture.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "rpc/deadline.h"

namespace blockserve {
namespace {

using ::testing::HasSubstr;
using GenerationServiceTest = GenerationServiceFixture;

TEST_F(GenerationServiceTest, StreamsTheEventsInOrderAndEndsWithUsage) {
  core_.on_generate = [](const GenerationRequest& request,
                         const std::shared_ptr<GenerationSink>& sink) {
    v1::Started started;
    started.set_request_id(request.request_id);
    sink->OnStarted(started);
    sink->OnOutput(Block(1), {});
    sink->OnOutput(Block(6), {});  // none that follows
    v1::Finished finished;
    finished.set_reason(v1::FINISH_REASON_LENGTH);
    sink->OnFinished(finished);
    v1::Usage usage;
    usage.set_completion_tokens(8);
    sink->OnDone(absl::OkStatus(), usage);
  };
  grpc::ClientContext context;
  v1::GenerateRequest request = OneToken();
  request.set_request_id("r1");
  auto reader = stub_->Generate(&context, request);
  std::vector<v1::GenerateResponse> events;
  for (v1::GenerateResponse event; reader->Read(&event);) events.push_back(event);
  EXPECT_TRUE(reader->Finish().ok());
  ASSERT_EQ(events.size(), 5u);
  EXPECT_EQ(events[0].started().request_id(), "r1");
  EXPECT_EQ(events[1].output().position(), 1);
  EXPECT_EQ(events[2].output().position(), 6);
  EXPECT_EQ(events[3].finished().reason(), v1::FINISH_REASON_LENGTH);
  EXPECT_EQ(events[4].usage().completion_tokens(), 8);
}

TEST_F(GenerationServiceTest, ALongRequestIsReadOnAThreadOfItsOwn) {
  const RequestValidator validator(Config(), nullptr, {"tiny", /*allow_beyond_positions=*/true});
  GenerationService service(&core_, &validator);
  grpc::ServerBuilder builder;
  builder.RegisterService(&service);
  const std::unique_ptr<grpc::Server> server = builder.BuildAndStart();
  const auto stub = v1::Generation::NewStub(server->InProcessChannel({}));
  std::vector<std::string> threads;
  const auto note_thread = [&threads] {
    char name[16] = {};
    pthread_getname_np(pthread_self(), name, sizeof(name));
    threads.emplace_back(name);
  };
  core_.on_generate = [&](const GenerationRequest&, const std::shared_ptr<GenerationSink>& sink) {
    note_thread();
    sink->OnOutput(Block(1), {});
    sink->OnDone(absl::OkStatus(), {});
  };
  core_.on_score = [&](const ScoringRequest&, const std::shared_ptr<ScoringSink>& sink) {
    note_thread();
    sink->OnDone(v1::ScoreResponse());
  };
  for (const int tokens : {3, 20'000}) {
    v1::GenerateRequest generate;
    v1::ScoreRequest score;
    for (int i = 0; i < tokens; ++i) {
      generate.mutable_tokens()->add_ids(1);
      score.mutable_continuation_tokens()->add_ids(1);
    }
    grpc::ClientContext context;
    auto reader = stub->Generate(&context, generate);
    int events = 0;
    for (v1::GenerateResponse event; reader->Read(&event);) ++events;
    EXPECT_TRUE(reader->Finish().ok());
    EXPECT_EQ(events, 2);
    grpc::ClientContext score_context;
    v1::ScoreResponse scored;
    EXPECT_TRUE(stub->Score(&score_context, score, &scored).ok());
    generate.set_n(0);
    grpc::ClientContext refused;
    EXPECT_EQ(stub->Generate(&refused, generate)->Finish().error_code(),
              grpc::StatusCode::INVALID_ARGUMENT);
  }
  ASSERT_EQ(threads.size(), 4u);
  EXPECT_NE(threads[0], "grpc-text");
  EXPECT_NE(threads[1], "grpc-text");
  EXPECT_EQ(threads[2], "grpc-text");
  EXPECT_EQ(threads[3], "grpc-text");
  server->Shutdown();
}

TEST_F(GenerationServiceTest, DeliversWhatCameBeforeAnError) {
  core_.on_generate = [](const GenerationRequest&, const std::shared_ptr<GenerationSink>& sink) {
    sink->OnOutput(Block(1), {});
    sink->OnDone(absl::InternalError("row has non-finite logits"), {});
  };
  grpc::ClientContext context;
  auto reader = stub_->Generate(&context, OneToken());
  v1::GenerateResponse event;
  EXPECT_TRUE(reader->Read(&event));
  EXPECT_EQ(event.output().tokens_size(), 4);
  EXPECT_FALSE(reader->Read(&event));
  const grpc::Status status = reader->Finish();
  EXPECT_EQ(status.error_code(), grpc::StatusCode::INTERNAL);
  EXPECT_EQ(status.error_message(), "row has non-finite logits");
  // So that clients tell it from the INTERNAL that gRPC makes of a stream that a proxy resets.
  const auto& told = context.GetServerTrailingMetadata();
  ASSERT_NE(told.find("blockserve-status"), told.end());
  EXPECT_EQ(told.find("blockserve-status")->second, "INTERNAL");
}

TEST_F(GenerationServiceTest, RefusesABadRequestWithoutTheCore) {
  grpc::ClientContext context;
  v1::GenerateRequest request = OneToken();
  request.set_n(65);
  auto reader = stub_->Generate(&context, request);
  v1::GenerateResponse event;
  EXPECT_FALSE(reader->Read(&event));
  const grpc::Status status = reader->Finish();
  EXPECT_EQ(status.error_code(), grpc::StatusCode::INVALID_ARGUMENT);
  EXPECT_THAT(status.error_message(), HasSubstr("n: must be 1 to 64"));
  EXPECT_EQ(core_.generated, 0);
}

TEST_F(GenerationServiceTest, SaysWhatIsWrongWithAStringThatIsNotUtf8) {
  v1::GenerateRequest generate;
  generate.set_text("\xFF\xFE");
  grpc::ClientContext generate_context;
  auto reader = stub_->Generate(&generate_context, generate);
  v1::GenerateResponse event;
  EXPECT_FALSE(reader->Read(&event));
  grpc::Status status = reader->Finish();
  EXPECT_EQ(status.error_code(), grpc::StatusCode::INVALID_ARGUMENT);
  EXPECT_THAT(status.error_message(), HasSubstr("UTF-8"));

  v1::TokenizeRequest tokenize;
  tokenize.set_text("\xFF\xFE");
  grpc::ClientContext context;
  v1::TokenizeResponse response;
  status = stub_->Tokenize(&context, tokenize, &response);
  EXPECT_EQ(status.error_code(), grpc::StatusCode::INVALID_ARGUMENT);
  EXPECT_THAT(status.error_message(), HasSubstr("UTF-8"));
}

TEST_F(GenerationServiceTest, TellsTheCoreWhenTheClientLeaves) {
  core_.on_generate = [](const GenerationRequest&, const std::shared_ptr<GenerationSink>& sink) {
    sink->OnOutput(Block(1), {});
  };
  grpc::ClientContext context;
  auto reader = stub_->Generate(&context, OneToken());
  v1::GenerateResponse event;
  EXPECT_TRUE(reader->Read(&event));
  context.TryCancel();
  core_.cancelled.WaitForNotification();
  EXPECT_EQ(core_.cancelled_id, 7u);
  EXPECT_FALSE(reader->Read(&event));
  EXPECT_EQ(reader->Finish().error_code(), grpc::StatusCode::CANCELLED);
}

TEST_F(GenerationServiceTest, WhatIsNeverReadIsNotKeptForEver) {
  GenerationService service(&core_, &validator_, nullptr, nullptr, absl::Milliseconds(1));
  grpc::ServerBuilder builder;
  builder.RegisterService(&service);
  const std::unique_ptr<grpc::Server> server = builder.BuildAndStart();
  const auto stub = v1::Generation::NewStub(server->InProcessChannel({}));
  core_.on_generate = [](const GenerationRequest&, const std::shared_ptr<GenerationSink>& sink) {
    for (int sent = 0; sink->WantsMore(); ++sent) sink->OnOutput(Block(4 * sent), {});
    sink->OnDone(absl::AbortedError("the client does not read"), {});
  };
  grpc::ClientContext context;
  auto reader = stub->Generate(&context, OneToken());
  core_.cancelled.WaitForNotification();  // as by a client that leaves
  for (v1::GenerateResponse event; reader->Read(&event);) {
  }
  EXPECT_EQ(reader->Finish().error_code(), grpc::StatusCode::CANCELLED);
  server->Shutdown();
}

// Answers of one message stay like streams where their client's window is shut.
TEST_F(GenerationServiceTest, AnAnswerThatIsNeverReadIsNotKeptForEver) {
  GenerationService service(&core_, &validator_, nullptr, nullptr, absl::ZeroDuration());
  grpc::ServerBuilder builder;
  builder.RegisterService(&service);
  const std::unique_ptr<grpc::Server> server = builder.BuildAndStart();
  const auto stub = v1::Generation::NewStub(server->InProcessChannel({}));
  core_.on_score = [](const ScoringRequest&, const std::shared_ptr<ScoringSink>& sink) {
    sink->OnDone(v1::ScoreResponse());
  };
  grpc::CompletionQueue queue;
  const auto next = [&queue] {
    void* tag = nullptr;
    bool ok = false;
    ASSERT_TRUE(queue.Next(&tag, &ok));
  };
  grpc::ClientContext score_context;
  v1::ScoreRequest request;
  request.mutable_continuation_tokens()->add_ids(2);
  const auto score = stub->PrepareAsyncScore(&score_context, request, &queue);
  score->StartCall();
  score->ReadInitialMetadata(nullptr);
  next();
  core_.cancelled.WaitForNotification();
  EXPECT_EQ(core_.cancelled_id, 8u);
  v1::ScoreResponse scored;
  grpc::Status status;
  score->Finish(&scored, &status, nullptr);
  next();
  EXPECT_EQ(status.error_code(), grpc::StatusCode::CANCELLED) << status.error_message();
  // Of those that are answered here nobody hears: one that is read at once may be in time.
  do {
    grpc::ClientContext context;
    const auto model = stub->PrepareAsyncGetModel(&context, v1::GetModelRequest(), &queue);
    model->StartCall();
    model->ReadInitialMetadata(nullptr);
    next();
    v1::GetModelResponse described;
    model->Finish(&described, &status, nullptr);
    next();
  } while (status.ok());
  EXPECT_EQ(status.error_code(), grpc::StatusCode::CANCELLED) << status.error_message();
  server->Shutdown();
}

TEST_F(GenerationServiceTest, AsksTheCoreToPauseForAClientThatDoesNotReadAndToGoOn) {
  absl::Notification resumed;
  std::shared_ptr<GenerationSink> stream;
  int sent = 0;
  core_.on_generate = [&](const GenerationRequest&, const std::shared_ptr<GenerationSink>& sink) {
    stream = sink;
    while (sink->WantsMore() && sent < 100'000) sink->OnOutput(Block(4 * sent++), {});
  };
  core_.on_resume = [&] { resumed.Notify(); };
  grpc::ClientContext context;
  auto reader = stub_->Generate(&context, OneToken());
  int received = 0;
  v1::GenerateResponse event;
  // The in-process transport holds messages back from a reader that does not read.
  while (!resumed.HasBeenNotified() && received < 100'000 && reader->Read(&event)) {
    EXPECT_EQ(event.output().position(), 4 * received);
    received += event.output().tokens_size() / 4;
    if (received == sent) break;
  }
  resumed.WaitForNotification();
  EXPECT_LT(sent, 100'000);
  EXPECT_TRUE(stream->WantsMore());
  stream->OnDone(absl::OkStatus(), {});
  bool usage = false;
  while (reader->Read(&event)) {
    usage = event.has_usage();
    received += event.output().tokens_size() / 4;
  }
  EXPECT_TRUE(usage);
  EXPECT_EQ(received, sent);
  EXPECT_TRUE(reader->Finish().ok());
}

TEST_F(GenerationServiceTest, TellsTheCoreOfRequestsThatAreRefusedAndOfNoOthers) {
  core_.on_generate = [](const GenerationRequest&, const std::shared_ptr<GenerationSink>& sink) {
    sink->OnDone(absl::OkStatus(), {});
  };
  const auto outcome = [this](const v1::GenerateRequest& request) {
    grpc::ClientContext context;
    auto reader = stub_->Generate(&context, request);
    for (v1::GenerateResponse event; reader->Read(&event);) {
    }
    return reader->Finish().error_code();
  };
  EXPECT_EQ(outcome(OneToken()), grpc::StatusCode::OK);
  EXPECT_TRUE(core_.refused.empty());
  v1::GenerateRequest none;
  none.set_request_id("of none");
  EXPECT_EQ(outcome(none), grpc::StatusCode::INVALID_ARGUMENT);
  ASSERT_EQ(core_.refused.size(), 1u);
  EXPECT_EQ(core_.refused[0].request_id, "of none");
  EXPECT_EQ(core_.refused[0].method, RequestMethod::kGenerate);
  EXPECT_TRUE(absl::IsInvalidArgument(core_.refused[0].status));
}

TEST_F(GenerationServiceTest, TextsAreTakenFromTheRateOfTheirKey) {
  v1::DetokenizeRequest request;
  const auto outcome = [&] {
    grpc::ClientContext context;
    v1::DetokenizeResponse response;
    return stub_->Detokenize(&context, request, &response).error_code();
  };
  outcome();
  EXPECT_EQ(core_.taken_from_rate, 1);
  core_.rate = absl::ResourceExhaustedError("too many");
  EXPECT_EQ(outcome(), grpc::StatusCode::RESOURCE_EXHAUSTED);
  EXPECT_EQ(core_.taken_from_rate, 2);
}

TEST_F(GenerationServiceTest, PassesTheCallsDeadlineOnInTheCoresTime) {
  absl::Time deadline;
  core_.on_generate = [&](const GenerationRequest& request,
                          const std::shared_ptr<GenerationSink>& sink) {
    deadline = request.deadline;
    sink->OnDone(absl::OkStatus(), {});
  };
  for (const absl::Duration wait : {absl::ZeroDuration(), absl::Hours(2)}) {
    grpc::ClientContext context;
    if (wait != absl::ZeroDuration()) context.set_deadline(absl::ToChronoTime(absl::Now() + wait));
    auto reader = stub_->Generate(&context, OneToken());
    for (v1::GenerateResponse event; reader->Read(&event);) {
    }
    EXPECT_TRUE(reader->Finish().ok());
    const absl::Duration expected = wait == absl::ZeroDuration() ? absl::Minutes(10) : wait;
    EXPECT_GT(deadline, core_.now + expected - absl::Minutes(1));
    EXPECT_LT(deadline, core_.now + expected + absl::Minutes(1));
  }
}

TEST_F(GenerationServiceTest, TakesCallsWhileTheWallClockIsSet) {
  absl::Time deadline;
  core_.on_generate = [&](const GenerationRequest& request,
                          const std::shared_ptr<GenerationSink>& sink) {
    deadline = request.deadline;
    sink->OnDone(absl::OkStatus(), {});
  };
  const WallClockThatIsSet clock(absl::Hours(5));
  grpc::ClientContext context;
  context.set_deadline(GrpcDeadlineIn(absl::Hours(2)));
  auto reader = stub_->Generate(&context, OneToken());
  for (v1::GenerateResponse event; reader->Read(&event);) {
  }
  EXPECT_TRUE(reader->Finish().ok());
  EXPECT_GT(deadline, core_.now + absl::Hours(1));
  EXPECT_LT(deadline, core_.now + absl::Hours(3));
  // One of gRPC's threads may be asleep until a time of this clock, and never wakes by another one.
  server_->Shutdown();
}

TEST_F(GenerationServiceTest, Scores) {
  core_.on_score = [](const ScoringRequest& request, const std::shared_ptr<ScoringSink>& sink) {
    v1::ScoreResponse response;
    response.set_request_id(request.request_id);
    for (int32_t id : request.tokens) response.add_tokens(id);
    sink->OnDone(response);
  };
  grpc::ClientContext context;
  v1::ScoreRequest request;
  request.set_request_id("s");
  request.mutable_continuation_tokens()->add_ids(4);
  v1::ScoreResponse response;
  const grpc::Status status = stub_->Score(&context, request, &response);
  EXPECT_TRUE(status.ok()) << status.error_message();
  EXPECT_EQ(response.request_id(), "s");
  EXPECT_THAT(response.tokens(), ::testing::ElementsAre(4));
}

TEST_F(GenerationServiceTest, WhatMayKillWorkersComesOnceWhateverTheClientsRetryPolicy) {
  int scored = 0;
  core_.on_score = [&](const ScoringRequest&, const std::shared_ptr<ScoringSink>& sink) {
    ++scored;
    sink->OnDone(absl::InternalError("two workers died with it"));
  };
  // Over a port: channels within the process retry nothing.
  GenerationService service(&core_, &validator_);
  int port = 0;
  grpc::ServerBuilder builder;
  builder.RegisterService(&service);
  builder.AddListeningPort("127.0.0.1:0", grpc::InsecureServerCredentials(), &port);
  const std::unique_ptr<grpc::Server> server = builder.BuildAndStart();
  grpc::ChannelArguments arguments;
  arguments.SetServiceConfigJSON(
      R"({"methodConfig": [{"name": [{}], "retryPolicy": {
           "maxAttempts": 5, "initialBackoff": "0.001s", "maxBackoff": "0.001s",
           "backoffMultiplier": 1, "retryableStatusCodes": ["INTERNAL"]}}]})");
  const auto stub = v1::Generation::NewStub(grpc::CreateCustomChannel(
      absl::StrCat("127.0.0.1:", port), grpc::InsecureChannelCredentials(), arguments));
  grpc::ClientContext context;
  v1::ScoreRequest request;
  request.mutable_continuation_tokens()->add_ids(4);
  v1::ScoreResponse response;
  EXPECT_EQ(stub->Score(&context, request, &response).error_code(), grpc::StatusCode::INTERNAL);
  EXPECT_EQ(scored, 1);
  server->Shutdown();
}

TEST_F(GenerationServiceTest, TellsTheCoreWhenAScoringClientLeaves) {
  absl::Notification scoring;
  core_.on_score = [&](const ScoringRequest&, const std::shared_ptr<ScoringSink>&) {
    scoring.Notify();
  };
  grpc::ClientContext context;
  v1::ScoreRequest request;
  request.mutable_continuation_tokens()->add_ids(4);
  v1::ScoreResponse response;
  absl::Notification done;
  grpc::Status status;
  stub_->async()->Score(&context, &request, &response, [&](grpc::Status result) {
    status = result;
    done.Notify();
  });
  scoring.WaitForNotification();
  context.TryCancel();
  core_.cancelled.WaitForNotification();
  EXPECT_EQ(core_.cancelled_id, 8u);
  done.WaitForNotification();
  EXPECT_EQ(status.error_code(), grpc::StatusCode::CANCELLED);
}

TEST_F(GenerationServiceTest, DescribesModelAndWorkers) {
  grpc::ClientContext context;
  v1::GetModelResponse response;
  EXPECT_TRUE(stub_->GetModel(&context, {}, &response).ok());
  EXPECT_EQ(response.name(), "tiny");
  EXPECT_EQ(response.model_id(), "id-of-model");
  EXPECT_EQ(response.token_workers(), 3);
  grpc::ClientContext other_context;
  v1::GetModelRequest other;
  other.set_model("other");
  EXPECT_EQ(stub_->GetModel(&other_context, other, &response).error_code(),
            grpc::StatusCode::NOT_FOUND);
}

TEST_F(GenerationServiceTest, SaysThatThereIsNoTokenizer) {
  grpc::ClientContext context;
  v1::TokenizeResponse response;
  EXPECT_EQ(stub_->Tokenize(&context, {}, &response).error_code(),
            grpc::StatusCode::FAILED_PRECONDITION);
}

}  // namespace
}  // namespace blockserve
