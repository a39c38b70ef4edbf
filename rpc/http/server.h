// Listens for HTTP connections and gives each to a thread of its own few.
#ifndef BLOCKSERVE_RPC_HTTP_SERVER_H_
#define BLOCKSERVE_RPC_HTTP_SERVER_H_

#include <boost/asio/ssl/context.hpp>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "rpc/http/session.h"
#include "rpc/listen_address.h"

namespace blockserve {

struct HttpServerOptions {
  std::string listen_address;                 // of BindSockets; port 0: any
  std::string listen_flag = "--http-listen";  // what messages call it
  PortUse port_use = PortUse::kAlone;
  int32_t threads = 1;
  const char* thread_name = "http";
  int32_t max_connections = 4096;  // further ones are answered 503 and closed
  // Connections that would take the last descriptors of the process are closed at once
  // (DescriptorsForConnections).
  bool keeps_reserve = false;
  HttpConnectionLimits limits;
  std::vector<std::pair<std::string, std::string>> headers;  // of every answer
  // Of HttpSessionContext.
  std::function<std::string(const HttpRequest& request)> request_id;
  std::function<std::optional<HttpResponse>(const HttpRequest& head)> check_head;
  // Called for each new connection; null, or returning null: plain.
  std::function<std::shared_ptr<boost::asio::ssl::context>()> tls;
  // The log says nothing of a plain port that other machines reach.
  bool plaintext_is_meant = false;
};

class HttpServer {
 public:
  // `handler` is called on any of the server's threads. Errors: INVALID_ARGUMENT or
  // FAILED_PRECONDITION naming the address that cannot be listened on.
  static absl::StatusOr<std::unique_ptr<HttpServer>> Start(
      const HttpServerOptions& options, HttpHandler handler,
      std::function<HttpResponse(int status, const std::string& message)> make_error);
  // As Shutdown with no grace.
  ~HttpServer();
  HttpServer(const HttpServer&) = delete;
  HttpServer& operator=(const HttpServer&) = delete;

  // As bound, port 0 resolved.
  const std::string& address() const;

  // Connections between two requests are closed, the others when theirs is answered. New ones are
  // taken, so that who has not heard of the end is told, and closed after one answer.
  void StartDraining();
  // As StartDraining, then waits until there is no connection, for at most `grace`, listens no
  // more, and cuts off what is left. Returns when the threads have ended: no handler is called any
  // more. Further calls do nothing.
  void Shutdown(absl::Duration grace);

 private:
  struct Impl;
  explicit HttpServer(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

}  // namespace blockserve

#endif  // BLOCKSERVE_RPC_HTTP_SERVER_H_
