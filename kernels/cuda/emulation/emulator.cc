#include "kernels/cuda/emulation/emulator.h"

#include <boost/context/fiber.hpp>
#include <boost/context/protected_fixedsize_stack.hpp>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <numeric>
#include <utility>
#include <vector>

#include "kernels/cuda/emulation/device_memory.h"

namespace blockserve::cuda::emulation {
namespace {

constexpr size_t kStackBytes = 64 * 1024;
constexpr int64_t kSharedGuardBytes = 64;
constexpr uint8_t kSharedGuard = 0x5a;
constexpr uint8_t kHidden = 0xff;

using DeviceMemoryImage = std::vector<std::vector<uint8_t>>;

enum class Order { kAscending, kDescending, kShuffled };
enum class Wait { kNothing, kWarp, kBlock, kFinished };

// Something that can be left and taken up again.
struct Context {
  boost::context::fiber fiber;
};

struct PendingCopy {
  void* to;
  const void* from;
  size_t size_bytes;
  int group;
};

// A thread of a block. Its fiber outlives the block and serves the next one.
struct Fiber : Context {
  Thread thread;
  Wait wait = Wait::kFinished;
  int line = 0;
  uint32_t exchanges = 0;  // of this block
  std::vector<PendingCopy> copies;
  int copy_groups = 0;  // that are complete
  bool waited = false;  // for earlier work
  bool quit = false;
};

struct Warp {
  int waiting = 0;
  // Of this exchange and the last one: nobody can be two ahead.
  uint64_t values[2][kWarpThreads][kExchangeWords];
};

class Block;
// Of the host thread that runs a grid: fibers never leave it.
thread_local Block* t_block = nullptr;
thread_local int t_order_checks = 0;

class Block {
 public:
  ~Block() {
    for (const std::unique_ptr<Fiber>& fiber : fibers_) {
      fiber->quit = true;
      Switch(main_, *fiber);
    }
  }

  // `hidden`: what device memory holds, which the first block finds there when all of its threads
  // have waited for earlier work; nullptr: it is there.
  void RunGrid(const GridShape& shape, const std::function<void()>& body, Order order,
               const DeviceMemoryImage* hidden) {
    shape_ = &shape;
    body_ = &body;
    order_ = order;
    hidden_ = hidden;
    if (hidden_ != nullptr) FillDeviceMemory(kHidden);
    while (fibers_.size() < shape.threads) AddFiber();
    warps_.resize(shape.threads / kWarpThreads);
    shared_.assign(shape.shared_bytes + kSharedGuardBytes + 16, 0);
    const uint64_t blocks = uint64_t{shape.grid.x} * shape.grid.y * shape.grid.z;
    for (uint64_t i = 0; i < blocks; ++i) {
      // Shuffled: a step that has no common divisor with the number of blocks.
      uint64_t at = order == Order::kDescending ? blocks - 1 - i : i;
      if (order == Order::kShuffled) at = (i * Step(blocks) + 1) % blocks;
      Run({static_cast<uint32_t>(at % shape.grid.x),
           static_cast<uint32_t>(at / shape.grid.x % shape.grid.y),
           static_cast<uint32_t>(at / shape.grid.x / shape.grid.y)});
    }
  }

  const GridShape& shape() const { return *shape_; }
  Fiber& current() { return *fibers_[current_]; }
  void* shared() {
    return reinterpret_cast<void*>((reinterpret_cast<uintptr_t>(shared_.data()) + 15) / 16 * 16);
  }

  void Yield(Wait wait, int line) {
    Fiber& fiber = current();
    fiber.wait = wait;
    fiber.line = line;
    if (wait == Wait::kWarp) {
      ++warps_[fiber.thread.thread_index / kWarpThreads].waiting;
    } else {
      ++at_block_barrier_;
    }
    Leave(fiber);
  }

  void WaitForEarlierWork(int line) {
    current().waited = true;
    if (hidden_ != nullptr) Yield(Wait::kBlock, line);
  }

  const uint64_t (*Exchange(const uint64_t* words, int count, int line))[kExchangeWords] {
    Fiber& fiber = current();
    auto* values = warps_[fiber.thread.thread_index / kWarpThreads].values[fiber.exchanges++ % 2];
    for (int i = 0; i < count; ++i) values[fiber.thread.lane()][i] = words[i];
    Yield(Wait::kWarp, line);
    return values;
  }

  [[noreturn]] void Fail(const char* what) {
    std::fprintf(stderr, "CUDA emulation: kernel %s: %s\n", shape_->name, what);
    std::abort();
  }

 private:
  static uint64_t Step(uint64_t count) {
    uint64_t step = count / 2 + count / 7 + 1;
    while (std::gcd(step, count) != 1) ++step;
    return step;
  }

  // Goes on with `to`, until someone comes back to `from`.
  void Switch(Context& from, Context& to) {
    left_ = &from;
    boost::context::fiber back = std::move(to.fiber).resume();
    left_->fiber = std::move(back);  // of whoever switched to us
  }

  // From a thread to the next that can run, or to the scheduler.
  void Leave(Fiber& fiber) {
    Fiber* next = NextReady();
    if (next == nullptr) {
      Switch(fiber, main_);
    } else if (next != &fiber) {
      Switch(fiber, *next);
    }
  }

  // The next thread of this round that can run; it is current then.
  Fiber* NextReady() {
    while (next_ < shape_->threads) {
      const uint32_t t = ThreadAt(next_++);
      if (fibers_[t]->wait != Wait::kNothing) continue;
      current_ = t;
      t_current_thread = &fibers_[t]->thread;
      return fibers_[t].get();
    }
    return nullptr;
  }

  void AddFiber() {
    fibers_.push_back(std::make_unique<Fiber>());
    Fiber* fiber = fibers_.back().get();
    fiber->fiber = boost::context::fiber(std::allocator_arg,
                                         boost::context::protected_fixedsize_stack(kStackBytes),
                                         [this, fiber](boost::context::fiber&& back) {
                                           left_->fiber = std::move(back);
                                           while (!fiber->quit) {
                                             (*body_)();
                                             if (!fiber->waited) {
                                               Fail("a thread ends without WaitForEarlierWork");
                                             }
                                             fiber->wait = Wait::kFinished;
                                             ++finished_;
                                             Leave(*fiber);
                                           }
                                           return std::move(main_.fiber);
                                         });
  }

  uint32_t ThreadAt(uint32_t i) const {
    const uint32_t threads = shape_->threads;
    switch (order_) {
      case Order::kAscending:
        return i;
      case Order::kDescending:
        return threads - 1 - i;
      default:
        return (i * 37 + rounds_ * 11) % threads;  // a block is whole warps: 37 divides none
    }
  }

  void Run(Index3 block_index) {
    std::memset(shared(), 0xff, shape_->shared_bytes);
    uint8_t* guard = static_cast<uint8_t*>(shared()) + shape_->shared_bytes;
    std::memset(guard, kSharedGuard, kSharedGuardBytes - 16);
    for (uint32_t t = 0; t < shape_->threads; ++t) {
      Fiber& fiber = *fibers_[t];
      fiber.thread = {block_index, t, shape_->threads};
      fiber.wait = Wait::kNothing;
      fiber.exchanges = 0;
      fiber.copies.clear();
      fiber.copy_groups = 0;
      fiber.waited = false;
    }
    for (Warp& warp : warps_) warp.waiting = 0;
    at_block_barrier_ = 0;
    finished_ = 0;
    rounds_ = 0;
    while (finished_ < shape_->threads) {
      next_ = 0;
      if (Fiber* first = NextReady(); first != nullptr) Switch(main_, *first);
      ++rounds_;
      if (finished_ < shape_->threads) Release();
    }
    for (int64_t i = 0; i < kSharedGuardBytes - 16; ++i) {
      if (guard[i] != kSharedGuard) Fail("wrote beyond its shared memory");
    }
  }

  // Lets those go on whose barrier is complete.
  void Release() {
    bool any = false;
    for (size_t w = 0; w < warps_.size(); ++w) {
      if (warps_[w].waiting < kWarpThreads) continue;
      warps_[w].waiting = 0;
      ReleaseThreads(w * kWarpThreads, kWarpThreads, "lanes of a warp wait at different lines");
      any = true;
    }
    if (any) return;
    if (at_block_barrier_ == shape_->threads) {
      at_block_barrier_ = 0;
      ShowMemory();
      ReleaseThreads(0, shape_->threads, "threads of a block wait at different barriers");
      return;
    }
    Fail("a barrier that not all of its threads reach");
  }

  void ShowMemory() {
    if (hidden_ == nullptr) return;
    if (!DeviceMemoryIsFilled(kHidden)) Fail("wrote before WaitForEarlierWork");
    RestoreDeviceMemory(*hidden_);
    hidden_ = nullptr;
  }

  void ReleaseThreads(uint32_t begin, uint32_t count, const char* error) {
    for (uint32_t t = begin; t < begin + count; ++t) {
      if (fibers_[t]->line != fibers_[begin]->line) Fail(error);
      fibers_[t]->wait = Wait::kNothing;
    }
  }

  const GridShape* shape_ = nullptr;
  const std::function<void()>* body_ = nullptr;
  Order order_ = Order::kAscending;
  const DeviceMemoryImage* hidden_ = nullptr;
  std::vector<std::unique_ptr<Fiber>> fibers_;
  std::vector<Warp> warps_;
  std::vector<uint8_t> shared_;
  Context main_;             // the scheduler
  Context* left_ = nullptr;  // who switched last
  uint32_t current_ = 0;
  uint32_t next_ = 0;  // of this round
  uint32_t at_block_barrier_ = 0;
  uint32_t finished_ = 0;
  uint32_t rounds_ = 0;
};

}  // namespace

constinit thread_local const Thread* t_current_thread = nullptr;

const GridShape& CurrentGrid() { return t_block->shape(); }
void* SharedMemory() { return t_block->shared(); }
void SyncBlock(int line) { t_block->Yield(Wait::kBlock, line); }
void SyncWarp(int line) { t_block->Yield(Wait::kWarp, line); }
const uint64_t (*Exchange(const uint64_t* words, int count, int line))[kExchangeWords] {
  return t_block->Exchange(words, count, line);
}
void WaitForEarlierWork(int line) { t_block->WaitForEarlierWork(line); }
uint32_t Ballot(bool value, int line) {
  const uint64_t word = value ? 1 : 0;
  const auto* words = Exchange(&word, 1, line);
  uint32_t bits = 0;
  for (int i = 0; i < kWarpThreads; ++i) bits |= static_cast<uint32_t>(words[i][0]) << i;
  return bits;
}

void CopyLater(void* to, const void* from, size_t size_bytes) {
  Fiber& fiber = t_block->current();
  fiber.copies.push_back({to, from, size_bytes, fiber.copy_groups});
}
void CommitCopies() { ++t_block->current().copy_groups; }
void WaitForCopies(int left) {
  Fiber& fiber = t_block->current();
  std::erase_if(fiber.copies, [&](const PendingCopy& copy) {
    if (copy.group >= fiber.copy_groups - left) return false;
    if (copy.from == nullptr) {
      std::memset(copy.to, 0, copy.size_bytes);
    } else {
      std::memcpy(copy.to, copy.from, copy.size_bytes);
    }
    return true;
  });
}

OrderCheck::OrderCheck() { ++t_order_checks; }
OrderCheck::~OrderCheck() { --t_order_checks; }

void RunGrid(const GridShape& shape, const std::function<void()>& body) {
  thread_local std::unique_ptr<Block> block = std::make_unique<Block>();
  t_block = block.get();
  if (t_order_checks == 0) {
    block->RunGrid(shape, body, Order::kAscending, nullptr);
    return;
  }
  const auto before = SaveDeviceMemory();
  block->RunGrid(shape, body, Order::kAscending, nullptr);
  const auto ascending = SaveDeviceMemory();
  for (const Order order : {Order::kDescending, Order::kShuffled}) {
    RestoreDeviceMemory(before);
    block->RunGrid(shape, body, order, order == Order::kDescending ? &before : nullptr);
    if (SaveDeviceMemory() != ascending) {
      std::fprintf(stderr,
                   "CUDA emulation: kernel %s: the result depends on the order in which threads or "
                   "blocks run, or on memory read before WaitForEarlierWork\n",
                   shape.name);
      std::abort();
    }
  }
}

}  // namespace blockserve::cuda::emulation
