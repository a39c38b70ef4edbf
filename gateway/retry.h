// What the gateway does about each answer of a tier that is not OK, and about workers that die: one
// table for rows, one for sequences.
#ifndef BLOCKSERVE_GATEWAY_RETRY_H_
#define BLOCKSERVE_GATEWAY_RETRY_H_

#include <cstdint>
#include <initializer_list>

#include "absl/status/status.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"

namespace blockserve {

// ---- token tier

enum class RowAction {
  kDone,           // the row is answered
  kElsewhere,      // run it again, on another worker where there is one
  kWorkerFull,     // the same, and leave this worker alone for a moment
  kSecondOpinion,  // the row or its worker is to blame: whether another worker fails it tells which
  kFail,           // the request ends with the status
};
RowAction JudgeRowReply(const absl::Status& status);

// Of the rows that a worker had when it died each may have been why. So many of them are tried
// together next: a few one by one, many in cohorts of the square root of their number, so that
// thousands that only happened to be there are all tried within some dozen steps.
int CohortSize(int64_t rows);

// What has befallen a row so far. A row whose worker died under it may have been what killed it: it
// is tried again apart from others, first with a cohort of those that were there too, and alone
// when a worker has died with the cohort. It is given up when two workers have died with it alone.
// A row whose worker fell silent is tried on a second one at once, on a third one alone, and never
// on a fourth. Whatever happens, it costs no more than four workers.
class RowHistory {
 public:
  // The worker's connection broke while it had `rows` rows of ours, this one among them; `alone`:
  // it was kept free for this one.
  void WorkerDied(bool alone, int64_t rows);
  // It was the connection alone: the same process is back.
  void WorkerIsBack(bool alone) { --(alone ? deaths_alone_ : deaths_together_); }
  void Stalled() { ++stalls_; }

  // How many under suspicion may be tried together where this is one of them; 0: it is not.
  int cohort() const;
  bool suspect() const { return cohort() > 0; }
  int deaths() const { return deaths_together_ + deaths_alone_; }
  int deaths_alone() const { return deaths_alone_; }
  // Where this one falls silent too, no other one is tried.
  bool last_try() const { return stalls_ >= 2 || cost() >= kMostWorkers - 1; }
  bool given_up() const {
    return deaths_alone_ >= 2 || (deaths_alone_ >= 1 && cost() >= kMostWorkers);
  }
  // How long the next attempt may take: doubled with each stall, so that a busy tier is not given
  // the same work again and again.
  absl::Duration Patience(absl::Duration bound) const {
    return bound * (1 << (stalls_ < 6 ? stalls_ : 6));
  }

 private:
  static constexpr int kMostWorkers = 4;
  int cost() const { return deaths_together_ + deaths_alone_ + stalls_; }

  int deaths_together_ = 0;
  int deaths_alone_ = 0;
  int stalls_ = 0;
  int cohort_ = 1;  // after the first death
};

// What was with a worker when it died may have died of another gateway's work, which is tried again
// too. Where and when each goes on is drawn from its request, which no other gateway has, from
// which of the request's work it is and how often it has died: so they soon part.
size_t DrawApart(absl::string_view request_key, std::initializer_list<int64_t> which);
absl::Duration WaitApart(size_t drawn);  // 0.3 to 1 s

// A worker whose connection broke may be back within this: then it was not killed. One that cannot
// be reached when it is tried again was. So long is also waited for a second opinion of one that is
// out of turn.
inline constexpr absl::Duration kReturnWait = absl::Seconds(1);

// ---- block tier

enum class BlockCall { kOpen, kAppend, kFork, kClose };

enum class BlockAction {
  kDone,
  kOtherReplica,  // refused for want of room: another replica, else the queue
  kReopen,        // the replica does not have the sequence: open it again from its tokens
  kAgain,         // the same call again, a little later
  kFail,          // the request ends with the status
};
BlockAction JudgeBlockReply(BlockCall call, const absl::Status& status, bool suspended);

// What has befallen a sequence since its last context row. One whose replica died may be why, as
// may all others that it was working on; when a second one has died, it is opened alone: never
// together with another that may be why, and after a wait. When two more have died with it alone,
// no other one is risked.
class SequenceHistory {
 public:
  // The connection to the replica broke while it had a call of this sequence.
  void ReplicaLost() {
    if (must_open_alone()) ++losses_alone_;
    ++losses_;
  }
  // It was the connection alone: the same process is back.
  void ReplicaIsBack() {
    if (losses_alone_ > 0) --losses_alone_;
    if (losses_ > 0) --losses_;
  }
  bool must_open_alone() const { return losses_ >= 2; }
  int losses() const { return losses_; }
  void Contradicted() { ++contradictions_; }  // ABORTED, INVALID_ARGUMENT or NOT_FOUND
  void Stalled() { ++stalls_; }
  void Progress() { *this = SequenceHistory(); }
  bool given_up() const { return losses_alone_ >= 2 || contradictions_ >= kMost; }
  absl::Duration Patience(absl::Duration bound) const {
    return bound * (1 << (stalls_ < 6 ? stalls_ : 6));
  }

 private:
  static constexpr int kMost = 4;
  int losses_ = 0;
  int losses_alone_ = 0;
  int contradictions_ = 0;
  int stalls_ = 0;
};

// ---- tiers that are gone

// The moment at which work that waits for a tier without workers is given up: when the tier has
// been away for `tier_wait`, and 200 ms before the deadline, so that the client still hears why.
absl::Time GiveUpTime(absl::Time away_since, absl::Duration tier_wait, absl::Time deadline);

// What a client is told when a tier's answer ends its request: codes that say something about the
// client's request stay, all others are INTERNAL.
absl::Status ClientStatus(const absl::Status& status, absl::string_view tier);

}  // namespace blockserve

#endif  // BLOCKSERVE_GATEWAY_RETRY_H_
