#include "model/fingerprint.h"

#include <openssl/evp.h>

#include "absl/status/status.h"
#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "common/read_file.h"
#include "model/tokenizer_file.h"

namespace blockserve {
namespace {

// In hexadecimal: exact, and the same text on every machine.
std::string ExactNumber(double value) { return absl::StrFormat("%a", value); }

std::string StackText(const StackConfig& stack) {
  return absl::StrCat(stack.hidden_size, " ", stack.num_heads, " ", stack.num_layers, " ",
                      stack.intermediate_size, " ", stack.max_positions, " ",
                      ExactNumber(stack.rotary_pct), " ", ExactNumber(stack.rotary_base), " ",
                      ExactNumber(stack.layer_norm_eps), " ", stack.parallel_residual);
}

}  // namespace

struct Sha256::State {
  EVP_MD_CTX* context = EVP_MD_CTX_new();
  ~State() { EVP_MD_CTX_free(context); }
};

Sha256::Sha256() : state_(std::make_unique<State>()) {
  EVP_DigestInit_ex(state_->context, EVP_sha256(), nullptr);
}

Sha256::~Sha256() = default;

void Sha256::Update(absl::Span<const uint8_t> bytes) {
  EVP_DigestUpdate(state_->context, bytes.data(), bytes.size());
}

void Sha256::Update(absl::string_view text) {
  EVP_DigestUpdate(state_->context, text.data(), text.size());
}

std::string Sha256::Hex() {
  unsigned char digest[EVP_MAX_MD_SIZE];
  unsigned int size = 0;
  EVP_DigestFinal_ex(state_->context, digest, &size);
  return absl::BytesToHexString(absl::string_view(reinterpret_cast<const char*>(digest), size));
}

std::string ConfigHash(const ModelConfig& config) {
  // torch_dtype is left out: the dtypes that count are the tensors' own, which the tiers hash.
  Sha256 hash;
  hash.Update(absl::StrCat("blockserve config 1\n", static_cast<int>(config.kind), " ",
                           config.block_length, " ", config.vocab_size, " ", config.bos_token_id,
                           " ", config.eos_token_id, " ", config.pad_token_id, " ",
                           static_cast<int>(config.projection), " ", config.embedding_width, " ",
                           config.expansion_ratio, " ", static_cast<int>(config.strategy), " ",
                           AlignmentName(config.default_alignment), "\nblock ",
                           StackText(config.block), "\ntoken ", StackText(config.token), "\n"));
  return hash.Hex();
}

absl::StatusOr<std::string> TokenizerHash(const std::string& directory) {
  Sha256 hash;
  absl::StatusOr<std::string> text =
      ReadFile(absl::StrCat(directory, "/", kTokenizerFileName), kMaxTokenizerFileBytes);
  if (text.ok()) {
    hash.Update(*text);
  } else if (absl::IsNotFound(text.status())) {
    hash.Update("blockserve: no tokenizer");
  } else {
    return text.status();
  }
  return hash.Hex();
}

std::string ModelId(absl::string_view config_hash, absl::string_view tokenizer_hash,
                    absl::string_view block_hash, absl::string_view token_hash) {
  Sha256 hash;
  hash.Update(absl::StrCat("blockserve model 1\n", config_hash, "\n", tokenizer_hash, "\n",
                           block_hash, "\n", token_hash, "\n"));
  return hash.Hex().substr(0, 16);
}

}  // namespace blockserve
