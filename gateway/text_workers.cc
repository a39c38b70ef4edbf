#include "gateway/text_workers.h"

#include "common/thread_name.h"

namespace blockserve {

TextWorkers::TextWorkers(const char* thread_name, int32_t threads, size_t most_bytes)
    : most_bytes_(most_bytes) {
  for (int32_t i = 0; i < threads; ++i) {
    threads_.emplace_back([this, thread_name] {
      SetThreadName(thread_name);
      Work();
    });
  }
}

TextWorkers::~TextWorkers() { Stop(); }

bool TextWorkers::Run(const std::string& key, size_t bytes, std::function<void()> task) {
  MutexLock lock(&mutex_);
  if (stopped_) return false;
  const auto found = queues_.find(key);
  const size_t own = found == queues_.end() ? 0 : found->second.bytes;
  if (waiting_bytes_ > 0 && waiting_bytes_ + own + bytes > most_bytes_) return false;
  Queue& queue = queues_[key];
  if (queue.tasks.empty()) turns_.push_back(key);
  queue.tasks.push_back({bytes, std::move(task)});
  queue.bytes += bytes;
  waiting_bytes_ += bytes;
  changed_.Signal();
  return true;
}

bool TextWorkers::Take(Task& task) {
  MutexLock lock(&mutex_);
  while (turns_.empty() && !stopped_) changed_.Wait(&mutex_);
  if (stopped_) return false;
  const std::string key = std::move(turns_.front());
  turns_.pop_front();
  const auto found = queues_.find(key);
  Queue& queue = found->second;
  task = std::move(queue.tasks.front());
  queue.tasks.pop_front();
  queue.bytes -= task.bytes;
  waiting_bytes_ -= task.bytes;
  if (queue.tasks.empty()) {
    queues_.erase(found);
  } else {
    turns_.push_back(key);
  }
  return true;
}

void TextWorkers::Work() {
  while (true) {
    Task task;
    if (!Take(task)) return;
    task.run();
  }
}

void TextWorkers::Stop() {
  std::map<std::string, Queue> dropped;
  {
    MutexLock lock(&mutex_);
    stopped_ = true;
    dropped.swap(queues_);
    turns_.clear();
    waiting_bytes_ = 0;
    changed_.SignalAll();
  }
  for (std::thread& thread : threads_) thread.join();
  threads_.clear();
}

}  // namespace blockserve
