#include "gateway/http/front.h"

#include <utility>

#include "absl/strings/str_cat.h"
#include "gateway/http/openai_answer.h"
#include "rpc/http/tls.h"

namespace blockserve {

absl::Status HttpFrontOptions::Validate() const {
  const auto within = [](absl::string_view flag, int64_t value, int64_t least, int64_t most) {
    if (value >= least && value <= most) return absl::OkStatus();
    return absl::InvalidArgumentError(
        absl::StrCat(flag, " is ", value, "; it must be ", least, " to ", most));
  };
  const auto positive = [](absl::string_view flag, absl::Duration duration) {
    if (duration > absl::ZeroDuration()) return absl::OkStatus();
    return absl::InvalidArgumentError(absl::StrCat(flag, " must be above zero"));
  };
  const HttpConnectionLimits& limits = server.limits;
  for (const absl::Status& status :
       {within("--http-threads", server.threads, 1, 64),
        within("--http-max-connections", server.max_connections, 1, 1 << 20),
        within("--http-max-header-bytes", static_cast<int64_t>(limits.read.max_header_bytes), 256,
               kMostHeaderBytes),
        within("--http-max-body-bytes", static_cast<int64_t>(limits.read.max_body_bytes), 1,
               int64_t{1} << 30),
        positive("--http-header-timeout", limits.header_timeout),
        positive("--http-body-timeout", limits.body_timeout),
        positive("--http-idle-timeout", limits.idle_timeout),
        positive("--http-write-timeout", limits.write_timeout)}) {
    if (!status.ok()) return status;
  }
  for (const char c : api.cors_origin) {
    if (c <= 0x20 || c > 0x7E) {
      return absl::InvalidArgumentError("--http-cors-origin must be * or one origin");
    }
  }
  return absl::OkStatus();
}

absl::StatusOr<std::unique_ptr<HttpFront>> HttpFront::Start(const HttpFrontOptions& options,
                                                            Gateway& gateway) {
  if (absl::Status status = options.Validate(); !status.ok()) return status;
  absl::StatusOr<ChatFormat> chat_format = ChatFormat::Load(gateway.model_directory());
  if (!chat_format.ok() && !absl::IsNotFound(chat_format.status())) return chat_format.status();
  std::unique_ptr<HttpFront> front(new HttpFront);
  HttpBackend backend{&gateway.core(), &gateway.core_behind_admission(), &gateway.validator(),
                      std::move(chat_format),
                      [&gateway](std::function<void(DeploymentStatus)> done) {
                        gateway.ReadStatus(std::move(done));
                      }};
  HttpApiOptions api_options = options.api;
  api_options.text_threads = options.server.threads;
  if (ApiKeys* const keys = gateway.api_keys()) {
    api_options.authenticate = [keys](absl::string_view authorization) {
      return keys->AuthenticateHeader(authorization);
    };
    api_options.check_priority = [keys](absl::string_view name, uint32_t priority) {
      return keys->CheckPriority(name, priority);
    };
    api_options.default_priority = [keys](absl::string_view name) {
      return keys->DefaultPriority(name);
    };
  }
  front->api_ = std::make_unique<HttpApi>(std::move(api_options), std::move(backend));
  HttpServerOptions server_options = options.server;
  server_options.keeps_reserve = true;
  if (!options.api.cors_origin.empty()) {
    server_options.headers.emplace_back("Access-Control-Allow-Origin", options.api.cors_origin);
    server_options.headers.emplace_back("Access-Control-Expose-Headers",
                                        "X-Request-Id, Retry-After, X-Should-Retry");
    if (options.api.cors_origin != "*") server_options.headers.emplace_back("Vary", "Origin");
  }
  if (options.tls.enabled()) {
    absl::StatusOr<std::shared_ptr<HttpTls>> tls = HttpTls::Load(options.tls);
    if (!tls.ok()) return tls.status();
    server_options.tls = [tls = *std::move(tls)] { return tls->Current(); };
  }
  HttpApi* const api = front->api_.get();
  server_options.request_id = RequestIdOf;
  server_options.check_head = [api](const HttpRequest& head) {
    return api->CheckHead(head, nullptr);
  };
  absl::StatusOr<std::unique_ptr<HttpServer>> server = HttpServer::Start(
      server_options, [api](std::shared_ptr<HttpExchange> exchange) { api->Handle(exchange); },
      [](int status, const std::string& message) { return OpenAiError(status, message); });
  if (!server.ok()) return server.status();
  front->server_ = *std::move(server);
  return front;
}

void HttpFront::StartDraining() {
  api_->SetServing(false);
  server_->StartDraining();
}

void HttpFront::Shutdown(absl::Duration grace) {
  server_->Shutdown(grace);
  api_->Stop();
}

}  // namespace blockserve
