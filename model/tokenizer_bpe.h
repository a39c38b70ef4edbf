// Byte-pair encoding of one word.
#ifndef BLOCKSERVE_MODEL_TOKENIZER_BPE_H_
#define BLOCKSERVE_MODEL_TOKENIZER_BPE_H_

#include <array>
#include <cstdint>
#include <string>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/status/status.h"
#include "absl/strings/string_view.h"
#include "model/tokenizer_file.h"

namespace blockserve {

// Immutable after construction.
class BytePairEncoder {
 public:
  explicit BytePairEncoder(const TokenizerSpec& spec);

  // Appends the ids of `word`: the best merge first, the leftmost of equals, until none applies.
  // Time n log n in the word's bytes. Errors: INVALID_ARGUMENT naming a byte that has no token.
  absl::Status Encode(absl::string_view word, std::vector<int32_t>& ids) const;

 private:
  struct Merge {
    int32_t rank = 0;
    int32_t merged = 0;
  };
  static uint64_t PairKey(int32_t left, int32_t right) {
    return uint64_t{static_cast<uint32_t>(left)} << 32 | static_cast<uint32_t>(right);
  }
  // nullptr when the two do not merge.
  const Merge* FindMerge(int32_t left, int32_t right) const;

  void MergeShort(absl::string_view word, std::vector<int32_t>& ids) const;
  void MergeLong(absl::string_view word, std::vector<int32_t>& ids) const;

  std::array<int32_t, 256> byte_tokens_;  // -1: no token
  absl::flat_hash_map<uint64_t, Merge> merges_;
  // Whole words by their bytes; only with ignore_merges.
  absl::flat_hash_map<std::string, int32_t> words_;
};

}  // namespace blockserve

#endif  // BLOCKSERVE_MODEL_TOKENIZER_BPE_H_
