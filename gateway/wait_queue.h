// Work that waits for room in a tier: first what had begun and lost its worker, then new work, each
// by priority; among equals the first come.
#ifndef BLOCKSERVE_GATEWAY_WAIT_QUEUE_H_
#define BLOCKSERVE_GATEWAY_WAIT_QUEUE_H_

#include <cstdint>
#include <map>
#include <optional>
#include <tuple>

namespace blockserve {

class WaitQueue {
 public:
  // Where an item stands; kept when it was refused everywhere and comes back.
  struct Place {
    bool is_new = true;
    uint32_t priority = 2;
    uint64_t arrival = 0;
    friend bool operator<(const Place& a, const Place& b) {
      return std::tie(a.is_new, a.priority, a.arrival) < std::tie(b.is_new, b.priority, b.arrival);
    }
  };

  Place NextPlace(bool is_new, uint32_t priority) { return {is_new, priority, next_arrival_++}; }

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
  std::map<Place, uint64_t> waiting_;
  int64_t new_ = 0;
  uint64_t next_arrival_ = 0;
};

}  // namespace blockserve

#endif  // BLOCKSERVE_GATEWAY_WAIT_QUEUE_H_
