#include "token_service/row_queue.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <random>
#include <set>
#include <vector>

namespace blockserve {
namespace {

using testing::ElementsAre;

const absl::Time kNow = absl::FromUnixSeconds(1000);
constexpr uint32_t kHigh = 1, kNormal = 2, kBatch = 3;

QueuedRow Row(StreamId stream, uint64_t id, uint32_t priority = kNormal,
              absl::Time deadline = absl::InfiniteFuture()) {
  QueuedRow row;
  row.stream = stream;
  row.id = id;
  row.priority = priority;
  row.deadline = deadline;
  return row;
}

std::vector<uint64_t> Ids(const std::vector<QueuedRow>& rows) {
  std::vector<uint64_t> ids;
  for (const QueuedRow& row : rows) ids.push_back(row.id);
  return ids;
}

// The next batch; nothing may have expired.
std::vector<uint64_t> Next(RowQueue& queue, absl::Time now = kNow) {
  std::vector<QueuedRow> batch, expired;
  queue.TakeBatch(now, batch, expired);
  EXPECT_TRUE(expired.empty());
  queue.FinishBatch(static_cast<int32_t>(batch.size()));
  return Ids(batch);
}

TEST(RowQueue, TakesRowsInOrderUpToTheBestBatch) {
  RowQueue queue({.max_rows = 3});
  for (uint64_t id = 1; id <= 5; ++id) ASSERT_TRUE(queue.Submit(Row(1, id), kNow).ok());
  EXPECT_EQ(queue.waiting(), 5);
  std::vector<QueuedRow> batch, expired;
  queue.TakeBatch(kNow, batch, expired);
  EXPECT_THAT(Ids(batch), ElementsAre(1, 2, 3));
  EXPECT_EQ(queue.running(), 3);
  EXPECT_EQ(queue.waiting(), 2);
  // Another one beside it.
  std::vector<QueuedRow> second;
  queue.TakeBatch(kNow, second, expired);
  EXPECT_THAT(Ids(second), ElementsAre(4, 5));
  EXPECT_EQ(queue.running(), 5);
  queue.FinishBatch(3);
  EXPECT_EQ(queue.running(), 2);
  EXPECT_FALSE(queue.idle());
  queue.FinishBatch(2);
  EXPECT_TRUE(queue.idle());
  for (uint64_t id = 4; id <= 5; ++id) ASSERT_TRUE(queue.Submit(Row(1, id), kNow).ok());
  EXPECT_THAT(Next(queue), ElementsAre(4, 5));
  EXPECT_TRUE(queue.idle());
  EXPECT_THAT(Next(queue), ElementsAre());
}

TEST(RowQueue, RefusesRowsBeyondItsBoundAndTakesThemAgainLater) {
  RowQueue queue({.max_rows = 2, .max_queued_rows = 4});
  for (uint64_t id = 1; id <= 4; ++id) ASSERT_TRUE(queue.Submit(Row(1, id), kNow).ok());
  const absl::Status refused = queue.Submit(Row(1, 5, kHigh), kNow);
  EXPECT_EQ(refused.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_THAT(std::string(refused.message()), testing::HasSubstr("4 rows"));
  Next(queue);
  EXPECT_TRUE(queue.Submit(Row(1, 5), kNow).ok());
}

TEST(RowQueue, TakesUrgentRowsFirst) {
  RowQueue queue({.max_rows = 2, .head_start_rows = 100});
  queue.Submit(Row(1, 1, kBatch), kNow).IgnoreError();
  queue.Submit(Row(1, 2, kNormal), kNow).IgnoreError();
  queue.Submit(Row(1, 3, kHigh), kNow).IgnoreError();
  queue.Submit(Row(1, 4, kHigh), kNow).IgnoreError();
  queue.Submit(Row(1, 5, 0), kNow).IgnoreError();  // unspecified: normal
  EXPECT_THAT(Next(queue), ElementsAre(3, 4));
  EXPECT_THAT(Next(queue), ElementsAre(2, 5));
  EXPECT_THAT(Next(queue), ElementsAre(1));
}

TEST(RowQueue, LetsARowBeOvertakenByABoundedNumberOfOthers) {
  RowQueue queue({.max_rows = 1, .max_queued_rows = 100000, .head_start_rows = 10});
  uint64_t id = 100;
  // A worker that never catches up with its urgent rows.
  for (int i = 0; i < 5; ++i) queue.Submit(Row(1, id++, kHigh), kNow).IgnoreError();
  queue.Submit(Row(1, 1, kBatch), kNow).IgnoreError();
  queue.Submit(Row(1, 2, kNormal), kNow).IgnoreError();
  int served = 0, normal_at = 0, batch_at = 0;
  while (batch_at == 0 && served < 1000) {
    queue.Submit(Row(1, id++, kHigh), kNow).IgnoreError();
    queue.Submit(Row(1, id++, kHigh), kNow).IgnoreError();
    const std::vector<uint64_t> next = Next(queue);
    ASSERT_EQ(next.size(), 1u);
    ++served;
    if (next[0] == 2) normal_at = served;
    if (next[0] == 1) batch_at = served;
  }
  EXPECT_GT(normal_at, 5);
  EXPECT_LE(normal_at, 5 + 10 + 1);
  EXPECT_GT(batch_at, normal_at);
  EXPECT_LE(batch_at, 5 + 20 + 2);
}

TEST(RowQueue, HandsOutRowsWhoseTimeIsOverWithoutDecodingThem) {
  RowQueue queue({.max_rows = 2});
  queue.Submit(Row(1, 1, kNormal, kNow + absl::Seconds(1)), kNow).IgnoreError();
  queue.Submit(Row(1, 2), kNow).IgnoreError();
  queue.Submit(Row(1, 3, kBatch, kNow + absl::Seconds(1)), kNow).IgnoreError();
  queue.Submit(Row(1, 4, kNormal, kNow + absl::Seconds(5)), kNow).IgnoreError();
  std::vector<QueuedRow> batch, expired;
  queue.TakeBatch(kNow + absl::Seconds(2), batch, expired);
  EXPECT_THAT(Ids(batch), ElementsAre(2, 4));
  EXPECT_THAT(Ids(expired), ElementsAre(1, 3));
  EXPECT_EQ(queue.Submit(Row(1, 5, kNormal, kNow), kNow).code(),
            absl::StatusCode::kDeadlineExceeded);
}

TEST(RowQueue, ExpiresALaterDeadlineAfterAnEarlierOne) {
  RowQueue queue({.max_rows = 1});
  for (uint64_t id = 1; id <= 5; ++id) {
    queue.Submit(Row(1, id, kNormal, kNow + absl::Seconds(id)), kNow).IgnoreError();
  }
  std::vector<QueuedRow> batch, expired;
  queue.TakeBatch(kNow + absl::Seconds(2), batch, expired);
  EXPECT_THAT(Ids(expired), ElementsAre(1, 2));
  EXPECT_THAT(Ids(batch), ElementsAre(3));
  batch.clear();
  expired.clear();
  queue.TakeBatch(kNow + absl::Seconds(5), batch, expired);
  EXPECT_THAT(Ids(expired), ElementsAre(4, 5));
  EXPECT_THAT(Ids(batch), ElementsAre());
}

TEST(RowQueue, CancelsWaitingRowsOnly) {
  RowQueue queue({.max_rows = 1});
  for (uint64_t id = 1; id <= 3; ++id) queue.Submit(Row(1, id), kNow).IgnoreError();
  queue.Submit(Row(2, 2), kNow).IgnoreError();
  std::vector<QueuedRow> batch, expired;
  queue.TakeBatch(kNow, batch, expired);
  std::vector<QueuedRow> cancelled;
  queue.Cancel(1, {1, 2, 2, 77}, cancelled);  // 1 is being decoded
  queue.Cancel(1, {2}, cancelled);
  queue.Cancel(3, {3}, cancelled);
  EXPECT_THAT(Ids(cancelled), ElementsAre(2));
  queue.FinishBatch(1);
  EXPECT_THAT(Next(queue), ElementsAre(3));
  EXPECT_THAT(Next(queue), ElementsAre(2));  // the other stream's
}

TEST(RowQueue, CancelsAnyNumberOfRowsTogether) {
  RowQueue queue({.max_rows = 10, .max_queued_rows = 3000});
  std::vector<uint64_t> odd;
  for (uint64_t id = 0; id < 3000; ++id) {
    queue.Submit(Row(1, id, id % 4 + 1), kNow).IgnoreError();
    if (id % 2 == 1) odd.push_back(id);
  }
  std::vector<QueuedRow> cancelled;
  queue.Cancel(1, odd, cancelled);
  EXPECT_EQ(cancelled.size(), odd.size());
  EXPECT_EQ(queue.waiting(), 1500);
  EXPECT_THAT(Next(queue),
              testing::Each(testing::ResultOf([](uint64_t id) { return id % 2; }, 0u)));
}

TEST(RowQueue, DropsTheRowsOfAStreamThatIsGone) {
  RowQueue queue({.max_rows = 10});
  for (uint64_t id = 1; id <= 4; ++id) queue.Submit(Row(id % 2, id), kNow).IgnoreError();
  queue.CloseStream(0);
  EXPECT_EQ(queue.waiting(), 2);
  EXPECT_THAT(Next(queue), ElementsAre(1, 3));
}

TEST(RowQueue, RefusesAnIdThatWaitsAlready) {
  RowQueue queue({});
  EXPECT_TRUE(queue.Submit(Row(1, 1), kNow).ok());
  EXPECT_TRUE(queue.Submit(Row(2, 1), kNow).ok());
  const absl::Status status = queue.Submit(Row(1, 1), kNow);
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(status.message()), testing::HasSubstr("id"));
  EXPECT_EQ(queue.waiting(), 2);
}

TEST(RowQueue, FinishesWhatItHasWhileDraining) {
  RowQueue queue({.max_rows = 1});
  queue.Submit(Row(1, 1), kNow).IgnoreError();
  queue.Submit(Row(1, 2), kNow).IgnoreError();
  queue.StartDraining();
  EXPECT_EQ(queue.Submit(Row(1, 3), kNow).code(), absl::StatusCode::kUnavailable);
  EXPECT_THAT(Next(queue), ElementsAre(1));
  EXPECT_FALSE(queue.idle());
  EXPECT_THAT(Next(queue), ElementsAre(2));
  EXPECT_TRUE(queue.idle());
}

// Random operations: every row comes to exactly one end.
TEST(RowQueue, GivesEveryRowExactlyOneEnd) {
  for (uint32_t seed = 0; seed < 50; ++seed) {
    std::mt19937 random(seed);
    RowQueue queue({.max_rows = 3, .max_queued_rows = 20, .head_start_rows = 5});
    absl::Time now = kNow;
    std::multiset<uint64_t> ended;
    std::set<uint64_t> waiting;  // a model of what waits
    uint64_t next_id = 0;
    const auto end = [&](uint64_t id) {
      ended.insert(id);
      waiting.erase(id);
    };
    for (int step = 0; step < 400; ++step) {
      switch (random() % 8) {
        case 0: {
          std::vector<QueuedRow> batch, expired;
          queue.TakeBatch(now, batch, expired);
          EXPECT_EQ(batch.size(), std::min<size_t>(3, waiting.size() - expired.size()));
          for (const QueuedRow& row : batch) {
            EXPECT_GT(row.deadline, now);
            end(row.id);
          }
          for (const QueuedRow& row : expired) {
            EXPECT_LE(row.deadline, now);
            end(row.id);
          }
          queue.FinishBatch(static_cast<int32_t>(batch.size()));
          break;
        }
        case 1: {
          const uint64_t id = random() % (next_id + 1);
          const bool expected = waiting.count(id) > 0;
          std::vector<QueuedRow> cancelled;
          queue.Cancel(id % 3, {id}, cancelled);
          EXPECT_EQ(cancelled.size(), expected ? 1u : 0u);
          if (expected) end(id);
          break;
        }
        case 2:
          now += absl::Milliseconds(random() % 30);
          break;
        case 3: {
          if (random() % 10 != 0) break;
          const StreamId stream = random() % 3;
          queue.CloseStream(stream);
          for (uint64_t id = 0; id < next_id; ++id) {
            if (id % 3 == stream && waiting.count(id) > 0) end(id);
          }
          break;
        }
        default: {
          const uint64_t id = next_id++;
          const absl::Time deadline =
              random() % 2 == 0 ? absl::InfiniteFuture() : now + absl::Milliseconds(random() % 100);
          const absl::Status status =
              queue.Submit(Row(id % 3, id, 1 + random() % 3, deadline), now);
          if (status.ok()) {
            waiting.insert(id);
          } else {
            EXPECT_TRUE(waiting.size() == 20 || deadline <= now);
            ended.insert(id);
          }
        }
      }
      ASSERT_EQ(queue.waiting(), static_cast<int32_t>(waiting.size())) << "seed " << seed;
    }
    for (const QueuedRow& row : queue.TakeAll()) end(row.id);
    EXPECT_TRUE(queue.idle());
    EXPECT_EQ(ended.size(), next_id);
    EXPECT_EQ(std::set<uint64_t>(ended.begin(), ended.end()).size(), next_id);
  }
}

}  // namespace
}  // namespace blockserve
