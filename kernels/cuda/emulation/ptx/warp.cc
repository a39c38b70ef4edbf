// What the lanes of a warp do together, and where they part.
#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>
#include <map>

#include "common/bf16.h"
#include "kernels/cuda/emulation/ptx/block.h"

namespace blockserve::cuda::emulation::ptx {
namespace {

void Nothing(Block& /*block*/, const Instruction& /*i*/, LaneMask /*mask*/) {}

void ExpectWholeWarp(Block& block, Register members) {
  for (int lane = 0; lane < kLanes; ++lane) {
    if (block.lanes<uint32_t>(members)[lane] != kAllLanes) {
      block.Fail("an operation of some lanes of a warp");
    }
  }
}

enum Exchange { kUp, kDown, kXor, kIndex };

// Sources: value, distance or lane, limits, members. A lane that would look beyond the limits gets
// its own value, and false.
void Shuffle(Block& block, const Instruction& i, LaneMask /*mask*/) {
  ExpectWholeWarp(block, i.sources[3]);
  std::array<uint32_t, kLanes> values;
  std::memcpy(values.data(), block.lanes<uint32_t>(i.sources[0]), sizeof(values));
  LaneMask within = 0;
  for (int lane = 0; lane < kLanes; ++lane) {
    const auto by = static_cast<int>(block.lanes<uint32_t>(i.sources[1])[lane] & 31);
    const uint32_t limits = block.lanes<uint32_t>(i.sources[2])[lane];
    const auto segment = static_cast<int>(limits >> 8 & 31);
    const auto clamp = static_cast<int>(limits & 31);
    const int first = lane & segment;
    const int last = first | (clamp & ~segment);
    int from = 0;
    switch (static_cast<Exchange>(i.option)) {
      case kUp:
        from = lane - by;
        break;
      case kDown:
        from = lane + by;
        break;
      case kXor:
        from = lane ^ by;
        break;
      case kIndex:
        from = first | (by & ~segment);
        break;
    }
    const bool in = i.option == kUp ? from >= last : from <= last;
    if (in) within |= LaneMask{1} << lane;
    block.lanes<uint32_t>(i.results[0])[lane] = values[in ? from : lane];
  }
  if (i.results.size() > 1) block.predicate(i.results[1]) = within;
}

void Ballot(Block& block, const Instruction& i, LaneMask /*mask*/) {
  ExpectWholeWarp(block, i.sources[1]);
  const LaneMask votes = block.predicate(i.sources[0]);
  for (int lane = 0; lane < kLanes; ++lane) block.lanes<uint32_t>(i.results[0])[lane] = votes;
}

void Barrier(Block& block, const Instruction& i, LaneMask /*mask*/) {
  ExpectWholeWarp(block, i.sources[0]);
  ++block.warp().epoch;
}

// Four matrices of 8 x 8 elements of 16 bits; option 1: transposed.
void LoadMatrices(Block& block, const Instruction& i, LaneMask /*mask*/) {
  std::array<uint32_t, kLanes> rows;
  for (int lane = 0; lane < kLanes; ++lane) {
    rows[lane] = block.lanes<uint32_t>(i.base)[lane] + static_cast<uint32_t>(i.offset);
    block.CheckShared(rows[lane], 16, 16, lane, Block::Access::kRead);
  }
  if (block.counts() != nullptr) {
    // Eight rows of 16 bytes at a time.
    for (int first = 0; first < kLanes; first += 8) {
      int of_bank[8] = {};
      int most = 0;
      for (int lane = first; lane < first + 8; ++lane) {
        most = std::max(most, ++of_bank[rows[lane] / 16 % 8]);
      }
      block.counts()->shared_wavefronts += most;
      ++block.counts()->least_wavefronts;
    }
  }
  const auto element = [&](int matrix, int row, int column) {
    uint16_t bits;
    std::memcpy(&bits, block.shared(rows[matrix * 8 + row]) + 2 * column, sizeof(bits));
    return uint32_t{bits};
  };
  for (int matrix = 0; matrix < 4; ++matrix) {
    for (int lane = 0; lane < kLanes; ++lane) {
      const int major = lane / 4;
      const int minor = lane % 4 * 2;
      block.lanes<uint32_t>(i.results[matrix])[lane] =
          i.option == 1 ? element(matrix, minor, major) | element(matrix, minor + 1, major) << 16
                        : element(matrix, major, minor) | element(matrix, major, minor + 1) << 16;
    }
  }
}

// d (16 x 8) = a (16 x 16) b (16 x 8) + c. Of the device's bits this has only the accuracy; those
// of kernels/cuda/emulation/cuda_language.h are the same.
void MultiplyAdd(Block& block, const Instruction& i, LaneMask /*mask*/) {
  float a[16][16];
  float b[16][8];
  const auto low = [](uint32_t pair) { return FloatFromBf16(static_cast<uint16_t>(pair)); };
  const auto high = [](uint32_t pair) { return FloatFromBf16(static_cast<uint16_t>(pair >> 16)); };
  for (int lane = 0; lane < kLanes; ++lane) {
    const int group = lane / 4;
    const int pair = lane % 4 * 2;
    for (int j = 0; j < 4; ++j) {
      const uint32_t values = block.lanes<uint32_t>(i.sources[j])[lane];
      a[group + j % 2 * 8][pair + j / 2 * 8] = low(values);
      a[group + j % 2 * 8][pair + j / 2 * 8 + 1] = high(values);
    }
    for (int j = 0; j < 2; ++j) {
      const uint32_t values = block.lanes<uint32_t>(i.sources[4 + j])[lane];
      b[pair + j * 8][group] = low(values);
      b[pair + j * 8 + 1][group] = high(values);
    }
  }
  for (int j = 0; j < 4; ++j) {
    for (int lane = 0; lane < kLanes; ++lane) {
      const int row = lane / 4 + j / 2 * 8;
      const int column = lane % 4 * 2 + j % 2;
      float sum = block.lanes<float>(i.sources[6 + j])[lane];
      for (int k = 0; k < 16; ++k) sum = std::fma(a[row][k], b[k][column], sum);
      block.lanes<float>(i.results[j])[lane] = sum;
    }
  }
}

}  // namespace

const KnownInstruction* FindWarpOperation(const std::string& name) {
  static const auto* table = new std::map<std::string, KnownInstruction>{
      {"bra", {Nothing, Kind::kBranch}},
      {"bra.uni", {Nothing, Kind::kBranch}},
      {"ret", {Nothing, Kind::kEnd}},
      {"exit", {Nothing, Kind::kEnd}},
      {"bar.sync", {Nothing, Kind::kBarrier}},
      {"bar.warp.sync", {Barrier, Kind::kWarp}},
      {"shfl.sync.up.b32", {Shuffle, Kind::kWarp, kUp}},
      {"shfl.sync.down.b32", {Shuffle, Kind::kWarp, kDown}},
      {"shfl.sync.bfly.b32", {Shuffle, Kind::kWarp, kXor}},
      {"shfl.sync.idx.b32", {Shuffle, Kind::kWarp, kIndex}},
      {"vote.sync.ballot.b32", {Ballot, Kind::kWarp}},
      {"ldmatrix.sync.aligned.m8n8.x4.shared.b16", {LoadMatrices, Kind::kWarp, 0}},
      {"ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16", {LoadMatrices, Kind::kWarp, 1}},
      {"mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32", {MultiplyAdd, Kind::kWarp}},
  };
  const auto found = table->find(name);
  return found == table->end() ? nullptr : &found->second;
}

}  // namespace blockserve::cuda::emulation::ptx
