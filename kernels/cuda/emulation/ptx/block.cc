#include "kernels/cuda/emulation/ptx/block.h"

#include <algorithm>
#include <bit>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <numeric>

#include "absl/strings/str_cat.h"
#include "kernels/cuda/emulation/device_memory.h"

namespace blockserve::cuda::emulation::ptx {
namespace {

constexpr uint8_t kUnwritten = 0xff;  // of shared memory: a NaN

// Which of `count` comes as the i-th.
int64_t PlaceOf(Order order, int64_t i, int64_t count) {
  switch (order) {
    case Order::kAscending:
      return i;
    case Order::kDescending:
      return count - 1 - i;
    case Order::kShuffled:
      break;
  }
  int64_t step = 7919;
  while (std::gcd(step, count) != 1) ++step;
  return (i * step + 1) % count;
}

}  // namespace

Block::Block(const Kernel& kernel, const Launch& launch, Order order, uint8_t* registers,
             Counts* counts)
    : kernel_(kernel), launch_(launch), order_(order), counts_(counts) {
  if (static_cast<int32_t>(launch.threads) > kernel.max_threads) {
    Fail(absl::StrCat(launch.threads, " threads a block, compiled for ", kernel.max_threads));
  }
  if (static_cast<int32_t>(launch.parameters.size()) != kernel.parameter_bytes) {
    Fail(absl::StrCat(launch.parameters.size(), " bytes of parameters for ",
                      kernel.parameter_bytes));
  }
  warps_.resize(launch.threads / kLanes);
  for (Warp& warp : warps_) {
    warp.registers = registers;
    registers += kernel.register_bytes;
  }
}

void Block::Fail(const std::string& what) const {
  std::fprintf(stderr, "PTX: kernel %s: %s\n", kernel_.name.c_str(), what.c_str());
  if (current_ != nullptr) {
    std::fprintf(stderr, "  %s:%d: %s\n", kernel_.file.c_str(), current_->line,
                 current_->text.c_str());
  }
  std::fprintf(stderr, "  block %u, %u, %u, warp %d\n", index_[0], index_[1], index_[2],
               warp_ == nullptr ? -1 : warp_->index);
  std::abort();
}

void Block::CheckGlobal(uint64_t address, int32_t alignment, int32_t bytes) {
  if (address % alignment != 0) Fail("misaligned access to global memory");
  if (address >= known_begin_ && address + bytes <= known_end_) return;
  if (!FindDeviceMemory(address, &known_begin_, &known_end_) || address + bytes > known_end_) {
    Fail(absl::StrCat("access to ", bytes, " bytes of global memory beyond an allocation"));
  }
}

void Block::CheckShared(uint32_t address, int32_t alignment, int32_t bytes, int lane,
                        Access access) {
  if (address % alignment != 0) Fail("misaligned access to shared memory");
  if (address < kSharedBegin || address + bytes > kSharedBegin + launch_.shared_bytes) {
    Fail(absl::StrCat("access to shared memory at ", int64_t{address} - kSharedBegin, " of ",
                      launch_.shared_bytes));
  }
  const int32_t thread = warp_->index * kLanes + lane;
  // Whether nothing orders this access after that of another thread.
  const auto races = [&](int32_t other, int32_t warp, uint32_t in_block, uint32_t in_warp) {
    if (other == thread || in_block != epoch_) return false;
    return warp != warp_->index || in_warp == warp_->epoch;
  };
  const uint32_t begin = address - kSharedBegin;
  for (uint32_t at = begin / 4; at < (begin + bytes + 3) / 4; ++at) {
    SharedWord& word = words_[at];
    if (word.pending && access != Access::kCopyEnds) {
      Fail("access to shared memory to which a copy is under way");
    }
    if (word.writer != SharedWord::kNobody && !(access == Access::kAtomic && word.atomic) &&
        races(word.writer, word.writer / kLanes, word.written_in_block, word.written_in_warp)) {
      Fail(absl::StrCat("shared memory that thread ", word.writer, " writes before thread ", thread,
                        " touches it: no barrier is between them"));
    }
    if (access == Access::kRead) {
      if (word.writer == SharedWord::kNobody) Fail("read of shared memory that nobody wrote");
      const bool first = word.read_in_block != epoch_;
      if (!first && word.reading_warp != warp_->index) {
        word.reading_warp = SharedWord::kSeveralWarps;
      } else {
        word.several_readers = !first && word.read_in_warp == warp_->epoch &&
                               (word.several_readers || word.reader != thread);
        word.reading_warp = warp_->index;
      }
      word.reader = thread;
      word.read_in_block = epoch_;
      word.read_in_warp = warp_->epoch;
      continue;
    }
    const bool one_reader = !word.several_readers && word.reading_warp != SharedWord::kSeveralWarps;
    if (word.reading_warp != SharedWord::kNobody &&
        races(one_reader ? word.reader : SharedWord::kNobody, word.reading_warp, word.read_in_block,
              word.read_in_warp)) {
      Fail(absl::StrCat("shared memory that is read before thread ", thread,
                        " writes it: no barrier is between them"));
    }
    word.writer = thread;
    word.atomic = access == Access::kAtomic;
    word.pending = access == Access::kCopyBegins;
    word.written_in_block = epoch_;
    word.written_in_warp = warp_->epoch;
  }
}

void Block::BeginWarp(Warp& warp, int32_t index) {
  warp.index = index;
  warp.running = kAllLanes;
  warp.waiting = warp.at_barrier = warp.ended = 0;
  // Where nothing is launched early there is nothing to wait for.
  warp.waited = kernel_.can_wait ? 0 : kAllLanes;
  warp.epoch = 1;
  std::fill_n(warp.next, kLanes, 0);
  std::fill_n(warp.copy_groups, kLanes, 0);
  for (std::vector<PendingCopy>& copies : warp.copies) copies.clear();
  warp_ = &warp;
  for (const Constant& constant : kernel_.constants) {
    if (constant.bits == 1) {
      predicate(constant.where) = static_cast<LaneMask>(constant.value);
    } else if (constant.bits == 64) {
      std::fill_n(lanes<uint64_t>(constant.where), kLanes, constant.value);
    } else {
      std::fill_n(lanes<uint32_t>(constant.where), kLanes, static_cast<uint32_t>(constant.value));
    }
  }
  for (const auto& [where, special] : kernel_.specials) {
    for (int lane = 0; lane < kLanes; ++lane) {
      const uint32_t values[] = {static_cast<uint32_t>(index * kLanes + lane),
                                 index_[0],
                                 index_[1],
                                 index_[2],
                                 launch_.threads,
                                 launch_.grid[0],
                                 launch_.grid[1],
                                 launch_.grid[2]};
      lanes<uint32_t>(where)[lane] = values[static_cast<int>(special)];
    }
  }
}

void Block::Run(const uint32_t (&index)[3]) {
  std::copy_n(index, 3, index_);
  shared_.assign(launch_.shared_bytes, kUnwritten);
  words_.assign((launch_.shared_bytes + 3) / 4, {});
  epoch_ = 1;
  known_begin_ = 1;
  known_end_ = 0;
  const auto count = static_cast<int64_t>(warps_.size());
  for (int64_t i = 0; i < count; ++i) BeginWarp(warps_[i], static_cast<int32_t>(i));
  for (bool more = true; more; ++epoch_) {
    for (int64_t i = 0; i < count; ++i) RunWarp(warps_[PlaceOf(order_, i, count)]);
    more = false;
    for (Warp& warp : warps_) {
      more = more || warp.at_barrier != 0;
      warp.running = warp.at_barrier;
      warp.at_barrier = 0;
    }
  }
  if (counts_ != nullptr) counts_->warps += count;
}

void Block::RunWarp(Warp& warp) {
  warp_ = &warp;
  while (warp.running != 0 || warp.waiting != 0) {
    const bool whole = warp.running == 0;
    if (whole) {
      // Only those are left that wait for one another.
      if ((warp.waiting | warp.ended) != kAllLanes || warp.ended != 0) {
        current_ = &kernel_.code[warp.next[std::countr_zero(warp.waiting)]];
        Fail("an operation of a warp of which some lanes have ended, or are at a barrier");
      }
      std::swap(warp.running, warp.waiting);
    }
    int32_t least = std::numeric_limits<int32_t>::max();
    for (int lane = 0; lane < kLanes; ++lane) {
      if (warp.running >> lane & 1) least = std::min(least, warp.next[lane]);
    }
    LaneMask mask = 0;
    for (int lane = 0; lane < kLanes; ++lane) {
      if ((warp.running >> lane & 1) && warp.next[lane] == least) mask |= LaneMask{1} << lane;
    }
    if (whole && mask != warp.running) {
      current_ = &kernel_.code[least];
      Fail("lanes of a warp wait for it at different places");
    }
    RunLanes(mask, whole);
  }
}

void Block::End(LaneMask lanes) {
  for (int lane = 0; lane < kLanes; ++lane) {
    if (!(lanes >> lane & 1)) continue;
    if (!(warp_->waited >> lane & 1)) Fail("a thread ends without having waited for earlier work");
    if (!warp_->copies[lane].empty()) Fail("a thread ends while a copy of it is under way");
  }
  warp_->running &= ~lanes;
  warp_->ended |= lanes;
}

void Block::RunLanes(LaneMask mask, bool whole_warp) {
  Warp& warp = *warp_;
  const auto move_to = [&](LaneMask lanes, int32_t next) {
    for (int lane = 0; lane < kLanes; ++lane) {
      if (lanes >> lane & 1) warp.next[lane] = next;
    }
  };
  int32_t next = warp.next[std::countr_zero(mask)];
  int32_t others = std::numeric_limits<int32_t>::max();
  for (int lane = 0; lane < kLanes; ++lane) {
    if ((warp.running & ~mask) >> lane & 1) others = std::min(others, warp.next[lane]);
  }
  while (next < others) {
    const Instruction& instruction = kernel_.code[next];
    current_ = &instruction;
    LaneMask chosen = mask;
    if (instruction.guard != kNoRegister) {
      const LaneMask guard = predicate(instruction.guard);
      chosen &= instruction.guard_negated ? ~guard : guard;
    }
    const bool together = instruction.kind == Kind::kWarp || instruction.kind == Kind::kBarrier;
    if (together) {
      if (chosen != mask) Fail("an operation of a warp that some lanes are to leave out");
      if (mask != kAllLanes && !whole_warp) {
        move_to(mask, next);
        warp.running &= ~mask;
        warp.waiting |= mask;
        return;
      }
    }
    if (counts_ != nullptr) {
      ++counts_->instructions;
      if (instruction.is_move) ++counts_->moves;
    }
    switch (instruction.kind) {
      case Kind::kUsual:
      case Kind::kWarp:
        if (chosen != 0) instruction.run(*this, instruction, chosen);
        ++next;
        break;
      case Kind::kBarrier:
        move_to(mask, next + 1);
        warp.running &= ~mask;
        warp.at_barrier |= mask;
        return;
      case Kind::kEnd:
        End(chosen);
        mask &= ~chosen;
        if (mask == 0) return;
        ++next;
        break;
      case Kind::kBranch:
        if (chosen != mask && chosen != 0) {
          move_to(chosen, instruction.target);
          move_to(mask & ~chosen, next + 1);
          return;
        }
        next = chosen == 0 ? next + 1 : instruction.target;
        break;
    }
  }
  move_to(mask, next);
}

void RunGrid(const Kernel& kernel, const Launch& launch, Order order, Counts* counts) {
  // Kept from one grid to the next: there are megabytes of them, and they need not be cleared.
  thread_local std::vector<uint8_t> registers;
  const size_t needed = size_t{launch.threads} / kLanes * kernel.register_bytes;
  if (registers.size() < needed) registers.resize(needed);
  Block block(kernel, launch, order, registers.data(), counts);
  const int64_t blocks = int64_t{launch.grid[0]} * launch.grid[1] * launch.grid[2];
  for (int64_t i = 0; i < blocks; ++i) {
    const int64_t at = PlaceOf(order, i, blocks);
    block.Run({static_cast<uint32_t>(at % launch.grid[0]),
               static_cast<uint32_t>(at / launch.grid[0] % launch.grid[1]),
               static_cast<uint32_t>(at / launch.grid[0] / launch.grid[1])});
  }
}

}  // namespace blockserve::cuda::emulation::ptx
