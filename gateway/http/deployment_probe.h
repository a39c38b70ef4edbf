// Has a tiny block gone through both tiers lately? Asks them when somebody wants to know.
#ifndef BLOCKSERVE_GATEWAY_HTTP_DEPLOYMENT_PROBE_H_
#define BLOCKSERVE_GATEWAY_HTTP_DEPLOYMENT_PROBE_H_

#include <functional>
#include <memory>
#include <vector>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "common/mutex.h"
#include "gateway/generation.h"

namespace blockserve {

// Thread-safe. One probe is under way at a time, whoever waits for it.
class DeploymentProbe : public std::enable_shared_from_this<DeploymentProbe> {
 public:
  static constexpr absl::Duration kGoodFor = absl::Seconds(5);
  static constexpr absl::Duration kDeadline = absl::Seconds(5);

  // `probe` makes the request of a probe, to be over by `deadline`. `core` must outlive this.
  DeploymentProbe(GenerationCore* core,
                  std::function<absl::StatusOr<GenerationRequest>(absl::Time deadline)> probe)
      : core_(core), probe_(std::move(probe)) {}

  // OK at once where the last probe succeeded within kGoodFor; else what a new one says.
  void Check(std::function<void(absl::Status)> done);

 private:
  class Sink;
  void OnDone(absl::Status status);

  GenerationCore* const core_;
  const std::function<absl::StatusOr<GenerationRequest>(absl::Time deadline)> probe_;
  Mutex mutex_;
  absl::Time last_success_ ABSL_GUARDED_BY(mutex_) = absl::InfinitePast();
  bool under_way_ ABSL_GUARDED_BY(mutex_) = false;
  std::vector<std::function<void(absl::Status)>> waiting_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace blockserve

#endif  // BLOCKSERVE_GATEWAY_HTTP_DEPLOYMENT_PROBE_H_
