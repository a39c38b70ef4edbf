#include "model/checkpoint.h"

#include <algorithm>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "model/fingerprint.h"

namespace blockserve {
namespace {

class TensorList {
 public:
  explicit TensorList(CheckpointPart part) : part_(part) {}

  void Add(absl::string_view name, std::vector<int64_t> shape) {
    tensors_.push_back({std::string(name), std::move(shape), part_});
  }

  // A weight [rows, columns] and its bias [rows].
  void AddLinear(absl::string_view name, int64_t rows, int64_t columns) {
    Add(absl::StrCat(name, ".weight"), {rows, columns});
    Add(absl::StrCat(name, ".bias"), {rows});
  }

  void AddLayerNorm(absl::string_view name, int64_t width) {
    Add(absl::StrCat(name, ".weight"), {width});
    Add(absl::StrCat(name, ".bias"), {width});
  }

  // The layers and the final norm of a GPT-NeoX stack; `prefix` ends in a dot.
  void AddStack(absl::string_view prefix, const StackConfig& stack) {
    const int64_t width = stack.hidden_size;
    for (int32_t layer = 0; layer < stack.num_layers; ++layer) {
      const std::string at = absl::StrCat(prefix, "layers.", layer, ".");
      AddLayerNorm(at + "input_layernorm", width);
      AddLayerNorm(at + "post_attention_layernorm", width);
      AddLinear(at + "attention.query_key_value", 3 * width, width);
      AddLinear(at + "attention.dense", width, width);
      AddLinear(at + "mlp.dense_h_to_4h", stack.intermediate_size, width);
      AddLinear(at + "mlp.dense_4h_to_h", width, stack.intermediate_size);
    }
    AddLayerNorm(absl::StrCat(prefix, "final_layer_norm"), width);
  }

  std::vector<RequiredTensor> Take() { return std::move(tensors_); }

 private:
  CheckpointPart part_;
  std::vector<RequiredTensor> tensors_;
};

std::vector<RequiredTensor> BlockTensors(const ModelConfig& config) {
  TensorList list(CheckpointPart::kBlock);
  if (config.kind == ModelKind::kVanilla) {
    list.Add("gpt_neox.embed_in.weight", {config.vocab_size, config.block.hidden_size});
    list.AddStack("gpt_neox.", config.block);
    return list.Take();
  }
  list.Add("embedder.embeddings.weight", {config.vocab_size, config.embedding_width});
  if (config.projection == Projection::kProjectionLayer) {
    list.Add("embedder.projection_layer.weight",
             {config.block.hidden_size, config.embedding_width, config.block_length});
    list.Add("embedder.projection_layer.bias", {config.block.hidden_size});
  }
  list.AddStack("block_decoder.gpt_neox.", config.block);
  return list.Take();
}

std::vector<RequiredTensor> TokenTensors(const ModelConfig& config) {
  TensorList list(CheckpointPart::kToken);
  const int64_t width = config.token.hidden_size;
  if (config.kind == ModelKind::kVanilla) {
    list.Add("embed_out.weight", {config.vocab_size, width});
    return list.Take();
  }
  const int64_t expanded = config.expansion_ratio * width;
  list.Add("token_decoder.expansion_layer.weight", {expanded, config.block.hidden_size, 1});
  list.Add("token_decoder.expansion_layer.bias", {expanded});
  list.Add("token_decoder.gpt_neox.embed_in.weight", {config.vocab_size, width});
  list.AddStack("token_decoder.gpt_neox.", config.token);
  list.Add("token_decoder.embed_out.weight", {config.vocab_size, width});
  return list.Take();
}

absl::Status CheckTensor(const RequiredTensor& required, const SafetensorsSet& tensors) {
  const TensorView* found = tensors.Find(required.name);
  const std::string& file = tensors.FileOf(required.name);
  if (found == nullptr) {
    return absl::InvalidArgumentError(absl::StrCat(file, ": tensor \"", required.name,
                                                   "\" is missing; config.json needs it with ",
                                                   "shape ", ShapeString(required.shape)));
  }
  if (found->dtype == DType::kOther) {
    return absl::InvalidArgumentError(absl::StrCat(file, ": tensor \"", required.name,
                                                   "\" has dtype ", found->dtype_name,
                                                   "; expected F32, F16 or BF16"));
  }
  if (found->shape != required.shape) {
    return absl::InvalidArgumentError(
        absl::StrCat(file, ": tensor \"", required.name, "\" has shape ", ShapeString(found->shape),
                     "; config.json makes it ", ShapeString(required.shape)));
  }
  return absl::OkStatus();
}

}  // namespace

std::vector<RequiredTensor> RequiredTensors(const ModelConfig& config) {
  std::vector<RequiredTensor> all = BlockTensors(config);
  for (RequiredTensor& tensor : TokenTensors(config)) all.push_back(std::move(tensor));
  return all;
}

absl::StatusOr<std::unique_ptr<Checkpoint>> Checkpoint::Open(const std::string& directory) {
  absl::StatusOr<ModelConfig> config = LoadModelConfig(directory);
  if (!config.ok()) return config.status();
  absl::StatusOr<SafetensorsSet> tensors = SafetensorsSet::OpenDirectory(directory);
  if (!tensors.ok()) return tensors.status();
  for (const RequiredTensor& required : RequiredTensors(*config)) {
    const absl::Status status = CheckTensor(required, *tensors);
    if (!status.ok()) return status;
  }
  std::unique_ptr<Checkpoint> checkpoint(new Checkpoint());
  checkpoint->directory_ = directory;
  checkpoint->config_ = *std::move(config);
  checkpoint->tensors_ = *std::move(tensors);
  return checkpoint;
}

absl::StatusOr<TensorView> Checkpoint::Find(absl::string_view name) const {
  const TensorView* found = tensors_.Find(name);
  if (found == nullptr) {
    return absl::NotFoundError(
        absl::StrCat(tensors_.FileOf(name), ": tensor \"", name, "\" is missing"));
  }
  return *found;
}

std::vector<std::string> Checkpoint::TensorNames() const { return tensors_.Names(); }

std::vector<std::string> Checkpoint::PartTensors(Part part) const {
  std::vector<std::string> names;
  for (RequiredTensor& required : RequiredTensors(config_)) {
    if (required.part == part) names.push_back(std::move(required.name));
  }
  std::sort(names.begin(), names.end());
  return names;
}

namespace {

constexpr size_t kHashedAtOnceBytes = size_t{16} << 20;

}  // namespace

std::string Checkpoint::HashTensors(Part part) const {
  Sha256 hash;
  for (const std::string& name : PartTensors(part)) {
    const TensorView& tensor = *tensors_.Find(name);  // Open has checked that it is there
    // Lengths stand in front of what varies, so that no two lists give the same bytes.
    hash.Update(absl::StrCat(name, "\n", tensor.dtype_name, "\n", ShapeString(tensor.shape), "\n",
                             tensor.data.size(), "\n"));
    // Read pages count as this process's memory until they are let go.
    for (size_t at = 0; at < tensor.data.size(); at += kHashedAtOnceBytes) {
      hash.Update(tensor.data.subspan(at, kHashedAtOnceBytes));
      tensors_.ReleasePages();
    }
  }
  return hash.Hex();
}

std::string Checkpoint::Digest() const {
  constexpr size_t kSample = 4096;
  Sha256 hash;
  for (const Part part : {Part::kBlock, Part::kToken}) {
    for (const std::string& name : PartTensors(part)) {
      const TensorView& tensor = *tensors_.Find(name);
      hash.Update(absl::StrCat(name, "\n", tensor.dtype_name, "\n", ShapeString(tensor.shape), "\n",
                               tensor.data.size(), "\n"));
      hash.Update(tensor.data.subspan(0, kSample));
      if (tensor.data.size() > kSample) hash.Update(tensor.data.last(kSample));
    }
  }
  tensors_.ReleasePages();
  return hash.Hex();
}

bool IsStoredInBf16(const Checkpoint& checkpoint) {
  for (const RequiredTensor& required : RequiredTensors(checkpoint.config())) {
    const absl::StatusOr<TensorView> tensor = checkpoint.Find(required.name);
    if (!tensor.ok() || tensor->dtype != DType::kBF16) return false;
  }
  return true;
}

}  // namespace blockserve
