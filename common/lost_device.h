// What a tier does without its device.
#ifndef BLOCKSERVE_COMMON_LOST_DEVICE_H_
#define BLOCKSERVE_COMMON_LOST_DEVICE_H_

#include "absl/status/status.h"

namespace blockserve {

// Ends the process unless OK: as a crash would, but with a line in the log (exit status 1). Nothing
// is answered: whoever waits sees the connection break, and takes the same care with what was being
// computed as after any other death, for it may be why. A process without its device would fail
// whatever it is sent, and faster than its healthy neighbours answer.
void EndProcessIfLost(const absl::Status& lost);

}  // namespace blockserve

#endif  // BLOCKSERVE_COMMON_LOST_DEVICE_H_
