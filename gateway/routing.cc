#include "gateway/routing.h"

#include <algorithm>

namespace blockserve {
namespace {

// Sequences that a replica may have for the sake of its prefixes: so much more than the mean. A few
// more cost a step next to nothing.
constexpr double kPrefixShare = 1.25;
constexpr double kPrefixSlack = 4;

// Messages of a turn below which rows are not packed.
constexpr int64_t kFewMessages = 4;
// Share of a worker's best batch that is packed.
constexpr int32_t kPackShare = 8;
// Up to so many workers get one row after another in turn.
constexpr size_t kFewWorkers = 16;

}  // namespace

int TokenRouter::Pick(absl::Span<const TokenWorkerView> workers, bool gives_way) {
  int best = -1;
  const size_t count = workers.size();
  for (size_t i = 0; i < count; ++i) {
    const size_t index = (turn_ + i) % count;
    const TokenWorkerView& worker = workers[index];
    if (!worker.takes_more(gives_way)) continue;
    if (best < 0) {
      best = static_cast<int>(index);
      continue;
    }
    const TokenWorkerView& other = workers[static_cast<size_t>(best)];
    if (worker.suspect != other.suspect) {
      if (other.suspect) best = static_cast<int>(index);
      continue;
    }
    if (worker.in_flight + worker.reported_waiting < other.in_flight + other.reported_waiting) {
      best = static_cast<int>(index);
    }
  }
  if (best >= 0) turn_ = (static_cast<size_t>(best) + 1) % count;
  return best;
}

int64_t PackSize(int64_t rows_of_turn, size_t workers, int32_t best_rows) {
  if (workers <= kFewWorkers) return 1;
  return std::clamp<int64_t>((rows_of_turn + kFewMessages - 1) / kFewMessages, 1,
                             std::max(1, best_rows / kPackShare));
}

int PickReplica(absl::Span<const BlockReplicaView> replicas, int64_t needed_pages) {
  const auto share = [](const BlockReplicaView& replica) {
    return static_cast<double>(replica.available_pages) /
           static_cast<double>(std::max<int64_t>(1, replica.pages));
  };
  int64_t sequences = 0;
  int64_t there = 0;
  for (const BlockReplicaView& replica : replicas) {
    if (!replica.usable || replica.suspect) continue;
    sequences += replica.sequences;
    ++there;
  }
  const double mean =
      static_cast<double>(sequences) / static_cast<double>(std::max<int64_t>(1, there));
  const auto draws = [most = kPrefixShare * mean + kPrefixSlack](const BlockReplicaView& replica) {
    return replica.has_prefix && static_cast<double>(replica.sequences) < most;
  };
  // Better: not suspect, enough pages, more of them (a tenth of the pool does not count), the
  // prefix, fewer sequences.
  const auto better = [&](const BlockReplicaView& a, const BlockReplicaView& b) {
    if (a.suspect != b.suspect) return b.suspect;
    const bool a_fits = a.available_pages >= needed_pages;
    const bool b_fits = b.available_pages >= needed_pages;
    if (a_fits != b_fits) return a_fits;
    const double difference = share(a) - share(b);
    if (difference > 0.1) return true;
    if (difference < -0.1) return false;
    if (draws(a) != draws(b)) return draws(a);
    if (a.sequences != b.sequences) return a.sequences < b.sequences;
    return difference > 0;
  };
  int best = -1;
  for (size_t i = 0; i < replicas.size(); ++i) {
    const BlockReplicaView& replica = replicas[i];
    if (!replica.usable) continue;
    if (replica.available_pages < needed_pages && !replica.idle) continue;
    if (best < 0 || better(replica, replicas[static_cast<size_t>(best)])) {
      best = static_cast<int>(i);
    }
  }
  return best;
}

int64_t EstimatePages(int64_t prompt_blocks, int64_t reserve_blocks, int32_t block_length,
                      int32_t page_blocks) {
  const int64_t ahead = std::min<int64_t>(reserve_blocks, (256 + block_length - 1) / block_length);
  const int64_t page = std::max(1, page_blocks);
  return (prompt_blocks + ahead + page - 1) / page;
}

uint64_t PrefixMemory::Key(absl::uint128 cache_pool, absl::Span<const int32_t> prompt,
                           size_t page_tokens) {
  // FNV-1a over the ids: stable between runs, and a collision costs only a worse choice of replica.
  uint64_t hash = 0xcbf29ce484222325u;
  const auto add = [&hash](uint64_t value, int bits) {
    for (int shift = 0; shift < bits; shift += 8) {
      hash ^= (value >> shift) & 0xffu;
      hash *= 0x100000001b3u;
    }
  };
  add(absl::Uint128High64(cache_pool), 64);
  add(absl::Uint128Low64(cache_pool), 64);
  for (const int32_t token : prompt.subspan(0, std::min(prompt.size(), page_tokens))) {
    add(static_cast<uint32_t>(token), 32);
  }
  return hash;
}

void PrefixMemory::Remember(uint64_t key) {
  order_.push_back(key);
  ++counts_[key];
  while (order_.size() > capacity_) {
    const auto oldest = counts_.find(order_.front());
    if (--oldest->second == 0) counts_.erase(oldest);
    order_.pop_front();
  }
}

}  // namespace blockserve
