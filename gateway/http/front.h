// The HTTP front of a gateway: OpenAI's interface, health, metrics and a page to look at.
#ifndef BLOCKSERVE_GATEWAY_HTTP_FRONT_H_
#define BLOCKSERVE_GATEWAY_HTTP_FRONT_H_

#include <functional>
#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "gateway/gateway.h"
#include "gateway/http/api.h"
#include "rpc/http/server.h"
#include "rpc/tls.h"

namespace blockserve {

struct HttpFrontOptions {
  HttpServerOptions server;
  HttpApiOptions api;  // keys are those of the gateway
  ServerTlsFiles tls;  // not enabled: plain

  // INVALID_ARGUMENT naming the flag.
  absl::Status Validate() const;
};

class HttpFront {
 public:
  // Listens at once; /ready says no before SetServing(true). `gateway` must outlive it.
  // Errors: of Validate, of the folder's chat format, of the address.
  static absl::StatusOr<std::unique_ptr<HttpFront>> Start(const HttpFrontOptions& options,
                                                          Gateway& gateway);

  const std::string& address() const { return server_->address(); }
  void SetServing(bool serving) { api_->SetServing(serving); }
  // /ready says no, and new requests are answered 503 by the gateway, which drains too.
  void StartDraining();
  // Requests that run may take `grace` to end. Afterwards nothing of this calls the gateway.
  void Shutdown(absl::Duration grace);

 private:
  HttpFront() = default;

  std::unique_ptr<HttpApi> api_;
  std::unique_ptr<HttpServer> server_;
};

}  // namespace blockserve

#endif  // BLOCKSERVE_GATEWAY_HTTP_FRONT_H_
