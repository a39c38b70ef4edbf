// Work that waits for room in a tier: first what had begun and lost its worker, then new work, each
// by priority; among equals the first come. Of these, work that nobody waits to read may give way
// to other work, but not for ever: where both wait, it has every fourth turn.
#ifndef BLOCKSERVE_GATEWAY_WAIT_QUEUE_H_
#define BLOCKSERVE_GATEWAY_WAIT_QUEUE_H_

#include <algorithm>
#include <cstdint>
#include <map>
#include <tuple>
#include <utility>

namespace blockserve {

class WaitQueue {
 public:
  // Where an item stands; kept when it was refused everywhere and comes back.
  struct Place {
    bool is_new = true;
    uint32_t priority = 2;
    uint64_t turn = 0;
    uint64_t arrival = 0;
    friend bool operator<(const Place& a, const Place& b) {
      return std::tie(a.is_new, a.priority, a.turn, a.arrival) <
             std::tie(b.is_new, b.priority, b.turn, b.arrival);
    }
  };

  // Turns are those of start-time fair queueing (Goyal et al. 1996) with weights 3 : 1: whoever
  // comes while others wait begins where they are, and what gives way takes three turns' time.
  Place NextPlace(bool is_new, uint32_t priority, bool gives_way = false) {
    Turns& turns = turns_[{is_new, priority}];
    const auto first = waiting_.lower_bound({is_new, priority});
    if (first == waiting_.end() || first->first.is_new != is_new ||
        first->first.priority != priority) {
      turns.now = std::max(turns.others, turns.giving_way);  // nothing is saved up
    } else {
      turns.now = std::max(turns.now, first->first.turn);
    }
    uint64_t& next = gives_way ? turns.giving_way : turns.others;
    const uint64_t turn = std::max(turns.now, next);
    next = turn + (gives_way ? 3 : 1);
    return {is_new, priority, turn, next_arrival_++};
  }

  // `item` must not be in the queue.
  void Insert(const Place& place, uint64_t item) {
    waiting_.emplace(place, item);
    if (place.is_new) ++new_;
  }
  void Erase(const Place& place) {
    if (waiting_.erase(place) > 0 && place.is_new) --new_;
  }
  // In order.
  const std::map<Place, uint64_t>& waiting() const { return waiting_; }
  // Of those that wait, how many had not begun: the bound is on them alone.
  int64_t new_items() const { return new_; }

 private:
  // Of those of one priority that have begun, or have not.
  struct Turns {
    uint64_t now = 0;
    uint64_t others = 0;  // the next one's, each
    uint64_t giving_way = 0;
  };

  std::map<std::pair<bool, uint32_t>, Turns> turns_;
  std::map<Place, uint64_t> waiting_;
  int64_t new_ = 0;
  uint64_t next_arrival_ = 0;
};

}  // namespace blockserve

#endif  // BLOCKSERVE_GATEWAY_WAIT_QUEUE_H_
