#include "gateway/tier_identity.h"

#include <algorithm>

#include "absl/strings/str_cat.h"

namespace blockserve {

std::string ImpossibleCapacity(std::initializer_list<ToldCapacity> told) {
  for (const ToldCapacity& capacity : told) {
    if (capacity.value >= 0 && capacity.value <= capacity.most) continue;
    return absl::StrCat(capacity.field, " ", capacity.value, ", which is not from 0 to ",
                        capacity.most);
  }
  return "";
}

absl::Status CheckIdentity(const ExpectedModel& expected, const TierIdentity& worker,
                           absl::string_view tier, absl::string_view address) {
  const std::string who = absl::StrCat(tier, " '", worker.name, "' at ", address);
  const auto differs = [&](absl::string_view what, const auto& theirs, const auto& ours) {
    return absl::FailedPreconditionError(
        absl::StrCat(who, " has ", what, " ", theirs, ", this gateway has ", ours));
  };
  if (!WorksWithTierProtocol(worker.protocol_version)) {
    return differs("protocol version", worker.protocol_version, kTierProtocolVersion);
  }
  if (worker.config_hash != expected.config_hash) {
    return differs("config hash", worker.config_hash, expected.config_hash);
  }
  if (worker.tokenizer_hash != expected.tokenizer_hash) {
    return differs("tokenizer hash", worker.tokenizer_hash, expected.tokenizer_hash);
  }
  if (worker.block_length != expected.block_length) {
    return differs("block length", worker.block_length, expected.block_length);
  }
  if (worker.context_width != expected.context_width) {
    return differs("context width", worker.context_width, expected.context_width);
  }
  if (worker.vocab_size != 0 && worker.vocab_size != expected.vocab_size) {
    return differs("vocabulary size", worker.vocab_size, expected.vocab_size);
  }
  if (!worker.knows_context_type) {
    return absl::FailedPreconditionError(
        absl::StrCat(who, " sends contexts of a type that this gateway does not know"));
  }
  if (!worker.impossible.empty()) {
    return absl::FailedPreconditionError(absl::StrCat(who, " has ", worker.impossible));
  }
  return absl::OkStatus();
}

void TierPresence::Add(const TierGroup& group, absl::Time now) {
  Entry& entry = groups_[group];
  ++entry.workers;
  entry.grown_at = now;
  ++total_;
}

void TierPresence::Remove(const TierGroup& group, absl::Time now) {
  const auto found = groups_.find(group);
  if (found == groups_.end() || found->second.workers == 0) return;
  last_loss_ = now;
  if (--found->second.workers == 0) found->second.away_since = now;
  if (--total_ == 0) away_since_ = now;
}

int TierPresence::workers(const TierGroup& group) const {
  const auto found = groups_.find(group);
  return found == groups_.end() ? 0 : found->second.workers;
}

absl::Time TierPresence::AwaySince(const TierGroup& group) const {
  const auto found = groups_.find(group);
  if (found == groups_.end()) return away_since_;
  return found->second.workers > 0 ? absl::InfiniteFuture() : found->second.away_since;
}

std::vector<TierPresence::Group> TierPresence::Groups() const {
  std::vector<Group> groups;
  for (const auto& [group, entry] : groups_) {
    if (entry.workers > 0) groups.push_back({group, entry.workers, entry.grown_at});
  }
  return groups;
}

std::optional<TierPair> BestPair(
    const TierPresence& blocks, const TierPresence& tokens,
    const std::function<bool(const TierGroup& block, const TierGroup& token)>& may_serve) {
  std::optional<TierPair> best;
  std::tuple<int, int, absl::Time, absl::Time> most;
  for (const auto& [block, replicas, block_grown] : blocks.Groups()) {
    for (const auto& [token, workers, token_grown] : tokens.Groups()) {
      const bool fit = block.model_digest == token.model_digest || block.model_digest.empty() ||
                       token.model_digest.empty();
      const std::tuple rank(std::min(replicas, workers), replicas + workers,
                            std::max(block_grown, token_grown), std::min(block_grown, token_grown));
      if (!fit || (best.has_value() && rank <= most)) continue;
      if (may_serve != nullptr && !may_serve(block, token)) continue;
      most = rank;
      best = {block, token};
    }
  }
  return best;
}

std::optional<TierGroup> TierPresence::Largest() const {
  const std::vector<Group> groups = Groups();
  const auto best =
      std::max_element(groups.begin(), groups.end(), [](const Group& a, const Group& b) {
        return std::tie(a.workers, a.grown_at) < std::tie(b.workers, b.grown_at);
      });
  if (best == groups.end()) return std::nullopt;
  return best->group;
}

}  // namespace blockserve
