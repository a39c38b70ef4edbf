// ServerStream and TierStream against each other through real gRPC, over TCP and in-process
// channels: random sends, closes from either side at random moments. Messages must arrive in order,
// none lost that was promised, and both ends must be told of the end exactly once and freed.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <atomic>
#include <cstdint>
#include <cstring>
#include <memory>
#include <random>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "blockserve/v1/token_decoder.grpc.pb.h"
#include "common/mutex.h"
#include "rpc/asio_loop.h"
#include "rpc/server.h"
#include "rpc/server_stream.h"
#include "rpc/tier_merge.h"
#include "rpc/tier_stream.h"

namespace blockserve {
namespace {

using ServerSide = ServerStream<v1::TokenRequestBatch, v1::TokenReplyBatch>;
using ClientSide = TierStream<v1::TokenRequestBatch, v1::TokenReplyBatch>;

// Counts things that are alive; waits until there are none.
class AliveCount {
 public:
  void Add() {
    MutexLock lock(&mutex_);
    ++count_;
  }
  void Remove() {
    MutexLock lock(&mutex_);
    if (--count_ == 0) changed_.SignalAll();
  }
  // False: after a generous time some are still there.
  bool WaitForNone() {
    const absl::Time deadline = absl::Now() + absl::Seconds(60);
    MutexLock lock(&mutex_);
    while (count_ > 0 && absl::Now() < deadline) {
      changed_.WaitWithTimeout(&mutex_, deadline - absl::Now());
    }
    return count_ == 0;
  }

 private:
  Mutex mutex_;
  CondVar changed_;
  int count_ ABSL_GUARDED_BY(mutex_) = 0;
};

class Event {
 public:
  void Set() {
    MutexLock lock(&mutex_);
    set_ = true;
    changed_.SignalAll();
  }
  bool Wait() {
    const absl::Time deadline = absl::Now() + absl::Seconds(60);
    MutexLock lock(&mutex_);
    while (!set_ && absl::Now() < deadline) {
      changed_.WaitWithTimeout(&mutex_, deadline - absl::Now());
    }
    return set_;
  }

 private:
  Mutex mutex_;
  CondVar changed_;
  bool set_ ABSL_GUARDED_BY(mutex_) = false;
};

// A request of rows first, first + 1, ... whose contexts tell the same numbers.
v1::TokenRequestBatch RowsFrom(uint64_t first, int count) {
  v1::TokenRequestBatch batch;
  batch.set_context_type(v1::CONTEXT_TYPE_FLOAT32);
  for (int i = 0; i < count; ++i) {
    const uint64_t id = first + i;
    batch.add_rows()->set_id(id);
    batch.mutable_contexts()->append(reinterpret_cast<const char*>(&id), sizeof(id));
  }
  return batch;
}

// Answers each row; the first row's limit says after how many rows the stream is to be finished.
class EchoHandler final : public ServerSide::Handler {
 public:
  EchoHandler(std::shared_ptr<ServerSide> stream, AliveCount& alive, std::atomic<int>& faults)
      : stream_(std::move(stream)), alive_(alive), faults_(faults) {
    alive_.Add();
  }
  ~EchoHandler() override {
    if (closed_ != 1) ++faults_;
    alive_.Remove();
  }

  void OnMessage(v1::TokenRequestBatch&& message) override {
    if (closed_ != 0 || busy_.exchange(true)) ++faults_;
    if (message.contexts().size() != sizeof(uint64_t) * message.rows_size()) ++faults_;
    v1::TokenReplyBatch reply;
    for (int i = 0; i < message.rows_size(); ++i) {
      uint64_t context = 0;
      std::memcpy(&context, message.contexts().data() + sizeof(context) * i, sizeof(context));
      if (context != message.rows(i).id()) ++faults_;
      if (message.rows(i).limit() > 0) finish_after_ = message.rows(i).limit();
      if (finish_after_ > 0 && answered_ == finish_after_) break;
      reply.add_rows()->set_id(message.rows(i).id());
      ++answered_;
    }
    // Sometimes one reply for all, sometimes one for each row.
    if (answered_ % 3 == 0) {
      for (const v1::TokenRowReply& row : reply.rows()) {
        v1::TokenReplyBatch single;
        *single.add_rows() = row;
        stream_->Send(std::move(single));
      }
    } else {
      stream_->Send(std::move(reply));
    }
    if (finish_after_ > 0 && answered_ == finish_after_) {
      stream_->Finish(grpc::Status(grpc::StatusCode::FAILED_PRECONDITION, "as asked"));
    }
    busy_ = false;
  }
  void OnClosed() override {
    if (busy_) ++faults_;
    ++closed_;
  }

 private:
  const std::shared_ptr<ServerSide> stream_;
  AliveCount& alive_;
  std::atomic<int>& faults_;
  std::atomic<bool> busy_ = false;
  std::atomic<int> closed_ = 0;
  int answered_ = 0;
  int finish_after_ = 0;
};

class EchoService final : public v1::TokenDecoder::CallbackService {
 public:
  grpc::ServerBidiReactor<v1::TokenRequestBatch, v1::TokenReplyBatch>* Run(
      grpc::CallbackServerContext* context) override {
    auto stream = ServerSide::Create(context, {.limits = limits, .merge = MergeTokenReplies});
    stream->Start(std::make_shared<EchoHandler>(stream, alive, faults));
    return stream.get();
  }
  OutgoingLimits limits;
  AliveCount alive;
  std::atomic<int> faults = 0;
};

// What one client saw.
struct Client {
  std::shared_ptr<ClientSide> stream;
  std::vector<uint64_t> received;  // written by gRPC's thread, read after `closed`
  std::atomic<size_t> count = 0;
  std::atomic<int> closes = 0;
  std::atomic<bool> busy = false;
  std::atomic<int> faults = 0;
  size_t wanted = 0;
  Event enough;
  Event closed;
  absl::Status status;
};

std::shared_ptr<Client> MakeClient(const std::shared_ptr<grpc::Channel>& channel, size_t wanted,
                                   OutgoingLimits limits = {},
                                   std::function<void(std::function<void()>)> write_large = {}) {
  auto client = std::make_shared<Client>();
  client->wanted = wanted;
  std::shared_ptr<v1::TokenDecoder::Stub> stub = v1::TokenDecoder::NewStub(channel);
  client->stream = ClientSide::Create(
      [stub](grpc::ClientContext* context, ClientSide::Reactor* reactor) {
        stub->async()->Run(context, reactor);
      },
      {.limits = limits,
       .merge = MergeTokenRequests,
       .write_large = std::move(write_large),
       .large_bytes = 200},  // a few of the tests' rows
      {.on_message =
           [client](v1::TokenReplyBatch&& reply) {
             if (client->busy.exchange(true) || client->closes > 0) ++client->faults;
             for (const v1::TokenRowReply& row : reply.rows()) client->received.push_back(row.id());
             if ((client->count = client->received.size()) >= client->wanted) client->enough.Set();
             client->busy = false;
           },
       .on_closed =
           [client](absl::Status status) {
             if (client->busy || ++client->closes != 1) ++client->faults;
             client->status = std::move(status);
             client->closed.Set();
           }});
  return client;
}

// 0, 1, 2, ... without gap.
bool IsPrefix(const std::vector<uint64_t>& ids) {
  for (size_t i = 0; i < ids.size(); ++i) {
    if (ids[i] != i) return false;
  }
  return true;
}

ServerOptions Loopback() {
  ServerOptions options;
  options.listen_address = "127.0.0.1:0";
  return options;
}

enum class Transport { kTcp, kInProcess, kTcpByAnotherThread };

class StreamStress : public testing::TestWithParam<Transport> {
 protected:
  void SetUp() override {
    const bool tcp = GetParam() != Transport::kInProcess;
    auto server = RpcServer::Start(tcp ? Loopback() : ServerOptions(), {&service_});
    ASSERT_TRUE(server.ok()) << server.status();
    server_ = *std::move(server);
    channel_ = tcp ? MakeTierChannel(server_->address()) : server_->InProcessChannel();
  }
  void TearDown() override {
    if (server_ != nullptr) server_->Shutdown(absl::ZeroDuration());
    EXPECT_TRUE(service_.alive.WaitForNone());
    EXPECT_EQ(service_.faults, 0);
  }

  std::shared_ptr<Client> MakeClient(const std::shared_ptr<grpc::Channel>& channel, size_t wanted) {
    std::function<void(std::function<void()>)> write_large;
    if (GetParam() == Transport::kTcpByAnotherThread) {
      write_large = [this](std::function<void()> write) { writer_.Post(std::move(write)); };
    }
    return blockserve::MakeClient(channel, wanted, {}, std::move(write_large));
  }

  AsioLoop writer_{"writer"};
  EchoService service_;
  std::unique_ptr<RpcServer> server_;
  std::shared_ptr<grpc::Channel> channel_;  // outlives its streams
};

TEST_P(StreamStress, DeliversEveryMessageInOrder) {
  auto client = MakeClient(channel_, 3000);
  std::mt19937 random(1);
  uint64_t next = 0;
  // Some before Start: they wait for it.
  for (; next < 10; ++next) ASSERT_TRUE(client->stream->Send(RowsFrom(next, 1)));
  client->stream->Start();
  while (next < 3000) {
    const int count = std::min<int>(1 + random() % 5, 3000 - next);
    ASSERT_TRUE(client->stream->Send(RowsFrom(next, count)));
    next += count;
  }
  ASSERT_TRUE(client->enough.Wait());
  client->stream->Close();
  ASSERT_TRUE(client->closed.Wait());
  EXPECT_EQ(client->received.size(), 3000u);
  EXPECT_TRUE(IsPrefix(client->received));
  EXPECT_EQ(client->status.code(), absl::StatusCode::kCancelled);
  EXPECT_FALSE(client->stream->Send(RowsFrom(0, 1)));
  EXPECT_EQ(client->faults, 0);
}

TEST_P(StreamStress, WritesWhatWasSentBeforeFinish) {
  auto client = MakeClient(channel_, 0);
  client->stream->Start();
  for (uint64_t id = 0; id < 500; ++id) ASSERT_TRUE(client->stream->Send(RowsFrom(id, 1)));
  client->stream->Finish();
  EXPECT_FALSE(client->stream->Send(RowsFrom(500, 1)));
  ASSERT_TRUE(client->closed.Wait());
  EXPECT_TRUE(client->status.ok()) << client->status;
  EXPECT_EQ(client->received.size(), 500u);
  EXPECT_TRUE(IsPrefix(client->received));
}

TEST_P(StreamStress, EndsOnceWhicheverSideClosesAndWhenever) {
  std::vector<std::thread> threads;
  std::atomic<int> failures = 0;
  for (int thread = 0; thread < 4; ++thread) {
    threads.emplace_back([&, thread] {
      std::mt19937 random(100 + thread);
      for (int round = 0; round < 60; ++round) {
        const int rows = random() % 200;
        const int finish_after = random() % 3 == 0 ? 1 + random() % 100 : 0;
        const int close_after = random() % 2 == 0 ? random() % 200 : -1;
        auto client = MakeClient(channel_, rows);
        if (random() % 8 == 0) client->stream->Close();  // before Start
        client->stream->Start();
        bool accepted = true;
        int sent = 0;
        while (sent < rows && accepted) {
          if (close_after >= 0 && sent >= close_after) client->stream->Close();
          v1::TokenRequestBatch batch = RowsFrom(sent, 1);
          if (sent == 0) batch.mutable_rows(0)->set_limit(finish_after);
          accepted = client->stream->Send(std::move(batch));
          sent += accepted;
        }
        const bool finished_by_server = finish_after > 0 && sent >= finish_after;
        if (random() % 2 == 0 && !finished_by_server && accepted && rows > 0) {
          if (!client->enough.Wait()) ++failures;
        }
        if (!finished_by_server || random() % 2 == 0) {
          random() % 3 == 0 ? client->stream->Finish() : client->stream->Close();
        }
        if (!client->closed.Wait()) ++failures;
        if (!IsPrefix(client->received) || client->faults > 0 || client->closes != 1) ++failures;
        if (client->status.code() == absl::StatusCode::kFailedPrecondition &&
            client->received.size() != static_cast<size_t>(finish_after)) {
          ++failures;  // all that was sent before Finish must have come
        }
        if (client->stream->Send(RowsFrom(0, 1))) ++failures;
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(failures, 0);
  EXPECT_TRUE(service_.alive.WaitForNone());
}

TEST_P(StreamStress, KeepsTheOrderOfEachOfManySenders) {
  constexpr int kSenders = 4, kRows = 500;
  auto client = MakeClient(channel_, kSenders * kRows);
  client->stream->Start();
  std::vector<std::thread> senders;
  for (uint64_t sender = 0; sender < kSenders; ++sender) {
    senders.emplace_back([&, sender] {
      for (uint64_t i = 0; i < kRows; ++i) client->stream->Send(RowsFrom(sender << 32 | i, 1));
    });
  }
  for (std::thread& sender : senders) sender.join();
  ASSERT_TRUE(client->enough.Wait());
  client->stream->Close();
  ASSERT_TRUE(client->closed.Wait());
  std::vector<uint64_t> next(kSenders, 0);
  for (const uint64_t id : client->received) {
    ASSERT_EQ(id & 0xffffffffu, next[id >> 32]);
    ++next[id >> 32];
  }
  EXPECT_THAT(next, testing::Each(testing::Eq(uint64_t{kRows})));
}

TEST_P(StreamStress, TellsEveryClientWhenTheServerGoes) {
  std::vector<std::shared_ptr<Client>> clients;
  for (int i = 0; i < 20; ++i) {
    clients.push_back(MakeClient(channel_, 1));
    clients.back()->stream->Start();
    clients.back()->stream->Send(RowsFrom(0, 1));
    ASSERT_TRUE(clients.back()->enough.Wait());
  }
  std::atomic<bool> stop = false;
  std::thread sender([&] {
    for (uint64_t next = 1; !stop; ++next) {
      for (const auto& client : clients) client->stream->Send(RowsFrom(next, 1));
    }
  });
  server_->Shutdown(absl::ZeroDuration());
  for (const auto& client : clients) ASSERT_TRUE(client->closed.Wait());
  stop = true;
  sender.join();
  for (const auto& client : clients) {
    EXPECT_FALSE(client->status.ok());
    EXPECT_TRUE(IsPrefix(client->received));
    EXPECT_EQ(client->faults, 0);
  }
}

TEST_P(StreamStress, FreesBothEndsAfterTheStreamIsOver) {
  std::weak_ptr<ClientSide> stream;
  std::weak_ptr<Client> weak_client;
  {
    auto client = MakeClient(channel_, 1);
    stream = client->stream;
    weak_client = client;
    client->stream->Start();
    client->stream->Send(RowsFrom(0, 1));
    ASSERT_TRUE(client->enough.Wait());
    client->stream->Close();
    ASSERT_TRUE(client->closed.Wait());
    client->stream.reset();
  }
  // gRPC's thread lets go of its references after on_closed has returned.
  server_->Shutdown(absl::ZeroDuration());
  const absl::Time deadline = absl::Now() + absl::Seconds(60);
  while (!(stream.expired() && weak_client.expired()) && absl::Now() < deadline) {
    std::this_thread::yield();
  }
  EXPECT_TRUE(stream.expired());
  EXPECT_TRUE(weak_client.expired());
}

TEST_P(StreamStress, GivesUpAClientThatDoesNotRead) {
  service_.limits = {.max_queued_bytes = 1 << 20, .max_merged_bytes = 1 << 16};
  auto stub = v1::TokenDecoder::NewStub(channel_);
  grpc::ClientContext context;
  auto call = stub->Run(&context);  // the synchronous API: nothing is read unless asked
  // The server must drop the replies and end the call; the writes fail then.
  bool broken = false;
  for (uint64_t next = 0; next < 4'000'000 && !broken; next += 1000) {
    broken = !call->Write(RowsFrom(next, 1000));
  }
  EXPECT_TRUE(broken);
  context.TryCancel();
  call->Finish();
  EXPECT_TRUE(service_.alive.WaitForNone());
}

// Holds its first message until told.
class StuckHandler final : public ServerSide::Handler {
 public:
  StuckHandler(Event& release, AliveCount& alive) : release_(release), alive_(alive) {
    alive_.Add();
  }
  ~StuckHandler() override { alive_.Remove(); }
  void OnMessage(v1::TokenRequestBatch&&) override { release_.Wait(); }
  void OnClosed() override {}

 private:
  Event& release_;
  AliveCount& alive_;
};

class StuckService final : public v1::TokenDecoder::CallbackService {
 public:
  grpc::ServerBidiReactor<v1::TokenRequestBatch, v1::TokenReplyBatch>* Run(
      grpc::CallbackServerContext* context) override {
    auto stream = ServerSide::Create(context, {});
    stream->Start(std::make_shared<StuckHandler>(release, alive));
    return stream.get();
  }
  Event release;
  AliveCount alive;
};

TEST(StreamLimits, GiveUpAServerThatDoesNotRead) {
  StuckService service;
  auto server = RpcServer::Start(Loopback(), {&service});
  ASSERT_TRUE(server.ok()) << server.status();
  const std::shared_ptr<grpc::Channel> channel = MakeTierChannel((*server)->address());
  auto client = MakeClient(channel, 1, {.max_queued_bytes = 1 << 20, .max_merged_bytes = 1 << 16});
  client->stream->Start();
  bool refused = false;
  for (uint64_t next = 0; next < 4'000'000 && !refused; next += 1000) {
    refused = !client->stream->Send(RowsFrom(next, 1000));
  }
  EXPECT_TRUE(refused);
  ASSERT_TRUE(client->closed.Wait());
  EXPECT_EQ(client->status.code(), absl::StatusCode::kResourceExhausted);
  service.release.Set();
  EXPECT_TRUE(service.alive.WaitForNone());
  (*server)->Shutdown(absl::ZeroDuration());
}

// Whoever has been told to write comes too late.
TEST(StreamWrites, ThatAreHandedOverDoNotHoldUpTheEnd) {
  EchoService service;
  auto server = RpcServer::Start(Loopback(), {&service});
  ASSERT_TRUE(server.ok()) << server.status();
  auto channel = MakeTierChannel((*server)->address());
  std::vector<std::function<void()>> handed_over;
  const auto keep = [&](std::function<void()> write) { handed_over.push_back(std::move(write)); };
  {
    auto client = MakeClient(channel, 0, {}, keep);
    client->stream->Start();
    ASSERT_TRUE(client->stream->Send(RowsFrom(0, 30)));
    ASSERT_TRUE(client->stream->Send(RowsFrom(30, 30)));  // behind it
    ASSERT_TRUE(client->stream->Send(RowsFrom(60, 1)));
    EXPECT_EQ(handed_over.size(), 1u);
    client->stream->Finish();  // writes what waits
    ASSERT_TRUE(client->closed.Wait());
    EXPECT_TRUE(client->status.ok()) << client->status;
    EXPECT_EQ(client->received.size(), 61u);
    EXPECT_TRUE(IsPrefix(client->received));
  }
  {
    auto client = MakeClient(channel, 0, {}, keep);
    client->stream->Start();
    ASSERT_TRUE(client->stream->Send(RowsFrom(0, 30)));
    EXPECT_EQ(handed_over.size(), 2u);
    client->stream->Close();
    ASSERT_TRUE(client->closed.Wait());
  }
  for (const auto& write : handed_over) write();
  handed_over.clear();
  (*server)->Shutdown(absl::ZeroDuration());
  EXPECT_TRUE(service.alive.WaitForNone());
}

TEST(StreamLimits, TellThatNobodyListens) {
  std::string address;
  {
    StuckService service;
    auto server = RpcServer::Start(Loopback(), {&service});
    ASSERT_TRUE(server.ok()) << server.status();
    address = (*server)->address();
  }
  const std::shared_ptr<grpc::Channel> channel = MakeTierChannel(address);
  auto client = MakeClient(channel, 1);
  client->stream->Send(RowsFrom(0, 1));
  client->stream->Start();
  ASSERT_TRUE(client->closed.Wait());
  EXPECT_EQ(client->status.code(), absl::StatusCode::kUnavailable);
  EXPECT_TRUE(client->received.empty());
}

INSTANTIATE_TEST_SUITE_P(Transports, StreamStress,
                         testing::Values(Transport::kTcp, Transport::kInProcess,
                                         Transport::kTcpByAnotherThread),
                         [](const auto& info) {
                           switch (info.param) {
                             case Transport::kTcp:
                               return "Tcp";
                             case Transport::kInProcess:
                               return "InProcess";
                             case Transport::kTcpByAnotherThread:
                               return "TcpByAnotherThread";
                           }
                           return "";
                         });

}  // namespace
}  // namespace blockserve
