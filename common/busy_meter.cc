#include "common/busy_meter.h"

#include <algorithm>

namespace blockserve {

void BusyMeter::Add(absl::Time begin, absl::Time end) {
  // What lies further back is out of the window anyway.
  begin = std::max({begin, start_, end - absl::Milliseconds(kSliceMs * kSlices)});
  while (begin < end) {
    const int64_t index = absl::ToInt64Milliseconds(begin - start_) / kSliceMs;
    const absl::Time slice_end = start_ + absl::Milliseconds((index + 1) * kSliceMs);
    Slice& slice = slices_[index % slices_.size()];
    if (slice.index != index) slice = {index, absl::ZeroDuration()};
    slice.busy += std::min(end, slice_end) - begin;
    begin = slice_end;
  }
}

float BusyMeter::Share(absl::Time now) const {
  // Whole slices, and the part of the newest that has passed.
  const int64_t newest = absl::ToInt64Milliseconds(now - start_) / kSliceMs;
  const int64_t oldest = std::max<int64_t>(0, newest - kSlices + 1);
  const absl::Duration window = now - (start_ + absl::Milliseconds(oldest * kSliceMs));
  if (window <= absl::ZeroDuration()) return 0;
  absl::Duration busy;
  for (const Slice& slice : slices_) {
    if (slice.index >= oldest && slice.index <= newest) busy += slice.busy;
  }
  return static_cast<float>(std::clamp(absl::FDivDuration(busy, window), 0.0, 1.0));
}

}  // namespace blockserve
