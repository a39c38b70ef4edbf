#include "model/load_progress.h"

#include <utility>

#include "absl/strings/str_format.h"

namespace blockserve {
namespace {

// A model that loads faster needs no line.
constexpr std::chrono::seconds kInterval(2);

}  // namespace

LoadProgress::LoadProgress(std::string what, int64_t total_bytes, TimePoint start)
    : what_(std::move(what)), total_bytes_(total_bytes), last_(start) {}

std::string LoadProgress::Add(int64_t bytes, TimePoint now) {
  done_bytes_ += bytes;
  if (now - last_ < kInterval || total_bytes_ <= 0) return "";
  last_ = now;
  return absl::StrFormat("loading %s: %d %% of %.1f GB", what_, done_bytes_ * 100 / total_bytes_,
                         static_cast<double>(total_bytes_) / 1e9);
}

int64_t StoredBytes(const Checkpoint& checkpoint, CheckpointPart part) {
  int64_t bytes = 0;
  for (const std::string& name : checkpoint.PartTensors(part)) {
    absl::StatusOr<TensorView> tensor = checkpoint.Find(name);
    if (tensor.ok()) bytes += static_cast<int64_t>(tensor->data.size());
  }
  return bytes;
}

}  // namespace blockserve
