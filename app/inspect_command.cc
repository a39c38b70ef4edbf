// blockserve inspect: what a model folder holds.
#include <cstdio>
#include <map>
#include <memory>
#include <nlohmann/json.hpp>
#include <optional>
#include <set>
#include <string>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "app/command.h"
#include "common/program.h"
#include "model/checkpoint.h"
#include "model/fingerprint.h"
#include "model/tokenizer.h"

namespace blockserve {
namespace {

using nlohmann::ordered_json;

constexpr absl::string_view kProgram = "blockserve inspect";
constexpr absl::string_view kUsage =
    "blockserve inspect --model DIR [--format text|json]\n"
    "What a model folder holds: shapes, types, sizes, KV bytes per token, fingerprint.";

ordered_json StackJson(const StackConfig& stack) {
  return {{"layers", stack.num_layers},
          {"hidden_size", stack.hidden_size},
          {"heads", stack.num_heads},
          {"head_size", stack.num_heads > 0 ? stack.head_size() : 0},
          {"intermediate_size", stack.intermediate_size},
          {"max_positions", stack.max_positions},
          {"rotary_dims", stack.num_heads > 0 ? stack.rotary_dims() : 0},
          {"parallel_residual", stack.parallel_residual}};
}

// Keys and values of every layer of the block decoder, spread over the tokens of a block.
double KvBytesPerToken(const ModelConfig& config, int bytes_per_value) {
  return 2.0 * config.block.num_layers * config.block.hidden_size * bytes_per_value /
         config.block_length;
}

absl::StatusOr<ordered_json> Inspect(const std::string& directory) {
  absl::StatusOr<std::unique_ptr<Checkpoint>> opened = Checkpoint::Open(directory);
  if (!opened.ok()) return opened.status();
  const Checkpoint& checkpoint = **opened;
  const ModelConfig& config = checkpoint.config();
  ordered_json json;
  json["kind"] = config.kind == ModelKind::kVanilla ? "gpt_neox" : "block_transformer";
  json["block_length"] = config.block_length;
  json["vocab_size"] = config.vocab_size;
  json["default_alignment"] = std::string(AlignmentName(config.default_alignment));
  json["block_decoder"] = StackJson(config.block);
  if (config.kind == ModelKind::kBlockTransformer) json["token_decoder"] = StackJson(config.token);

  absl::StatusOr<std::unique_ptr<Tokenizer>> tokenizer = LoadTokenizer(directory);
  if (tokenizer.ok()) {
    json["tokenizer_size"] = (*tokenizer)->vocab_size();
  } else if (absl::IsNotFound(tokenizer.status())) {
    json["tokenizer_size"] = nullptr;
  } else {
    return tokenizer.status();
  }

  std::set<std::string> used;
  for (const auto part : {Checkpoint::Part::kBlock, Checkpoint::Part::kToken}) {
    for (std::string& name : checkpoint.PartTensors(part)) used.insert(std::move(name));
  }
  ordered_json tensors = ordered_json::array();
  std::map<std::string, int64_t> bytes_by_type;
  int64_t parameters = 0;
  int64_t bytes = 0;
  for (const std::string& name : checkpoint.TensorNames()) {
    absl::StatusOr<TensorView> tensor = checkpoint.Find(name);
    if (!tensor.ok()) return tensor.status();
    const int64_t size = static_cast<int64_t>(tensor->data.size());
    const bool is_used = used.count(name) > 0;
    tensors.push_back({{"name", name},
                       {"dtype", tensor->dtype_name},
                       {"shape", tensor->shape},
                       {"bytes", size},
                       {"used", is_used}});
    if (!is_used) continue;
    parameters += tensor->num_elements();
    bytes += size;
    bytes_by_type[tensor->dtype_name] += size;
  }
  json["parameters"] = parameters;
  json["bytes"] = bytes;
  json["bytes_by_dtype"] = bytes_by_type;
  json["kv_bytes_per_token"] = {{"f32", KvBytesPerToken(config, 4)},
                                {"bf16", KvBytesPerToken(config, 2)}};

  absl::StatusOr<std::string> tokenizer_hash = TokenizerHash(directory);
  if (!tokenizer_hash.ok()) return tokenizer_hash.status();
  const std::string config_hash = ConfigHash(config);
  const std::string block_hash = checkpoint.HashTensors(Checkpoint::Part::kBlock);
  const std::string token_hash = checkpoint.HashTensors(Checkpoint::Part::kToken);
  json["fingerprint"] = {
      {"model_id", ModelId(config_hash, *tokenizer_hash, block_hash, token_hash)},
      {"config", config_hash},
      {"tokenizer", *tokenizer_hash},
      {"block_decoder", block_hash},
      {"token_decoder", token_hash}};
  json["tensors"] = std::move(tensors);
  return json;
}

// One line for each entry, nested objects in one line; the tensors as a table.
std::string Table(const ordered_json& json) {
  std::string text;
  for (const auto& [key, value] : json.items()) {
    if (key == "tensors") continue;
    std::string line;
    if (value.is_object()) {
      for (const auto& [name, inner] : value.items()) {
        absl::StrAppend(&line, line.empty() ? "" : ", ", name, " ",
                        inner.is_string() ? inner.get<std::string>() : inner.dump());
      }
    } else {
      line = value.is_string() ? value.get<std::string>() : value.dump();
    }
    absl::StrAppend(&text, absl::StrFormat("%-18s ", key), line, "\n");
  }
  absl::StrAppend(&text, "\n");
  for (const ordered_json& tensor : json["tensors"]) {
    absl::StrAppend(&text,
                    absl::StrFormat("%-70s %-5s %-18s %12d%s\n", tensor["name"].get<std::string>(),
                                    tensor["dtype"].get<std::string>(), tensor["shape"].dump(),
                                    tensor["bytes"].get<int64_t>(),
                                    tensor["used"].get<bool>() ? "" : "  not used"));
  }
  return text;
}

}  // namespace

int RunInspect(const Arguments& arguments) {
  std::string model;
  std::string format = "text";
  FlagTable flags;
  flags.Add("model", "folder of the model", &model);
  flags.AddChoice("format", "text or json", {"text", "json"}, &format);
  if (std::optional<int> exit = flags.ParseCommandLine(kProgram, kUsage, arguments)) return *exit;
  if (model.empty()) {
    return ReportUsageError(kProgram, absl::InvalidArgumentError("--model is missing"));
  }
  absl::StatusOr<ordered_json> json = Inspect(model);
  if (!json.ok()) return ReportFailure(kProgram, json.status());
  const std::string text = format == "json" ? json->dump() + "\n" : Table(*json);
  std::fputs(text.c_str(), stdout);
  return ReportFailure(kProgram, absl::OkStatus());
}

}  // namespace blockserve
