// The messages of the public interface, of any bytes: refused in words that name a field, or turned
// into requests that hold what the core relies on.
#include <google/protobuf/stubs/logging.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <memory>

#include "absl/time/time.h"
#include "blockserve/v1/generation.pb.h"
#include "common/utf8.h"
#include "gateway/output_end.h"
#include "gateway/validate.h"
#include "model/tokenizer.h"

namespace blockserve {
namespace {

void Require(bool holds) {
  if (!holds) __builtin_trap();
}

struct World {
  World() {
    config.block_length = 4;
    config.vocab_size = 50304;
    config.block.max_positions = 64;
    tokenizer = *Tokenizer::Load("tests/data/gpt_neox_20b.json");
    with =
        std::make_unique<RequestValidator>(config, tokenizer.get(), ValidatorOptions{"m", false});
    without = std::make_unique<RequestValidator>(config, nullptr, ValidatorOptions{"m", true});
  }
  ModelConfig config;
  std::unique_ptr<Tokenizer> tokenizer;
  std::unique_ptr<RequestValidator> with;
  std::unique_ptr<RequestValidator> without;
};

bool InVocabulary(const std::vector<int32_t>& ids, int32_t size) {
  return std::all_of(ids.begin(), ids.end(), [&](int32_t id) { return id >= 0 && id < size; });
}

// What is told to a client must be text that gRPC can send.
void CheckRefusal(const absl::Status& status) {
  Require(!status.message().empty() && IsValidUtf8(status.message()));
}

void CheckGeneration(const World& world, const RequestValidator& validator,
                     const GenerationRequest& request) {
  Require(!request.prompt.empty() && InVocabulary(request.prompt, world.config.vocab_size));
  Require(request.n >= 1 && request.n <= kMaxChoices);
  Require(request.max_tokens >= 1 && request.min_tokens <= request.max_tokens);
  Require(std::is_sorted(request.stop_ids.begin(), request.stop_ids.end()));
  Require(InVocabulary(request.stop_ids, world.config.vocab_size));
  Require(request.sampling.temperature() >= 0 && request.sampling.top_p() > 0);
  if (!request.resume.has_value()) return;
  Require(request.resume->choices.size() == static_cast<size_t>(request.n));
  for (const ResumeState::Choice& choice : request.resume->choices) {
    TextOutput text(validator.tokenizer(), request.stop_strings, request.min_tokens);
    const auto end = ReplayOutput(request, choice.tokens, text);
    Require(end.ok() && (!choice.finished || end->has_value()));
    Require(InVocabulary(choice.tokens, validator.vocab_limit()));
  }
}

template <class Message, class Check>
void Run(const uint8_t* data, size_t size, Check check) {
  Message message;
  if (message.ParseFromArray(data, static_cast<int>(size))) check(message);
}

}  // namespace
}  // namespace blockserve

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace blockserve;  // NOLINT: the one function outside
  // Else every string that is no UTF-8 is a line of the log.
  static const google::protobuf::LogSilencer& silence = *new google::protobuf::LogSilencer;
  (void)silence;
  static const World& world = *new World;
  if (size == 0) return 0;
  const RequestValidator& validator = (data[0] & 1) != 0 ? *world.without : *world.with;
  const int kind = data[0] >> 1 & 3;
  ++data;
  --size;
  const auto refused = [](const absl::Status& status) {
    if (!status.ok()) CheckRefusal(status);
    return !status.ok();
  };
  switch (kind) {
    case 0:
      Run<v1::GenerateRequest>(data, size, [&](const v1::GenerateRequest& message) {
        const auto made = validator.Generation(message, "id", absl::InfiniteFuture());
        if (!refused(made.status())) CheckGeneration(world, validator, *made);
      });
      break;
    case 1:
      Run<v1::ScoreRequest>(data, size, [&](const v1::ScoreRequest& message) {
        const auto made = validator.Scoring(message, "id", absl::InfiniteFuture());
        if (refused(made.status())) return;
        Require(InVocabulary(made->tokens, world.config.vocab_size));
        Require(made->first_scored >= 0 &&
                made->first_scored < static_cast<int64_t>(made->tokens.size()));
      });
      break;
    case 2:
      Run<v1::TokenizeRequest>(data, size, [&](const v1::TokenizeRequest& message) {
        refused(validator.Tokenize(message, "id").status());
      });
      break;
    default:
      Run<v1::DetokenizeRequest>(data, size, [&](const v1::DetokenizeRequest& message) {
        const auto made = validator.Detokenize(message, "id");
        if (!refused(made.status())) Require(IsValidUtf8(made->text()));
      });
  }
  return 0;
}
