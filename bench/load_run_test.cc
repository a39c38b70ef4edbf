// The driver on a server that is simulated in the transport: what is sent when, and what is
// measured.
#include "bench/load_run.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <atomic>
#include <deque>
#include <mutex>
#include <set>
#include <thread>

#include "absl/strings/str_format.h"
#include "bench/load_report.h"

namespace blockserve {
namespace {

// Answers one request after another, each in `service_us`; `fault` bends the answer of request k.
struct ServerModel {
  int64_t service_us = 0;
  enum class Fault { kNone, kRefuse, kWrongUsage, kShort, kNoUsage };
  std::function<Fault(int64_t index)> fault = [](int64_t) { return Fault::kNone; };
  std::atomic<int> most_in_flight{0};
  std::atomic<int> in_flight{0};
  std::mutex mutex;
  std::multiset<int64_t> indices;
};

class ModelTransport final : public LoadTransport {
 public:
  explicit ModelTransport(ServerModel& server) : server_(server) {}

  void Start(const RequestSpec& spec, int64_t, RequestObserver* observer) override {
    const int now = ++server_.in_flight;
    if (now > server_.most_in_flight) server_.most_in_flight = now;
    {
      std::lock_guard lock(server_.mutex);
      server_.indices.insert(spec.index);
    }
    const int64_t begin = queue_.empty() ? SteadyMicros() : queue_.back().done;
    queue_.push_back({spec, begin + server_.service_us, observer});
  }

  void Poll(int64_t until) override {
    if (queue_.empty() || queue_.front().done > until) {
      WaitFor(until);
      return;
    }
    WaitFor(queue_.front().done);
    const Pending pending = queue_.front();
    queue_.pop_front();
    --server_.in_flight;
    Answer(pending);
  }

  void CancelAll() override {
    while (!queue_.empty()) {
      const Pending pending = queue_.front();
      queue_.pop_front();
      --server_.in_flight;
      pending.observer->OnEnd(SteadyMicros(), "CANCELLED", "");
    }
  }

 private:
  struct Pending {
    RequestSpec spec;
    int64_t done = 0;
    RequestObserver* observer = nullptr;
  };

  // Not a sleep to wait for something: the time that the modelled server takes.
  static void WaitFor(int64_t time) {
    while (SteadyMicros() < time) std::this_thread::yield();
  }

  void Answer(const Pending& pending) {
    using Fault = ServerModel::Fault;
    const RequestSpec& spec = pending.spec;
    const Fault fault = server_.fault(spec.index);
    const int64_t now = SteadyMicros();
    if (fault == Fault::kRefuse) {
      pending.observer->OnEnd(now, "RESOURCE_EXHAUSTED", "full");
      return;
    }
    const int32_t tokens = spec.max_tokens - (fault == Fault::kShort ? 1 : 0);
    const std::vector<int32_t> ids(static_cast<size_t>(tokens), static_cast<int32_t>(spec.seed));
    for (int32_t choice = 0; choice < spec.n; ++choice) {
      pending.observer->OnTokens(static_cast<uint32_t>(choice), tokens, ids);
      pending.observer->OnMessageEnd(now);
      pending.observer->OnFinished(static_cast<uint32_t>(choice));
    }
    if (fault != Fault::kNoUsage) {
      pending.observer->OnUsage(
          {std::ssize(spec.tokens), spec.n * tokens + (fault == Fault::kWrongUsage ? 1 : 0), 0});
    }
    pending.observer->OnEnd(now, "", "");
  }

  ServerModel& server_;
  std::deque<Pending> queue_;
};

Workload MakeWorkload() {
  WorkloadOptions options;
  options.prompt_tokens = *LengthDistribution::Parse("3");
  options.output_tokens = *LengthDistribution::Parse("uniform:2:6");
  options.vocab_size = 100;
  options.n = 2;
  return Workload(options);
}

LoadResult RunPlan(
    const LoadPlan& plan, ServerModel& server,
    const std::function<bool(const LoadSnapshot&)>& tick = [](const auto&) { return true; }) {
  const Workload workload = MakeWorkload();
  EXPECT_TRUE(plan.Validate(workload.options()).ok());
  return RunLoad(
      plan, workload, [&] { return std::make_unique<ModelTransport>(server); }, tick);
}

TEST(LoadRun, AClosedLoopKeepsItsConcurrencyAndMeasuresEachRequestOnce) {
  LoadPlan plan;
  plan.concurrency = 5;
  plan.requests = 200;
  ServerModel server;
  const LoadResult result = RunPlan(plan, server);
  EXPECT_EQ(server.most_in_flight, 5);
  EXPECT_EQ(result.sent, 200);
  EXPECT_EQ(result.ok, 200);
  EXPECT_EQ(result.usage_checked, 200);
  EXPECT_EQ(result.usage_wrong, 0);
  for (int64_t k = 0; k < 200; ++k) ASSERT_EQ(server.indices.count(k), 1u) << k;
  EXPECT_EQ(result.window_output_tokens, result.output_tokens);
}

TEST(LoadRun, RequestsAreNumberedFromWhereThePlanBegins) {
  LoadPlan plan;
  plan.concurrency = 3;
  plan.requests = 20;
  plan.first_index = 1000;
  ServerModel server;
  EXPECT_EQ(RunPlan(plan, server).ok, 20);
  for (int64_t k = 0; k < 20; ++k) ASSERT_EQ(server.indices.count(1000 + k), 1u) << k;
  EXPECT_EQ(server.indices.size(), 20u);
}

TEST(LoadRun, LengthsOfATraceAreThoseOfTheRowThatIsDue) {
  WorkloadOptions options;
  options.prompt_tokens = *LengthDistribution::Parse("1");
  options.output_tokens = *LengthDistribution::Parse("1");
  options.trace = {{0, 3, 4}, {2e-4, 4, 5}, {4e-4, 5, 6}, {6e-4, 6, 7}};
  options.vocab_size = 100;
  const Workload workload(options);
  LoadPlan plan;
  plan.warmup_us = 300;  // two of them
  plan.threads = 2;
  plan.keep_rows = true;
  ServerModel server;
  const LoadResult result = RunLoad(
      plan, workload, [&] { return std::make_unique<ModelTransport>(server); },
      [](const LoadSnapshot&) { return true; });
  ASSERT_EQ(result.rows.size(), 2u);
  EXPECT_EQ(result.rows[0].prompt_tokens, 5);
  EXPECT_EQ(result.rows[0].output_tokens, 6);
  EXPECT_EQ(result.rows[1].prompt_tokens, 6);
  EXPECT_EQ(result.rows[1].output_tokens, 7);
}

TEST(LoadRun, AnOpenLoopCountsLatencyFromWhenARequestWasDue) {
  // 100 requests due within 0.1 s at a server that takes 5 ms for each: the last waits 0.4 s. A
  // clock that starts when there is room to send would tell 5 ms.
  LoadPlan plan;
  plan.rate = 1000;
  plan.arrivals = "constant";
  plan.requests = 100;
  plan.max_in_flight = 1;
  ServerModel server;
  server.service_us = 5000;
  const LoadResult result = RunPlan(plan, server);
  EXPECT_EQ(result.ok, 100);
  EXPECT_EQ(server.most_in_flight, 1);
  EXPECT_GE(result.e2e.max(), 400'000);
  EXPECT_GE(result.ttft.max(), 400'000);
  EXPECT_GE(result.send_lag.max(), 390'000);
}

TEST(LoadRun, ThreadsShareTheArrivalsOfAnOpenLoop) {
  LoadPlan plan;
  plan.rate = 5000;
  plan.requests = 300;
  plan.threads = 3;
  ServerModel server;
  EXPECT_EQ(RunPlan(plan, server).ok, 300);
  for (int64_t k = 0; k < 300; ++k) ASSERT_EQ(server.indices.count(k), 1u) << k;
}

TEST(LoadRun, WarmUpIsSentAndNotMeasured) {
  LoadPlan plan;
  plan.rate = 1000;
  plan.arrivals = "constant";
  plan.warmup_us = 50'000;
  plan.requests = 20;
  plan.keep_rows = true;
  ServerModel server;
  const LoadResult result = RunPlan(plan, server);
  EXPECT_EQ(server.indices.size(), 70u);
  EXPECT_EQ(result.sent, 20);
  ASSERT_EQ(result.rows.size(), 20u);
  EXPECT_EQ(result.rows.front().index, 0);
  EXPECT_EQ(result.rows.front().intended, 50'000);
}

TEST(LoadRun, FailuresAreCountedByKindAndWrongAnswersAreOne) {
  using Fault = ServerModel::Fault;
  LoadPlan plan;
  plan.concurrency = 1;
  plan.requests = 10;
  plan.refused_pause_us = 0;
  ServerModel server;
  server.fault = [](int64_t index) {
    return index < 2    ? Fault::kRefuse
           : index == 3 ? Fault::kWrongUsage
           : index == 4 ? Fault::kShort
           : index == 5 ? Fault::kNoUsage
                        : Fault::kNone;
  };
  const LoadResult result = RunPlan(plan, server);
  EXPECT_EQ(result.ok, 5);
  EXPECT_EQ(result.failed(), 5);
  EXPECT_EQ(result.errors.at("RESOURCE_EXHAUSTED"), 2);
  EXPECT_EQ(result.errors.at("WRONG_OUTPUT"), 3);
  EXPECT_EQ(result.usage_wrong, 3);
}

TEST(LoadRun, GoodputCountsWhatKeptEveryObjective) {
  LoadPlan plan;
  plan.rate = 100'000;
  plan.arrivals = "constant";
  plan.requests = 50;
  plan.objectives.ttft = 50'000;
  ServerModel server;
  server.service_us = 4000;
  const LoadResult result = RunPlan(plan, server);
  EXPECT_EQ(result.ok, 50);
  EXPECT_LE(result.good, 13);  // the k-th is answered after 4 k ms
  plan.objectives = {.ttft = 0, .itl = 0, .e2e = 3'600'000'000};
  EXPECT_EQ(RunPlan(plan, server).good, 50);
}

TEST(LoadRun, TheSameRequestsGiveTheSameOutputHash) {
  LoadPlan plan;
  plan.requests = 40;
  plan.concurrency = 1;
  ServerModel server;
  const uint64_t alone = RunPlan(plan, server).output_hash;
  plan.concurrency = 8;
  plan.threads = 2;
  EXPECT_EQ(RunPlan(plan, server).output_hash, alone);
  plan.requests = 39;
  EXPECT_NE(RunPlan(plan, server).output_hash, alone);
}

TEST(LoadRun, AStopEndsTheRunAndTellsWhatWasMeasured) {
  LoadPlan plan;
  plan.concurrency = 2;
  plan.duration_us = 3'600'000'000;
  ServerModel server;
  server.service_us = 100;
  const LoadResult result =
      RunPlan(plan, server, [](const LoadSnapshot& snapshot) { return snapshot.ok < 10; });
  EXPECT_GE(result.ok, 10);
  EXPECT_LT(result.window_end, plan.duration_us);
}

TEST(LoadRun, APlanNamesTheFlagThatIsWrong) {
  const Workload workload = MakeWorkload();
  LoadPlan plan;
  plan.rate = -1;
  EXPECT_EQ(plan.Validate(workload.options()).message(), "--rate is -1; it must be above 0");
}

TEST(LoadReport, WithoutASuccessThereAreNoTimes) {
  const std::string text = ToText(LoadReport());
  EXPECT_NE(text.find(absl::StrFormat("%10s %10s %10s %10s %10s\n", "-", "-", "-", "-", "-")),
            std::string::npos)
      << text;
}

TEST(LoadReport, ReadsBackWhatItWroteAndMerges) {
  LoadPlan plan;
  plan.concurrency = 3;
  plan.requests = 30;
  plan.refused_pause_us = 0;
  ServerModel server;
  server.fault = [](int64_t index) {
    return index == 0 ? ServerModel::Fault::kRefuse : ServerModel::Fault::kNone;
  };
  LoadReport report;
  report.result = RunPlan(plan, server);
  report.result.shortened = 4;
  report.description.started_unix_s = 1000;
  const nlohmann::ordered_json json = ToJson(report);
  const absl::StatusOr<LoadReport> again = FromJson(json);
  ASSERT_TRUE(again.ok()) << again.status();
  EXPECT_EQ(ToJson(*again), json);

  LoadReport later = report;
  later.description.started_unix_s = 1001;
  report.result.seconds = {{.sent = 1}, {.sent = 2}};
  later.result.seconds = {{.sent = 10}};
  const absl::StatusOr<LoadReport> merged = MergeReports({report, later});
  ASSERT_TRUE(merged.ok());
  // In either order the second of the later one is the second second of both.
  for (const auto& both : {*merged, *MergeReports({later, report})}) {
    ASSERT_EQ(both.result.seconds.size(), 2u);
    EXPECT_EQ(both.result.seconds[0].sent, 1);
    EXPECT_EQ(both.result.seconds[1].sent, 12);
  }
  EXPECT_EQ(merged->result.shortened, 8);
  EXPECT_EQ(merged->result.ok, 2 * report.result.ok);
  EXPECT_EQ(merged->result.errors.at("RESOURCE_EXHAUSTED"), 2);
  EXPECT_NEAR(merged->result.window_s(), report.result.window_s() + 1, 1e-3);
  later.description.started_unix_s = 1e9;
  EXPECT_EQ(MergeReports({report, later}).status().code(), absl::StatusCode::kInvalidArgument);
  for (const char* other :
       {"{}", "[]", "3", R"({"program": "other"})", R"({"program": "blockserve-load", "label": 3})",
        R"({"program": "blockserve-load", "kind": "sweep"})"}) {
    const absl::Status status = FromJson(nlohmann::ordered_json::parse(other)).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << other;
    EXPECT_EQ(status.message().find("exception"), std::string::npos) << status;
  }
}

}  // namespace
}  // namespace blockserve
