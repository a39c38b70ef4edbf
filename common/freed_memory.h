// Memory that a process has freed and that malloc keeps. glibc gives each thread an arena, and of
// an arena it gives back to the system only what is free at its end: a burst of calls that gRPC
// holds at the same time (some 20 KB each) leaves hundreds of MiB in one arena, and the next burst,
// met by another thread, as much in another.
#ifndef BLOCKSERVE_COMMON_FREED_MEMORY_H_
#define BLOCKSERVE_COMMON_FREED_MEMORY_H_

#include <cstdint>
#include <thread>

#include "common/mutex.h"

namespace blockserve {

struct HeapMemory {
  int64_t resident_bytes = 0;  // memory of the process that is of no file
  int64_t used_bytes = 0;      // of malloc, not freed; more where a part was never written
};

// What the system and malloc tell; all 0 where they do not (another C library, ASan).
HeapMemory LookAtHeap();
// Takes the locks of malloc, each for as long as its arena takes: some 0.1 ms per MiB given back.
void GiveBackFreedMemory();

// When to give memory back: it costs those who need it again a page fault for each 4 KiB. That is
// when more is kept than used, and at least kLeastBytes, in two looks one after another.
class FreedMemoryRule {
 public:
  static constexpr int64_t kLeastBytes = int64_t{64} << 20;

  // Whether memory is to be given back now.
  bool Look(const HeapMemory& heap);

 private:
  bool seen_ = false;
};

// A thread that looks every 10 s.
class FreedMemoryKeeper {
 public:
  FreedMemoryKeeper();
  ~FreedMemoryKeeper();

 private:
  void Run();

  Mutex mutex_;
  CondVar changed_;
  bool stopped_ ABSL_GUARDED_BY(mutex_) = false;
  std::thread thread_;
};

}  // namespace blockserve

#endif  // BLOCKSERVE_COMMON_FREED_MEMORY_H_
