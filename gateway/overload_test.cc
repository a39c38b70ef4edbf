// Admission against a tier that gets slower the more it is given: how much of an overload ends in
// time, and how soon the others are told. Time is simulated.
#include <gtest/gtest.h>

#include <algorithm>
#include <cstdint>
#include <random>
#include <vector>

#include "absl/time/time.h"
#include "gateway/admission.h"

namespace blockserve {
namespace {

constexpr absl::Duration kStep = absl::Milliseconds(2);
constexpr absl::Duration kTick = absl::Milliseconds(20);  // as AdmittedCore's
constexpr int kBlock = 4;                                 // tokens

// What clients send, one after the other.
struct Load {
  double per_second = 0;
  absl::Duration time = absl::Seconds(3);  // deadline, from the arrival
  int64_t least_tokens = 128;              // of a request, between these two
  int64_t most_tokens = 128;
  double hopeless = 0;  // share of requests that nothing could serve in their time
};

struct Result {
  int64_t ok = 0;
  int64_t ok_tokens = 0;
  int64_t cut = 0;                      // by their deadline, while they ran
  std::vector<absl::Duration> refused;  // after
  absl::Duration RefusedP99() {
    if (refused.empty()) return absl::ZeroDuration();
    std::sort(refused.begin(), refused.end());
    return refused[refused.size() * 99 / 100];
  }
};

class Simulation {
 public:
  explicit Simulation(double slowness = 1) : slowness(slowness), admission_(AdmissionOptions()) {
    admission_.SetCapacity({.best_rows = 64, .waiting_rows = 0});
  }

  // Tokens per second with as many requests as are let in at most.
  double Capacity() const { return 192 * kBlock / absl::ToDoubleSeconds(BlockTime(192)); }

  Result Run(const Load& load, absl::Duration time) {
    Result result;
    const absl::Time end = now_ + time;
    double due = 0;
    for (absl::Time next_tick = now_; now_ < end; now_ += kStep) {
      for (due += load.per_second * absl::ToDoubleSeconds(kStep); due >= 1; --due)
        Arrive(load, result);
      Work(result);
      if (now_ >= next_tick) {
        GiveUp(result);
        Pump();
        next_tick += kTick;
      }
    }
    return result;
  }

  double slowness;  // of the tiers

 private:
  struct Request {
    uint64_t id = 0;
    absl::Time arrived;
    absl::Time deadline;
    int64_t length = 0;
    bool runs = false;
    double written = 0;
    int64_t told = 0;  // tokens of whole blocks
  };

  absl::Duration BlockTime(int64_t running) const {
    return absl::Milliseconds(slowness * (6 + 0.19 * static_cast<double>(running)));
  }

  void Arrive(const Load& load, Result& result) {
    Request request;
    request.id = ++last_id_;
    request.arrived = now_;
    request.length =
        std::uniform_int_distribution<int64_t>(load.least_tokens, load.most_tokens)(random_);
    request.deadline = now_ + load.time;
    if (std::uniform_real_distribution<double>()(random_) < load.hopeless) {
      request.length = 4000;
      request.deadline = now_ + absl::Milliseconds(400);
    }
    const absl::Status status = admission_.Submit(
        request.id, {"", 2, 32 + request.length, 1, request.deadline, request.length}, now_);
    if (!status.ok()) {
      result.refused.push_back(absl::ZeroDuration());
      return;
    }
    requests_.push_back(request);
    Pump();
  }

  void Pump() {
    while (const auto id = admission_.TakeNext(now_)) Find(*id)->runs = true;
  }

  void GiveUp(Result& result) {
    for (const uint64_t id : admission_.TakeHopeless(now_)) {
      const auto found = Find(id);
      result.refused.push_back(now_ - found->arrived);
      requests_.erase(found);
    }
  }

  std::vector<Request>::iterator Find(uint64_t id) {
    return std::lower_bound(requests_.begin(), requests_.end(), id,
                            [](const Request& a, uint64_t b) { return a.id < b; });
  }

  void Work(Result& result) {
    const double tokens =
        kBlock * absl::FDivDuration(kStep, BlockTime(admission_.running_choices()));
    bool over = false;
    for (Request& request : requests_) {
      if (now_ >= request.deadline) {
        ++result.cut;
        over = true;
        admission_.Finished(request.id, /*whole=*/false, now_);
        request.id = 0;
        continue;
      }
      if (!request.runs) continue;
      request.written += tokens;
      const int64_t whole =
          std::min(request.length, static_cast<int64_t>(request.written) / kBlock * kBlock);
      if (whole > request.told) {
        if (request.told == 0) admission_.Started(request.id);
        admission_.Wrote(request.id, whole - request.told, now_);
        request.told = whole;
      }
      if (request.told < request.length) continue;
      ++result.ok;
      result.ok_tokens += request.length;
      over = true;
      admission_.Finished(request.id, /*whole=*/true, now_);
      request.id = 0;
    }
    if (!over) return;
    std::erase_if(requests_, [](const Request& request) { return request.id == 0; });
    Pump();
  }

  Admission admission_;
  absl::Time now_ = absl::FromUnixSeconds(1000);
  std::vector<Request> requests_;  // by id
  uint64_t last_id_ = 0;
  std::mt19937_64 random_{7};
};

// Ten times what can be served.
Load TenTimes(const Simulation& simulation, absl::Duration time) {
  return {.per_second = 10 * simulation.Capacity() / 128, .time = time};
}

double Goodput(const Simulation& simulation, const Result& result, absl::Duration time) {
  return static_cast<double>(result.ok_tokens) / absl::ToDoubleSeconds(time) /
         simulation.Capacity();
}

TEST(Overload, GoodputStaysAndTheOthersAreToldAtOnce) {
  for (const absl::Duration deadline : {absl::Seconds(3), absl::Seconds(10)}) {
    for (const bool mixed : {false, true}) {
      SCOPED_TRACE(testing::Message() << deadline << (mixed ? ", of many lengths" : ""));
      Simulation simulation;
      Load load = TenTimes(simulation, deadline);
      if (mixed) {
        load.least_tokens = 16;
        load.most_tokens = 240;
      }
      Result result = simulation.Run(load, absl::Seconds(30));  // from the first request on
      EXPECT_GT(Goodput(simulation, result, absl::Seconds(30)), 0.9);
      EXPECT_LT(result.RefusedP99(), absl::Milliseconds(100));
      EXPECT_LT(result.cut, result.ok / 100);
    }
  }
}

// As many as let the tiers work best would take 6 s each, of 3 that they have: unless fewer run,
// none ever ends.
TEST(Overload, WhereTheBestBatchesTakeTooLongFewerRunAndEndInTime) {
  Simulation simulation(/*slowness=*/4.6);
  Result result = simulation.Run(TenTimes(simulation, absl::Seconds(3)), absl::Seconds(30));
  EXPECT_GT(Goodput(simulation, result, absl::Seconds(30)), 0.6) << "61 at a time take 2.6 s";
  EXPECT_LT(result.RefusedP99(), absl::Milliseconds(100));
  EXPECT_LT(result.cut, result.ok / 50);
}

TEST(Overload, RecoversFromTiersThatBecomeSlowUnderIt) {
  Simulation simulation;
  const Load load = TenTimes(simulation, absl::Seconds(3));
  simulation.Run(load, absl::Seconds(5));
  simulation.slowness = 6;
  simulation.Run(load, absl::Seconds(10));  // what ran and what waited could not end any more
  Result slow = simulation.Run(load, absl::Seconds(10));
  EXPECT_GT(Goodput(simulation, slow, absl::Seconds(10)), 0.5);
  EXPECT_LT(slow.cut, slow.ok / 50);
  simulation.slowness = 1;
  simulation.Run(load, absl::Seconds(5));
  Result fast = simulation.Run(load, absl::Seconds(10));
  EXPECT_GT(Goodput(simulation, fast, absl::Seconds(10)), 0.9);
}

TEST(Overload, RequestsWithImpossibleDeadlinesTakeNothingFromTheOthers) {
  Simulation simulation;
  Load load = TenTimes(simulation, absl::Seconds(3));
  load.hopeless = 0.2;
  Result result = simulation.Run(load, absl::Seconds(20));
  EXPECT_GT(Goodput(simulation, result, absl::Seconds(20)), 0.9);
}

TEST(Overload, WhatCanBeServedIsNotRefused) {
  for (const double share : {0.1, 0.5, 0.9}) {
    SCOPED_TRACE(share);
    Simulation simulation;
    Load load = TenTimes(simulation, absl::Seconds(2));
    load.per_second *= share / 10;
    Result result = simulation.Run(load, absl::Seconds(20));
    EXPECT_EQ(result.cut, 0);
    EXPECT_TRUE(result.refused.empty()) << result.refused.size();
  }
}

}  // namespace
}  // namespace blockserve
