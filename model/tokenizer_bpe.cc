#include "model/tokenizer_bpe.h"

#include <algorithm>
#include <limits>
#include <queue>
#include <tuple>

#include "absl/strings/str_format.h"
#include "model/tokenizer_byte_level.h"

namespace blockserve {
namespace {

// Up to this many bytes a scan for the best merge beats a heap; nearly every word is shorter.
constexpr size_t kShortWordBytes = 48;
constexpr int32_t kNoMerge = std::numeric_limits<int32_t>::max();

}  // namespace

BytePairEncoder::BytePairEncoder(const TokenizerSpec& spec) {
  absl::flat_hash_map<absl::string_view, int32_t> id_by_token;
  id_by_token.reserve(spec.tokens.size());
  for (size_t id = 0; id < spec.tokens.size(); ++id) {
    if (!spec.tokens[id].empty()) id_by_token.emplace(spec.tokens[id], static_cast<int32_t>(id));
  }
  const std::array<std::string, 256>& alphabet = ByteAlphabet();
  for (size_t byte = 0; byte < 256; ++byte) {
    const auto found = id_by_token.find(alphabet[byte]);
    byte_tokens_[byte] = found == id_by_token.end() ? -1 : found->second;
  }
  merges_.reserve(spec.merges.size());
  for (size_t rank = 0; rank < spec.merges.size(); ++rank) {
    const MergeRule& rule = spec.merges[rank];
    // Of a pair that stands twice the later rank counts, as in Hugging Face's.
    merges_.insert_or_assign(PairKey(rule.left, rule.right),
                             Merge{static_cast<int32_t>(rank), rule.merged});
  }
  if (spec.ignore_merges) {
    std::string bytes;
    for (const auto& [token, id] : id_by_token) {
      if (ReadAlphabet(token, bytes)) words_.emplace(bytes, id);
    }
  }
}

const BytePairEncoder::Merge* BytePairEncoder::FindMerge(int32_t left, int32_t right) const {
  const auto found = merges_.find(PairKey(left, right));
  return found == merges_.end() ? nullptr : &found->second;
}

absl::Status BytePairEncoder::Encode(absl::string_view word, std::vector<int32_t>& ids) const {
  for (const char byte : word) {
    if (byte_tokens_[static_cast<uint8_t>(byte)] < 0) {
      return absl::InvalidArgumentError(absl::StrFormat(
          "the tokenizer's vocabulary has no token for byte 0x%02X", static_cast<uint8_t>(byte)));
    }
  }
  if (!words_.empty()) {
    if (const auto found = words_.find(word); found != words_.end()) {
      ids.push_back(found->second);
      return absl::OkStatus();
    }
  }
  if (word.size() <= kShortWordBytes) {
    MergeShort(word, ids);
  } else {
    MergeLong(word, ids);
  }
  return absl::OkStatus();
}

void BytePairEncoder::MergeShort(absl::string_view word, std::vector<int32_t>& ids) const {
  int32_t symbols[kShortWordBytes];
  int32_t ranks[kShortWordBytes];   // of the merge of symbols i and i + 1
  int32_t merged[kShortWordBytes];  // its result
  size_t count = word.size();
  const auto look_up = [&](size_t i) {
    const Merge* merge = FindMerge(symbols[i], symbols[i + 1]);
    ranks[i] = merge == nullptr ? kNoMerge : merge->rank;
    merged[i] = merge == nullptr ? -1 : merge->merged;
  };
  for (size_t i = 0; i < count; ++i) symbols[i] = byte_tokens_[static_cast<uint8_t>(word[i])];
  for (size_t i = 0; i + 1 < count; ++i) look_up(i);
  while (count > 1) {
    const size_t best = static_cast<size_t>(std::min_element(ranks, ranks + count - 1) - ranks);
    if (ranks[best] == kNoMerge) break;
    symbols[best] = merged[best];
    std::copy(symbols + best + 2, symbols + count, symbols + best + 1);
    std::copy(ranks + best + 1, ranks + count - 1, ranks + best);
    std::copy(merged + best + 1, merged + count - 1, merged + best);
    --count;
    if (best > 0) look_up(best - 1);
    if (best + 1 < count) look_up(best);
  }
  ids.insert(ids.end(), symbols, symbols + count);
}

void BytePairEncoder::MergeLong(absl::string_view word, std::vector<int32_t>& ids) const {
  // A list linked both ways; a symbol that was merged into its left neighbour has token -1.
  struct Symbol {
    int32_t token;
    int64_t previous;
    int64_t next;
  };
  const int64_t count = static_cast<int64_t>(word.size());
  std::vector<Symbol> symbols(word.size());
  for (int64_t i = 0; i < count; ++i) {
    const auto at = static_cast<size_t>(i);
    symbols[at] = {byte_tokens_[static_cast<uint8_t>(word[at])], i - 1,
                   i + 1 == count ? -1 : i + 1};
  }
  // (rank, left symbol, result); smallest first. An entry is stale when what stands there now would
  // not give its result.
  using Candidate = std::tuple<int32_t, int64_t, int32_t>;
  std::priority_queue<Candidate, std::vector<Candidate>, std::greater<>> queue;
  const auto propose = [&](int64_t left) {
    const Symbol& symbol = symbols[static_cast<size_t>(left)];
    if (symbol.next < 0) return;
    const Merge* merge = FindMerge(symbol.token, symbols[static_cast<size_t>(symbol.next)].token);
    if (merge != nullptr) queue.emplace(merge->rank, left, merge->merged);
  };
  for (int64_t i = 0; i + 1 < count; ++i) propose(i);
  while (!queue.empty()) {
    const auto [rank, left, result] = queue.top();
    queue.pop();
    Symbol& symbol = symbols[static_cast<size_t>(left)];
    if (symbol.token < 0 || symbol.next < 0) continue;
    Symbol& right = symbols[static_cast<size_t>(symbol.next)];
    const Merge* merge = FindMerge(symbol.token, right.token);
    if (merge == nullptr || merge->merged != result) continue;
    symbol.token = result;
    right.token = -1;
    symbol.next = right.next;
    if (symbol.next >= 0) symbols[static_cast<size_t>(symbol.next)].previous = left;
    if (symbol.previous >= 0) propose(symbol.previous);
    propose(left);
  }
  for (int64_t i = 0; i >= 0; i = symbols[static_cast<size_t>(i)].next) {
    ids.push_back(symbols[static_cast<size_t>(i)].token);
  }
}

}  // namespace blockserve
