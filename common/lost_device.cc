#include "common/lost_device.h"

#include <cstdlib>

#include "absl/strings/str_cat.h"
#include "common/logging.h"

namespace blockserve {

void EndProcessIfLost(const absl::Status& lost) {
  if (lost.ok()) return;
  LogError(absl::StrCat("this process ends: ", lost.message()));
  FlushLog();
  // Not exit: destructors would wait for the device, and for the threads that use it.
  std::_Exit(EXIT_FAILURE);
}

}  // namespace blockserve
