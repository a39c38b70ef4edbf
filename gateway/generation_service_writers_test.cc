// Streams of the gRPC front that its writers write, in the core's turns.
#include <grpcpp/grpcpp.h>

#include <chrono>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/synchronization/notification.h"
#include "gateway/generation_service_fixture.h"
#include "gateway/stream_writers.h"
#include "gtest/gtest.h"
#include "rpc/asio_loop.h"

namespace blockserve {
namespace {

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

// With writers, and a loop that tells the events as the core does.
class WrittenByWritersTest : public GenerationServiceFixture {
 protected:
  WrittenByWritersTest() {
    grpc::ServerBuilder builder;
    builder.RegisterService(&written_service_);
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

  struct Call {
    std::unique_ptr<grpc::ClientContext> context;
    std::unique_ptr<grpc::ClientReader<v1::GenerateResponse>> reader;
  };
  // So many streams that their events wait for a writer; back when the core has them all.
  std::vector<Call> BeginMoreThanFew() {
    wanted_ = StreamWriters::kFew + 1;
    std::vector<Call> calls(wanted_);
    for (Call& call : calls) {
      call.context = std::make_unique<grpc::ClientContext>();
      call.reader = written_stub_->Generate(call.context.get(), OneToken());
    }
    begun_.WaitForNotification();
    return calls;
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
  const std::vector<Call> calls = BeginMoreThanFew();
  const std::shared_ptr<StuckStream> stuck = StickWriter();
  TellBlocks(0);
  calls[0].context->TryCancel();
  core_.cancelled.WaitForNotification();
  v1::GenerateResponse event;
  EXPECT_FALSE(calls[0].reader->Read(&event));
  EXPECT_EQ(calls[0].reader->Finish().error_code(), grpc::StatusCode::CANCELLED);
  TellBlocks(4);
  stuck->go_on.Notify();
  loop_.Post([this] {
    for (const auto& sink : sinks_) sink->OnDone(absl::OkStatus(), {});
  });
  for (size_t i = 1; i < wanted_; ++i) {
    EXPECT_TRUE(calls[i].reader->Read(&event));
    EXPECT_EQ(event.output().position(), 0);
    EXPECT_EQ(event.output().tokens_size(), 8);
    EXPECT_TRUE(calls[i].reader->Read(&event));
    EXPECT_TRUE(event.has_usage());
    EXPECT_FALSE(calls[i].reader->Read(&event));
    EXPECT_TRUE(calls[i].reader->Finish().ok());
  }
}

TEST_F(WrittenByWritersTest, AServerThatStopsDoesNotWaitForWhatWaitsForAWriter) {
  core_.expects_cancel = false;
  const std::vector<Call> calls = BeginMoreThanFew();
  const std::shared_ptr<StuckStream> stuck = StickWriter();
  TellBlocks(0);
  written_server_->Shutdown(std::chrono::system_clock::now());
  written_server_.reset();
  TellBlocks(4);  // the core does not know yet
  stuck->go_on.Notify();
  v1::GenerateResponse event;
  for (const Call& call : calls) {
    EXPECT_FALSE(call.reader->Read(&event));
    EXPECT_FALSE(call.reader->Finish().ok());
  }
}

}  // namespace
}  // namespace blockserve
