#include "token_service/token_worker.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <map>
#include <random>
#include <thread>
#include <vector>

#include "common/logging.h"
#include "token_service/fake_token_engine.h"

namespace blockserve {
namespace {

// Collects answers.
class Collector {
 public:
  void Take(std::vector<RowAnswer> answers) {
    MutexLock lock(&mutex_);
    for (RowAnswer& answer : answers) answers_.push_back(std::move(answer));
    changed_.SignalAll();
  }
  TokenWorker::Deliver deliver() {
    return [this](std::vector<RowAnswer> answers) { Take(std::move(answers)); };
  }
  // Waits for so many in all.
  bool WaitFor(size_t count) {
    const absl::Time deadline = absl::Now() + absl::Minutes(1);
    MutexLock lock(&mutex_);
    while (answers_.size() < count && absl::Now() < deadline) {
      changed_.WaitWithTimeout(&mutex_, deadline - absl::Now());
    }
    return answers_.size() == count;
  }
  std::map<uint64_t, RowAnswer> ById() {
    MutexLock lock(&mutex_);
    std::map<uint64_t, RowAnswer> result;
    for (RowAnswer& answer : answers_) {
      EXPECT_TRUE(result.emplace(answer.id, std::move(answer)).second) << "answered twice";
    }
    answers_.clear();
    return result;
  }

 private:
  Mutex mutex_;
  CondVar changed_;
  std::vector<RowAnswer> answers_ ABSL_GUARDED_BY(mutex_);
};

QueuedRow Row(StreamId stream, uint64_t id) {
  QueuedRow row;
  row.stream = stream;
  row.id = id;
  row.row = std::make_unique<DecodeRow>();
  row.row->context = {static_cast<float>(id), 0};
  row.row->limit = 4;
  return row;
}

std::vector<QueuedRow> Rows(StreamId stream, uint64_t first, int count) {
  std::vector<QueuedRow> rows;
  for (int i = 0; i < count; ++i) rows.push_back(Row(stream, first + i));
  return rows;
}

class TokenWorkerTest : public testing::Test {
 protected:
  Gate gate_;
  FakeTokenEngine engine_{&gate_};
  const SteadyClock clock_{};
  Collector collector_;
};

TEST_F(TokenWorkerTest, DecodesWhatIsSubmitted) {
  TokenWorker worker({.max_rows = 4}, engine_, clock_, collector_.deliver());
  EXPECT_TRUE(worker.Submit(Rows(1, 0, 10)).empty());
  ASSERT_TRUE(collector_.WaitFor(10));
  for (const auto& [id, answer] : collector_.ById()) {
    EXPECT_TRUE(answer.status.ok());
    EXPECT_THAT(answer.result.tokens, testing::ElementsAre(id, id + 1, id + 2, id + 3));
  }
  EXPECT_TRUE(worker.WaitUntilIdle(absl::Minutes(1)));
  EXPECT_GE(worker.load().steps, 3u);
}

// What waits is with the engine before the batch under way is done: a device never stands still
// for the host.
TEST_F(TokenWorkerTest, KeepsTheEngineSuppliedWithAsManyBatchesAsItTakes) {
  FakeTokenEngine engine(&gate_, 4, /*in_flight=*/2);
  gate_.Close();
  TokenWorker worker({.max_rows = 128}, engine, clock_, collector_.deliver());
  worker.Submit(Rows(1, 0, 200));
  ASSERT_TRUE(gate_.WaitForArrivals(1));
  EXPECT_THAT(engine.BatchesUnderWay(), testing::ElementsAre(64, 64));
  EXPECT_EQ(worker.load().running, 128);
  EXPECT_EQ(worker.load().waiting, 72);
  EXPECT_EQ(worker.load().steps, 0u);
  gate_.Open();
  ASSERT_TRUE(collector_.WaitFor(200));
  for (const auto& [id, answer] : collector_.ById()) {
    EXPECT_TRUE(answer.status.ok());
    EXPECT_EQ(answer.result.tokens.front(), static_cast<int32_t>(id % 100));
  }
  EXPECT_TRUE(worker.WaitUntilIdle(absl::Minutes(1)));
  EXPECT_EQ(worker.load().running, 0);
  EXPECT_FALSE(worker.progress()->has_work());
}

// Autoscalers go by it: answers tell of both batches, whichever of them is answered first.
TEST_F(TokenWorkerTest, AnswersTellOfAllRowsThatTheEngineHad) {
  FakeTokenEngine engine(&gate_, 4, /*in_flight=*/2);
  gate_.Close();
  std::vector<int32_t> told;
  TokenWorker* worker = nullptr;
  TokenWorker its({.max_rows = 128}, engine, clock_, [&](std::vector<RowAnswer> answers) {
    told.push_back(worker->load().running);
    collector_.Take(std::move(answers));
  });
  worker = &its;
  its.Submit(Rows(1, 0, 128));
  ASSERT_TRUE(gate_.WaitForArrivals(1));
  gate_.Open();
  ASSERT_TRUE(collector_.WaitFor(128));
  ASSERT_TRUE(its.WaitUntilIdle(absl::Minutes(1)));
  EXPECT_THAT(told, testing::ElementsAre(128, 128));
  EXPECT_EQ(its.load().running, 0);
}

// It would read all weights for a few rows, and go on doing so: those that come back together stay
// together.
TEST_F(TokenWorkerTest, StartsNoSmallBatchBesideALargeOne) {
  FakeTokenEngine engine(&gate_, 4, /*in_flight=*/2);
  gate_.Close();
  TokenWorker worker({.max_rows = 128}, engine, clock_, collector_.deliver());
  worker.Submit(Rows(1, 0, 104));
  ASSERT_TRUE(gate_.WaitForArrivals(1));
  EXPECT_THAT(engine.BatchesUnderWay(), testing::ElementsAre(64));
  EXPECT_EQ(worker.load().waiting, 40);
  worker.Submit(Rows(1, 200, 30));
  gate_.Open();
  ASSERT_TRUE(collector_.WaitFor(134));
  EXPECT_TRUE(worker.WaitUntilIdle(absl::Minutes(1)));
  EXPECT_EQ(worker.load().steps, 3u);  // 64, 64 and 6
}

TEST_F(TokenWorkerTest, StopsAfterEveryBatchUnderWay) {
  FakeTokenEngine engine(&gate_, 4, /*in_flight=*/2);
  gate_.Close();
  TokenWorker worker({.max_rows = 128}, engine, clock_, collector_.deliver());
  worker.Submit(Rows(1, 0, 150));
  ASSERT_TRUE(gate_.WaitForArrivals(1));
  std::thread stopper([&] { worker.Stop(); });
  while (!worker.load().draining) std::this_thread::yield();
  gate_.Open();
  stopper.join();
  const std::map<uint64_t, RowAnswer> answers = collector_.ById();
  ASSERT_EQ(answers.size(), 150u);
  for (const auto& [id, answer] : answers) {
    EXPECT_EQ(answer.status.code(),
              id < 128 ? absl::StatusCode::kOk : absl::StatusCode::kUnavailable);
  }
}

TEST_F(TokenWorkerTest, ARowThatFailsHarmsNoOther) {
  TokenWorker worker({}, engine_, clock_, collector_.deliver());
  std::vector<QueuedRow> rows = Rows(1, 0, 5);
  rows[2].row->context[1] = 1;  // the fake's logits are not finite
  worker.Submit(std::move(rows));
  ASSERT_TRUE(collector_.WaitFor(5));
  for (const auto& [id, answer] : collector_.ById()) {
    EXPECT_EQ(answer.status.code(), id == 2 ? absl::StatusCode::kInternal : absl::StatusCode::kOk);
  }
}

TEST_F(TokenWorkerTest, ADecodeThatNeverEndsIsSeenAndCancelledRowsDoNotHideIt) {
  TokenWorker worker({.max_rows = 2}, engine_, clock_, collector_.deliver());
  worker.Submit(Rows(1, 0, 2));
  ASSERT_TRUE(collector_.WaitFor(2));
  ASSERT_TRUE(worker.WaitUntilIdle(absl::Minutes(1)));
  absl::Time now = absl::UnixEpoch();
  StallWatch watch(*worker.progress(), absl::Seconds(60), now);
  EXPECT_FALSE(watch.IsStuck(now += absl::Hours(1))) << "idle";

  gate_.Close();
  worker.Submit(Rows(1, 10, 2));
  ASSERT_TRUE(gate_.WaitForArrivals(2));
  for (uint64_t id = 20; id < 26; ++id) {
    EXPECT_FALSE(watch.IsStuck(now += absl::Seconds(9)));
    worker.Submit(Rows(1, id, 1));
    EXPECT_EQ(worker.Cancel(1, {id}).size(), 1u);
  }
  EXPECT_TRUE(watch.IsStuck(now += absl::Seconds(9)));
  worker.CloseStream(1);
  EXPECT_TRUE(watch.IsStuck(now)) << "the rows that are decoded are still in hand";

  gate_.Open();
  ASSERT_TRUE(worker.WaitUntilIdle(absl::Minutes(1)));
  EXPECT_FALSE(watch.IsStuck(now));
  EXPECT_FALSE(worker.progress()->has_work());
}

TEST_F(TokenWorkerTest, ADeliveryThatHangsIsSeen) {
  Gate delivery;
  TokenWorker worker({.max_rows = 2}, engine_, clock_, [&](std::vector<RowAnswer> answers) {
    delivery.Pass();
    collector_.Take(std::move(answers));
  });
  delivery.Close();
  worker.Submit(Rows(1, 0, 4));
  ASSERT_TRUE(delivery.WaitForArrivals(1));
  absl::Time now = absl::UnixEpoch();
  StallWatch watch(*worker.progress(), absl::Seconds(60), now);
  EXPECT_TRUE(watch.IsStuck(now += absl::Seconds(60)));
  EXPECT_FALSE(worker.WaitUntilIdle(absl::ZeroDuration()));
  delivery.Open();
  ASSERT_TRUE(collector_.WaitFor(4));
  ASSERT_TRUE(worker.WaitUntilIdle(absl::Minutes(1)));
  EXPECT_FALSE(watch.IsStuck(now));
}

// No answer: the gateway must take the rows for such as may have killed a worker.
TEST_F(TokenWorkerTest, ALostDeviceEndsTheProcessWithoutAnAnswer) {
  GTEST_FLAG_SET(death_test_style, "threadsafe");
  EXPECT_EXIT(
      {
        ASSERT_TRUE(ConfigureLogging({}).ok());
        engine_.Lose(absl::UnavailableError("cuda:3 is lost: uncorrectable ECC error"));
        TokenWorker worker({}, engine_, clock_,
                           [](std::vector<RowAnswer>) { LogError("answered"); });
        worker.Submit(Rows(1, 0, 2));
        worker.WaitUntilIdle(absl::Minutes(1));
      },
      testing::ExitedWithCode(1),
      testing::AllOf(
          testing::HasSubstr("this process ends: cuda:3 is lost: uncorrectable ECC error"),
          testing::Not(testing::HasSubstr("answered"))));
}

TEST_F(TokenWorkerTest, TellsItsLoad) {
  gate_.Close();
  TokenWorker worker({.max_rows = 2}, engine_, clock_, collector_.deliver());
  worker.Submit(Rows(1, 0, 2));
  ASSERT_TRUE(gate_.WaitForArrivals(1));
  worker.Submit(Rows(1, 10, 3));
  const WorkerLoad load = worker.load();
  EXPECT_EQ(load.running, 2);
  EXPECT_EQ(load.waiting, 3);
  EXPECT_EQ(load.steps, 0u);
  EXPECT_FALSE(load.draining);
  gate_.Open();
  ASSERT_TRUE(worker.WaitUntilIdle(absl::Minutes(1)));
  EXPECT_EQ(worker.load().waiting, 0);
  EXPECT_EQ(worker.load().running, 0);
  EXPECT_EQ(worker.load().steps, 3u);
  EXPECT_GT(worker.load().busy_share, 0);
}

TEST_F(TokenWorkerTest, CancelsWhatWaitsAndFinishesWhatRuns) {
  gate_.Close();
  TokenWorker worker({.max_rows = 1}, engine_, clock_, collector_.deliver());
  worker.Submit(Rows(1, 0, 1));
  ASSERT_TRUE(gate_.WaitForArrivals(1));
  worker.Submit(Rows(1, 1, 2));
  const std::vector<uint64_t> ids = {0, 1, 99};
  const std::vector<RowAnswer> cancelled = worker.Cancel(1, ids);
  ASSERT_EQ(cancelled.size(), 1u);
  EXPECT_EQ(cancelled[0].id, 1u);
  EXPECT_EQ(cancelled[0].status.code(), absl::StatusCode::kCancelled);
  gate_.Open();
  ASSERT_TRUE(collector_.WaitFor(2));
  EXPECT_THAT(collector_.ById(), testing::ElementsAre(testing::Key(0), testing::Key(2)));
}

TEST_F(TokenWorkerTest, DrainsByFinishingTheRowsBeingDecodedAndGivingBackTheOthers) {
  gate_.Close();
  TokenWorker worker({.max_rows = 2}, engine_, clock_, collector_.deliver());
  worker.Submit(Rows(1, 0, 5));
  ASSERT_TRUE(gate_.WaitForArrivals(1));
  const std::vector<RowAnswer> given_back = worker.StartDraining();
  ASSERT_EQ(given_back.size(), 3u);
  for (const RowAnswer& answer : given_back) {
    EXPECT_EQ(answer.status.code(), absl::StatusCode::kUnavailable);
  }
  const std::vector<RowAnswer> refused = worker.Submit(Rows(1, 10, 1));
  ASSERT_EQ(refused.size(), 1u);
  EXPECT_EQ(refused[0].status.code(), absl::StatusCode::kUnavailable);
  EXPECT_FALSE(worker.WaitUntilIdle(absl::ZeroDuration()));
  gate_.Open();
  EXPECT_TRUE(worker.WaitUntilIdle(absl::Minutes(1)));
  EXPECT_TRUE(collector_.WaitFor(2));
}

TEST_F(TokenWorkerTest, StopsAfterTheStepAndAnswersTheRest) {
  gate_.Close();
  TokenWorker worker({.max_rows = 2}, engine_, clock_, collector_.deliver());
  worker.Submit(Rows(1, 0, 5));
  ASSERT_TRUE(gate_.WaitForArrivals(1));
  std::thread stopper([&] { worker.Stop(); });
  // Stop has begun once new rows are refused.
  while (!worker.load().draining) std::this_thread::yield();
  gate_.Open();
  stopper.join();
  const std::map<uint64_t, RowAnswer> answers = collector_.ById();
  ASSERT_EQ(answers.size(), 5u);
  for (const auto& [id, answer] : answers) {
    EXPECT_EQ(answer.status.code(),
              id < 2 ? absl::StatusCode::kOk : absl::StatusCode::kUnavailable);
  }
}

class TokenWorkerThreadsTest : public TokenWorkerTest, public testing::WithParamInterface<int> {};

TEST_P(TokenWorkerThreadsTest, AnswersEveryRowOnce) {
  constexpr int kThreads = 4, kRounds = 50;
  FakeTokenEngine engine(nullptr, 4, /*in_flight=*/GetParam());
  const int rows = GetParam() == 1 ? 10 : 100;
  const int32_t max_rows = GetParam() == 1 ? 4 : 128;
  std::atomic<int> answered = 0;
  {
    TokenWorker worker({.max_rows = max_rows, .max_queued_rows = 3 * rows}, engine, clock_,
                       collector_.deliver());
    std::vector<std::thread> threads;
    for (int thread = 0; thread < kThreads; ++thread) {
      threads.emplace_back([&, thread] {
        std::mt19937 random(thread);
        for (int round = 0; round < kRounds; ++round) {
          const uint64_t first = (thread * kRounds + round) * rows;
          answered += static_cast<int>(worker.Submit(Rows(thread, first, rows)).size());
          const std::vector<uint64_t> ids = {first + random() % rows, first + random() % rows};
          answered += static_cast<int>(worker.Cancel(thread, ids).size());
          worker.load();
        }
      });
    }
    for (std::thread& thread : threads) thread.join();
  }
  answered += static_cast<int>(collector_.ById().size());
  EXPECT_EQ(answered, kThreads * kRounds * rows);
}

INSTANTIATE_TEST_SUITE_P(BatchesUnderWay, TokenWorkerThreadsTest, testing::Values(1, 3));

}  // namespace
}  // namespace blockserve
