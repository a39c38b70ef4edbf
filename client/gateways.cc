#include "client/gateways.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"

namespace blockserve::internal {
namespace {

constexpr absl::Duration kMaxBackoff = absl::Seconds(2);

}  // namespace

absl::Status FromGrpc(const grpc::Status& status) {
  if (status.ok()) return absl::OkStatus();
  return absl::Status(static_cast<absl::StatusCode>(status.error_code()), status.error_message());
}

Gateways::Gateways(std::vector<std::shared_ptr<grpc::Channel>> channels, std::string api_key,
                   RetryPolicy policy)
    : authorization_(api_key.empty() ? "" : absl::StrCat("Bearer ", api_key)), policy_(policy) {
  for (const auto& channel : channels) stubs_.push_back(v1::Generation::NewStub(channel));
}

void Gateways::MoveOn(size_t failed) {
  current_.compare_exchange_strong(failed, (failed + 1) % stubs_.size());
}

std::unique_ptr<grpc::ClientContext> Gateways::MakeContext(absl::Time deadline) const {
  auto context = std::make_unique<grpc::ClientContext>();
  if (deadline != absl::InfiniteFuture()) context->set_deadline(absl::ToChronoTime(deadline));
  if (!authorization_.empty()) context->AddMetadata("authorization", authorization_);
  return context;
}

grpc::ClientContext* RetryState::NewContext() {
  std::unique_ptr<grpc::ClientContext> made = gateways_->MakeContext(deadline_);
  used_ = gateways_->current();
  absl::MutexLock lock(&mutex_);
  context_ = std::move(made);
  if (cancelled_) context_->TryCancel();
  return context_.get();
}

bool RetryState::AfterFailure(const absl::Status& status) {
  const bool full = status.code() == absl::StatusCode::kResourceExhausted;
  // A gateway that stops breaks off what still runs; so may whatever stands between.
  const bool lost = status.code() == absl::StatusCode::kUnavailable ||
                    status.code() == absl::StatusCode::kCancelled;
  if (!full && !lost) return false;
  absl::MutexLock lock(&mutex_);
  if (cancelled_ || failures_ >= gateways_->policy().max_retries) return false;
  ++failures_;
  gateways_->MoveOn(used_);
  // The others are asked without delay, once each.
  if (lost && failures_ < static_cast<int32_t>(gateways_->size())) return true;
  const absl::Duration backoff =
      std::min(kMaxBackoff, gateways_->policy().first_backoff * (1 << std::min(failures_ - 1, 10)));
  const absl::Time until = absl::Now() + backoff * absl::Uniform(random_, 0.5, 1.0);
  if (until >= deadline_) return false;
  return !mutex_.AwaitWithDeadline(absl::Condition(&cancelled_), until);
}

void RetryState::Cancel() {
  absl::MutexLock lock(&mutex_);
  cancelled_ = true;
  if (context_ != nullptr) context_->TryCancel();
}

}  // namespace blockserve::internal
