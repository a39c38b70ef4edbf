#include "model/cuda/step_profile.h"

#include <algorithm>
#include <cmath>
#include <utility>

namespace blockserve {
namespace {

// Longer than a host takes for the launches and events of one sequence's block.
constexpr double kHoldMs = 4;
constexpr int64_t kFillBytes = int64_t{64} << 20;
constexpr double kMostFills = 256;  // of about a thousand that a stream takes before the host waits

}  // namespace

absl::Status StepProfiler::Begin(StepTimer::Part part, const cuda::Stream& stream) {
  stream_ = &stream;
  part_ = part;
  laps_.clear();
  status_ = stream.Synchronize();
  if (status_.ok()) status_ = HoldBack();
  if (status_.ok()) status_ = Record(0);
  return status_;
}

void StepProfiler::Lap(StepTimer::Work work) {
  if (!status_.ok()) return;
  laps_.push_back({part_, work});
  status_ = Record(laps_.size());
}

absl::Status StepProfiler::Finish(StepTimer& timer) {
  if (status_.ok()) status_ = stream_->Synchronize();
  for (size_t i = 0; i < laps_.size() && status_.ok(); ++i) {
    const absl::StatusOr<float> ms = events_[i + 1].MillisecondsSince(events_[i]);
    status_ = ms.status();
    if (ms.ok()) timer.Book(laps_[i].part, laps_[i].work, static_cast<double>(*ms) / 1e3);
  }
  return status_;
}

absl::Status StepProfiler::Record(size_t index) {
  if (index == events_.size()) {
    absl::StatusOr<cuda::Event> event = cuda::Event::Create(/*timed=*/true);
    if (!event.ok()) return event.status();
    events_.push_back(*std::move(event));
  }
  return events_[index].Record(stream_->get());
}

absl::Status StepProfiler::MeasureFill() {
  fills_ = 0;
  absl::StatusOr<cuda::DeviceBuffer> buffer = cuda::DeviceBuffer::Allocate(kFillBytes);
  // Without memory for it short kernels are told as what their launches take.
  if (absl::IsResourceExhausted(buffer.status())) return absl::OkStatus();
  if (!buffer.ok()) return buffer.status();
  held_ = *std::move(buffer);
  absl::Status status;
  for (size_t i = 0; i < 2 && status.ok(); ++i) {
    status = cuda::FillZero(held_.data(), kFillBytes, stream_->get());
    if (status.ok()) status = Record(i);
  }
  if (status.ok()) status = stream_->Synchronize();
  if (!status.ok()) return status;
  const absl::StatusOr<float> ms = events_[1].MillisecondsSince(events_[0]);
  if (!ms.ok()) return ms.status();
  // An emulated device has no time.
  if (*ms > 0) fills_ = static_cast<int>(std::min(std::ceil(kHoldMs / *ms), kMostFills));
  return absl::OkStatus();
}

absl::Status StepProfiler::HoldBack() {
  absl::Status status;
  if (fills_ < 0) status = MeasureFill();
  for (int i = 0; i < fills_ && status.ok(); ++i) {
    status = cuda::FillZero(held_.data(), kFillBytes, stream_->get());
  }
  return status;
}

}  // namespace blockserve
