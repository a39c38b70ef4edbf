// The routes of the HTTP front and what each answers.
#ifndef BLOCKSERVE_GATEWAY_HTTP_API_H_
#define BLOCKSERVE_GATEWAY_HTTP_API_H_

#include <atomic>
#include <functional>
#include <memory>
#include <optional>
#include <set>
#include <string>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "common/mutex.h"
#include "gateway/deployment_status.h"
#include "gateway/generation.h"
#include "gateway/http/chat_format.h"
#include "gateway/http/completion_call.h"
#include "gateway/http/completion_job.h"
#include "gateway/http/deployment_probe.h"
#include "rpc/http/exchange.h"

namespace blockserve {

class RequestValidator;

struct HttpApiOptions {
  // Access-Control-Allow-Origin of every answer; empty: browsers' pages of other origins are not
  // let in.
  std::string cors_origin;
  // What /metrics shows, in Prometheus' text format; null: 404.
  std::function<std::string()> metrics;
  // The name of the key that a bearer token is; UNAUTHENTICATED where it is none. Null: everybody
  // may do everything. Called on the server's threads.
  std::function<absl::StatusOr<std::string>(absl::string_view token)> authenticate;
  // Whether the key of this name may ask for this priority; null: any may.
  std::function<absl::Status(absl::string_view name, uint32_t priority)> check_priority;
  // That of a request which names none; null: normal.
  std::function<uint32_t(absl::string_view name)> default_priority;
};

// What the routes work with; must outlive the server.
struct HttpBackend {
  GenerationCore* core = nullptr;
  GenerationCore* probe_core = nullptr;  // passes the queue of requests
  const RequestValidator* validator = nullptr;
  absl::StatusOr<ChatFormat> chat_format;
  // `done` may be called on any thread.
  std::function<void(std::function<void(DeploymentStatus)> done)> read_status;
};

class HttpApi {
 public:
  HttpApi(HttpApiOptions options, HttpBackend backend);

  // On any of the server's threads.
  void Handle(const std::shared_ptr<HttpExchange>& exchange);
  // What is answered whatever the body says: a path or method that is none, a key that is missing.
  // `key_name`, unless null, becomes the key's name.
  std::optional<HttpResponse> CheckHead(const HttpRequest& head, std::string* key_name) const;
  HttpResponse Error(int status, const std::string& message) const;
  // Whether /ready says so.
  void SetServing(bool serving) { serving_ = serving; }

 private:
  void Dispatch(const std::shared_ptr<HttpExchange>& exchange, const std::string& key_name);
  void Complete(const std::shared_ptr<HttpExchange>& exchange, bool chat,
                const std::string& key_name);
  absl::StatusOr<HttpCompletionJob> MakeJob(const HttpRequest& request, bool chat,
                                            const std::string& key_name);
  // Tokenize and Detokenize; each takes one request of its key's rate.
  HttpResponse AnswerText(RequestMethod method, const HttpRequest& request,
                          const std::string& key_name) const;
  absl::StatusOr<HttpResponse> Tokenize(const HttpRequest& request) const;
  absl::StatusOr<HttpResponse> Detokenize(const HttpRequest& request) const;
  // The special tokens: what lm-evaluation-harness asks a server for that tokenizes.
  HttpResponse TokenizerInfo() const;
  HttpResponse Models(absl::string_view name) const;
  void Ready(const std::shared_ptr<HttpExchange>& exchange);
  void Status(const std::shared_ptr<HttpExchange>& exchange);
  v1::GetModelResponse DescribeModel() const;
  void LogUnknownFields(const std::vector<std::string>& fields);

  const HttpApiOptions options_;
  const HttpBackend backend_;
  const int64_t started_s_;  // Unix time
  const std::shared_ptr<DeploymentProbe> probe_;
  std::atomic<bool> serving_{false};
  Mutex mutex_;
  std::set<std::string> logged_fields_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace blockserve

#endif  // BLOCKSERVE_GATEWAY_HTTP_API_H_
