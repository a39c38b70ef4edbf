// What identifies a model: hashes of its parts, and the id made of them. Each tier hashes the part
// that it loads; the gateway hashes configuration and tokenizer and combines all four.
#ifndef BLOCKSERVE_MODEL_FINGERPRINT_H_
#define BLOCKSERVE_MODEL_FINGERPRINT_H_

#include <cstdint>
#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/types/span.h"
#include "model/config.h"

namespace blockserve {

// SHA-256 of a stream of bytes.
class Sha256 {
 public:
  Sha256();
  ~Sha256();
  void Update(absl::Span<const uint8_t> bytes);
  void Update(absl::string_view text);
  // Lowercase hex, 64 characters. Ends the stream: once only.
  std::string Hex();

 private:
  struct State;
  std::unique_ptr<State> state_;
};

// SHA-256 of what a configuration means, not of the file's bytes: key order, white space, and
// fields that nothing here reads (transformers_version, …) differ between copies of one model, and
// two machines whose answers are equal must be allowed to stand in for each other.
std::string ConfigHash(const ModelConfig& config);

// SHA-256 of the bytes of `directory`/tokenizer.json. Here bytes are right: nearly all of the file
// is vocabulary and merges. A model without tokenizer has a hash of its own. Errors: those of
// reading.
absl::StatusOr<std::string> TokenizerHash(const std::string& directory);

// The model's id, 16 hex digits: a hash of the four hashes (the last two from
// Checkpoint::HashTensors).
std::string ModelId(absl::string_view config_hash, absl::string_view tokenizer_hash,
                    absl::string_view block_hash, absl::string_view token_hash);

}  // namespace blockserve

#endif  // BLOCKSERVE_MODEL_FINGERPRINT_H_
