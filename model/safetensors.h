// Reader of safetensors files (https://github.com/huggingface/safetensors, "Format"): 8 bytes of
// little-endian header length, a JSON header, then the tensors' bytes without gaps. Files are
// mapped, not read: a tensor's bytes are paged in when they are touched.
#ifndef BLOCKSERVE_MODEL_SAFETENSORS_H_
#define BLOCKSERVE_MODEL_SAFETENSORS_H_

#include <cstddef>
#include <cstdint>
#include <functional>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/types/span.h"

namespace blockserve {

// Element types that the engines read; kOther is everything else that a file may hold (masks, …).
enum class DType { kF32, kF16, kBF16, kOther };

// "F32", "F16", "BF16", "other".
absl::string_view DTypeName(DType dtype);
// Bytes of an element; 0 for kOther.
int64_t DTypeBytes(DType dtype);

struct TensorView {
  std::string name;
  DType dtype = DType::kOther;
  std::string dtype_name;      // as the file spells it: "F32", "BOOL", …
  std::vector<int64_t> shape;  // row-major; empty for a scalar
  // The elements, little-endian. Not necessarily aligned to the element size: the format does not
  // promise it, so copy elements out with memcpy. Owned by the mapped file.
  absl::Span<const uint8_t> data;

  // Product of the shape; 1 for a scalar.
  int64_t num_elements() const;
};

// "[3, 4]".
std::string ShapeString(absl::Span<const int64_t> shape);

// Reads the header of `file`, the bytes of a whole safetensors file; the views point into it. In
// order of name. Errors: INVALID_ARGUMENT with `source`, the file's name, in front, naming the
// tensor.
absl::StatusOr<std::vector<TensorView>> ParseSafetensors(absl::Span<const uint8_t> file,
                                                         absl::string_view source);

// The tensors of a model folder: one file, or the shards that an index names. Keeps the maps alive.
// Thread-safe for reading. A file must not be cut short while it is mapped: touching the lost part
// is SIGBUS, as with any mapped file; replace model files by renaming new ones into place.
class SafetensorsSet {
 public:
  SafetensorsSet() = default;
  SafetensorsSet(SafetensorsSet&&) = default;
  SafetensorsSet& operator=(SafetensorsSet&&) = default;

  // One file. Errors: NOT_FOUND when it is missing, INVALID_ARGUMENT as ParseSafetensors.
  static absl::StatusOr<SafetensorsSet> OpenFile(const std::string& path);
  // `directory`/model.safetensors if there is one, else the shards that
  // model.safetensors.index.json names: exactly the tensors of its weight_map. Errors: NOT_FOUND
  // when neither is there, INVALID_ARGUMENT naming index, shard and tensor.
  static absl::StatusOr<SafetensorsSet> OpenDirectory(const std::string& directory);

  // nullptr when there is no such tensor. Valid as long as the set, also after a move.
  const TensorView* Find(absl::string_view name) const;
  // In order.
  std::vector<std::string> Names() const;
  // Path of the file that holds tensor `name`; with no such tensor, the file that was asked for.
  const std::string& FileOf(absl::string_view name) const;

  // Lets the kernel drop the pages that were read, once weights are packed: they come back from the
  // file if they are touched again.
  void ReleasePages() const;

 private:
  // A read-only map of a whole file.
  class MappedFile {
   public:
    static absl::StatusOr<MappedFile> Open(const std::string& path);
    MappedFile(MappedFile&& other) noexcept { *this = std::move(other); }
    MappedFile& operator=(MappedFile&& other) noexcept;
    ~MappedFile();

    absl::Span<const uint8_t> bytes() const {
      return {static_cast<const uint8_t*>(address_), size_};
    }
    void ReleasePages() const;

   private:
    MappedFile() = default;
    void* address_ = nullptr;
    size_t size_ = 0;
  };
  struct Entry {
    TensorView view;
    size_t file = 0;  // index into files_ and paths_
  };

  // Maps and parses one file as files_.back().
  absl::StatusOr<std::vector<TensorView>> AddFile(const std::string& path);
  absl::Status AddShards(const std::string& directory, const std::string& index_path);

  std::vector<MappedFile> files_;
  std::vector<std::string> paths_;  // of files_
  std::string opened_;              // the file or index that was asked for
  std::map<std::string, Entry, std::less<>> tensors_;
};

}  // namespace blockserve

#endif  // BLOCKSERVE_MODEL_SAFETENSORS_H_
