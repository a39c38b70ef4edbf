// A model folder opened for reading: configuration, mapped tensors, hashes of what is in it.
#ifndef BLOCKSERVE_MODEL_CHECKPOINT_H_
#define BLOCKSERVE_MODEL_CHECKPOINT_H_

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/types/span.h"
#include "model/config.h"
#include "model/safetensors.h"

namespace blockserve {

// What a tier loads of a checkpoint. Of a vanilla model, kToken is the head alone.
enum class CheckpointPart { kBlock, kToken };

// A tensor that a configuration needs.
struct RequiredTensor {
  std::string name;
  std::vector<int64_t> shape;  // row-major, as in MODEL section "files of a model"
  CheckpointPart part = CheckpointPart::kBlock;
};

// Every tensor that the engines read, embedder and block decoder first.
std::vector<RequiredTensor> RequiredTensors(const ModelConfig& config);

// Tensors are looked up by the names of the authors' checkpoints (MODEL section "files of a
// model").
class Checkpoint {
 public:
  // Opens config.json and model.safetensors (or the shards of model.safetensors.index.json), checks
  // that every tensor that the configuration needs is there with its shape and a known dtype;
  // others are ignored. Errors name the file and the tensor.
  static absl::StatusOr<std::unique_ptr<Checkpoint>> Open(const std::string& directory);

  const ModelConfig& config() const { return config_; }
  const std::string& directory() const { return directory_; }

  // A stored tensor; those of RequiredTensors have been checked by Open. NOT_FOUND names it and the
  // file. The view's bytes live as long as the checkpoint.
  absl::StatusOr<TensorView> Find(absl::string_view name) const;
  // Every stored tensor, in order of name.
  std::vector<std::string> TensorNames() const;

  using Part = CheckpointPart;
  // Lowercase hex SHA-256 of the required tensors (name, dtype, shape, bytes) of a part, in order
  // of name: how they are spread over files, and what else the files hold, makes no difference.
  // Reads every byte; thread-safe, so a tier calls it beside serving.
  std::string HashTensors(Part part) const;
  // Lowercase hex SHA-256 of name, dtype, shape and the first and last 4 KiB of every tensor of
  // both parts: what the parts of one model have in common, and those of another, trained
  // otherwise, do not. Quick, so that a tier can tell it although it loads one part alone.
  std::string Digest() const;
  // The names that belong to a part, in order.
  std::vector<std::string> PartTensors(Part part) const;

  // Gives the pages that packing or hashing read back to the kernel; they are read again if
  // touched.
  void ReleasePages() const { tensors_.ReleasePages(); }

 private:
  Checkpoint() = default;

  std::string directory_;
  ModelConfig config_;
  SafetensorsSet tensors_;
};

// Whether every required tensor is BF16, so that bfloat16 weights lose nothing.
bool IsStoredInBf16(const Checkpoint& checkpoint);

}  // namespace blockserve

#endif  // BLOCKSERVE_MODEL_CHECKPOINT_H_
