#include "bench/load_workload.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <nlohmann/json.hpp>
#include <sstream>
#include <utility>

#include "absl/strings/str_cat.h"
#include "bench/load_random.h"
#include "common/read_file.h"
#include "common/utf8.h"

namespace blockserve {
namespace {

// Streams of random numbers: lengths, tokens and seed of request k, tokens of common beginning p.
constexpr uint64_t kLengths = uint64_t{1} << 60;
constexpr uint64_t kTokens = uint64_t{2} << 60;
constexpr uint64_t kPrefixes = uint64_t{3} << 60;

absl::StatusOr<PromptLine> ParsePrompt(const std::string& line) {
  PromptLine prompt;
  if (!IsValidUtf8(line)) return absl::InvalidArgumentError("is not valid UTF-8");
  if (line.front() != '{') {
    prompt.text = line;
    return prompt;
  }
  const nlohmann::json json = nlohmann::json::parse(line, nullptr, /*allow_exceptions=*/false);
  if (!json.is_object()) return absl::InvalidArgumentError("is no JSON object");
  const auto text = json.find("prompt");
  const auto tokens = json.find("tokens");
  if ((text == json.end()) == (tokens == json.end())) {
    return absl::InvalidArgumentError("must have one of \"prompt\" and \"tokens\"");
  }
  if (text != json.end()) {
    if (!text->is_string() || text->get_ref<const std::string&>().empty()) {
      return absl::InvalidArgumentError("\"prompt\" is no text");
    }
    prompt.text = text->get<std::string>();
  } else {
    if (!tokens->is_array() || tokens->empty()) {
      return absl::InvalidArgumentError("\"tokens\" is no list of ids");
    }
    for (const nlohmann::json& token : *tokens) {
      if (!token.is_number_integer() ||
          std::abs(token.get<double>()) > std::numeric_limits<int32_t>::max()) {
        return absl::InvalidArgumentError("\"tokens\" is no list of ids");
      }
      prompt.tokens.push_back(token.get<int32_t>());
    }
  }
  if (const auto output = json.find("output_tokens"); output != json.end()) {
    if (!output->is_number_integer() || output->get<double>() < 1 ||
        output->get<double>() > kMostTokens) {
      return absl::InvalidArgumentError("\"output_tokens\" is no number from 1 to 1e9");
    }
    prompt.output_tokens = output->get<int64_t>();
  }
  return prompt;
}

}  // namespace

absl::StatusOr<std::vector<PromptLine>> ReadPrompts(const std::string& path) {
  absl::StatusOr<std::string> text = ReadFile(path);
  if (!text.ok()) return absl::NotFoundError(absl::StrCat(path, " ", text.status().message()));
  std::istringstream file(*std::move(text));
  std::vector<PromptLine> prompts;
  std::string line;
  for (int number = 1; std::getline(file, line); ++number) {
    if (line.empty()) continue;
    absl::StatusOr<PromptLine> prompt = ParsePrompt(line);
    if (!prompt.ok()) {
      return absl::InvalidArgumentError(
          absl::StrCat(path, ":", number, ": ", prompt.status().message()));
    }
    prompts.push_back(*std::move(prompt));
  }
  if (prompts.empty()) return absl::InvalidArgumentError(absl::StrCat(path, " has no prompts"));
  return prompts;
}

absl::Status WorkloadOptions::CheckLengths() const {
  if (max_total_tokens <= 0 || !prompts.empty() || !trace.empty()) return absl::OkStatus();
  const int64_t prompt = prompt_tokens.shortest(), output = output_tokens.shortest();
  if (prompt + output <= max_total_tokens) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat("--prompt-tokens of ", prompt, " and --output-tokens of ", output,
                   " or more are above the model's context of ", max_total_tokens, " tokens"));
}

Workload::Workload(WorkloadOptions options) : options_(std::move(options)) {
  if (options_.shared_prefix_tokens <= 0) return;
  for (int32_t i = 0; i < options_.shared_prefixes; ++i) {
    FillRandom(kPrefixes + static_cast<uint64_t>(i), options_.shared_prefix_tokens,
               prefixes_.emplace_back());
  }
}

void Workload::FillRandom(uint64_t stream, int64_t count, std::vector<int32_t>& tokens) const {
  LoadRandom random(options_.seed, stream);
  const auto vocab = static_cast<uint64_t>(std::max(options_.vocab_size, 1));
  const auto excluded = [&](int32_t token) {
    return std::find(options_.excluded_tokens.begin(), options_.excluded_tokens.end(), token) !=
           options_.excluded_tokens.end();
  };
  tokens.reserve(tokens.size() + static_cast<size_t>(count));
  for (int64_t i = 0; i < count; ++i) {
    auto token = static_cast<int32_t>(random.Below(vocab));
    // A vocabulary of nothing but excluded ids gives one of them.
    for (int tries = 0; tries < 64 && excluded(token); ++tries) {
      token = static_cast<int32_t>(random.Below(vocab));
    }
    tokens.push_back(token);
  }
}

RequestSpec Workload::Make(int64_t index, int64_t arrival) const {
  const auto stream = static_cast<uint64_t>(index);
  RequestSpec spec;
  spec.index = index;
  spec.n = options_.n;
  spec.temperature = options_.temperature;
  spec.ignore_eos = options_.ignore_eos;

  LoadRandom random(options_.seed, kLengths + stream);
  int64_t prompt = options_.prompt_tokens.Draw(random);
  int64_t output = options_.output_tokens.Draw(random);
  const uint64_t prefix = random.Next();
  spec.seed = random.Next();
  if (!options_.trace.empty()) {
    const TraceRow& row = options_.trace[static_cast<uint64_t>(arrival) % options_.trace.size()];
    if (row.prompt_tokens > 0) prompt = row.prompt_tokens;
    if (row.output_tokens > 0) output = row.output_tokens;
  }
  if (!options_.prompts.empty()) {
    const PromptLine& line = options_.prompts[stream % options_.prompts.size()];
    spec.text = line.text;
    spec.tokens = line.tokens;
    if (line.output_tokens > 0) output = line.output_tokens;
    prompt = static_cast<int64_t>(spec.tokens.size());  // of a text it is not known here
  }
  if (const int64_t limit = options_.max_total_tokens; limit > 0) {
    const std::pair<int64_t, int64_t> asked = {prompt, output};
    if (options_.prompts.empty()) prompt = std::clamp<int64_t>(prompt, 1, limit - 1);
    output = std::clamp<int64_t>(output, 1, std::max<int64_t>(1, limit - prompt));
    spec.shortened = asked != std::pair(prompt, output);
  }
  spec.max_tokens = static_cast<int32_t>(output);
  if (options_.prompts.empty()) {
    if (!prefixes_.empty()) {
      const std::vector<int32_t>& shared = prefixes_[prefix % prefixes_.size()];
      spec.tokens.assign(shared.begin(),
                         shared.begin() + std::min<int64_t>(prompt, std::ssize(shared)));
    }
    FillRandom(kTokens + stream, prompt - std::ssize(spec.tokens), spec.tokens);
  }
  return spec;
}

}  // namespace blockserve
