#include "gateway/generation_service.h"

#include <grpcpp/grpcpp.h>
#include <pthread.h>

#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/synchronization/notification.h"
#include "absl/time/clock.h"
#include "blockserve/v1/generation.grpc.pb.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "rpc/asio_loop.h"

namespace blockserve {
namespace {

using ::testing::HasSubstr;

// A stream that keeps a writer until it is told to go on.
class StuckStream final : public StreamWriters::Stream {
 public:
  void WriteNext() override {
    begun.Notify();
    go_on.WaitForNotification();
  }
  absl::Notification begun;
  absl::Notification go_on;
};

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

  absl::Time Now() const override { return now; }

  // Far from the wall clock.
  const absl::Time now = absl::FromUnixSeconds(1'000'000);
  GenerateHandler on_generate;
  ScoreHandler on_score;
  std::function<void()> on_resume;
  int generated = 0;
  GenerationId cancelled_id = 0;
  bool expects_cancel = true;
  absl::Notification cancelled;
};

class GenerationServiceTest : public ::testing::Test {
 protected:
  GenerationServiceTest() : validator_(Config(), nullptr, {"tiny", false}) {
    service_ = std::make_unique<GenerationService>(&core_, &validator_);
    grpc::ServerBuilder builder;
    builder.RegisterService(service_.get());
    server_ = builder.BuildAndStart();
    stub_ = v1::Generation::NewStub(server_->InProcessChannel({}));
  }
  ~GenerationServiceTest() override { server_->Shutdown(); }

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

// With writers, and a loop that tells the events as the core does.
class WrittenByWritersTest : public GenerationServiceTest {
 protected:
  WrittenByWritersTest() {
    service_ =
        std::make_unique<GenerationService>(&core_, &validator_, /*keys=*/nullptr, &writers_);
    grpc::ServerBuilder builder;
    builder.RegisterService(service_.get());
    written_server_ = builder.BuildAndStart();
    written_stub_ = v1::Generation::NewStub(written_server_->InProcessChannel({}));
    core_.on_generate = [this](const GenerationRequest&,
                               const std::shared_ptr<GenerationSink>& sink) {
      loop_.Post([this, sink] {
        sinks_.push_back(sink);
        if (sinks_.size() == wanted_) begun_.Notify();
      });
    };
  }
  ~WrittenByWritersTest() override {
    if (written_server_ != nullptr) written_server_->Shutdown();
    loop_.Join();
  }

  // Takes the only writer, and says so when it has.
  std::shared_ptr<StuckStream> StickWriter() {
    const auto stuck = std::make_shared<StuckStream>();
    loop_.Post([this, stuck] {
      for (size_t i = 0; i < StreamWriters::kBatch; ++i) {
        if (i == 0) {
          writers_.Add(stuck);
        } else {
          writers_.Add(std::make_shared<NothingToWrite>());
        }
      }
    });
    stuck->begun.WaitForNotification();
    return stuck;
  }
  // A block for each of the streams, in one turn; back when it is over.
  void TellBlocks(int64_t position) {
    absl::Notification told;
    loop_.Post([&] {
      for (const auto& sink : sinks_) sink->OnOutput(Block(position), {});
      loop_.Post([&] { told.Notify(); });
    });
    told.WaitForNotification();
  }

  class NothingToWrite final : public StreamWriters::Stream {
   public:
    void WriteNext() override {}
  };

  StreamWriters writers_{loop_, /*threads=*/1};
  AsioLoop loop_{"test-loop"};
  GenerationService written_service_{&core_, &validator_, /*keys=*/nullptr, &writers_};
  std::unique_ptr<grpc::Server> written_server_;
  std::unique_ptr<v1::Generation::Stub> written_stub_;
  size_t wanted_ = 1;  // streams that the test waits for
  absl::Notification begun_;
  std::vector<std::shared_ptr<GenerationSink>> sinks_;  // the loop's, until `begun_`
};

TEST_F(WrittenByWritersTest, ManyStreamsAtATimeComeInOrderAndWhole) {
  wanted_ = 2 * StreamWriters::kBatch;
  static constexpr int kBlocks = 50;
  std::vector<std::thread> clients;
  for (size_t i = 0; i < wanted_; ++i) {
    clients.emplace_back([this] {
      grpc::ClientContext context;
      auto reader = written_stub_->Generate(&context, OneToken());
      int blocks = 0;
      bool usage = false;
      for (v1::GenerateResponse event; reader->Read(&event);) {
        EXPECT_FALSE(usage);
        if (event.has_output()) {
          EXPECT_EQ(event.output().position(), 4 * blocks);
          blocks += event.output().tokens_size() / 4;
        }
        usage = event.has_usage();
      }
      EXPECT_EQ(blocks, kBlocks);
      EXPECT_TRUE(usage);
      EXPECT_TRUE(reader->Finish().ok());
    });
  }
  begun_.WaitForNotification();
  for (int i = 0; i < kBlocks; ++i) TellBlocks(4 * i);
  loop_.Post([this] {
    for (const auto& sink : sinks_) {
      sink->OnFinished({});
      sink->OnDone(absl::OkStatus(), {});
    }
  });
  for (std::thread& client : clients) client.join();
}

// Where there is more than can be written, it takes fewer writes.
TEST_F(WrittenByWritersTest, BlocksThatWaitAndFollowOneAnotherLeaveTogether) {
  const auto block = [](uint32_t choice, int64_t position, const std::string& worker) {
    v1::Output output = Block(position);
    output.set_choice(choice);
    output.set_worker(worker);
    output.set_text(absl::StrCat(choice, ":", position, ";"));
    for (int i = 0; i < 4; ++i) {
      output.set_tokens(i, static_cast<int32_t>(position) + i);
      output.add_logprobs()->set_logprob(-0.5f * static_cast<float>(position + i));
    }
    return output;
  };
  grpc::ClientContext context;
  auto reader = written_stub_->Generate(&context, OneToken());
  begun_.WaitForNotification();
  const std::shared_ptr<StuckStream> stuck = StickWriter();
  absl::Notification told;
  loop_.Post([&] {
    // So many in a turn that the writer has to write them.
    for (size_t i = 0; i < StreamWriters::kBatch; ++i) {
      writers_.Add(std::make_shared<NothingToWrite>());
    }
    GenerationSink& sink = *sinks_[0];
    for (const int64_t position : {1, 5, 9}) sink.OnOutput(block(0, position, "a"), {});
    sink.OnOutput(block(0, 13, "b"), {});
    for (const int64_t position : {1, 5}) sink.OnOutput(block(1, position, "b"), {});
    sink.OnOutput(block(1, 10, "b"), {});
    sink.OnFinished({});
    sink.OnDone(absl::OkStatus(), {});
    loop_.Post([&] { told.Notify(); });
  });
  told.WaitForNotification();
  stuck->go_on.Notify();
  std::vector<v1::GenerateResponse> events;
  for (v1::GenerateResponse event; reader->Read(&event);) events.push_back(event);
  EXPECT_TRUE(reader->Finish().ok());
  ASSERT_EQ(events.size(), 6u);
  EXPECT_EQ(events[0].output().text(), "0:1;0:5;0:9;");
  EXPECT_EQ(events[0].output().position(), 1);
  EXPECT_EQ(events[0].output().worker(), "a");
  ASSERT_EQ(events[0].output().tokens_size(), 12);
  ASSERT_EQ(events[0].output().logprobs_size(), 12);
  for (int i = 0; i < 12; ++i) {
    EXPECT_EQ(events[0].output().tokens(i), i + 1);
    EXPECT_EQ(events[0].output().logprobs(i).logprob(), -0.5f * static_cast<float>(i + 1));
  }
  EXPECT_EQ(events[1].output().text(), "0:13;");
  EXPECT_EQ(events[2].output().text(), "1:1;1:5;");
  EXPECT_EQ(events[3].output().text(), "1:10;");
  EXPECT_TRUE(events[4].has_finished());
  EXPECT_TRUE(events[5].has_usage());
}

TEST_F(WrittenByWritersTest, ALoneStreamDoesNotWaitForTheWriters) {
  const std::shared_ptr<StuckStream> stuck = StickWriter();
  grpc::ClientContext context;
  auto reader = written_stub_->Generate(&context, OneToken());
  begun_.WaitForNotification();
  TellBlocks(0);
  v1::GenerateResponse event;
  EXPECT_TRUE(reader->Read(&event));
  stuck->go_on.Notify();
  loop_.Post([this] { sinks_[0]->OnDone(absl::InternalError("over"), {}); });
  EXPECT_FALSE(reader->Read(&event));
  EXPECT_EQ(reader->Finish().error_message(), "over");
}

TEST_F(WrittenByWritersTest, AClientThatLeavesWhileItsEventsWaitForAWriterIsForgotten) {
  wanted_ = StreamWriters::kFew + 1;
  std::vector<std::unique_ptr<grpc::ClientContext>> contexts;
  std::vector<std::unique_ptr<grpc::ClientReader<v1::GenerateResponse>>> readers;
  for (size_t i = 0; i < wanted_; ++i) {
    contexts.push_back(std::make_unique<grpc::ClientContext>());
    readers.push_back(written_stub_->Generate(contexts.back().get(), OneToken()));
  }
  begun_.WaitForNotification();
  const std::shared_ptr<StuckStream> stuck = StickWriter();
  TellBlocks(0);
  contexts[0]->TryCancel();
  core_.cancelled.WaitForNotification();
  v1::GenerateResponse event;
  EXPECT_FALSE(readers[0]->Read(&event));
  EXPECT_EQ(readers[0]->Finish().error_code(), grpc::StatusCode::CANCELLED);
  TellBlocks(4);
  stuck->go_on.Notify();
  loop_.Post([this] {
    for (const auto& sink : sinks_) sink->OnDone(absl::OkStatus(), {});
  });
  for (size_t i = 1; i < wanted_; ++i) {
    EXPECT_TRUE(readers[i]->Read(&event));
    EXPECT_EQ(event.output().position(), 0);
    EXPECT_EQ(event.output().tokens_size(), 8);
    EXPECT_TRUE(readers[i]->Read(&event));
    EXPECT_TRUE(event.has_usage());
    EXPECT_FALSE(readers[i]->Read(&event));
    EXPECT_TRUE(readers[i]->Finish().ok());
  }
}

TEST_F(WrittenByWritersTest, AServerThatStopsDoesNotWaitForWhatWaitsForAWriter) {
  core_.expects_cancel = false;
  wanted_ = StreamWriters::kFew + 1;
  std::vector<std::unique_ptr<grpc::ClientContext>> contexts;
  std::vector<std::unique_ptr<grpc::ClientReader<v1::GenerateResponse>>> readers;
  for (size_t i = 0; i < wanted_; ++i) {
    contexts.push_back(std::make_unique<grpc::ClientContext>());
    readers.push_back(written_stub_->Generate(contexts.back().get(), OneToken()));
  }
  begun_.WaitForNotification();
  const std::shared_ptr<StuckStream> stuck = StickWriter();
  TellBlocks(0);
  written_server_->Shutdown(std::chrono::system_clock::now());
  written_server_.reset();
  TellBlocks(4);  // the core does not know yet
  stuck->go_on.Notify();
  v1::GenerateResponse event;
  for (const auto& reader : readers) {
    EXPECT_FALSE(reader->Read(&event));
    EXPECT_FALSE(reader->Finish().ok());
  }
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
