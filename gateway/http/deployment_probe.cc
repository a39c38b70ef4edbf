#include "gateway/http/deployment_probe.h"

#include <utility>

namespace blockserve {

class DeploymentProbe::Sink final : public GenerationSink {
 public:
  explicit Sink(std::shared_ptr<DeploymentProbe> probe) : probe_(std::move(probe)) {}
  void OnStarted(v1::Started) override {}
  void OnOutput(v1::Output, OutputDetail) override {}
  void OnFinished(v1::Finished) override {}
  void OnDone(absl::Status status, v1::Usage) override { probe_->OnDone(std::move(status)); }
  bool WantsMore() const override { return true; }

 private:
  const std::shared_ptr<DeploymentProbe> probe_;
};

void DeploymentProbe::Check(std::function<void(absl::Status)> done) {
  bool good = false;
  {
    MutexLock lock(&mutex_);
    good = core_->Now() - last_success_ <= kGoodFor;
    if (!good) {
      waiting_.push_back(std::move(done));
      if (std::exchange(under_way_, true)) return;
    }
  }
  if (good) return done(absl::OkStatus());
  absl::StatusOr<GenerationRequest> request = probe_(core_->Now() + kDeadline);
  if (!request.ok()) return OnDone(request.status());
  core_->Generate(*std::move(request), std::make_shared<Sink>(shared_from_this()));
}

void DeploymentProbe::OnDone(absl::Status status) {
  std::vector<std::function<void(absl::Status)>> waiting;
  {
    MutexLock lock(&mutex_);
    under_way_ = false;
    if (status.ok()) last_success_ = core_->Now();
    waiting.swap(waiting_);
  }
  for (const auto& done : waiting) done(status);
}

}  // namespace blockserve
