// What may wait until a turn of the loop has sent what it has to send. However much a turn has of
// it, it is one task of the loop: to post one costs more than many of them take.
#ifndef BLOCKSERVE_GATEWAY_LATER_H_
#define BLOCKSERVE_GATEWAY_LATER_H_

#include <functional>
#include <memory>
#include <utility>
#include <vector>

#include "rpc/loop.h"

namespace blockserve {

// Lives on the loop; not thread-safe. What has not run when it ends is dropped.
class Later {
 public:
  // `loop` must outlive this.
  explicit Later(Loop& loop) : loop_(loop) {}
  ~Later() { *alive_ = false; }
  Later(const Later&) = delete;
  Later& operator=(const Later&) = delete;

  // In the order of adding, after what was posted to the loop before the first of them.
  void Add(std::function<void()> task) {
    tasks_.push_back(std::move(task));
    if (tasks_.size() > 1) return;
    loop_.Post([this, alive = alive_] {
      if (!*alive) return;
      for (const auto& task : std::exchange(tasks_, {})) task();
    });
  }

 private:
  Loop& loop_;
  std::vector<std::function<void()>> tasks_;
  const std::shared_ptr<bool> alive_ = std::make_shared<bool>(true);
};

}  // namespace blockserve

#endif  // BLOCKSERVE_GATEWAY_LATER_H_
