// Runs the blocks of a CUDA kernel on the CPU: every thread of a block is a fiber that runs until
// it reaches a barrier. emulation/README.md says what that shows and what not.
#ifndef BLOCKSERVE_KERNELS_CUDA_EMULATION_EMULATOR_H_
#define BLOCKSERVE_KERNELS_CUDA_EMULATION_EMULATOR_H_

#include <cstdint>
#include <cstring>
#include <functional>

#include "kernels/cuda/runtime.h"

namespace blockserve::cuda::emulation {

inline constexpr int kWarpThreads = 32;
inline constexpr uint32_t kWholeWarp = 0xffffffffu;
// What a block gets without asking for more.
inline constexpr int64_t kMaxSharedBytes = 48 * 1024;
inline constexpr int kMaxBlockThreads = 1024;

struct Index3 {
  uint32_t x = 0;
  uint32_t y = 0;
  uint32_t z = 0;
};

struct GridShape {
  const char* name = "";  // of the kernel, for messages
  Index3 grid;
  uint32_t threads = 0;  // of a block: whole warps
  int64_t shared_bytes = 0;

  // The device's own limits, and whole warps, which ours alone are.
  bool CanBeLaunched() const {
    return threads >= 1 && threads <= kMaxBlockThreads && threads % kWarpThreads == 0 &&
           shared_bytes <= kMaxSharedBytes && grid.x >= 1 && grid.y >= 1 && grid.z >= 1 &&
           grid.x <= 0x7fffffffu && grid.y <= 0xffffu && grid.z <= 0xffffu;
  }
};

// What the running thread of a kernel sees.
struct Thread {
  Index3 block_index;
  uint32_t thread_index = 0;
  uint32_t block_threads = 0;
  uint32_t lane() const { return thread_index % kWarpThreads; }
};
const GridShape& CurrentGrid();
extern constinit thread_local const Thread* t_current_thread;
inline const Thread& CurrentThread() { return *t_current_thread; }
// The dynamic shared memory of the running block, filled with 0xff when the block begins.
void* SharedMemory();

// Barriers. All threads of the block, or of the warp, must come, and to the same line: else the
// process aborts and names the kernel.
void SyncBlock(int line);
void SyncWarp(int line);

// The words that every lane of the warp passed. All lanes take part. They stay until the lane's
// second exchange from here.
inline constexpr int kExchangeWords = 5;
const uint64_t (*Exchange(const uint64_t* words, int count, int line))[kExchangeWords];
// Bit i: whether lane i passed true.
uint32_t Ballot(bool value, int line);

// What every thread of a kernel calls before it touches device memory (device_code.h): the process
// aborts where one ends without. Under OrderCheck device memory holds nothing but 0xff until all
// threads of the first block have called it: the process aborts where it was written before, or
// where a result depends on it.
void WaitForEarlierWork(int line);

// Copies of the running thread that are made when it waits for them, not before: to shared memory,
// from nullptr zeros. CommitCopies makes a group of those since the last one; WaitForCopies waits
// for all groups but the last `left`.
void CopyLater(void* to, const void* from, size_t size_bytes);
void CommitCopies();
void WaitForCopies(int left);

// Runs `body` for every thread of the grid.
void RunGrid(const GridShape& shape, const std::function<void()>& body);

// Adds work to a stream, or to what is being captured of it. In order; run when someone waits.
absl::Status Enqueue(CUstream_st* stream, std::function<void()> work);
// Of every launch of a kernel. INTERNAL where it is captured and has not been launched before: its
// first launch loads it, which a capture may not do on a device.
absl::Status LoadKernel(StreamHandle stream, const void* kernel, const char* name);

// Kernels that were launched since it was made, captured ones included: all, and those on streams
// of KernelLaunch::kEarly.
class LaunchCount {
 public:
  LaunchCount();
  int64_t all() const;
  int64_t early() const;

 private:
  int64_t all_before_;
  int64_t early_before_;
};

// While one lives, every grid runs three times from the same contents of all device memory, with
// the threads between two barriers, and the blocks, in ascending, descending and shuffled order.
// The process aborts, naming the kernel, when the results differ in a bit: a race between threads
// that no barrier separates, or access before WaitForEarlierWork. Of the thread that made it.
class OrderCheck {
 public:
  OrderCheck();
  ~OrderCheck();
  OrderCheck(const OrderCheck&) = delete;
  OrderCheck& operator=(const OrderCheck&) = delete;
};

// While one lives, calls fail (INTERNAL): of those of kernels/cuda/runtime.h that give work to a
// stream, wait for it, capture it or allocate, and of kernels and products, counted from 0, the
// `first` and all that follow, or `count` of them. What a failed call was given is not done.
// CheckDevice is not counted; it fails where all that follow do. One at a time.
class CallFailures {
 public:
  static constexpr int64_t kAllThatFollow = int64_t{1} << 62;
  explicit CallFailures(int64_t first, int64_t count = kAllThatFollow);
  ~CallFailures();
  CallFailures(const CallFailures&) = delete;
  CallFailures& operator=(const CallFailures&) = delete;

  // Whether a call has failed yet.
  bool any() const;
};
// What a call that is made now has to return. For the emulation itself.
absl::Status CountCall();

// While one lives, the device has so many bytes in all.
class DeviceMemoryLimit {
 public:
  explicit DeviceMemoryLimit(int64_t total_bytes);
  ~DeviceMemoryLimit();
  DeviceMemoryLimit(const DeviceMemoryLimit&) = delete;
  DeviceMemoryLimit& operator=(const DeviceMemoryLimit&) = delete;

 private:
  int64_t before_;
};

}  // namespace blockserve::cuda::emulation

#endif  // BLOCKSERVE_KERNELS_CUDA_EMULATION_EMULATOR_H_
