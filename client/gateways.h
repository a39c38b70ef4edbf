// Inside of the client library: the gateways that a client knows, and when a call is tried again.
#ifndef BLOCKSERVE_CLIENT_GATEWAYS_H_
#define BLOCKSERVE_CLIENT_GATEWAYS_H_

#include <grpcpp/channel.h>
#include <grpcpp/client_context.h>

#include <atomic>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/random/random.h"
#include "absl/status/status.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"
#include "blockserve/v1/generation.grpc.pb.h"
#include "client/client.h"

namespace blockserve::internal {

struct RetryPolicy {
  std::optional<int32_t> max_retries = 0;  // none: the two limits below hold
  absl::Duration first_backoff = absl::Milliseconds(100);
  absl::Duration longest_loss = absl::Seconds(30);  // of a gateway that has answered before
  int32_t max_refusals = 5;                         // and tries where none ever has
};

// Thread-safe.
class Gateways {
 public:
  // At least one channel.
  Gateways(std::vector<std::shared_ptr<grpc::Channel>> channels, std::string api_key,
           RetryPolicy policy);

  // The gateway that calls go to at the moment.
  size_t current() const { return current_.load(); }
  grpc::Channel& channel(size_t index) { return *channels_[index]; }
  v1::Generation::Stub& stub(size_t index) { return *stubs_[index]; }
  // `failed` could not be reached: the next one is current, unless another call has moved on.
  void MoveOn(size_t failed);
  size_t size() const { return stubs_.size(); }
  // Whether any ever has. An address where nobody was ever found is more likely wrong than lost.
  bool answered() const { return answered_.load(); }
  void set_answered() { answered_.store(true); }
  const RetryPolicy& policy() const { return policy_; }

  // Times here are of a SteadyClock.
  std::unique_ptr<grpc::ClientContext> MakeContext(absl::Time deadline) const;

 private:
  const std::string authorization_;
  const RetryPolicy policy_;
  const std::vector<std::shared_ptr<grpc::Channel>> channels_;
  std::vector<std::unique_ptr<v1::Generation::Stub>> stubs_;
  std::atomic<size_t> current_{0};
  std::atomic<bool> answered_{false};
};

// One call, which may be made several times.
class RetryState {
 public:
  RetryState(std::shared_ptr<Gateways> gateways, absl::Time deadline)
      : gateways_(std::move(gateways)), deadline_(deadline) {}

  // The context and stub of the next try; the context lives until the next call.
  grpc::ClientContext* NewContext();
  v1::Generation::Stub& stub() { return gateways_->stub(used_); }
  // Of the try under way, once it has ended: with what RetryAfterOf reads.
  absl::Status Outcome(const grpc::Status& status);
  // The try under way has been taken in: it has been answered something, if only that it began.
  void TakenIn() {
    if (!std::exchange(taken_in_, true)) gateways_->set_answered();
  }
  // A gateway has given something new.
  void Progress();
  // Whether the call is to be made again after this status, once it is time: waits. Where it would
  // be, had it not been cancelled, the status becomes that.
  bool AfterFailure(absl::Status& status);
  // From any thread: the try under way ends, and no other is made.
  void Cancel();

 private:
  // False: cancelled meanwhile.
  bool WaitUntil(absl::Time time);
  bool cancelled() const;

  const std::shared_ptr<Gateways> gateways_;
  const absl::Time deadline_;
  size_t used_ = 0;
  bool taken_in_ = false;
  int32_t failures_ = 0;                  // in a row
  int32_t refusals_ = 0;                  // of them
  bool reset_ = false;                    // one of them was a proxy's
  bool of_a_gateway_ = false;             // the last error: a gateway has said so
  std::optional<absl::Time> lost_since_;  // none: a gateway answered the last try
  absl::BitGen random_;
  mutable absl::Mutex mutex_;
  bool cancelled_ ABSL_GUARDED_BY(mutex_) = false;
  std::unique_ptr<grpc::ClientContext> context_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace blockserve::internal

#endif  // BLOCKSERVE_CLIENT_GATEWAYS_H_
