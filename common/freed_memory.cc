#include "common/freed_memory.h"

#include <malloc.h>

#include <fstream>
#include <string>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"
#include "absl/strings/strip.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "common/logging.h"
#include "common/thread_name.h"

namespace blockserve {
namespace {

constexpr absl::Duration kInterval = absl::Seconds(10);

// "RssAnon:   12345 kB" in /proc/self/status.
int64_t ResidentBytes() {
  std::ifstream file("/proc/self/status");
  for (std::string line; std::getline(file, line);) {
    absl::string_view rest = line;
    int64_t kib = 0;
    if (absl::ConsumePrefix(&rest, "RssAnon:") && absl::ConsumeSuffix(&rest, "kB") &&
        absl::SimpleAtoi(rest, &kib)) {
      return kib << 10;
    }
  }
  return 0;
}

}  // namespace

HeapMemory LookAtHeap() {
  HeapMemory heap;
#if defined(__GLIBC__)
  const struct mallinfo2 told = mallinfo2();
  if (told.uordblks == 0) return {};
  heap.used_bytes = static_cast<int64_t>(told.uordblks + told.hblkhd);
  heap.resident_bytes = ResidentBytes();
#endif
  return heap;
}

void GiveBackFreedMemory() {
#if defined(__GLIBC__)
  malloc_trim(0);
#endif
}

bool FreedMemoryRule::Look(const HeapMemory& heap) {
  const int64_t kept = heap.resident_bytes - heap.used_bytes;
  const bool much = kept >= kLeastBytes && kept > heap.used_bytes;
  const bool due = much && seen_;
  seen_ = much && !due;
  return due;
}

FreedMemoryKeeper::FreedMemoryKeeper() : thread_([this] { Run(); }) {}

FreedMemoryKeeper::~FreedMemoryKeeper() {
  {
    MutexLock lock(&mutex_);
    stopped_ = true;
    changed_.SignalAll();
  }
  thread_.join();
}

void FreedMemoryKeeper::Run() {
  SetThreadName("freed-memory");
  FreedMemoryRule rule;
  while (true) {
    {
      MutexLock lock(&mutex_);
      if (!stopped_) changed_.WaitWithTimeout(&mutex_, kInterval);
      if (stopped_) return;
    }
    // malloc's answer takes its locks for as long as its free blocks are many.
    const HeapMemory heap =
        ResidentBytes() < FreedMemoryRule::kLeastBytes ? HeapMemory() : LookAtHeap();
    if (!rule.Look(heap)) continue;
    const absl::Time begin = absl::Now();
    GiveBackFreedMemory();
    const absl::Duration took = absl::Now() - begin;
    LogInfo(absl::StrCat("gave ", (heap.resident_bytes - ResidentBytes()) >> 20,
                         " MiB of freed memory back to the system, in ",
                         absl::ToInt64Milliseconds(took), " ms"));
  }
}

}  // namespace blockserve
