#include "client/gateways.h"

#include <algorithm>
#include <utility>

#include "absl/strings/cord.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "common/clock.h"
#include "rpc/deadline.h"

namespace blockserve {
namespace {

constexpr absl::Duration kMaxBackoff = absl::Seconds(2);
// How soon a wait notices that it is cancelled.
constexpr absl::Duration kWaitSlice = absl::Milliseconds(50);
constexpr absl::string_view kRetryAfterPayload = "blockserve.v1/retry-after-seconds";

}  // namespace

std::optional<absl::Duration> RetryAfterOf(const absl::Status& status) {
  const absl::optional<absl::Cord> payload = status.GetPayload(kRetryAfterPayload);
  uint32_t seconds = 0;
  if (!payload.has_value() || !absl::SimpleAtoi(std::string(*payload), &seconds)) {
    return std::nullopt;
  }
  return absl::Seconds(seconds);
}

namespace internal {

Gateways::Gateways(std::vector<std::shared_ptr<grpc::Channel>> channels, std::string api_key,
                   RetryPolicy policy)
    : authorization_(api_key.empty() ? "" : absl::StrCat("Bearer ", api_key)),
      policy_(policy),
      channels_(std::move(channels)) {
  for (const auto& channel : channels_) stubs_.push_back(v1::Generation::NewStub(channel));
  current_ =
      absl::Uniform<size_t>(absl::BitGen(), 0, stubs_.size());  // not all clients to the first
}

void Gateways::MoveOn(size_t failed) {
  current_.compare_exchange_strong(failed, (failed + 1) % stubs_.size());
}

std::unique_ptr<grpc::ClientContext> Gateways::MakeContext(absl::Time deadline) const {
  auto context = std::make_unique<grpc::ClientContext>();
  if (deadline != absl::InfiniteFuture()) {
    context->set_deadline(GrpcDeadlineIn(deadline - SteadyClock().Now()));
  }
  if (!authorization_.empty()) context->AddMetadata("authorization", authorization_);
  return context;
}

grpc::ClientContext* RetryState::NewContext() {
  std::unique_ptr<grpc::ClientContext> made = gateways_->MakeContext(deadline_);
  used_ = gateways_->current();
  taken_in_ = false;
  absl::MutexLock lock(&mutex_);
  context_ = std::move(made);
  if (cancelled_) context_->TryCancel();
  return context_.get();
}

// The codes of both have the same numbers (google.rpc.Code). The library stands by itself where it
// is installed, so that it does not use the conversions of rpc/.
absl::Status RetryState::Outcome(const grpc::Status& status) {
  if (status.ok()) {
    gateways_->set_answered();
    return absl::OkStatus();
  }
  absl::Status outcome(static_cast<absl::StatusCode>(status.error_code()), status.error_message());
  absl::MutexLock lock(&mutex_);
  const auto& metadata = context_->GetServerTrailingMetadata();
  of_a_gateway_ = metadata.find("blockserve-status") != metadata.end();
  if (const auto found = metadata.find("retry-after"); found != metadata.end()) {
    outcome.SetPayload(kRetryAfterPayload,
                       absl::Cord(absl::string_view(found->second.data(), found->second.size())));
  }
  return outcome;
}

void RetryState::Progress() {
  gateways_->set_answered();
  failures_ = 0;
  refusals_ = 0;
  reset_ = false;
  lost_since_.reset();
}

bool RetryState::AfterFailure(absl::Status& status) {
  const bool full = status.code() == absl::StatusCode::kResourceExhausted;
  // A gateway that stops breaks off what still runs; so may whatever stands between. UNKNOWN: a
  // proxy's stream ended without a status. INTERNAL that is no gateway's: a proxy has reset the
  // stream. That one once in a row: gateways of older builds mark nothing, and a request that kills
  // workers must not come again.
  const bool first_reset =
      status.code() == absl::StatusCode::kInternal && !of_a_gateway_ && !reset_;
  reset_ = reset_ || first_reset;
  const bool unavailable = status.code() == absl::StatusCode::kUnavailable ||
                           status.code() == absl::StatusCode::kCancelled ||
                           status.code() == absl::StatusCode::kUnknown || first_reset;
  if (!full && !unavailable) return false;
  // One that has been taken in is not refused any more: its gateway is short of memory.
  const bool broken_off = unavailable || taken_in_;
  const RetryPolicy& policy = gateways_->policy();
  const std::optional<absl::Duration> told = RetryAfterOf(status);
  // Larger than is ever allowed: generation.proto.
  if (!broken_off && !told.has_value()) return false;
  const bool lost = broken_off && !told.has_value();
  const absl::Time now = SteadyClock().Now();
  const auto end_as_cancelled = [&] {
    status = absl::CancelledError("the call was cancelled");
    return false;
  };
  if (cancelled()) return end_as_cancelled();
  ++failures_;
  if (!lost) {
    gateways_->set_answered();
    ++refusals_;
    lost_since_.reset();
  } else if (!lost_since_.has_value()) {
    lost_since_ = now;
  }
  const auto others = static_cast<int32_t>(gateways_->size()) - 1;
  if (policy.max_retries.has_value()) {
    if (failures_ > *policy.max_retries) return false;
  } else if ((gateways_->answered() ? refusals_ : failures_) > policy.max_refusals + others) {
    return false;
  }
  gateways_->MoveOn(used_);
  // The others are asked without delay, once each.
  if (failures_ <= others) return true;
  const absl::Duration backoff =
      std::min(kMaxBackoff, policy.first_backoff * (1 << std::min(failures_ - 1, 10)));
  const absl::Time until = now + std::max(backoff * absl::Uniform(random_, 0.5, 1.0),
                                          told.value_or(absl::ZeroDuration()));
  if (until >= deadline_) return false;
  if (!policy.max_retries.has_value() && lost && until >= *lost_since_ + policy.longest_loss) {
    return false;
  }
  return WaitUntil(until) || end_as_cancelled();
}

// In gRPC, which goes on with a connection only while a thread of its caller is in there: 1.51
// looks by itself every 5 s, and a proxy that waits for our first bytes is never reached in time.
bool RetryState::WaitUntil(absl::Time time) {
  grpc::Channel& channel = gateways_->channel(gateways_->current());
  const SteadyClock clock;
  for (absl::Time now = clock.Now(); now < time && !cancelled(); now = clock.Now()) {
    channel.WaitForStateChange(channel.GetState(/*try_to_connect=*/true),
                               GrpcDeadlineIn(std::min(time - now, kWaitSlice)));
  }
  return !cancelled();
}

bool RetryState::cancelled() const {
  absl::MutexLock lock(&mutex_);
  return cancelled_;
}

void RetryState::Cancel() {
  absl::MutexLock lock(&mutex_);
  cancelled_ = true;
  if (context_ != nullptr) context_->TryCancel();
}

}  // namespace internal
}  // namespace blockserve
