// Finds added tokens in text, with Hugging Face's rules.
#ifndef BLOCKSERVE_MODEL_TOKENIZER_ADDED_H_
#define BLOCKSERVE_MODEL_TOKENIZER_ADDED_H_

#include <bitset>
#include <cstddef>
#include <cstdint>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "absl/strings/string_view.h"
#include "model/tokenizer_file.h"

namespace blockserve {

// Immutable after construction.
class AddedTokenMatcher {
 public:
  // Contents must not be empty; of equal contents the last counts.
  explicit AddedTokenMatcher(std::vector<AddedToken> tokens);

  // A piece of text: an added token, or text in which none stands.
  struct Piece {
    absl::string_view text;
    int32_t id = -1;  // -1: plain text
  };

  // Calls `piece` with the pieces of `text` (well-formed UTF-8) in order: of tokens that match, the
  // leftmost, and of those the longest. Stops at the first error of `piece` and returns it.
  absl::Status Split(absl::string_view text, absl::FunctionRef<absl::Status(Piece)> piece) const;

 private:
  struct Match {
    const AddedToken* token = nullptr;  // none when nullptr
    size_t begin = 0;
    size_t end = 0;
  };
  // The first token at or after `from`, whatever its flags.
  Match FindFirst(absl::string_view text, size_t from) const;

  std::vector<AddedToken> tokens_;
  // A trie over bytes: (node << 8 | byte) -> node, node 0 being the root.
  absl::flat_hash_map<uint64_t, uint32_t> edges_;
  std::vector<int32_t> token_of_node_;  // index into tokens_, -1 for none
  std::bitset<256> first_bytes_;        // of all tokens
};

}  // namespace blockserve

#endif  // BLOCKSERVE_MODEL_TOKENIZER_ADDED_H_
