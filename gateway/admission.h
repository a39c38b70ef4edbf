// Which requests go to the tiers, in which order, and which are refused at once.
//
// Policy alone: no threads, no clock, no sinks. A request is submitted, and then refused or queued;
// TakeNext tells which of the queued ones starts next, as soon as there is room; Started and
// Finished tell what became of it.
//
// Order. Higher priorities go first, and none waits for ever: a priority that was passed over so
// many times in a row has its turn (kTurnsBefore). Within a priority the key that has had least
// work (in tokens, by its weight) goes first; within a key texts to be scored and generations take
// turns, likewise by work, and within these the first come.
//
// Room. Only so many requests stand between the queue and their first block at a time, so that what
// waits for KV waits here, where order and fairness hold, and not in the tiers. And only so many
// choices are generated as the token tier can use (gateway/live_limit.h): more would slow all down.
// A request of many goes beyond that rather than wait until nearly nobody runs, and everybody
// behind it with it. Until the first of them have written something, that is the least of what it
// might be. A text to be scored counts as several choices that write side by side, as its blocks
// do; texts together have at most two thirds of the room, and what is left is for generations
// alone.
//
// Refusal. A request is refused at once when its key is beyond a limit, when the queue is full,
// when its key holds as many places of the queue as are free (high priority may take more, batch
// less: nobody fills the queue alone), or when, at the pace at which requests now write, its
// deadline would pass before it could end (gateway/run_pace.h). That holds beyond the first few
// whether or not there is a queue: what runs and cannot end makes the others slower, until they
// cannot end either, and nothing ends any more. All tell when to come again, but those of what no
// limit would ever let pass: that is a bad request.
#ifndef BLOCKSERVE_GATEWAY_ADMISSION_H_
#define BLOCKSERVE_GATEWAY_ADMISSION_H_

#include <algorithm>
#include <array>
#include <cstdint>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <unordered_map>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "gateway/live_limit.h"
#include "gateway/run_pace.h"

namespace blockserve {

// Of one key, in one gateway process. 0: no limit.
struct KeyLimits {
  int32_t max_requests = 0;        // in flight: queued or running
  int64_t max_tokens = 0;          // in flight: prompts and all that may be generated
  double requests_per_second = 0;  // sustained
  int32_t burst = 0;               // at once, above the rate; 0: a second's worth, at least 1
  double weight = 1;               // share against other keys

  static constexpr double kLeastWeight = 0.001;
  static constexpr double kMostWeight = 1000;
  // INVALID_ARGUMENT naming the field.
  absl::Status Validate() const;
};

struct AdmissionOptions {
  int32_t max_queued = 1024;
  int32_t max_starting = 64;  // between queue and first block; high priority: twice as many
  LiveLimitOptions live;      // choices of all requests that have left the queue
  KeyLimits default_limits;   // of keys that have none of their own
  std::map<std::string, KeyLimits> limits;  // by key name; "": requests without a key
  // Changes, of `limits`, what comes with the key itself: asked at each request, so that it may
  // become other while the process runs. May be null.
  std::function<void(const std::string& key, KeyLimits& limits)> limits_of;

  absl::Status Validate() const;
};

// How a refusal of a call for the number of its prompts begins, where others name a field.
inline constexpr absl::string_view kPromptsOfCall = "prompts_of_call";

struct AdmissionRequest {
  std::string key;        // name of the API key; empty: none was given
  uint32_t priority = 2;  // 1 high, 2 normal, 3 batch; others count as normal
  int64_t tokens = 0;     // prompt, and what all choices may generate
  int32_t choices = 1;    // that are not over
  absl::Time deadline = absl::InfiniteFuture();
  int64_t length = 1;  // tokens that a choice may generate, one after the other
  // Of RequestOrigin.
  int32_t prompts_of_call = 1;
  bool first_of_call = true;
  // A text to be scored: `choices` is its blocks, `length` the tokens of one. Admission takes it as
  // fewer choices that are the longer (AsChoices).
  bool scores = false;
};

// Not thread-safe. Times come from one clock that never goes back.
class Admission {
 public:
  explicit Admission(const AdmissionOptions& options)
      : options_(options), live_limit_(options.live) {}

  // OK: it is queued under `id`, which is new. Otherwise it is refused, and nothing is kept of it:
  // RESOURCE_EXHAUSTED with a retry-after, marked where a limit of the key is why
  // (gateway/retry_after.h); INVALID_ARGUMENT for what could not be served even by itself;
  // DEADLINE_EXCEEDED.
  absl::Status Submit(uint64_t id, const AdmissionRequest& request, absl::Time now);

  // Whether the key's rate grants a request now: OK, or RESOURCE_EXHAUSTED with a retry-after,
  // marked.
  absl::Status CheckRate(const std::string& key, absl::Time now);
  // Takes a request of the key's rate that is not submitted: it was refused for what it is, or
  // costs work of another kind. Beyond what the rate grants, the next ones wait for longer.
  void Charge(const std::string& key, absl::Time now);

  // What the token tier can use has changed.
  void SetCapacity(const TokenCapacity& capacity) { live_limit_.Update(capacity); }
  // The next request to hand to the tiers; none where nothing waits or there is no room.
  std::optional<uint64_t> TakeNext(absl::Time now);
  // It has its first block: room for another one.
  void Started(uint64_t id);
  // One of its choices has written so many tokens.
  void Wrote(uint64_t id, int64_t tokens, absl::Time now);
  // Its client does not read: until it writes again, its time says nothing of the pace.
  void Held(uint64_t id);
  // It is over, wherever it stood; `whole`: by itself. Unknown ids are ignored.
  void Finished(uint64_t id, bool whole, absl::Time now);
  // As Finished, of one that has failed, or found nobody to serve it: how long it waited for that
  // says nothing of the pace.
  void Failed(uint64_t id, absl::Time now);
  // Those that were taken out of the queue because they could not end in time any more; they are
  // over, and their clients are to be told as of a refusal.
  std::vector<uint64_t> TakeHopeless(absl::Time now);
  // Takes all out of the queue; they are over.
  std::vector<uint64_t> TakeQueued(absl::Time now);

  int64_t queued() const { return queued_; }
  int64_t queued(uint32_t priority) const { return levels_[Level(priority)].queued; }
  int64_t starting() const { return starting_; }
  int64_t running() const { return running_; }
  int64_t running_choices() const { return running_choices_; }
  int64_t most_running_choices() const {
    const bool known = paces_[0].known() || paces_[1].known();
    return known ? live_limit_.limit() : std::min(live_limit_.limit(), LiveLimit::kLeast);
  }
  // How long another request of this one's key, priority and kind would wait in the queue, by the
  // pace of late; zero where nothing is known.
  absl::Duration ExpectedWait(const AdmissionRequest& request, absl::Time now);

 private:
  static constexpr int kLevels = 3;
  static constexpr int kKinds = 2;  // generations; texts to be scored
  // Choices of a text at most, and the share of the room that one may have.
  static constexpr int64_t kMostOfText = 64;
  static constexpr int64_t kTextsInRoom = 8;
  // A level that waits goes before the higher ones when it was passed over so many times in a row.
  static constexpr std::array<int32_t, kLevels> kTurnsBefore = {1 << 30, 8, 32};

  static int Level(uint32_t priority) { return priority == 1 ? 0 : priority == 3 ? 2 : 1; }
  static size_t Kind(const AdmissionRequest& request) { return request.scores ? 1 : 0; }

  struct Key {
    KeyLimits limits;
    int64_t requests = 0;  // in flight
    int64_t tokens = 0;
    double allowance = 0;  // requests that its rate still grants
    absl::Time allowance_at;
    double work = 0;  // tokens by weight that it has had, as far as it counts: see TakeNext
    struct Queue {
      std::map<uint64_t, uint64_t> ids;  // by arrival
      double work = 0;                   // as the key's, against the other kind
    };
    struct OfLevel {
      std::array<Queue, kKinds> queues;
      double work_floor = 0;
    };
    std::array<OfLevel, kLevels> levels;
    std::array<int64_t, kKinds> queued = {};
  };
  enum class State { kQueued, kGivenUp, kStarting, kRunning };
  struct Entry {
    AdmissionRequest request;
    State state = State::kQueued;
    uint64_t arrival = 0;
    absl::Time latest_start;  // later it could not end in time
    absl::Time told;          // when it left the queue, started, or wrote last
    double written = 0;       // tokens of each choice
    bool held = false;
    Key* key = nullptr;
  };
  struct LevelState {
    int64_t queued = 0;
    int32_t passed_over = 0;
    std::set<std::string> keys;  // that have something queued
    int64_t queues = 0;          // of theirs, those that are not empty
  };
  // In which the running choices should end, first to last.
  struct Ends {
    std::deque<absl::Duration> ends;
    absl::Time at = absl::InfinitePast();
    absl::Duration run_time;  // mean of theirs

    void Start(int32_t choices) {
      if (!ends.empty()) ends.insert(ends.end(), static_cast<size_t>(choices), run_time);
    }
    // Whose place is free is not waited for once more: many may end at once.
    void End(int32_t choices) {
      const size_t over = std::min(ends.size(), static_cast<size_t>(choices));
      ends.erase(ends.begin(), ends.begin() + static_cast<std::ptrdiff_t>(over));
    }
  };
  struct Queued {
    int64_t requests = 0;
    int64_t choices = 0;
  };

  Key& KeyOf(const std::string& name, absl::Time now);
  static double Burst(const KeyLimits& limits);
  static void Refill(Key& key, absl::Time now);
  static absl::Status RateOf(const Key& key, const std::string& name);
  // `wait`: what those are told that are refused.
  static absl::Status CheckKey(const Key& key, const AdmissionRequest& request,
                               absl::Duration wait);
  // As it is queued.
  AdmissionRequest AsChoices(const AdmissionRequest& request) const;
  // Until, behind so many other requests, running ones make room.
  absl::Duration WaitBehind(int64_t ahead, const AdmissionRequest& request, absl::Time now);
  // Of its choices, those that must fit beside what runs: a quarter of the room at most.
  int64_t RoomNeeded(int32_t choices) const {
    return std::min<int64_t>(choices, std::max<int64_t>(1, most_running_choices() / 4));
  }
  // Nothing runs, or it fits beside what runs.
  bool HasRoomFor(int32_t choices) const {
    return running_choices_ == 0 ||
           (running_choices_ + RoomNeeded(choices) <= most_running_choices() &&
            running_choices_ + choices <= options_.live.most);
  }
  // Whether other texts leave room for it: a generation needs none of theirs.
  bool MayRunBesideTexts(const AdmissionRequest& request) const {
    return !request.scores || text_choices_ == 0 ||
           text_choices_ + request.choices <= most_text_choices();
  }
  int64_t most_text_choices() const { return 2 * most_running_choices() / 3; }
  // The next of a level that may run as far as texts are concerned; null: there is none.
  Entry* NextOf(int level);
  RunPace& PaceOf(const AdmissionRequest& request) { return paces_[Kind(request)]; }
  const RunPace& PaceOf(const AdmissionRequest& request) const { return paces_[Kind(request)]; }
  // Whether, at the pace of late and with no wait, it would end before its deadline.
  bool CouldEnd(const AdmissionRequest& request, double margin, absl::Time now) const;
  void TakeOut(Entry& entry);  // of its queue
  void CountLast(const Entry& entry, bool whole, absl::Time now);
  void ForgetIfIdle(const std::string& name, absl::Time now);

  const AdmissionOptions options_;
  std::unordered_map<uint64_t, Entry> requests_;
  std::map<std::string, Key> keys_;  // with something in flight, or a rate to remember
  std::array<LevelState, kLevels> levels_;
  std::set<std::pair<absl::Time, uint64_t>> latest_starts_;  // of queued requests
  LiveLimit live_limit_;
  std::array<RunPace, kKinds> paces_;
  absl::Time last_written_ = absl::InfinitePast();
  absl::Time queue_since_;  // when it was last empty
  double work_floor_ = 0;   // work of the key that went last: who comes anew begins there
  uint64_t next_arrival_ = 0;
  int64_t queued_ = 0;
  std::array<Queued, kKinds> queued_of_;  // of these
  int64_t starting_ = 0;
  int64_t running_ = 0;
  int64_t running_choices_ = 0;
  int64_t text_choices_ = 0;  // of these
  Ends ends_;
  Ends text_ends_;                  // of texts alone
  std::vector<uint64_t> given_up_;  // and not yet told
};

}  // namespace blockserve

#endif  // BLOCKSERVE_GATEWAY_ADMISSION_H_
