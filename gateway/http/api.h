// The routes of the HTTP front and what each answers.
#ifndef BLOCKSERVE_GATEWAY_HTTP_API_H_
#define BLOCKSERVE_GATEWAY_HTTP_API_H_

#include <atomic>
#include <functional>
#include <memory>
#include <optional>
#include <string>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "gateway/deployment_status.h"
#include "gateway/generation.h"
#include "gateway/http/chat_format.h"
#include "gateway/http/completion_call.h"
#include "gateway/http/completion_job.h"
#include "gateway/http/deployment_probe.h"
#include "gateway/http/unknown_fields.h"
#include "gateway/text_workers.h"
#include "rpc/http/exchange.h"

namespace blockserve {

class RequestValidator;

struct HttpApiOptions {
  // Access-Control-Allow-Origin of every answer; empty: browsers' pages of other origins are not
  // let in.
  std::string cors_origin;
  // What /metrics shows, in Prometheus' text format; null: 404.
  std::function<std::string()> metrics;
  // The name of the key in an Authorization header, "" where there is none; UNAUTHENTICATED for
  // neither a key nor a header. Null: everybody may do everything. Called on the server's threads.
  std::function<absl::StatusOr<std::string>(absl::string_view authorization)> authenticate;
  // Whether the key of this name may ask for this priority; null: any may.
  std::function<absl::Status(absl::string_view name, uint32_t priority)> check_priority;
  // That of a request which names none; null: normal.
  std::function<uint32_t(absl::string_view name)> default_priority;
  int32_t text_threads = 1;  // that read long bodies
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

  // On any of the server's threads, which long bodies do not hold up: those are read on others.
  void Handle(const std::shared_ptr<HttpExchange>& exchange);
  // What is answered whatever the body says: a path or method that is none, a key that is missing.
  // `key_name`, unless null, becomes the key's name.
  std::optional<HttpResponse> CheckHead(const HttpRequest& head, std::string* key_name) const;
  // Whether /ready says so.
  void SetServing(bool serving) { serving_ = serving; }
  // When the server has ended: afterwards nothing of this calls the backend.
  void Stop() { text_workers_.Stop(); }

 private:
  void Dispatch(const std::shared_ptr<HttpExchange>& exchange, const std::string& key_name);
  void Complete(const std::shared_ptr<HttpExchange>& exchange, bool chat,
                const std::string& key_name);
  // Calls `read` with the request, on another thread where its body is long, and then `done`, on
  // the connection's, with the request and what `read` returned (a StatusOr): CANCELLED if the
  // client has left meanwhile, RESOURCE_EXHAUSTED where too many long bodies wait.
  template <class Read, class Done>
  void ReadBody(const std::shared_ptr<HttpExchange>& exchange, const std::string& key_name,
                Read read, Done done);
  absl::StatusOr<HttpCompletionJob> MakeJob(const HttpRequest& request, bool chat,
                                            const std::string& key_name, absl::Time arrived) const;
  void Refuse(const std::shared_ptr<HttpExchange>& exchange, const HttpRequest& request, bool chat,
              const std::string& key_name, const absl::Status& status) const;
  // Tokenize and Detokenize; each takes one request of its key's rate.
  void AnswerText(const std::shared_ptr<HttpExchange>& exchange, RequestMethod method,
                  const std::string& key_name);
  void Ready(const std::shared_ptr<HttpExchange>& exchange);
  void Status(const std::shared_ptr<HttpExchange>& exchange);
  v1::GetModelResponse DescribeModel() const;

  const HttpApiOptions options_;
  const HttpBackend backend_;
  const int64_t started_s_;  // Unix time
  const std::shared_ptr<DeploymentProbe> probe_;
  std::atomic<bool> serving_{false};
  UnknownFieldLog unknown_fields_;
  TextWorkers text_workers_;  // last: its threads use all of the above
};

}  // namespace blockserve

#endif  // BLOCKSERVE_GATEWAY_HTTP_API_H_
