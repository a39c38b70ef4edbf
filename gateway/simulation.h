// Tests: gateways between tiers in weather of every kind. A seed draws how many there are of each,
// how fast workers are, which faults befall them how often, and what is asked meanwhile.
#ifndef BLOCKSERVE_GATEWAY_SIMULATION_H_
#define BLOCKSERVE_GATEWAY_SIMULATION_H_

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <functional>
#include <iterator>
#include <map>
#include <memory>
#include <random>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "common/metrics.h"
#include "gateway/admitted_core.h"
#include "gateway/core_fixture.h"
#include "model/tokenizer.h"

namespace blockserve {

// What befalls one worker of a tier.
enum Blow {
  kKill,
  kUpgrade,  // comes back with other arithmetic
  kBreak,
  kFreeze,
  kHang,
  kDrain,
  kRemove,
  kSlow,
  kFull,
  kRefuse,
  kIll,
  kNumBlows
};
inline constexpr const char* kBlowNames[] = {"kill", "upgrade", "break",  "freeze",
                                             "hang", "drain",   "remove", "slow",
                                             "full", "refuse",  "ill"};
static_assert(std::size(kBlowNames) == kNumBlows);
// First those of token workers, then those of block replicas, then the others.
enum Fault {
  kWorkers = 0,
  kReplicas = kNumBlows,
  kForgetSequences = 2 * kNumBlows,
  kSuspendSequences,
  kRefuseOpens,
  kCancel,
  kStall,  // the gateways themselves do not run
  kCrash,  // a gateway is replaced by another; its clients go on with their streams, at any
  kNumFaults
};
inline constexpr const char* kOtherNames[] = {
    "forget sequences", "suspend sequences", "refuse opens", "cancel", "stall", "crash"};
static_assert(std::size(kOtherNames) == kNumFaults - kForgetSequences);
inline std::string FaultName(int fault) {
  if (fault < kReplicas) return absl::StrCat(kBlowNames[fault], " token worker");
  if (fault < kForgetSequences)
    return absl::StrCat(kBlowNames[fault - kReplicas], " block replica");
  return kOtherNames[fault - kForgetSequences];
}

class Random {
 public:
  explicit Random(uint64_t seed) : generator_(seed) {}
  int Below(int n) { return static_cast<int>(generator_() % static_cast<uint64_t>(n)); }
  double Unit() { return static_cast<double>(generator_() >> 11) * 0x1.0p-53; }
  bool Chance(double share) { return Unit() < share; }
  // Every order of magnitude is as likely.
  double Between(double least, double most) { return least * std::pow(most / least, Unit()); }
  absl::Duration Seconds(double least, double most) { return absl::Seconds(Between(least, most)); }
  template <class Item>
  Item& OneOf(std::vector<Item>& items) {
    return items[static_cast<size_t>(Below(static_cast<int>(items.size())))];
  }

 private:
  std::mt19937_64 generator_;
};

class TimedSink final : public RecordingSink {
 public:
  explicit TimedSink(const ManualLoop& loop) : loop_(loop) {}
  void OnOutput(v1::Output message, OutputDetail detail) override {
    Told(message.choice());
    RecordingSink::OnOutput(std::move(message), std::move(detail));
  }
  void OnDone(absl::Status outcome, v1::Usage total) override {
    done_at = loop_.Now();
    RecordingSink::OnDone(std::move(outcome), std::move(total));
  }
  absl::Time done_at;
  absl::Duration longest_stall;  // between two outputs of a choice

 private:
  void Told(uint32_t choice) {
    const auto [told, first] = told_.try_emplace(choice, loop_.Now());
    longest_stall = std::max(longest_stall, loop_.Now() - told->second);
    told->second = loop_.Now();
  }

  const ManualLoop& loop_;
  std::map<uint32_t, absl::Time> told_;  // when last
};

class TimedScoreSink final : public ScoringSink {
 public:
  explicit TimedScoreSink(const ManualLoop& loop) : loop_(loop) {}
  void OnDone(absl::StatusOr<v1::ScoreResponse> outcome) override {
    ++done;
    done_at = loop_.Now();
    response = std::move(outcome);
  }
  int done = 0;
  absl::Time done_at;
  absl::StatusOr<v1::ScoreResponse> response = absl::UnknownError("not over");

 private:
  const ManualLoop& loop_;
};

// Numeric ids of the block tier and of the token tier.
using Arithmetics = std::pair<std::string, std::string>;
inline constexpr const char* kOld = "sim-1";
inline constexpr const char* kNew = "sim-2";
inline uint64_t BitsOf(const std::string& numeric_id) { return numeric_id == kNew ? 0x5a5a : 0; }

// A core between one worker of each kind that never fails.
class Calm final : public CoreFixture {
 public:
  Calm(const ModelConfig& config, const Tokenizer* tokenizer, const Arithmetics& arithmetics) {
    config_ = config;
    tokenizer_ = tokenizer;
    MakeCore(1, 1);
    blocks_[0]->numeric_id = arithmetics.first;
    workers_[0]->numeric_id = arithmetics.second;
    blocks_[0]->bits = BitsOf(arithmetics.first);
    workers_[0]->bits = BitsOf(arithmetics.second);
    workers_[0]->penalizes = true;
    blocks_[0]->service_time = workers_[0]->service_time = absl::Microseconds(10);
    Connect();
  }
  std::shared_ptr<RecordingSink> Answer(GenerationRequest request) {
    request.deadline = loop_.Now() + absl::Minutes(10);
    request.resume.reset();
    const Stream stream = Generate(std::move(request));
    EXPECT_TRUE(RunUntilDone({stream}));
    EXPECT_TRUE(stream.sink->status.ok()) << stream.sink->status;
    return stream.sink;
  }
  v1::ScoreResponse Answer(ScoringRequest request) {
    request.deadline = loop_.Now() + absl::Minutes(10);
    const auto sink = std::make_shared<RecordingScoreSink>();
    core_->Score(std::move(request), sink);
    EXPECT_TRUE(loop_.RunUntil([&] { return sink->done > 0; }));
    EXPECT_TRUE(sink->response.ok()) << sink->response.status();
    return sink->response.ok() ? *sink->response : v1::ScoreResponse();
  }

 private:
  void TestBody() override {}
};

// When a tier had nobody who works, or when something happened.
struct Span {
  absl::Time begin;
  absl::Time end;
};
template <class Worker>
struct SimulatedTier {
  std::vector<std::unique_ptr<Worker>>* workers = nullptr;
  // Which gateways have no connection to it, or have been told that it is no more.
  std::map<std::string, std::set<size_t>> broken;
  std::map<std::string, std::set<size_t>> removed;
  std::map<std::string, bool> unwilling;             // full, refusing or ill
  std::map<std::string, std::vector<Span>> outages;  // of those of a numeric id
  std::vector<Span> alone;                           // fewer than two worked
  std::vector<absl::Time> blows;  // what may make a worker look as if a request had killed it
  absl::Duration usual;           // service time
  int needed = 1;                 // workers: one, or one more to compare its answers with

  bool Works(const Worker& worker) {
    return worker.up && !worker.frozen && !worker.draining && broken[worker.name].empty() &&
           removed[worker.name].empty() && !unwilling[worker.name] && !worker.wrong_bits &&
           worker.service_time < 20 * usual;
  }
  void Note(absl::Time now) {
    std::map<std::string, int> works = {{kOld, 0}};
    for (const auto& [numeric_id, spans] : outages) works[numeric_id] = 0;
    for (const auto& worker : *workers) works[worker->numeric_id] += Works(*worker);
    for (const auto& [numeric_id, number] : works) {
      NoteSpan(outages[numeric_id], number < needed, now);
    }
    NoteSpan(
        alone,
        std::any_of(works.begin(), works.end(), [](const auto& entry) { return entry.second < 2; }),
        now);
  }
  static void NoteSpan(std::vector<Span>& spans, bool is, absl::Time now) {
    const bool was = !spans.empty() && spans.back().end == absl::InfiniteFuture();
    if (was && !is) spans.back().end = now;
    if (is && !was) spans.push_back({now, absl::InfiniteFuture()});
  }
  static bool LastedFor(const std::vector<Span>& spans, absl::Duration least, absl::Time begin,
                        absl::Time end) {
    // In all: one who works for a moment now and then may be missed by all who wait.
    absl::Duration lasted;
    bool any = false;
    for (const Span& span : spans) {
      if (span.begin > end || span.end <= begin) continue;
      any = true;
      lasted += std::min(span.end, end) - std::max(span.begin, begin);
    }
    return any && lasted >= least / 2;
  }
  bool OutFor(absl::Duration least, absl::Time begin, absl::Time end) const {
    return std::any_of(outages.begin(), outages.end(), [&](const auto& entry) {
      return LastedFor(entry.second, least, begin, end);
    });
  }
  // Of its workers all that could have done it, or two, seemed to fail for a request's sake.
  bool MayFail(absl::Time begin, absl::Time end, bool liar) const {
    const int blown = Blows(begin, end);
    return blown >= 2 ||
           ((blown >= 1 || liar) && LastedFor(alone, absl::ZeroDuration(), begin, end));
  }
  int Blows(absl::Time begin, absl::Time end) const {
    return static_cast<int>(std::count_if(blows.begin(), blows.end(),
                                          [&](absl::Time at) { return at >= begin && at <= end; }));
  }
};

class Simulation : public CoreFixture {
 public:
  Simulation(uint64_t seed, const Tokenizer* tokenizer);
  ~Simulation() override {
    for (Gateway& gateway : gateways_) End(gateway);
  }
  // What the faults did not end is over soon, and right; nothing is left.
  void Run();
  // One line of what happened.
  std::string Summary() const;

 private:
  void TestBody() override {}

  struct Gateway {
    uint64_t number = 0;  // no other has had it
    std::unique_ptr<Core> core;
    std::unique_ptr<AdmittedCore> admitted;  // null: what is asked comes to the core at once
    GenerationCore& front() const {
      if (admitted != nullptr) return *admitted;
      return *core;
    }
  };
  // One generation, with every stream that went on with the one before it.
  struct Client {
    size_t gateway = 0;  // where that stream is
    GenerationRequest request;
    Arithmetics arithmetics;          // that began it; empty: nobody has
    std::shared_ptr<TimedSink> sink;  // of the stream under way, or of the last one
    GenerationId id = 0;
    absl::Time asked;
    bool cancelled = false;
    bool reads_slowly = false;
    // What it has of the streams before this one.
    std::vector<std::vector<int32_t>> had;  // [n]
    std::vector<std::string> had_text;
    std::vector<bool> had_end;
  };
  struct Scorer {
    size_t gateway = 0;
    ScoringRequest request;
    std::shared_ptr<TimedScoreSink> sink;
    GenerationId id = 0;
    absl::Time asked;
    bool cancelled = false;
  };
  // Requests that no replica survives, or no token worker, or that none can do.
  struct Deadly {
    bool to_replicas = false;
    bool hangs = false;  // a token worker, instead of killing it
    bool fails = false;  // INTERNAL, and nothing else happens to the worker
    int kills = 0;
  };
  void Storm();
  bool Clear();
  void Check();

  void Make(size_t gateway);
  static void End(Gateway& gateway);
  size_t AnyGateway() {
    return static_cast<size_t>(random_.Below(static_cast<int>(gateways_.size())));
  }
  std::set<size_t> SomeGateways();
  GenerationCore& FrontOf(const Client& client) { return gateways_[client.gateway].front(); }
  GenerationCore& FrontOf(const Scorer& scorer) { return gateways_[scorer.gateway].front(); }
  Calm& CalmOf(const Arithmetics& arithmetics) {
    std::unique_ptr<Calm>& calm = calm_[arithmetics];
    if (calm == nullptr) calm = std::make_unique<Calm>(config_, tokenizer_, arithmetics);
    return *calm;
  }
  void Ask();
  void Strike();
  // It may be deadly.
  void DrawDeadly(const std::string& request_id);
  Deadly* DeadlyTo(bool replicas, const std::string& request_id);  // null: it is not
  bool IsDeadly(const std::string& request_id) const { return deadly_.contains(request_id); }
  // Whether it dies of what this request asks of it, or hangs.
  template <class Worker>
  bool DiesOf(const std::string& request_id, bool hangs, SimulatedTier<Worker>& tier,
              Worker& worker);
  // What it answers, but to requests that nobody can do.
  template <class Worker>
  void SetVerdict(Worker& worker, const absl::Status& status);
  template <class Worker>
  void StrikeTier(SimulatedTier<Worker>& tier, int kind);
  void Crash();
  void GoOn(Client& client);
  void Later(absl::Duration least, absl::Duration most, std::function<void()> task);
  // What is to recover until then does.
  void Recover(absl::Time until);
  void Note() {
    token_.Note(loop_.Now());
    block_.Note(loop_.Now());
  }
  GenerationRequest DrawRequest();
  ScoringRequest DrawText();
  // How one of these has ended: GenerationRequest, or ScoringRequest.
  template <class Call>
  void CheckEnd(const Call& request, const absl::Status& status, absl::Time asked, absl::Time done);
  void CheckClient(const Client& client);
  bool AllDone() const;

  const uint64_t seed_;
  Random random_;
  std::map<Arithmetics, std::unique_ptr<Calm>> calm_;
  std::map<std::string, Deadly> deadly_;  // by request id
  bool deadly_alone_ = false;             // and nothing else happens
  // One worker at a time of many has a fault, and then none for a while: no stream stands still for
  // long.
  bool gentle_ = false;
  SimulatedTier<SimulatedTokenWorker> token_;
  SimulatedTier<SimulatedBlockReplica> block_;
  std::vector<int> faults_;  // those of this weather
  std::vector<int> struck_ = std::vector<int>(kNumFaults);
  absl::Duration longest_fault_;
  absl::Duration between_faults_;
  std::multimap<absl::Time, std::function<void()>> recoveries_;
  std::vector<Gateway> gateways_;
  uint64_t next_gateway_ = 1;
  std::vector<std::unique_ptr<Client>> clients_;
  std::vector<std::unique_ptr<Scorer>> scorers_;
  std::vector<Span> stalls_;
  uint64_t next_request_ = 1;
  // Requests come to a core through admission, which may refuse them.
  bool admits_ = false;
  AdmittedCoreOptions admitted_options_;
  MetricRegistry registry_;
  RequestMetrics metrics_;
  bool kills_ = false;  // some requests are deadly
  bool liars_ = false;  // a worker of each tier answers wrong bits
  bool upgraded_ = false;
  bool resumes_ = false;  // clients go on with streams that ended UNAVAILABLE
  absl::Duration calm_took_;
  absl::Duration longest_stall_;
  std::map<std::string, int> ends_;
};

}  // namespace blockserve

#endif  // BLOCKSERVE_GATEWAY_SIMULATION_H_
