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
#include "model/arithmetic.h"
#include "model/config.h"
#include "model/safetensors.h"

namespace blockserve {

// Tensors are looked up by the names of the authors' checkpoints (MODEL section "files of a model").
class Checkpoint {
 public:
  // Opens config.json and model.safetensors (or the shards of model.safetensors.index.json), checks
  // that every tensor that the configuration needs is there with its shape and a known dtype; others
  // are ignored. Errors name the file and the tensor.
  static absl::StatusOr<std::unique_ptr<Checkpoint>> Open(const std::string& directory);

  const ModelConfig& config() const { return config_; }
  const std::string& directory() const { return directory_; }

  // A tensor that Open has checked. NOT_FOUND names it.
  absl::StatusOr<TensorView> Find(absl::string_view name) const;
  // Every stored tensor, in order of name.
  std::vector<std::string> TensorNames() const;

  // Lowercase hex SHA-256 of the tensors (name, dtype, shape, bytes) that the tier loads.
  enum class Part { kBlock, kToken };
  std::string HashTensors(Part part) const;
  // The names that belong to a part, in order.
  std::vector<std::string> PartTensors(Part part) const;

 private:
  std::string directory_;
  ModelConfig config_;
  SafetensorsSet tensors_;
};

// "auto" never loses precision: bf16 for BF16 files, f32 for all others.
absl::StatusOr<Arithmetic> ResolveArithmetic(absl::string_view name, const Checkpoint& checkpoint);

}  // namespace blockserve

#endif  // BLOCKSERVE_MODEL_CHECKPOINT_H_
