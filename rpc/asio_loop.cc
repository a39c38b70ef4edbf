#include "rpc/asio_loop.h"

#include <boost/asio/post.hpp>
#include <utility>

#include "absl/time/clock.h"
#include "common/thread_name.h"
#include "common/wait_time.h"

namespace blockserve {

AsioLoop::AsioLoop(const char* thread_name)
    : work_(boost::asio::make_work_guard(context_)),
      start_(absl::Now()),
      steady_start_(std::chrono::steady_clock::now()),
      thread_([this, thread_name] {
        SetThreadName(thread_name);
        context_.run();
      }) {}

AsioLoop::~AsioLoop() { Join(); }

absl::Time AsioLoop::Now() const {
  // The wall clock may be set; bounds of time must not see it.
  return start_ + absl::FromChrono(std::chrono::steady_clock::now() - steady_start_);
}

void AsioLoop::Post(std::function<void()> task) {
  progress_->Add(1);
  boost::asio::post(context_, [this, task = std::move(task)] {
    task();
    progress_->Done(1);
  });
}

void AsioLoop::PostAfter(absl::Duration delay, std::function<void()> task) {
  boost::asio::post(context_, [this, delay, task = std::move(task)]() mutable {
    if (stopping_) return;
    auto timer = std::make_shared<boost::asio::steady_timer>(context_, WaitTime(delay));
    timers_.insert(timer);
    timer->async_wait([this, timer, task = std::move(task)](boost::system::error_code error) {
      timers_.erase(timer);
      if (!error && !stopping_) task();
    });
  });
}

std::shared_ptr<void> AsioLoop::Hold() {
  return std::make_shared<boost::asio::executor_work_guard<boost::asio::io_context::executor_type>>(
      boost::asio::make_work_guard(context_));
}

void AsioLoop::Join() {
  if (!thread_.joinable()) return;
  Post([this] {
    stopping_ = true;
    work_.reset();
    // They would keep the loop running until they expire.
    for (const auto& timer : timers_) timer->cancel();
  });
  thread_.join();
}

}  // namespace blockserve
