#include "block_service/sequence_table.h"

#include <algorithm>

namespace blockserve {

BlockSequence* SequenceTable::Find(const SequenceKey& key) const {
  const auto found = sequences_.find(key);
  return found == sequences_.end() ? nullptr : found->second.get();
}

BlockSequence& SequenceTable::Insert(const SequenceKey& key, StreamId stream) {
  std::unique_ptr<BlockSequence>& sequence = sequences_[key];
  sequence = std::make_unique<BlockSequence>();
  sequence->key = key;
  sequence->stream = stream;
  return *sequence;
}

void SequenceTable::Erase(const SequenceKey& key) {
  const auto found = sequences_.find(key);
  if (found->second->lease_end != absl::InfiniteFuture()) --away_;
  sequences_.erase(found);
}

void SequenceTable::Attach(uint64_t incarnation, StreamId stream) {
  for (const auto& [key, sequence] : sequences_) {
    if (key.incarnation != incarnation) continue;
    if (sequence->lease_end != absl::InfiniteFuture()) --away_;
    sequence->stream = stream;
    sequence->lease_end = absl::InfiniteFuture();
    sequence->kv.SetYielding(false);
  }
}

void SequenceTable::Detach(StreamId stream, absl::Time now) {
  for (const auto& [key, sequence] : sequences_) {
    if (sequence->stream != stream) continue;
    if (sequence->lease_end == absl::InfiniteFuture()) ++away_;
    sequence->stream = 0;
    sequence->lease_end = now + lease_;
    sequence->kv.SetYielding(true);
  }
}

std::vector<SequenceKey> SequenceTable::Expired(absl::Time now) const {
  std::vector<SequenceKey> expired;
  if (away_ == 0) return expired;
  for (const auto& [key, sequence] : sequences_) {
    if (sequence->lease_end <= now) expired.push_back(key);
  }
  return expired;
}

absl::Time SequenceTable::NextExpiry() const {
  absl::Time next = absl::InfiniteFuture();
  if (away_ == 0) return next;
  for (const auto& [key, sequence] : sequences_) next = std::min(next, sequence->lease_end);
  return next;
}

BlockSequence* SequenceTable::OldestLease(bool with_pages) const {
  BlockSequence* oldest = nullptr;
  if (away_ == 0) return oldest;
  for (const auto& [key, sequence] : sequences_) {
    if (sequence->stream != 0 || (with_pages && sequence->kv.pages().empty())) continue;
    if (oldest == nullptr || sequence->lease_end < oldest->lease_end ||
        (sequence->lease_end == oldest->lease_end && sequence->admitted > oldest->admitted)) {
      oldest = sequence.get();
    }
  }
  return oldest;
}

BlockSequence* SequenceTable::NewestUnprotected(const BlockSequence& except) const {
  BlockSequence* newest = nullptr;
  for (const auto& [key, sequence] : sequences_) {
    if (sequence.get() == &except || sequence->state != BlockSequence::State::kOpen ||
        sequence->kv.blocks() < sequence->protected_blocks) {
      continue;
    }
    if (newest == nullptr || sequence->admitted > newest->admitted) newest = sequence.get();
  }
  return newest;
}

}  // namespace blockserve
