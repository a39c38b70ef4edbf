// Tests: workers of both tiers that compute by hashing instead of by a model, and can be made to
// fail in every way that we know of. What they compute depends on every token before it, so that a
// lost, doubled or misplaced token shows in all that follows.
#ifndef BLOCKSERVE_GATEWAY_SIMULATED_TIERS_H_
#define BLOCKSERVE_GATEWAY_SIMULATED_TIERS_H_

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/types/span.h"
#include "gateway/block_tier.h"
#include "gateway/manual_loop.h"
#include "gateway/token_tier.h"

namespace blockserve {

inline uint64_t SimulatedHash(uint64_t hash, uint64_t value) {
  hash ^= value + 0x9e3779b97f4a7c15u + (hash << 6) + (hash >> 2);
  hash *= 0xff51afd7ed558ccdu;
  return hash ^ (hash >> 33);
}
// The context row of a text of whole blocks that goes on after one of which `before` is the row.
inline uint64_t SimulatedContext(absl::Span<const int32_t> tokens, uint64_t before = 1) {
  for (const int32_t token : tokens) before = SimulatedHash(before, static_cast<uint64_t>(token));
  return before;
}
// The next token of a block that begins with `block`, and its log-probability.
inline uint64_t SimulatedNext(uint64_t context, absl::Span<const int32_t> block, uint64_t seed,
                              uint32_t choice, int64_t position) {
  uint64_t hash = SimulatedHash(context, seed);
  hash = SimulatedHash(hash, choice);
  hash = SimulatedHash(hash, static_cast<uint64_t>(position));
  for (const int32_t token : block) hash = SimulatedHash(hash, static_cast<uint64_t>(token));
  return hash;
}
inline float SimulatedLogprob(uint64_t context, absl::Span<const int32_t> block, int32_t token) {
  return -static_cast<float>(SimulatedNext(context, block, static_cast<uint64_t>(token), 0, 0) %
                             1000) /
         100.0f;
}

inline constexpr int32_t kSimulatedVocab = 997;
inline constexpr int32_t kSimulatedLength = 4;
inline constexpr int32_t kSimulatedWidth = 2;  // a hash is two float32 wide
inline constexpr absl::Duration kConnectAgain = absl::Milliseconds(40);

// What both kinds of worker have in common: a connection that can be cut, an answer that takes
// time.
template <class Request, class Reply>
class SimulatedWorker {
 public:
  using Link = TierLink<Request, Reply>;

  SimulatedWorker(ManualLoop& loop, std::string name)
      : loop(loop), name(std::move(name)), incarnation(std::hash<std::string>()(this->name) | 1) {}
  virtual ~SimulatedWorker() { *alive_ = false; }

  // Of one of its gateways; each has one link at a time.
  std::unique_ptr<Link> MakeLink(uint64_t gateway = 0) {
    return std::make_unique<Connection>(*this, gateway);
  }

  // The process is gone; what it was doing is lost, and whoever connects is refused.
  void Kill() {
    if (!up) return;
    up = false;
    frozen = hung = false;
    Forget();
    for (auto& [gateway, peer] : peers_) {
      Cut(peer, absl::UnavailableError("connection reset"));
      RefuseLater(peer);
    }
  }
  void Restart() {
    if (up) return;
    up = true;
    draining = false;
    ++incarnation;
    Mend();
  }
  // The connections alone break, and are not refused; Mend makes them again.
  void Break(absl::Status status = absl::UnavailableError("broken pipe")) {
    for (auto& [gateway, peer] : peers_) Cut(peer, status);
  }
  void BreakTo(uint64_t gateway) { Cut(peers_[gateway], absl::UnavailableError("broken pipe")); }
  void Mend() {
    for (auto& [gateway, peer] : peers_) Connect(peer);
  }
  void MendTo(uint64_t gateway) { Connect(peers_[gateway]); }
  // Takes messages, does nothing; Thaw does all of it.
  void Freeze() { frozen = true; }
  // Takes messages and does nothing, but answers pings: its engine hangs.
  void Hang() { frozen = hung = true; }
  // Something that no request asked for.
  void Say() { Deliver(Reply(), service_time); }
  void Thaw() {
    if (!std::exchange(frozen, false)) return;
    hung = false;
    std::map<uint64_t, std::pair<Peer*, Request>> undone;  // as they came, from whomever
    for (auto& [gateway, peer] : peers_) {
      for (auto& [turn, request] : std::exchange(peer.undone, {})) {
        undone[turn] = {&peer, std::move(request)};
      }
    }
    for (auto& [turn, request] : undone) Receive(*request.first, std::move(request.second));
  }
  void Drain() {
    draining = true;
    Reply reply;
    reply.set_draining(true);
    Deliver(std::move(reply), absl::ZeroDuration());
  }

  ManualLoop& loop;
  const std::string name;
  std::string config_hash = "config";
  std::string numeric_id = "sim-1";
  uint64_t bits = 0;  // those in which its results differ from others'
  std::string part_hash = "part";
  std::string model_digest;
  uint64_t incarnation;  // no two processes have the same
  bool up = true;
  bool frozen = false;
  bool hung = false;
  bool draining = false;
  bool answers_pings = true;
  int pings = 0;
  absl::Duration service_time = absl::Milliseconds(1);
  bool in_turn = false;  // what came first is done first, though it took longer
  int messages = 0;
  size_t largest_message_bytes = 0;
  int64_t queued_bytes = 0;  // of the connection to it, as it is told
  // Changes what it answers, its hello too; null: nothing.
  std::function<void(Reply& reply)> garble;

 protected:
  virtual Reply Hello() = 0;
  virtual Reply Answer(const Request& request, uint64_t gateway) = 0;
  virtual void Forget() {}

  void FillTier(v1::TierHello& tier) const {
    tier.set_protocol_version(1);
    tier.set_incarnation(incarnation);
    tier.set_config_hash(config_hash);
    tier.set_tokenizer_hash("tokenizer");
    tier.set_part_hash(part_hash);
    tier.set_model_digest(model_digest);
    tier.set_numeric_id(numeric_id);
    tier.set_name(name);
    tier.set_answers_pings(answers_pings);
  }

 private:
  class Connection;
  // One of its gateways.
  struct Peer {
    uint64_t gateway = 0;
    Connection* connection = nullptr;
    uint64_t epoch = 0;                  // of its connections
    std::map<uint64_t, Request> undone;  // by turn
  };

  class Connection final : public Link {
   public:
    Connection(SimulatedWorker& worker, uint64_t gateway)
        : worker_(worker), peer_(worker.peers_[gateway]), alive_(worker.alive_) {
      peer_.gateway = gateway;
    }
    ~Connection() override {
      if (!*alive_ || peer_.connection != this) return;
      peer_.connection = nullptr;
      worker_.ForgetMessages(peer_);
    }
    void Start(typename Link::Observer* observer) override {
      this->observer = observer;
      peer_.connection = this;
      if (worker_.up) {
        worker_.Connect(peer_);
      } else {
        worker_.RefuseLater(peer_);
      }
    }
    void Send(Request request) override {
      if (!ready) return;
      ++worker_.messages;
      worker_.largest_message_bytes =
          std::max(worker_.largest_message_bytes, request.ByteSizeLong());
      worker_.Receive(peer_, std::move(request));
    }
    int64_t queued_bytes() const override { return worker_.queued_bytes; }
    void Finish(std::function<void()> over) override {
      observer = &nobody_;
      worker_.loop.Post(std::move(over));
    }
    typename Link::Observer* observer = nullptr;
    bool connected = false;
    // And the gateway knows it: what it sends before is lost with the old stream.
    bool ready = false;

   private:
    struct Nobody final : Link::Observer {
      void OnReady(Reply) override {}
      void OnMessage(Reply) override {}
      void OnLost(absl::Status) override {}
    };
    Nobody nobody_;
    SimulatedWorker& worker_;
    Peer& peer_;
    const std::shared_ptr<bool> alive_;
  };

  void Connect(Peer& peer) {
    Connection* const connection = peer.connection;
    if (connection == nullptr || connection->connected || !up) return;
    connection->connected = true;
    Post(peer, absl::ZeroDuration(), [this, connection] {
      Reply hello = Hello();
      if (garble) garble(hello);
      connection->ready = true;
      connection->observer->OnReady(std::move(hello));
    });
  }
  // What came over one connection is answered over no other.
  void ForgetMessages(Peer& peer) {
    ++peer.epoch;
    peer.undone.clear();
    const bool idle = std::all_of(peers_.begin(), peers_.end(),
                                  [](const auto& other) { return other.second.undone.empty(); });
    if (idle) busy_until_ = absl::InfinitePast();
  }
  void Cut(Peer& peer, absl::Status status) {
    ForgetMessages(peer);
    Connection* const to = peer.connection;
    if (to == nullptr || !to->connected) return;
    to->connected = to->ready = false;
    loop.Post([&peer, alive = alive_, to, status] {
      if (*alive && peer.connection == to) to->observer->OnLost(status);
    });
  }
  // As a link that connects again and again, without its jitter.
  void RefuseLater(Peer& peer) {
    loop.PostAfter(kConnectAgain, [this, &peer, alive = alive_, epoch = peer.epoch] {
      if (!*alive || up || epoch != peer.epoch || peer.connection == nullptr) return;
      peer.connection->observer->OnLost(absl::UnavailableError("connection refused"));
      RefuseLater(peer);
    });
  }
  void Deliver(const Reply& reply, absl::Duration after) {
    for (auto& [gateway, peer] : peers_) {
      Post(peer, after, [&peer = peer, reply] { peer.connection->observer->OnMessage(reply); });
    }
  }
  void Receive(Peer& peer, Request request) {
    if (request.ping() != 0 && (hung || !frozen)) {
      ++pings;
      Reply pong;
      pong.set_pong(request.ping());
      Post(peer, absl::ZeroDuration(), [this, &peer, pong] {
        if (hung || !frozen) peer.connection->observer->OnMessage(pong);
      });
      return;
    }
    const uint64_t turn = next_turn_++;
    peer.undone.emplace(turn, std::move(request));
    if (frozen) return;
    Post(peer, InTurn(), [this, &peer, turn] {
      if (frozen) return;
      const auto taken = peer.undone.extract(turn);
      if (taken.empty()) return;
      const uint64_t before = peer.epoch;
      Reply reply = Answer(taken.mapped(), peer.gateway);
      if (garble) garble(reply);
      if (peer.epoch == before) peer.connection->observer->OnMessage(std::move(reply));
    });
  }
  // How long what comes now takes.
  absl::Duration InTurn() {
    if (!in_turn) return service_time;
    busy_until_ = std::max(busy_until_, loop.Now() + service_time);
    return busy_until_ - loop.Now();
  }
  // Unless the connection is cut meanwhile.
  void Post(Peer& peer, absl::Duration delay, std::function<void()> task) {
    loop.PostAfter(delay, [&peer, alive = alive_, epoch = peer.epoch, task = std::move(task)] {
      if (!*alive || epoch != peer.epoch || peer.connection == nullptr) return;
      if (peer.connection->connected) task();
    });
  }

  std::map<uint64_t, Peer> peers_;
  uint64_t next_turn_ = 0;
  absl::Time busy_until_ = absl::InfinitePast();
  const std::shared_ptr<bool> alive_ = std::make_shared<bool>(true);
};

class SimulatedTokenWorker final
    : public SimulatedWorker<v1::TokenRequestBatch, v1::TokenReplyBatch> {
 public:
  using SimulatedWorker::SimulatedWorker;

  // Decides the fate of a row before it is decoded: a status instead of tokens.
  std::function<absl::Status(const v1::TokenRowRequest& row)> verdict;
  // A row that kills the process.
  std::function<bool(const v1::TokenRowRequest& row)> deadly;
  // A row that the process never comes back from.
  std::function<bool(const v1::TokenRowRequest& row)> hanging;
  // Answers another token now and then.
  bool wrong_bits = false;
  // Counts, where a row has some, change what it draws.
  bool penalizes = false;
  float busy_share = 0;
  int rows = 0;
  int largest_batch = 0;
  int32_t max_rows = 256;
  int32_t max_queued_rows = 512;

 protected:
  v1::TokenReplyBatch Hello() override;
  v1::TokenReplyBatch Answer(const v1::TokenRequestBatch& request, uint64_t gateway) override;
};

class SimulatedBlockReplica final
    : public SimulatedWorker<v1::BlockRequestBatch, v1::BlockReplyBatch> {
 public:
  using SimulatedWorker::SimulatedWorker;

  static constexpr int32_t kPageBlocks = 4;
  int64_t pages = 1000;
  int32_t max_blocks = 0;  // of a sequence; 0: as many as its pages have
  v1::ContextType context_type = v1::CONTEXT_TYPE_FLOAT32;
  // Opens that are refused for want of room, whatever there is.
  int refuse_opens = 0;
  // Refuses what could not have its whole reserve, as the service does.
  bool checks_reserve = false;
  // Every third context row is another than it should be.
  bool wrong_bits = false;
  // Decides the fate of a call: a status instead of a row.
  std::function<absl::Status(const v1::BlockRequest& request)> verdict;
  // A call that kills the process.
  std::function<bool(const v1::BlockRequest& request)> deadly;
  // Sequences lose their pages with their next append, one after another.
  int suspend = 0;
  // So does one whose next block finds no page.
  bool suspends_when_full = false;
  struct Sequence {
    std::vector<int32_t> tokens;  // [blocks, L]
    uint64_t context;             // of all of them
  };
  using SequenceKey = std::pair<uint64_t, uint64_t>;  // gateway, wire id
  std::map<SequenceKey, Sequence> sequences;
  bool keeps_pools_apart = true;     // false: an older build
  std::vector<absl::uint128> pools;  // of each open
  int opens = 0;
  int appends = 0;
  int forks = 0;
  void ForgetSequences() { sequences.clear(); }
  // As when the lease of those of a gateway that has gone is over.
  void ForgetSequencesOf(uint64_t gateway) {
    std::erase_if(sequences, [&](const auto& entry) { return entry.first.first == gateway; });
  }

 protected:
  v1::BlockReplyBatch Hello() override;
  v1::BlockReplyBatch Answer(const v1::BlockRequestBatch& request, uint64_t gateway) override;
  void Forget() override { sequences.clear(); }

 private:
  int64_t UsedPages() const;
  // Fills the reply's status and returns the rows wanted.
  std::vector<uint64_t> Work(const v1::BlockRequest& request, uint64_t gateway,
                             v1::BlockReply& reply);
};

}  // namespace blockserve

#endif  // BLOCKSERVE_GATEWAY_SIMULATED_TIERS_H_
