// Simulation: what happens. simulation_checks.cc: what must hold of it.
#include "gateway/simulation.h"

#include <type_traits>

namespace blockserve {
namespace {

// After the last fault every request must end within this.
constexpr absl::Duration kSoon = absl::Seconds(60);
constexpr absl::Duration kBetweenGentle = absl::Seconds(1);

}  // namespace

void Simulation::Run() {
  Storm();
  if (Clear()) Check();
}

std::string Simulation::Summary() const {
  std::string line =
      absl::StrCat("seed ", seed_, ": ", blocks_.size(), " block replicas, ", workers_.size(),
                   " token workers, ", gateways_.size(), " gateways, ", clients_.size(),
                   " streams, ", scorers_.size(), " texts:");
  for (const auto& [end, times] : ends_) absl::StrAppend(&line, " ", end, " ", times);
  absl::StrAppend(&line, "; over ", absl::FormatDuration(calm_took_), " after the last of:");
  if (gentle_) absl::StrAppend(&line, " (gentle, ", absl::FormatDuration(longest_stall_), ")");
  for (int i = 0; i < kNumFaults; ++i) {
    const int times = struck_[static_cast<size_t>(i)];
    if (times > 0) absl::StrAppend(&line, " ", FaultName(i), " ", times);
  }
  return line;
}

void Simulation::Later(absl::Duration least, absl::Duration most, std::function<void()> task) {
  recoveries_.emplace(
      loop_.Now() + random_.Seconds(absl::ToDoubleSeconds(least), absl::ToDoubleSeconds(most)),
      std::move(task));
}

void Simulation::Recover(absl::Time until) {
  while (!recoveries_.empty() && recoveries_.begin()->first <= until) {
    const auto recovery = std::move(recoveries_.begin()->second);
    recoveries_.erase(recoveries_.begin());
    recovery();
  }
}

void Simulation::Make(size_t index) {
  // It has to find them first.
  std::vector<Span>& outages = token_.outages[kOld];
  outages.insert(outages.begin(), {loop_.Now(), loop_.Now() + absl::Milliseconds(1)});
  Gateway& gateway = gateways_[index];
  gateway.number = next_gateway_++;
  gateway.core = NewCore(gateway.number);
  for (const auto& replica : blocks_) {
    if (block_.removed[replica->name].contains(index)) continue;
    gateway.core->block_tier().AddReplica(replica->name);
  }
  for (const auto& worker : workers_) {
    if (token_.removed[worker->name].contains(index)) continue;
    gateway.core->token_tier().AddWorker(worker->name);
  }
  if (!admits_) return;
  const double most_waiting = 2 * admitted_options_.admission.live.waiting_batches();
  AdmittedCoreOptions options = admitted_options_;
  options.capacity = [&core = *gateway.core, most_waiting] {
    TokenCapacity capacity = core.token_tier().Capacity(most_waiting);
    capacity.scoring_rows = core.scoring_rows().under_way();
    return capacity;
  };
  gateway.admitted =
      std::make_unique<AdmittedCore>(loop_, *gateway.core, std::move(options), metrics_);
}

void Simulation::End(Gateway& gateway) {
  const absl::Status stopped = absl::UnavailableError("the gateway has stopped");
  if (gateway.admitted != nullptr) gateway.admitted->EndQueued(stopped);
  if (gateway.core != nullptr) gateway.core->EndAll(stopped);
  gateway.admitted.reset();
  gateway.core.reset();
}

Simulation::Simulation(uint64_t seed, const Tokenizer* tokenizer) : seed_(seed), random_(seed) {
  tokenizer_ = tokenizer;
  Random& random = random_;
  options_ = CoreOptions();
  if (random.Chance(0.3)) {
    options_.tier.audit.rows = random.Chance(0.3) ? 1 : random.Unit();
    options_.tier.audit.contexts = random.Chance(0.3) ? 1 : random.Unit();
    options_.tier.audit.hold = random.Chance(0.5);
  }
  if (options_.tier.audit.hold) block_.needed = token_.needed = 2;
  gentle_ = random.Chance(0.15);
  const int replicas = block_.needed + (gentle_ ? 1 + random.Below(2) : random.Below(4));
  const int workers = token_.needed + (gentle_ ? 1 + random.Below(2) : random.Below(5));
  const int64_t pages = !gentle_ && random.Chance(0.4) ? 60 + random.Below(200) : 5000;
  for (int i = 0; i < replicas; ++i) {
    auto replica = std::make_unique<SimulatedBlockReplica>(loop_, absl::StrCat("block", i));
    replica->pages = pages;
    replica->suspends_when_full = true;
    replica->in_turn = true;
    blocks_.push_back(std::move(replica));
  }
  const int32_t max_rows = static_cast<int32_t>(random.Between(gentle_ ? 64 : 1, 256));
  for (int i = 0; i < workers; ++i) {
    auto worker = std::make_unique<SimulatedTokenWorker>(loop_, absl::StrCat("token", i));
    worker->penalizes = true;
    worker->max_rows = max_rows;
    worker->in_turn = random.Chance(0.5);
    worker->max_queued_rows = 2 * max_rows;
    workers_.push_back(std::move(worker));
  }
  block_.workers = &blocks_;
  token_.workers = &workers_;
  block_.usual = random.Seconds(0.0002, gentle_ ? 0.002 : 0.02);
  token_.usual = random.Seconds(0.0002, gentle_ ? 0.002 : 0.02);
  for (const auto& replica : blocks_) replica->service_time = block_.usual;
  for (const auto& worker : workers_) worker->service_time = token_.usual;

  liars_ = !gentle_ && options_.tier.audit.hold && random.Chance(0.3);
  if (liars_) {
    options_.tier.audit.rows = options_.tier.audit.contexts = 1;
    blocks_.push_back(std::make_unique<SimulatedBlockReplica>(loop_, "block-liar"));
    workers_.push_back(std::make_unique<SimulatedTokenWorker>(loop_, "token-liar"));
    blocks_.back()->wrong_bits = workers_.back()->wrong_bits = true;
    workers_.back()->penalizes = true;
    blocks_.back()->in_turn = true;
    blocks_.back()->pages = pages;
  }
  deadly_alone_ = !gentle_ && !liars_ && random.Chance(0.1);
  kills_ = deadly_alone_ || (!gentle_ && random.Chance(0.1));
  for (const auto& worker : workers_) {
    SimulatedTokenWorker* const blown = worker.get();
    worker->deadly = [this, blown](const v1::TokenRowRequest& row) {
      return DiesOf(row.header().request_key(), /*hangs=*/false, token_, *blown);
    };
    worker->hanging = [this, blown](const v1::TokenRowRequest& row) {
      return DiesOf(row.header().request_key(), /*hangs=*/true, token_, *blown);
    };
  }
  for (const auto& replica : blocks_) {
    replica->deadly = [this, killed = replica.get()](const v1::BlockRequest& request) {
      const std::string& request_id = request.header().request_key();
      return !request.has_close() && DiesOf(request_id, /*hangs=*/false, block_, *killed);
    };
  }
  for (const auto& worker : workers_) SetVerdict(*worker, absl::OkStatus());
  for (const auto& replica : blocks_) SetVerdict(*replica, absl::OkStatus());

  // Few kinds at a time show what many together hide.
  const double share = random.Between(0.08, 1);
  for (int fault = 0; fault < kNumFaults; ++fault) {
    if (gentle_ && (fault >= kForgetSequences || fault % kNumBlows == kUpgrade)) continue;
    if (!deadly_alone_ && random.Chance(share)) faults_.push_back(fault);
  }
  longest_fault_ = gentle_ ? random.Seconds(2, 6) : random.Seconds(0.05, 20);
  between_faults_ = random.Seconds(0.005, 2);
  resumes_ = random.Chance(0.5);
  admits_ = !gentle_ && random.Chance(0.5);
  if (admits_) {
    metrics_ = RequestMetrics(registry_);
    admitted_options_.block_length = kSimulatedLength;
    admitted_options_.log_requests = false;
    AdmissionOptions& admission = admitted_options_.admission;
    if (random.Chance(0.3)) admission.max_queued = random.Below(20);
    admission.max_starting = static_cast<int32_t>(random.Between(1, 64));
    if (random.Chance(0.3)) admission.limits["limited"].max_requests = 1 + random.Below(3);
    if (random.Chance(0.3)) admitted_options_.slow_reader_timeout = random.Seconds(0.1, 5);
  }
  gateways_.resize(random.Chance(0.4) ? static_cast<size_t>(2 + random.Below(2)) : 1);
  for (size_t i = 0; i < gateways_.size(); ++i) {
    if (i > 0) loop_.Advance(random.Seconds(0.0001, 0.02));  // their ticks do not meet
    Make(i);
  }
  Note();
  if (random.Chance(0.8)) loop_.Advance(absl::Milliseconds(30));
}

GenerationRequest Simulation::DrawRequest() {
  Random& random = random_;
  const uint64_t number = next_request_++;
  GenerationRequest request =
      Request(static_cast<int32_t>(random.Between(1, 80)),
              static_cast<int32_t>(random.Between(1, gentle_ ? 3000 : 400)), number);
  request.alignment = static_cast<Alignment>(random.Below(3));
  if (random.Chance(0.3)) request.n = 1 + random.Below(5);
  if (random.Chance(0.3)) request.logprobs = random.Below(3);
  if (random.Chance(0.3)) {
    for (int i = random.Below(8); i >= 0; --i)
      request.stop_ids.push_back(random.Below(kSimulatedVocab));
  }
  if (random.Chance(0.1)) request.sampling.set_frequency_penalty(0.5f);
  if (random.Chance(0.1)) request.sampling.set_repetition_penalty(1.25f);
  if (random.Chance(0.2)) request.min_tokens = random.Below(request.max_tokens + 1);
  if (random.Chance(0.2))
    request.stop_strings = {std::string(1, static_cast<char>('a' + random.Below(26)))};
  if (random.Chance(0.3)) request.priority = static_cast<uint32_t>(1 + random.Below(3));
  if (random.Chance(0.2)) request.key = random.Chance(0.5) ? "limited" : "other";
  if (random.Chance(0.1)) request.cache_salt = absl::StrCat("salt", random.Below(2));
  if (random.Chance(0.2)) request.deadline = loop_.Now() + random.Seconds(0.05, 20);
  return request;
}

ScoringRequest Simulation::DrawText() {
  Random& random = random_;
  ScoringRequest request;
  const uint64_t number = next_request_++;
  request.request_id = absl::StrCat("text-", number);
  request.tokens = Request(static_cast<int32_t>(random.Between(1, 200)), 1, number).prompt;
  if (random.Chance(0.5)) {
    request.first_scored = random.Below(static_cast<int>(request.tokens.size()));
  }
  request.alignment = static_cast<Alignment>(random.Below(3));
  request.deadline = loop_.Now() + absl::Minutes(10);
  if (random.Chance(0.2)) request.deadline = loop_.Now() + random.Seconds(0.05, 20);
  return request;
}

void Simulation::Ask() {
  if (random_.Chance(0.15)) {
    auto scorer = std::make_unique<Scorer>();
    scorer->request = DrawText();
    DrawDeadly(scorer->request.request_id);
    scorer->sink = std::make_shared<TimedScoreSink>(loop_);
    scorer->asked = loop_.Now();
    scorer->gateway = AnyGateway();
    scorer->id = FrontOf(*scorer).Score(scorer->request, scorer->sink);
    scorers_.push_back(std::move(scorer));
    return;
  }
  auto client = std::make_unique<Client>();
  client->request = DrawRequest();
  DrawDeadly(client->request.request_id);
  const size_t n = static_cast<size_t>(client->request.n);
  client->had.resize(n);
  client->had_text.resize(n);
  client->had_end.resize(n);
  client->sink = std::make_shared<TimedSink>(loop_);
  client->reads_slowly = !gentle_ && random_.Chance(0.15);
  client->asked = loop_.Now();
  client->gateway = AnyGateway();
  client->id = FrontOf(*client).Generate(client->request, client->sink);
  clients_.push_back(std::move(client));
}

// Its stream is over, or its gateway: it asks for the rest, of any gateway.
void Simulation::GoOn(Client& client) {
  const TimedSink& before = *client.sink;
  if (before.started > 0) {
    client.arithmetics = {before.first.block_numeric_id(), before.first.token_numeric_id()};
  }
  GenerationRequest request = client.request;
  auto sink = std::make_shared<TimedSink>(loop_);
  sink->wants_more = before.wants_more;
  for (uint32_t i = 0; i < static_cast<uint32_t>(request.n); ++i) {
    const auto tokens = before.tokens.find(i);
    if (tokens != before.tokens.end()) {
      client.had[i].insert(client.had[i].end(), tokens->second.begin(), tokens->second.end());
    }
    const auto text = before.text.find(i);
    if (text != before.text.end()) client.had_text[i] += text->second;
    client.had_end[i] = client.had_end[i] || before.finished.contains(i);
  }
  if (before.started > 0 || client.request.resume.has_value()) {
    ResumeState& resume = request.resume.emplace();
    resume.model_id =
        before.started > 0 ? before.first.model_id() : client.request.resume->model_id;
    resume.block_numeric_id = client.arithmetics.first;
    resume.token_numeric_id = client.arithmetics.second;
    for (uint32_t i = 0; i < static_cast<uint32_t>(request.n); ++i) {
      resume.choices.push_back({client.had[i], client.had_end[i]});
      sink->received_before[i] = static_cast<int64_t>(client.had[i].size());
    }
  }
  // Who is asked now knows nothing of what was before.
  if (IsDeadly(request.request_id)) deadly_.at(request.request_id).kills = 0;
  client.request = request;
  client.sink = sink;
  client.asked = loop_.Now();
  client.gateway = AnyGateway();
  client.id = FrontOf(client).Generate(std::move(request), sink);
}

void Simulation::Crash() {
  const size_t index = AnyGateway();
  Gateway& gateway = gateways_[index];
  End(gateway);
  // Another gateway has sequences of its own.
  for (const auto& replica : blocks_) replica->ForgetSequencesOf(gateway.number);
  Make(index);
  const auto broke = [this](int done, absl::Time done_at, const absl::Status& status) {
    return done == 0 || (done_at == loop_.Now() && status.code() == absl::StatusCode::kUnavailable);
  };
  for (const auto& client : clients_) {
    const TimedSink& sink = *client->sink;
    if (client->gateway != index || client->cancelled) continue;
    if (broke(sink.done, sink.done_at, sink.status)) GoOn(*client);
  }
  for (const auto& scorer : scorers_) {
    const TimedScoreSink& sink = *scorer->sink;
    if (scorer->gateway != index || scorer->cancelled) continue;
    if (!broke(sink.done, sink.done_at, sink.response.status())) continue;
    scorer->sink = std::make_shared<TimedScoreSink>(loop_);
    scorer->asked = loop_.Now();
    scorer->gateway = AnyGateway();
    scorer->id = FrontOf(*scorer).Score(scorer->request, scorer->sink);
  }
}

std::set<size_t> Simulation::SomeGateways() {
  const size_t one = AnyGateway();
  std::set<size_t> some = {one};
  const bool all = random_.Chance(0.5);
  for (size_t i = 0; all && i < gateways_.size(); ++i) some.insert(i);
  return some;
}

void Simulation::DrawDeadly(const std::string& request_id) {
  if (!(deadly_alone_ ? deadly_.empty() : kills_ && random_.Chance(0.1))) return;
  Deadly& deadly = deadly_[request_id];
  deadly.to_replicas = random_.Chance(0.3);
  deadly.fails = random_.Chance(0.2);
  deadly.hangs = !deadly.to_replicas && random_.Chance(0.3);
}

Simulation::Deadly* Simulation::DeadlyTo(bool replicas, const std::string& request_id) {
  const auto found = deadly_.find(request_id);
  return found == deadly_.end() || found->second.to_replicas != replicas ? nullptr : &found->second;
}

template <class Worker>
bool Simulation::DiesOf(const std::string& request_id, bool hangs, SimulatedTier<Worker>& tier,
                        Worker& worker) {
  constexpr bool kIsReplica = std::is_same_v<Worker, SimulatedBlockReplica>;
  Deadly* const deadly = DeadlyTo(kIsReplica, request_id);
  if (deadly == nullptr || deadly->fails || deadly->hangs != hangs) return false;
  ++deadly->kills;
  // A gateway knows nothing of the requests of others.
  if (!deadly_alone_ || gateways_.size() > 1) tier.blows.push_back(loop_.Now());
  loop_.Post([this] { Note(); });
  loop_.PostAfter(random_.Seconds(0.001, hangs ? 5 : 0.5), [this, &worker] {
    worker.Kill();
    worker.Restart();
    Note();
  });
  return true;
}

template <class Worker>
void Simulation::SetVerdict(Worker& worker, const absl::Status& status) {
  worker.verdict = [this, status](const auto& call) {
    constexpr bool kIsReplica = std::is_same_v<std::decay_t<decltype(call)>, v1::BlockRequest>;
    if constexpr (kIsReplica) {
      if (call.has_close()) return absl::OkStatus();
    }
    const Deadly* const deadly = DeadlyTo(kIsReplica, call.header().request_key());
    const bool fails = deadly != nullptr && deadly->fails;
    return fails ? absl::InternalError("its logits are not finite") : status;
  };
}

template <class Worker>
void Simulation::StrikeTier(SimulatedTier<Worker>& tier, int kind) {
  Worker* const worker = random_.OneOf(*tier.workers).get();
  const std::string name = worker->name;
  const absl::Duration least = absl::Milliseconds(1);
  constexpr bool kIsReplica = std::is_same_v<Worker, SimulatedBlockReplica>;
  switch (kind) {
    case kKill:
    case kUpgrade:
      if (!worker->up) return;
      worker->Kill();
      tier.blows.push_back(loop_.Now());
      if (kind == kUpgrade) {
        upgraded_ = true;
        worker->numeric_id = worker->numeric_id == kOld ? kNew : kOld;
        worker->bits = BitsOf(worker->numeric_id);
      }
      Later(least, longest_fault_, [worker] { worker->Restart(); });
      break;
    case kBreak: {
      if (!worker->up || !tier.broken[name].empty()) return;
      const std::set<size_t> of = SomeGateways();
      for (const size_t gateway : of) worker->BreakTo(gateways_[gateway].number);
      tier.broken[name] = of;
      tier.blows.push_back(loop_.Now());
      Later(least, longest_fault_, [this, worker, &tier, name] {
        for (const size_t gateway : std::exchange(tier.broken[name], {})) {
          worker->MendTo(gateways_[gateway].number);
        }
      });
      break;
    }
    case kFreeze:
    case kHang:
      if (!worker->up || worker->frozen) return;
      if (kind == kFreeze) worker->Freeze();
      if (kind == kHang) worker->Hang();
      tier.blows.push_back(loop_.Now());
      Later(least, longest_fault_, [worker] { worker->Thaw(); });
      break;
    case kDrain:
      if (!worker->up || worker->draining) return;
      worker->Drain();
      Later(least, longest_fault_, [this, worker] {
        worker->Kill();
        Later(absl::Milliseconds(1), longest_fault_, [worker] { worker->Restart(); });
      });
      break;
    case kRemove:
      if (!tier.removed[name].empty()) return;
      tier.removed[name] = SomeGateways();
      for (const size_t gateway : tier.removed[name]) {
        Core& core = *gateways_[gateway].core;
        if constexpr (kIsReplica) {
          core.block_tier().RemoveReplica(name);
        } else {
          core.token_tier().RemoveWorker(name);
        }
      }
      Later(least, longest_fault_, [this, &tier, name] {
        for (const size_t gateway : std::exchange(tier.removed[name], {})) {
          Core& core = *gateways_[gateway].core;
          if constexpr (kIsReplica) {
            core.block_tier().AddReplica(name);
          } else {
            core.token_tier().AddWorker(name);
          }
        }
      });
      break;
    case kFull:
    case kRefuse:
    case kIll: {
      if (tier.unwilling[name]) return;
      tier.unwilling[name] = true;
      const absl::Status status = kind == kFull     ? absl::ResourceExhaustedError("full")
                                  : kind == kRefuse ? absl::UnavailableError("not now")
                                                    : absl::InternalError("logits are not finite");
      if (kind == kIll) tier.blows.push_back(loop_.Now());
      SetVerdict(*worker, status);
      Later(least, longest_fault_, [this, worker, &tier, name] {
        tier.unwilling[name] = false;
        SetVerdict(*worker, absl::OkStatus());
      });
      break;
    }
    case kSlow:
      worker->service_time = tier.usual * random_.Between(2, 500);
      tier.blows.push_back(loop_.Now());
      Later(least, longest_fault_, [worker, &tier] { worker->service_time = tier.usual; });
      break;
    default:
      FAIL();
  }
}

void Simulation::Strike() {
  if (faults_.empty()) return;
  Random& random = random_;
  const int fault = random.OneOf(faults_);
  ++struck_[static_cast<size_t>(fault)];
  if (fault < kReplicas) return StrikeTier(token_, fault - kWorkers);
  if (fault < kForgetSequences) return StrikeTier(block_, fault - kReplicas);
  SimulatedBlockReplica& replica = *random.OneOf(blocks_);
  switch (fault) {
    case kForgetSequences:
      replica.ForgetSequences();
      break;
    case kSuspendSequences:
      replica.suspend = 1 + random.Below(4);
      break;
    case kRefuseOpens:
      replica.refuse_opens = 1 + random.Below(6);
      break;
    case kCancel:
      if (random.Chance(0.2) && !clients_.empty()) {
        Client& client = *random.OneOf(clients_);
        if (client.cancelled || client.sink->done > 0) break;
        client.cancelled = true;
        FrontOf(client).Cancel(client.id, ClientHasGone());
      } else if (random.Chance(0.2) && !scorers_.empty()) {
        Scorer& scorer = *random.OneOf(scorers_);
        if (scorer.cancelled || scorer.sink->done > 0) break;
        scorer.cancelled = true;
        FrontOf(scorer).Cancel(scorer.id, ClientHasGone());
      }
      break;
    case kStall: {
      const absl::Time begin = loop_.Now();
      loop_.Stall(random.Seconds(0.001, 5));
      stalls_.push_back({begin, loop_.Now()});
      break;
    }
    case kCrash:
      if (random.Chance(0.1)) Crash();
      break;
    default:
      FAIL() << fault;
  }
}

bool Simulation::AllDone() const {
  return std::all_of(clients_.begin(), clients_.end(),
                     [](const auto& c) { return c->cancelled || c->sink->done > 0; }) &&
         std::all_of(scorers_.begin(), scorers_.end(),
                     [](const auto& s) { return s->cancelled || s->sink->done > 0; });
}

void Simulation::Storm() {
  Random& random = random_;
  const absl::Time end = loop_.Now() + random.Seconds(gentle_ ? 10 : 0.3, 30);
  const int requests = static_cast<int>(random.Between(3, 60));
  const absl::Duration between_requests = (end - loop_.Now()) / requests;
  const double at_once = random.Unit();
  for (int i = 0; i < static_cast<int>(at_once * requests); ++i) Ask();
  absl::Time next_fault = loop_.Now() + random.Seconds(0.001, 0.3);
  absl::Time next_request = loop_.Now() + between_requests;
  absl::Time next_read = loop_.Now();
  while (loop_.Now() < end) {
    absl::Time next = std::min({end, next_fault, next_request, next_read});
    if (!recoveries_.empty()) next = std::min(next, recoveries_.begin()->first);
    if (next > loop_.Now()) loop_.Advance(next - loop_.Now());
    Recover(loop_.Now());
    if (loop_.Now() >= next_fault) {
      if (!gentle_ || recoveries_.empty()) Strike();
      next_fault = loop_.Now() + between_faults_ * (2 * random.Unit());
      if (gentle_) next_fault += kBetweenGentle;
    }
    if (loop_.Now() >= next_request) {
      if (random.Chance(1 - at_once)) Ask();
      next_request = loop_.Now() + between_requests;
    }
    if (loop_.Now() >= next_read) {
      for (const auto& client : clients_) {
        if (client->sink->done > 0) {
          // What was told at once may be worth another try, where its reason is over.
          if (resumes_ && !client->cancelled && loop_.Now() < client->request.deadline &&
              client->sink->status.code() == absl::StatusCode::kUnavailable) {
            CheckEnd(client->request, client->sink->status, client->asked, client->sink->done_at);
            GoOn(*client);
          }
          continue;
        }
        if (!client->reads_slowly || random.Chance(0.5)) continue;
        client->sink->wants_more = !client->sink->wants_more;
        if (client->sink->wants_more) FrontOf(*client).Resume(client->id);
      }
      next_read = loop_.Now() + random.Seconds(0.002, 0.5);
    }
    Note();
  }
}

bool Simulation::Clear() {
  // Draining ones end, and come back.
  Recover(absl::InfiniteFuture());
  for (const auto& worker : workers_) worker->service_time = token_.usual;
  for (const auto& replica : blocks_) {
    replica->service_time = block_.usual;
    replica->suspend = 0;
    replica->refuse_opens = 0;
  }
  Note();
  for (const auto& client : clients_) {
    client->sink->wants_more = true;
    FrontOf(*client).Resume(client->id);
  }
  // Where answers are held until they are compared, and each arithmetic has one replica left,
  // request after request waits in vain for another one.
  const bool may_wait = upgraded_ && options_.tier.audit.hold;
  const absl::Duration soon = may_wait ? absl::Minutes(15) : kSoon;
  const absl::Time begin = loop_.Now();
  if (!loop_.RunUntil([this] { return AllDone(); }, soon)) {
    for (const auto& client : clients_) {
      if (client->cancelled || client->sink->done > 0) continue;
      ADD_FAILURE() << client->request.request_id << " hangs: n " << client->request.n << " of "
                    << client->request.max_tokens << " tokens";
    }
    for (const auto& scorer : scorers_) {
      if (scorer->cancelled || scorer->sink->done > 0) continue;
      ADD_FAILURE() << scorer->request.request_id << " hangs";
    }
    return false;
  }
  calm_took_ = loop_.Now() - begin;
  // In fair weather what was unavailable can be had, once everybody is found again.
  loop_.Advance(2 * kConnectAgain);
  std::vector<Client*> again;
  for (const auto& client : clients_) {
    if (client->cancelled || client->sink->status.code() != absl::StatusCode::kUnavailable)
      continue;
    CheckEnd(client->request, client->sink->status, client->asked, client->sink->done_at);
    client->request.deadline = loop_.Now() + absl::Minutes(10);
    GoOn(*client);
    again.push_back(client.get());
  }
  loop_.RunUntil([this] { return AllDone(); }, soon);
  for (const Client* client : again) {
    if (upgraded_ || IsDeadly(client->request.request_id) || (kills_ && gateways_.size() > 1))
      continue;
    if (admits_ && absl::IsResourceExhausted(client->sink->status)) continue;
    EXPECT_TRUE(client->sink->status.ok())
        << client->request.request_id << ' ' << client->sink->status;
  }
  return AllDone();
}

}  // namespace blockserve
