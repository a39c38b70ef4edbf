// An event loop: a boost::asio::io_context with one thread.
#ifndef BLOCKSERVE_RPC_ASIO_LOOP_H_
#define BLOCKSERVE_RPC_ASIO_LOOP_H_

#include <boost/asio/executor_work_guard.hpp>
#include <boost/asio/io_context.hpp>
#include <boost/asio/steady_timer.hpp>
#include <chrono>
#include <functional>
#include <memory>
#include <set>
#include <thread>

#include "absl/time/time.h"
#include "common/progress.h"
#include "rpc/loop.h"

namespace blockserve {

class AsioLoop final : public Loop {
 public:
  // `thread_name`: as the system shows it, at most 15 characters.
  explicit AsioLoop(const char* thread_name);
  // Joins.
  ~AsioLoop() override;

  absl::Time Now() const override;
  void Post(std::function<void()> task) override;
  void PostAfter(absl::Duration delay, std::function<void()> task) override;
  std::shared_ptr<void> Hold() override;

  boost::asio::io_context& context() { return context_; }
  // Of the loop's thread with what is posted; outlives the loop.
  std::shared_ptr<const Progress> progress() const { return progress_; }

  // Ends when everything posted has run and every hold is released; timers are dropped from now on.
  // Returns then. Not from the loop's thread.
  void Join();

 private:
  const std::shared_ptr<Progress> progress_ = std::make_shared<Progress>();
  boost::asio::io_context context_{1};
  boost::asio::executor_work_guard<boost::asio::io_context::executor_type> work_;
  const absl::Time start_;
  const std::chrono::steady_clock::time_point steady_start_;
  // The loop's thread alone.
  bool stopping_ = false;
  std::set<std::shared_ptr<boost::asio::steady_timer>> timers_;

  std::thread thread_;
};

}  // namespace blockserve

#endif  // BLOCKSERVE_RPC_ASIO_LOOP_H_
