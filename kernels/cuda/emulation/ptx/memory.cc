// Loads, stores, copies to shared memory, and atomics on it.
#include <algorithm>
#include <array>
#include <bit>
#include <cstring>
#include <map>
#include <set>

#include "kernels/cuda/emulation/ptx/block.h"

namespace blockserve::cuda::emulation::ptx {
namespace {

constexpr int32_t kCopyBytes = 16;

template <typename Address>
std::array<Address, kLanes> Addresses(Block& block, const Instruction& i) {
  std::array<Address, kLanes> addresses;
  for (int lane = 0; lane < kLanes; ++lane) {
    const Address base = i.base == kNoRegister ? 0 : block.lanes<Address>(i.base)[lane];
    addresses[lane] = base + static_cast<Address>(i.offset);
  }
  return addresses;
}

// Sectors of 32 bytes that the lanes touch.
void CountSectors(Block& block, const std::array<uint64_t, kLanes>& addresses, int32_t bytes,
                  LaneMask mask) {
  if (block.counts() == nullptr) return;
  std::set<uint64_t> sectors;
  for (int lane = 0; lane < kLanes; ++lane) {
    if (!(mask >> lane & 1)) continue;
    const uint64_t last = (addresses[lane] + bytes - 1) / 32;
    for (uint64_t sector = addresses[lane] / 32; sector <= last; ++sector) sectors.insert(sector);
  }
  block.counts()->global_sectors += static_cast<int64_t>(sectors.size());
}

// A quarter of the warp at a time where a lane has 16 bytes, half where it has 8: as often as there
// are different words in one of the 32 banks.
void CountWavefronts(Block& block, const std::array<uint32_t, kLanes>& addresses, int32_t bytes,
                     LaneMask mask) {
  if (block.counts() == nullptr) return;
  const int lanes = kLanes * 4 / std::max(bytes, 4);
  for (int first = 0; first < kLanes; first += lanes) {
    std::array<std::set<uint32_t>, 32> banks;
    size_t most = 0;
    for (int lane = first; lane < first + lanes; ++lane) {
      if (!(mask >> lane & 1)) continue;
      const uint32_t last = (addresses[lane] + bytes - 1) / 4;
      for (uint32_t word = addresses[lane] / 4; word <= last; ++word) {
        banks[word % 32].insert(word);
        most = std::max(most, banks[word % 32].size());
      }
    }
    block.counts()->shared_wavefronts += static_cast<int64_t>(most);
    block.counts()->least_wavefronts += most > 0 ? 1 : 0;
  }
}

uint64_t Extended(uint64_t value, int32_t bytes, bool is_signed) {
  const int shift = 64 - 8 * bytes;
  return is_signed ? static_cast<uint64_t>(static_cast<int64_t>(value << shift) >> shift)
                   : value << shift >> shift;
}

// A lane's elements from memory to registers.
void Take(Block& block, const Instruction& i, int lane, const uint8_t* from) {
  uint8_t bytes[32] = {};
  std::memcpy(bytes, from, i.used_bytes);
  for (int32_t e = 0; e < i.elements; ++e) {
    uint64_t value = 0;
    std::memcpy(&value, bytes + e * i.width, i.width);
    value = Extended(value, i.width, i.is_signed);
    if (i.wide) {
      block.lanes<uint64_t>(i.results[e])[lane] = value;
    } else {
      block.lanes<uint32_t>(i.results[e])[lane] = static_cast<uint32_t>(value);
    }
  }
}

void Give(Block& block, const Instruction& i, int lane, uint8_t* to) {
  for (int32_t e = 0; e < i.elements; ++e) {
    const uint64_t value = i.wide ? block.lanes<uint64_t>(i.sources[e])[lane]
                                  : block.lanes<uint32_t>(i.sources[e])[lane];
    std::memcpy(to + e * i.width, &value, i.width);
  }
}

void LoadParameter(Block& block, const Instruction& i, LaneMask mask) {
  const std::vector<uint8_t>& parameters = block.launch().parameters;
  if (i.offset < 0 || i.offset + i.used_bytes > static_cast<int64_t>(parameters.size())) {
    block.Fail("a parameter beyond the last");
  }
  for (int lane = 0; lane < kLanes; ++lane) {
    if (mask >> lane & 1) Take(block, i, lane, parameters.data() + i.offset);
  }
}

void LoadGlobal(Block& block, const Instruction& i, LaneMask mask) {
  const auto addresses = Addresses<uint64_t>(block, i);
  CountSectors(block, addresses, i.elements * i.width, mask);
  for (int lane = 0; lane < kLanes; ++lane) {
    if (!(mask >> lane & 1)) continue;
    block.CheckGlobal(addresses[lane], i.elements * i.width, i.used_bytes);
    Take(block, i, lane, reinterpret_cast<const uint8_t*>(addresses[lane]));
  }
}

void StoreGlobal(Block& block, const Instruction& i, LaneMask mask) {
  if ((mask & ~block.warp().waited) != 0) block.Fail("a write before earlier work was waited for");
  const auto addresses = Addresses<uint64_t>(block, i);
  CountSectors(block, addresses, i.elements * i.width, mask);
  for (int lane = 0; lane < kLanes; ++lane) {
    if (!(mask >> lane & 1)) continue;
    block.CheckGlobal(addresses[lane], i.elements * i.width, i.elements * i.width);
    Give(block, i, lane, reinterpret_cast<uint8_t*>(addresses[lane]));
  }
}

void LoadShared(Block& block, const Instruction& i, LaneMask mask) {
  const auto addresses = Addresses<uint32_t>(block, i);
  CountWavefronts(block, addresses, i.elements * i.width, mask);
  for (int lane = 0; lane < kLanes; ++lane) {
    if (!(mask >> lane & 1)) continue;
    block.CheckShared(addresses[lane], i.elements * i.width, i.used_bytes, lane,
                      Block::Access::kRead);
    Take(block, i, lane, block.shared(addresses[lane]));
  }
}

void StoreShared(Block& block, const Instruction& i, LaneMask mask) {
  const auto addresses = Addresses<uint32_t>(block, i);
  CountWavefronts(block, addresses, i.elements * i.width, mask);
  for (int lane = 0; lane < kLanes; ++lane) {
    if (!(mask >> lane & 1)) continue;
    const int32_t bytes = i.elements * i.width;
    block.CheckShared(addresses[lane], bytes, bytes, lane, Block::Access::kWrite);
    Give(block, i, lane, block.shared(addresses[lane]));
  }
}

template <auto kJoin>
void AtomicShared(Block& block, const Instruction& i, LaneMask mask) {
  const auto addresses = Addresses<uint32_t>(block, i);
  CountWavefronts(block, addresses, 4, mask);
  for (int lane = 0; lane < kLanes; ++lane) {
    if (!(mask >> lane & 1)) continue;
    block.CheckShared(addresses[lane], 4, 4, lane, Block::Access::kAtomic);
    uint32_t before;
    std::memcpy(&before, block.shared(addresses[lane]), sizeof(before));
    const uint32_t after = kJoin(before, block.lanes<uint32_t>(i.sources[0])[lane]);
    std::memcpy(block.shared(addresses[lane]), &after, sizeof(after));
    if (!i.results.empty()) block.lanes<uint32_t>(i.results[0])[lane] = before;
  }
}

// What is copied may be there at any time until it is waited for: until then it is nothing.
void BeginCopy(Block& block, const Instruction& i, LaneMask mask) {
  const auto to = Addresses<uint32_t>(block, i);
  std::array<uint64_t, kLanes> from;
  LaneMask reading = 0;
  for (int lane = 0; lane < kLanes; ++lane) {
    const uint32_t bytes = block.lanes<uint32_t>(i.sources[1])[lane];
    from[lane] = block.lanes<uint64_t>(i.sources[0])[lane] + i.source_offset;
    if (!(mask >> lane & 1)) continue;
    if (bytes == kCopyBytes) reading |= LaneMask{1} << lane;
    if (bytes != 0 && bytes != kCopyBytes) block.Fail("a copy of part of 16 bytes");
  }
  CountSectors(block, from, kCopyBytes, reading);
  CountWavefronts(block, to, kCopyBytes, mask);
  for (int lane = 0; lane < kLanes; ++lane) {
    if (!(mask >> lane & 1)) continue;
    const bool reads = reading >> lane & 1;
    if (reads) block.CheckGlobal(from[lane], kCopyBytes, kCopyBytes);
    block.CheckShared(to[lane], kCopyBytes, kCopyBytes, lane, Block::Access::kCopyBegins);
    std::memset(block.shared(to[lane]), 0xff, kCopyBytes);
    block.warp().copies[lane].push_back(
        {to[lane], reads ? from[lane] : 0, block.warp().copy_groups[lane]});
  }
}

void CommitCopies(Block& block, const Instruction& /*i*/, LaneMask mask) {
  for (int lane = 0; lane < kLanes; ++lane) {
    if (mask >> lane & 1) ++block.warp().copy_groups[lane];
  }
}

// For all groups but the last `option`.
void WaitForCopies(Block& block, const Instruction& i, LaneMask mask) {
  for (int lane = 0; lane < kLanes; ++lane) {
    if (!(mask >> lane & 1)) continue;
    std::vector<PendingCopy>& copies = block.warp().copies[lane];
    const int32_t end = block.warp().copy_groups[lane] - i.option;
    for (const PendingCopy& copy : copies) {
      if (copy.group >= end) continue;
      block.CheckShared(copy.to, kCopyBytes, kCopyBytes, lane, Block::Access::kCopyEnds);
      if (copy.from == 0) {
        std::memset(block.shared(copy.to), 0, kCopyBytes);
      } else {
        block.CheckGlobal(copy.from, kCopyBytes, kCopyBytes);
        std::memcpy(block.shared(copy.to), reinterpret_cast<const void*>(copy.from), kCopyBytes);
      }
    }
    std::erase_if(copies, [&](const PendingCopy& copy) { return copy.group < end; });
  }
}

void WaitForEarlierWork(Block& block, const Instruction& /*i*/, LaneMask mask) {
  block.warp().waited |= mask;
}
void Nothing(Block& /*block*/, const Instruction& /*i*/, LaneMask /*mask*/) {}

}  // namespace

const KnownInstruction* FindMemoryOperation(const std::string& name) {
  static const auto* table = new std::map<std::string, KnownInstruction>{
      {"ld.param", {LoadParameter}},
      {"ld.global", {LoadGlobal}},
      {"ld.shared", {LoadShared}},
      {"st.global", {StoreGlobal}},
      {"st.shared", {StoreShared}},
      {"atom.shared.add", {AtomicShared<[](uint32_t a, uint32_t b) { return a + b; }>}},
      {"atom.shared.or", {AtomicShared<[](uint32_t a, uint32_t b) { return a | b; }>}},
      {"cp.async.cg.shared.global", {BeginCopy}},
      {"cp.async.commit_group", {CommitCopies}},
      {"cp.async.wait_group", {WaitForCopies}},
      {"griddepcontrol.wait", {WaitForEarlierWork}},
      {"griddepcontrol.launch_dependents", {Nothing}},
  };
  const auto found = table->find(name);
  return found == table->end() ? nullptr : &found->second;
}

}  // namespace blockserve::cuda::emulation::ptx
