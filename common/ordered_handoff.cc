#include "common/ordered_handoff.h"

#include <utility>

#include "common/thread_name.h"

namespace blockserve {

OrderedHandoff::OrderedHandoff(const char* thread_name, size_t max_waiting)
    : max_waiting_(max_waiting), thread_([this, thread_name] {
        SetThreadName(thread_name);
        Run();
      }) {}

OrderedHandoff::~OrderedHandoff() { Stop(); }

void OrderedHandoff::HandOver(Job job) { Give(std::move(job), /*here_if_idle=*/false); }

void OrderedHandoff::RunIfIdle(Job job) { Give(std::move(job), /*here_if_idle=*/true); }

void OrderedHandoff::Give(Job job, bool here_if_idle) {
  {
    MutexLock lock(&mutex_);
    // Nobody may be there any more who would run it.
    while (!(IdleLocked() && (here_if_idle || stopping_))) {
      if (!stopping_ && waiting_.size() < max_waiting_) {
        waiting_.push_back(std::move(job));
        if (!running_) work_.Signal();
        return;
      }
      moved_.Wait(&mutex_);
    }
    running_ = true;
  }
  std::move(job)();
  job = nullptr;
  MutexLock lock(&mutex_);
  running_ = false;
  if (!waiting_.empty()) work_.Signal();
  moved_.SignalAll();
}

bool OrderedHandoff::idle() const {
  MutexLock lock(&mutex_);
  return IdleLocked();
}

void OrderedHandoff::WaitUntilIdle() {
  MutexLock lock(&mutex_);
  while (!IdleLocked()) moved_.Wait(&mutex_);
}

void OrderedHandoff::Stop() {
  {
    MutexLock lock(&mutex_);
    stopping_ = true;
    work_.Signal();
    moved_.SignalAll();
  }
  {
    MutexLock lock(&join_mutex_);
    if (thread_.joinable()) thread_.join();
  }
  WaitUntilIdle();
}

void OrderedHandoff::Run() {
  mutex_.Lock();
  while (!stopping_ || !waiting_.empty()) {
    if (waiting_.empty() || running_) {
      work_.Wait(&mutex_);
      continue;
    }
    Job job = std::move(waiting_.front());
    waiting_.pop_front();
    running_ = true;
    moved_.SignalAll();
    mutex_.Unlock();
    std::move(job)();
    job = nullptr;
    mutex_.Lock();
    running_ = false;
    moved_.SignalAll();
  }
  mutex_.Unlock();
}

}  // namespace blockserve
