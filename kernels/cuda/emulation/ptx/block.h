// Runs the blocks of a grid by the code that nvcc made of a kernel: warp by warp, the lanes with
// the least program counter first, so that lanes that parted meet again. The process aborts, naming
// kernel, line and instruction, at what a device faults on or leaves undefined; README.md lists it.
#ifndef BLOCKSERVE_KERNELS_CUDA_EMULATION_PTX_BLOCK_H_
#define BLOCKSERVE_KERNELS_CUDA_EMULATION_PTX_BLOCK_H_

#include <cstdint>
#include <string>
#include <vector>

#include "kernels/cuda/emulation/ptx/kernel.h"

namespace blockserve::cuda::emulation::ptx {

// Of blocks, and of warps between two barriers.
enum class Order { kAscending, kDescending, kShuffled };

struct Launch {
  uint32_t grid[3] = {1, 1, 1};
  uint32_t threads = 0;  // of a block: whole warps
  uint32_t shared_bytes = 0;
  std::vector<uint8_t> parameters;
};

// What a launch did, of all its warps.
struct Counts {
  int64_t warps = 0;
  int64_t instructions = 0;    // of warps
  int64_t moves = 0;           // of them those that machine code mostly does without
  int64_t global_sectors = 0;  // of 32 bytes
  int64_t shared_wavefronts = 0;
  int64_t least_wavefronts = 0;  // if no two lanes met in a bank
};

void RunGrid(const Kernel& kernel, const Launch& launch, Order order, Counts* counts);

// A copy to shared memory that was asked for and is made when its thread waits for it.
struct PendingCopy {
  uint32_t to;
  uint64_t from;  // 0: zeros
  int32_t group;
};

struct Warp {
  int32_t index = 0;
  uint8_t* registers = nullptr;
  int32_t next[kLanes] = {};  // instruction of each lane
  LaneMask running = 0;
  LaneMask waiting = 0;     // for the rest of the warp
  LaneMask at_barrier = 0;  // of the block
  LaneMask ended = 0;
  LaneMask waited = 0;  // for earlier work
  uint32_t epoch = 1;   // barriers of the warp so far
  std::vector<PendingCopy> copies[kLanes];
  int32_t copy_groups[kLanes] = {};  // that are complete
};

// Who touched four bytes of shared memory last.
struct SharedWord {
  static constexpr int32_t kNobody = -1;
  static constexpr int32_t kSeveralWarps = -2;
  int32_t writer = kNobody;  // thread
  bool atomic = false;
  bool pending = false;           // a copy to it is under way
  uint32_t written_in_block = 0;  // epochs
  uint32_t written_in_warp = 0;
  int32_t reader = kNobody;
  int32_t reading_warp = kNobody;
  bool several_readers = false;  // of that warp
  uint32_t read_in_block = 0;
  uint32_t read_in_warp = 0;
};

class Block {
 public:
  // `registers` has those of all warps.
  Block(const Kernel& kernel, const Launch& launch, Order order, uint8_t* registers,
        Counts* counts);
  void Run(const uint32_t (&index)[3]);

  // --- For operations
  template <typename T>
  T* lanes(Register where) {
    return reinterpret_cast<T*>(warp_->registers + where);
  }
  LaneMask& predicate(Register where) { return *lanes<LaneMask>(where); }
  Warp& warp() { return *warp_; }
  const Launch& launch() const { return launch_; }
  Counts* counts() { return counts_; }
  uint8_t* shared(uint32_t address) { return shared_.data() + (address - kSharedBegin); }
  [[noreturn]] void Fail(const std::string& what) const;

  // `bytes` at an address that is to be a multiple of `alignment`.
  void CheckGlobal(uint64_t address, int32_t alignment, int32_t bytes);
  enum class Access { kRead, kWrite, kAtomic, kCopyBegins, kCopyEnds };
  void CheckShared(uint32_t address, int32_t alignment, int32_t bytes, int lane, Access access);

 private:
  void BeginWarp(Warp& warp, int32_t index);
  void RunWarp(Warp& warp);
  // Runs the lanes of `mask`, which are at one instruction, until they part, meet others or wait.
  void RunLanes(LaneMask mask, bool whole_warp);
  void End(LaneMask lanes);

  const Kernel& kernel_;
  const Launch& launch_;
  const Order order_;
  Counts* const counts_;
  uint32_t index_[3] = {};
  std::vector<uint8_t> shared_;
  std::vector<SharedWord> words_;
  std::vector<Warp> warps_;
  Warp* warp_ = nullptr;
  uint32_t epoch_ = 1;  // barriers of the block so far
  const Instruction* current_ = nullptr;
  uint64_t known_begin_ = 1;  // of the allocation that was looked up last
  uint64_t known_end_ = 0;
};

}  // namespace blockserve::cuda::emulation::ptx

#endif  // BLOCKSERVE_KERNELS_CUDA_EMULATION_PTX_BLOCK_H_
