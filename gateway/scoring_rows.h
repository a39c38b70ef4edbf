// The rows of all Score requests that are with the token tier at a time.
//
// A text's rows are all there at once, where a stream's come one after the other: without a bound a
// few texts would keep every worker to themselves. So all of them together have a number of rows,
// by priority and then in turn, whoever has some to send; and each has one in any case.
//
// Policy alone: no threads, no clock.
#ifndef BLOCKSERVE_GATEWAY_SCORING_ROWS_H_
#define BLOCKSERVE_GATEWAY_SCORING_ROWS_H_

#include <algorithm>
#include <cstdint>
#include <functional>
#include <map>
#include <utility>

namespace blockserve {

// Lives on the loop; not thread-safe.
class ScoringRows {
 public:
  // A request. It must be taken out (Remove) before it ends.
  class Source {
   public:
    // `send`: sends the next of its rows, and tells whether it has another. Called from within
    // Offer, Answered and SetMost.
    Source(uint32_t priority, std::function<bool()> send)
        : priority_(priority), send_(std::move(send)) {}
    Source(const Source&) = delete;
    Source& operator=(const Source&) = delete;

   private:
    friend class ScoringRows;
    const uint32_t priority_;
    const std::function<bool()> send_;
    bool known_ = false;
    int64_t under_way_ = 0;
    uint64_t turn_ = 0;  // 0: has nothing to send
  };

  void SetMost(int64_t rows) {
    most_ = std::max<int64_t>(1, rows);
    SendWhatMay();
  }
  // It is there, though it may have nothing to send yet.
  void Add(Source& source) {
    if (!std::exchange(source.known_, true)) ++sources_;
  }
  // It has rows to send.
  void Offer(Source& source) {
    if (source.turn_ == 0) Wait(source);
    if (source.under_way_ == 0) Send(source);
    SendWhatMay();
  }
  // One of its rows is answered.
  void Answered(Source& source) {
    --source.under_way_;
    --under_way_;
    if (source.under_way_ == 0 && source.turn_ != 0) Send(source);
    SendWhatMay();
  }
  // It is over, whatever it has under way.
  void Remove(Source& source) {
    if (!std::exchange(source.known_, false)) return;
    --sources_;
    under_way_ -= std::exchange(source.under_way_, 0);
    if (source.turn_ != 0) waiting_.erase({source.priority_, std::exchange(source.turn_, 0)});
    SendWhatMay();
  }

  int64_t most() const { return most_; }
  int64_t under_way() const { return under_way_; }
  int64_t sources() const { return sources_; }

 private:
  void Wait(Source& source) {
    source.turn_ = next_turn_++;
    waiting_.emplace(std::make_pair(source.priority_, source.turn_), &source);
  }
  void Send(Source& source) {
    waiting_.erase({source.priority_, std::exchange(source.turn_, 0)});
    ++source.under_way_;
    ++under_way_;
    if (source.send_()) Wait(source);
  }
  void SendWhatMay() {
    while (under_way_ < most_ && !waiting_.empty()) Send(*waiting_.begin()->second);
  }

  int64_t most_ = 64;  // until the workers are known
  int64_t under_way_ = 0;
  int64_t sources_ = 0;
  uint64_t next_turn_ = 1;
  std::map<std::pair<uint32_t, uint64_t>, Source*> waiting_;  // by priority and turn
};

}  // namespace blockserve

#endif  // BLOCKSERVE_GATEWAY_SCORING_ROWS_H_
