// What stands between the fronts and the core: admits requests, and keeps record of each from its
// arrival to its end.
#ifndef BLOCKSERVE_GATEWAY_ADMITTED_CORE_H_
#define BLOCKSERVE_GATEWAY_ADMITTED_CORE_H_

#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <unordered_map>
#include <vector>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "common/log_budget.h"
#include "common/mutex.h"
#include "common/trace_context.h"
#include "gateway/admission.h"
#include "gateway/generation.h"
#include "gateway/request_metrics.h"
#include "gateway/request_record.h"
#include "rpc/loop.h"

namespace blockserve {

struct AdmittedCoreOptions {
  AdmissionOptions admission;
  int32_t block_length = 1;  // the model's
  // What the token tier can use, asked for again and again on the loop; null: not asked.
  std::function<TokenCapacity()> capacity;
  // Whether requests of the key of this name share KV among themselves alone; null: no key's do.
  // Thread-safe.
  std::function<bool(const std::string& key)> owns_prefix_cache;
  // A stream whose client leaves unread what waits for it (the front's window) for so long ends
  // ABORTED: what it holds is for others.
  absl::Duration slow_reader_timeout = absl::InfiniteDuration();
  bool log_requests = true;  // a line for each request that is over
  // Text of a prompt, for its line; null: prompts are not logged.
  std::function<std::string(const std::vector<int32_t>& prompt)> describe_prompt;
  // Share of requests whose spans are logged, 0 to 1; with a caller's trace context, the caller's
  // choice counts instead. 0: no spans at all.
  double trace_sample_ratio = 0;
  uint64_t trace_seed = 0;
};

// GenerationCore's methods, StartDraining and live_requests are thread-safe; everything else
// belongs to the loop. The sink of a request that is refused is told on the caller's thread, before
// Generate or Score returns.
class AdmittedCore final : public GenerationCore {
 public:
  // `loop` and `core` must outlive this. Before this is destroyed, EndQueued has been called.
  AdmittedCore(Loop& loop, GenerationCore& core, const AdmittedCoreOptions& options,
               const RequestMetrics& metrics);
  ~AdmittedCore() override;

  GenerationId Generate(GenerationRequest request, std::shared_ptr<GenerationSink> sink) override;
  GenerationId Score(ScoringRequest request, std::shared_ptr<ScoringSink> sink) override;
  void Cancel(GenerationId id, absl::Status why) override;
  void Resume(GenerationId id) override;
  absl::Status CheckRate(const std::string& key) override;
  absl::Status TakeFromRate(const std::string& key) override;
  void OnRefused(const RefusedRequest& refused) override;
  void OnAnswered(RequestMethod method, const absl::Status& status, absl::Duration time) override;
  void FillModelStatus(v1::GetModelResponse& response) const override {
    core_.FillModelStatus(response);
  }
  absl::Time Now() const override { return loop_.Now(); }

  // New requests are refused; those that are here, queued ones too, go on.
  void StartDraining() { draining_.store(true); }
  int64_t live_requests() const { return live_requests_.load(); }

  // On the loop. Ends all that is queued, and every later request, with `status`.
  void EndQueued(const absl::Status& status);

 private:
  class Ticket;

  // Queues it, or refuses it here and now, on the caller's thread: where far more comes than can be
  // served, the loop has no part in what it costs to say so.
  GenerationId Accept(std::shared_ptr<Ticket> ticket);
  absl::Status Submit(const std::shared_ptr<Ticket>& ticket, absl::Time now);
  std::shared_ptr<Ticket> Find(GenerationId id);  // null: it is over
  void SchedulePump();
  void Pump();
  void ScheduleTick();
  void Tick();
  void CutSlowReaders();
  // Nothing more is kept of it.
  void Forget(Ticket& ticket, const absl::Status& outcome);
  void ForgetAndTell(const std::shared_ptr<Ticket>& ticket, const absl::Status& outcome);
  void Trace(RequestRecord& record, RequestOrigin& origin);

  Loop& loop_;
  GenerationCore& core_;
  const AdmittedCoreOptions options_;
  const RequestMetrics metrics_;
  TraceIds trace_ids_;
  Mutex mutex_;
  Admission admission_ ABSL_GUARDED_BY(mutex_);
  std::unordered_map<GenerationId, std::shared_ptr<Ticket>> tickets_ ABSL_GUARDED_BY(mutex_);
  absl::Status closed_ ABSL_GUARDED_BY(mutex_);
  LogBudget strangers_ ABSL_GUARDED_BY(mutex_);  // lines of callers without a key that is known
  // Streams that wait for their clients to read, and since when.
  std::unordered_map<GenerationId, absl::Time> held_;

  std::atomic<bool> pump_posted_{false};
  std::atomic<GenerationId> next_id_{1};
  std::atomic<int64_t> live_requests_{0};
  std::atomic<bool> draining_{false};
  const std::shared_ptr<bool> alive_ = std::make_shared<bool>(true);
};

}  // namespace blockserve

#endif  // BLOCKSERVE_GATEWAY_ADMITTED_CORE_H_
