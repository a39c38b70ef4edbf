// The HTTP transport: POST /v1/completions with a stream of server-sent events, as OpenAI's clients
// ask for it. One connection for each request under way, kept and used again.
#ifndef BLOCKSERVE_BENCH_LOAD_HTTP_H_
#define BLOCKSERVE_BENCH_LOAD_HTTP_H_

#include <boost/asio/ssl/context.hpp>
#include <memory>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "bench/load_transport.h"
#include "rpc/tls.h"

namespace blockserve {

struct HttpTargetOptions {
  std::string host;  // a name or an address, that of IPv6 without its brackets
  std::string port;
  std::string path = "/v1/completions";
  std::string model;            // of the requests; never empty
  std::string api_key;          // sent as "Authorization: Bearer KEY"; empty: none
  int32_t stream_interval = 0;  // asked for, with token ids to count by; 0: not
  std::string cache_salt;       // of the requests; empty: none
  // None: plain.
  std::shared_ptr<boost::asio::ssl::context> tls;
  std::string server_name;  // in the server's certificate; empty: `host`
  bool wants_tls = false;   // "https://" was given

  std::string address() const;  // host:port, as in a URL
};

// "host:port", "http://host:port" or "https://host:port", perhaps with the path of the completions;
// an address of IPv6 in brackets.
absl::StatusOr<HttpTargetOptions> ParseHttpTarget(absl::string_view text);

// INVALID_ARGUMENT: OpenSSL cannot use the files.
absl::StatusOr<std::shared_ptr<boost::asio::ssl::context>> MakeHttpClientTls(
    const ClientTlsFiles& files);

// The name of the first model of GET /v1/models. UNAVAILABLE and others: what the server says
// instead.
absl::StatusOr<std::string> AskHttpModel(const HttpTargetOptions& options, absl::Duration timeout);

std::unique_ptr<LoadTransport> MakeHttpTransport(const HttpTargetOptions& options);

}  // namespace blockserve

#endif  // BLOCKSERVE_BENCH_LOAD_HTTP_H_
