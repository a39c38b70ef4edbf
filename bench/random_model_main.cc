// blockserve-random-model: a model folder with random weights of a released size, without Python:
// for benchmarks on machines that have nothing but this program. tools/make_random_model.py makes
// many more kinds.
#include <array>
#include <cmath>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <optional>
#include <string>
#include <system_error>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "common/bf16.h"
#include "common/flag_table.h"
#include "common/program.h"
#include "kernels/philox.h"
#include "model/checkpoint.h"
#include "nlohmann/json.hpp"

namespace blockserve {
namespace {

using nlohmann::ordered_json;

constexpr absl::string_view kProgram = "blockserve-random-model";
constexpr absl::string_view kUsage =
    "blockserve-random-model --size block_main_b4_85 --out DIR\n"
    "Writes a model folder with random bfloat16 weights; the same size gives the same bytes.";
constexpr int kVocabulary = 50304;
constexpr int kPositions = 2048;

struct Size {
  const char* name;
  bool vanilla;
  int layers;  // of each decoder
  int width;
  int heads;
};
// As in tools/model_layout.py.
constexpr Size kSizes[] = {
    {"block_main_b4_5", false, 3, 256, 8},     {"block_main_b4_19", false, 3, 512, 8},
    {"block_main_b4_85", false, 6, 768, 12},   {"block_main_b4_300", false, 12, 1024, 16},
    {"block_main_b4_800", false, 8, 2048, 16}, {"block_main_b4_1.2b", false, 12, 2048, 16},
    {"vanilla_160", true, 12, 768, 12},        {"vanilla_410", true, 24, 1024, 16},
    {"vanilla_1.4b", true, 24, 2048, 16}};

ordered_json StackJson(const Size& size) {
  return {{"model_type", "gpt_neox"},
          {"hidden_size", size.width},
          {"num_attention_heads", size.heads},
          {"num_hidden_layers", size.layers},
          {"intermediate_size", 4 * size.width},
          {"rotary_pct", 0.25},
          {"rotary_emb_base", 10000},
          {"use_parallel_residual", true},
          {"layer_norm_eps", 1e-5},
          {"max_position_embeddings", kPositions},
          {"hidden_act", "gelu"}};
}

ordered_json ConfigJson(const Size& size) {
  ordered_json json;
  if (size.vanilla) {
    json = StackJson(size);
    json["tie_word_embeddings"] = false;
  } else {
    json["model_type"] = "block_transformer";
    json["block_length"] = 4;
    json["pad_token_id"] = 0;
    json["embedder"] = {
        {"type", "lookup"}, {"projection", "concat"}, {"hidden_size", size.width / 4}};
    json["block_decoder"] = StackJson(size);
    json["token_decoder"] = StackJson(size);
    json["token_decoder"]["expansion_method"] = "expansion_layer";
    json["token_decoder"]["expansion_ratio"] = 2;
    json["token_decoder"]["decoding_strategy"] = "prefix";
  }
  json["vocab_size"] = kVocabulary;
  json["bos_token_id"] = 0;
  json["eos_token_id"] = 0;
  json["torch_dtype"] = "bfloat16";
  return json;
}

int64_t NumElements(const RequiredTensor& tensor) {
  int64_t count = 1;
  for (const int64_t extent : tensor.shape) count *= extent;
  return count;
}

// Mean and spread of a tensor's values: attention is far from uniform, and greedy tokens do not
// repeat at once.
struct Spread {
  float mean = 0;
  float deviation = 0.1f;
};
Spread SpreadOf(const RequiredTensor& tensor) {
  if (absl::EndsWith(tensor.name, "norm.weight")) return {1.0f, 0.1f};
  if (tensor.shape.size() == 1) return {};
  if (absl::EndsWith(tensor.name, "embed_in.weight") ||
      absl::EndsWith(tensor.name, "embeddings.weight")) {
    return {0, 1};
  }
  float gain = 1;
  if (absl::EndsWith(tensor.name, "query_key_value.weight")) gain = 1.5f;
  if (absl::EndsWith(tensor.name, "embed_out.weight")) gain = 2.5f;
  const double fan_in = static_cast<double>(NumElements(tensor) / tensor.shape[0]);
  return {0, gain / static_cast<float>(std::sqrt(fan_in))};
}

// The sum of four uniform numbers is near enough to a normal one.
std::vector<uint16_t> DrawValues(const RequiredTensor& tensor, uint32_t key) {
  const Spread spread = SpreadOf(tensor);
  std::vector<uint16_t> values(static_cast<size_t>(NumElements(tensor)));
  const float scale = spread.deviation * std::sqrt(3.0f) * 0x1p-32f;
  for (size_t i = 0; i < values.size(); ++i) {
    const std::array<uint32_t, 4> words = Philox4x32(
        {static_cast<uint32_t>(i), static_cast<uint32_t>(i >> 32), key, 0}, {20260101, 0});
    // Deviation of the sum of four numbers that are uniform in [0, 2^32): 2^32 / sqrt(3).
    float sum = -4 * 0x1p31f;
    for (const uint32_t word : words) sum += static_cast<float>(word);
    values[i] = Bf16FromFloat(spread.mean + sum * scale);
  }
  return values;
}

absl::Status WriteModel(const Size& size, const std::string& folder) {
  const std::string config_text = ConfigJson(size).dump(1);
  const absl::StatusOr<ModelConfig> config = ParseModelConfig(config_text, "config.json");
  if (!config.ok()) return config.status();
  std::error_code error;
  std::filesystem::create_directories(folder, error);
  std::ofstream config_file(absl::StrCat(folder, "/config.json"));
  config_file << config_text << "\n";
  config_file.close();
  // Before minutes of drawing.
  if (!config_file) {
    return absl::InvalidArgumentError(absl::StrCat("--out ", folder, ": cannot be written"));
  }

  const std::vector<RequiredTensor> tensors = RequiredTensors(*config);
  ordered_json header;
  int64_t offset = 0;
  for (const RequiredTensor& tensor : tensors) {
    const int64_t end = offset + 2 * NumElements(tensor);
    header[tensor.name] = {
        {"dtype", "BF16"}, {"shape", tensor.shape}, {"data_offsets", {offset, end}}};
    offset = end;
  }
  std::string text = header.dump();
  text.resize((text.size() + 7) / 8 * 8, ' ');
  std::ofstream file(absl::StrCat(folder, "/model.safetensors"), std::ios::binary);
  const uint64_t header_bytes = text.size();
  file.write(reinterpret_cast<const char*>(&header_bytes), sizeof(header_bytes));
  file << text;
  for (size_t i = 0; i < tensors.size(); ++i) {
    const std::vector<uint16_t> values = DrawValues(tensors[i], static_cast<uint32_t>(i));
    file.write(reinterpret_cast<const char*>(values.data()),
               static_cast<std::streamsize>(values.size() * sizeof(uint16_t)));
  }
  file.flush();
  if (!file) return absl::UnavailableError(absl::StrCat("cannot write ", folder));
  return absl::OkStatus();
}

int Main(int argc, char** argv) {
  std::string name = "block_main_b4_85";
  std::string out;
  FlagTable flags;
  flags.Add("size", "name of a released or of Pythia's sizes", &name);
  flags.Add("out", "folder to write", &out);
  const std::vector<std::string> arguments(argv + 1, argv + argc);
  if (std::optional<int> exit = flags.ParseCommandLine(kProgram, kUsage, arguments)) return *exit;
  if (out.empty()) {
    return ReportUsageError(kProgram, absl::InvalidArgumentError("--out is missing"));
  }
  std::vector<std::string> names;
  for (const Size& size : kSizes) {
    names.push_back(size.name);
    if (name != size.name) continue;
    return ReportFailure(kProgram, WriteModel(size, out));
  }
  return ReportUsageError(kProgram, absl::InvalidArgumentError(absl::StrCat(
                                        "--size is \"", name.substr(0, 60), "\"; known are ",
                                        absl::StrJoin(names, ", "))));
}

}  // namespace
}  // namespace blockserve

int main(int argc, char** argv) { return blockserve::Main(argc, argv); }
