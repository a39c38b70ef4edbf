// What the gateway's fronts (gRPC, HTTP) and its core say to each other: a validated request, the
// events of its answer, and the core's interface.
//
// The core runs on one event loop thread (boost::asio::io_context). Fronts may call Core from any
// thread; sinks are called on the loop thread and must not block.
#ifndef BLOCKSERVE_GATEWAY_GENERATION_H_
#define BLOCKSERVE_GATEWAY_GENERATION_H_

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "blockserve/v1/generation.pb.h"
#include "common/trace_context.h"
#include "gateway/call_tiers.h"
#include "gateway/request_method.h"
#include "model/config.h"

namespace blockserve {

// Where a request comes from, as its front knows.
struct RequestOrigin {
  TraceContext trace;       // the caller's; without a trace id: none
  std::string traceparent;  // for the tiers; set on admission, empty where no spans are recorded
  // A call over HTTP may have several prompts, each a request of its own here. For its key's rate
  // the call counts once, by its first request.
  int32_t prompts_of_call = 1;
  bool first_of_call = true;
  // They are served by the same workers. Null: by whichever.
  std::shared_ptr<CallTiers> tiers;
};

// What a client that goes on with a broken stream has of it.
struct ResumeState {
  // The stream is exact on workers of these alone.
  std::string model_id;
  std::string block_numeric_id;
  std::string token_numeric_id;
  struct Choice {
    std::vector<int32_t> tokens;
    bool finished = false;  // its end was received
  };
  std::vector<Choice> choices;  // [n]
};

// A request that has been validated against the model: every field has its default filled in.
struct GenerationRequest {
  std::string request_id;
  std::string key;              // name of the API key's owner; empty: keys are not asked for
  std::string model_id;         // given where the request names its model by it; empty: any
  std::vector<int32_t> prompt;  // not empty: an empty prompt is {bos}
  // The bytes of a character that the prompt ends within, where the client is shown the prompt's
  // text before them: the output's text begins with it.
  std::string text_before;
  v1::SamplingParameters sampling;
  int32_t max_tokens = 16;
  int32_t min_tokens = 0;
  std::vector<std::string> stop_strings;
  bool include_stop_string = false;  // the text ends with the one that ended it; of the front
  std::vector<int32_t> stop_ids;     // end-of-text included unless ignore_eos
  int32_t n = 1;
  uint64_t seed = 0;
  Alignment alignment = Alignment::kEnd;
  std::optional<int32_t> logprobs;  // best ids beside the token's own
  uint32_t priority = 2;
  std::string cache_salt;         // KV is shared with requests of the same one alone; empty: none
  bool own_prefix_cache = false;  // and of the same key; set on admission
  int32_t stream_interval = 1;    // tokens of a choice that are sent together; of the front
  absl::Time deadline;            // by the core's clock
  std::optional<ResumeState> resume;
  RequestOrigin origin;
};

// Scores `tokens`; those before `first_scored` are context.
struct ScoringRequest {
  std::string request_id;
  std::string key;  // these two as of a GenerationRequest
  std::string model_id;
  std::vector<int32_t> tokens;
  int32_t first_scored = 0;
  Alignment alignment = Alignment::kEnd;
  int32_t top_logprobs = 0;
  uint32_t priority = 2;
  std::string cache_salt;  // these two as of a GenerationRequest
  bool own_prefix_cache = false;
  absl::Time deadline;  // by the core's clock
  RequestOrigin origin;
};

// What an Output's message does not tell, for a front that sends token by token.
struct OutputDetail {
  // Bytes of the message's `text` that are there with each token; one per token. Text that is held
  // back comes with a later token.
  std::vector<int32_t> text_ends;
  bool ends_choice = false;  // OnFinished follows at once
};

// Receives the events of one generation. Called on the loop thread. After OnDone nothing more
// comes.
class GenerationSink {
 public:
  virtual ~GenerationSink() = default;
  virtual void OnStarted(v1::Started started) = 0;
  virtual void OnOutput(v1::Output output, OutputDetail detail) = 0;
  virtual void OnFinished(v1::Finished finished) = 0;
  // OK after every choice has finished, or the one error that ends the stream.
  virtual void OnDone(absl::Status status, v1::Usage usage) = 0;
  // False while the client does not read: the choice's next block is not decoded until
  // Core::Resume is called.
  virtual bool WantsMore() const = 0;
};

// Called on the loop thread. After OnDone nothing more comes.
class ScoringSink {
 public:
  virtual ~ScoringSink() = default;
  // The block tier has begun to answer.
  virtual void OnStarted() {}
  // So many more tokens are scored; they are told together, at the end.
  virtual void OnScored(int64_t tokens) {}
  virtual void OnDone(absl::StatusOr<v1::ScoreResponse> response) = 0;
};

// What is known of a request that does not come to the core.
struct RefusedRequest {
  RequestMethod method = RequestMethod::kGenerate;
  std::string request_id = {};  // may be empty
  std::string key = {};         // its name; empty: none was shown, or none is needed
  absl::Status status = {};
};

// Names a request in the core; unique in the process.
using GenerationId = uint64_t;

inline absl::Status ClientHasGone() { return absl::CancelledError("the client has gone"); }

class GenerationCore {
 public:
  virtual ~GenerationCore() = default;
  // The sink is told of everything, refusals too (OnDone without OnStarted).
  virtual GenerationId Generate(GenerationRequest request,
                                std::shared_ptr<GenerationSink> sink) = 0;
  virtual GenerationId Score(ScoringRequest request, std::shared_ptr<ScoringSink> sink) = 0;
  // Nobody wants it any more: work stops, nothing more is delivered. Unknown ids are ignored. `why`
  // is what the log and metrics tell.
  virtual void Cancel(GenerationId id, absl::Status why) = 0;
  // The sink wants more again.
  virtual void Resume(GenerationId id) = 0;
  // Whether the key's rate grants a request now: OK, or RESOURCE_EXHAUSTED with a retry-after.
  // Fronts ask before they look at what may be long; nothing is taken of the rate. Thread-safe.
  virtual absl::Status CheckRate(const std::string& key) { return absl::OkStatus(); }
  // As CheckRate, and takes a request of the rate: for what neither Generate nor Score hears of.
  // Thread-safe.
  virtual absl::Status TakeFromRate(const std::string& key) { return absl::OkStatus(); }
  // A front has refused a request (malformed, without a key, …) before it came here: it is counted,
  // logged as those that end here are, and taken of its key's rate unless that was the reason.
  // Thread-safe.
  virtual void OnRefused(const RefusedRequest& refused) {}
  // A front has answered a call that does not come here, in so much time: it is counted.
  // Thread-safe.
  virtual void OnAnswered(RequestMethod method, const absl::Status& status, absl::Duration time) {}
  // What GetModel tells of the workers in use: model id, numeric ids, how many are connected.
  virtual void FillModelStatus(v1::GetModelResponse& response) const = 0;
  // The clock of requests' deadlines: not the wall clock, which may be set. Thread-safe.
  virtual absl::Time Now() const = 0;
};

}  // namespace blockserve

#endif  // BLOCKSERVE_GATEWAY_GENERATION_H_
