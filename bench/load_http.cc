#include "bench/load_http.h"

#include <algorithm>
#include <array>
#include <boost/asio/connect.hpp>
#include <boost/asio/executor_work_guard.hpp>
#include <boost/asio/io_context.hpp>
#include <boost/asio/ip/tcp.hpp>
#include <boost/asio/post.hpp>
#include <boost/asio/ssl/host_name_verification.hpp>
#include <boost/beast/core.hpp>
#include <boost/beast/http.hpp>
#include <boost/beast/ssl.hpp>
#include <chrono>
#include <limits>
#include <nlohmann/json.hpp>
#include <optional>
#include <unordered_set>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/strip.h"
#include "bench/load_sse.h"

namespace blockserve {
namespace {

namespace asio = boost::asio;
namespace beast = boost::beast;
namespace http = boost::beast::http;
using Tcp = asio::ip::tcp;
using ErrorCode = boost::system::error_code;

// Handlers run in one Poll, so that due requests are sent under any load.
constexpr int kHandlersOfPoll = 256;
constexpr size_t kReadBytes = 16 << 10;
// What ends a chunk, "\r\n", is left in the buffer: 1.74 reads it with the head of the next one.
constexpr size_t kMostBetweenChunks = 2;
constexpr size_t kMostErrorBytes = 16 << 10;
// Seconds: the most that X-Request-Timeout may say (docs/http_api.md).
constexpr double kLongestTimeout = 86400;

std::chrono::steady_clock::time_point ToSteadyTime(int64_t micros) {
  return std::chrono::steady_clock::time_point(std::chrono::microseconds(micros));
}

// A connection to the target, plain or under TLS.
class Connection {
 public:
  Connection(asio::io_context& context, const HttpTargetOptions& options) {
    buffer.reserve(kReadBytes);  // one read takes what has come, not 512 bytes of it
    if (options.tls == nullptr) {
      plain_.emplace(context);
      return;
    }
    secure_.emplace(context, *options.tls);
    const std::string& name = options.server_name.empty() ? options.host : options.server_name;
    SSL_set_tlsext_host_name(secure_->native_handle(), name.c_str());
    secure_->set_verify_callback(asio::ssl::host_name_verification(name));
  }

  beast::tcp_stream& lowest() { return plain_ ? *plain_ : beast::get_lowest_layer(*secure_); }
  // Calls `use` with the stream that requests go through.
  template <class Use>
  void With(Use use) {
    if (plain_) {
      use(*plain_);
    } else {
      use(*secure_);
    }
  }
  // Connects, and shakes hands; `done(error)`.
  template <class Done>
  void Open(const Tcp::resolver::results_type& endpoints, Done done) {
    lowest().async_connect(endpoints, [this, done](ErrorCode error, const Tcp::endpoint&) {
      if (error || plain_) return done(error);
      secure_->async_handshake(asio::ssl::stream_base::client, done);
    });
  }

  // The flag that may mend a connection that failed before an answer came, to be put behind the
  // error's own words; empty where it tells nothing.
  std::string Advice(ErrorCode error) {
    // HTTP/2, which a gRPC port answers with, is such a version; under TLS it closes at once.
    if (error == http::error::bad_version || error == asio::ssl::error::stream_truncated) {
      return " (an HTTP port is needed, not that of gRPC)";
    }
    if (plain_) {
      return error == http::error::end_of_stream ? " (a server with TLS needs https://)" : "";
    }
    if (error.category() != asio::error::get_ssl_category()) return "";
    switch (ERR_GET_REASON(error.value())) {
      case SSL_R_WRONG_VERSION_NUMBER:
        return " (a server without TLS needs http://)";
      case SSL_R_TLSV13_ALERT_CERTIFICATE_REQUIRED:
        return " (a server that asks for a certificate needs --tls-cert)";
      case SSL_R_CERTIFICATE_VERIFY_FAILED: {
        const auto why = SSL_get_verify_result(secure_->native_handle());
        // Whoever compares the names gives OpenSSL no reason.
        return why == X509_V_ERR_UNSPECIFIED
                   ? " (the name in its certificate is needed as --tls-name)"
                   : absl::StrCat(" (--tls-ca: ", X509_verify_cert_error_string(why), ")");
      }
    }
    return "";
  }

  beast::flat_buffer buffer;

 private:
  std::optional<beast::tcp_stream> plain_;
  std::optional<beast::ssl_stream<beast::tcp_stream>> secure_;
};

template <class Body>
void SetHead(const HttpTargetOptions& options, http::request<Body>& request) {
  request.set(http::field::host, options.address());
  request.set(http::field::user_agent, "blockserve-load");
  if (!options.api_key.empty()) {
    request.set(http::field::authorization, absl::StrCat("Bearer ", options.api_key));
  }
}

std::string ToBody(const RequestSpec& spec, const HttpTargetOptions& options) {
  nlohmann::json body;
  body["model"] = options.model;
  if (spec.text.empty()) {
    body["prompt"] = spec.tokens;
  } else {
    body["prompt"] = spec.text;
  }
  body["max_tokens"] = spec.max_tokens;
  body["temperature"] = spec.temperature;
  body["seed"] = static_cast<int64_t>(spec.seed >> 1);  // some servers read a signed number
  body["n"] = spec.n;
  body["stream"] = true;
  body["stream_options"] = {{"include_usage", true}};
  if (options.stream_interval > 0) {
    body["stream_options"]["stream_interval"] = options.stream_interval;
    body["return_token_ids"] = true;
  }
  if (!options.cache_salt.empty()) body["cache_salt"] = options.cache_salt;
  if (spec.ignore_eos) body["ignore_eos"] = true;
  // --model may be anything.
  return body.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace);
}

// The message of an error's body, or the body.
std::string ErrorMessage(const std::string& body) {
  const nlohmann::json json = nlohmann::json::parse(body, nullptr, /*allow_exceptions=*/false);
  if (json.is_object() && json.contains("error") && json["error"].is_object() &&
      json["error"].contains("message") && json["error"]["message"].is_string()) {
    return json["error"]["message"].get<std::string>();
  }
  return body.substr(0, 200);
}

class HttpTransport final : public LoadTransport {
 public:
  explicit HttpTransport(const HttpTargetOptions& options)
      : options_(options), work_(asio::make_work_guard(context_)) {
    ErrorCode error;
    endpoints_ = Tcp::resolver(context_).resolve(options_.host, options_.port, error);
  }

  ~HttpTransport() override {
    CancelAll();
    idle_.clear();
    work_.reset();
    context_.run();
  }

  void Start(const RequestSpec& spec, int64_t deadline, RequestObserver* observer) override {
    auto call = std::make_shared<Call>(*this, observer, deadline);
    calls_.insert(call);
    call->Prepare(ToBody(spec, options_));
    // Nothing of it is called from within.
    asio::post(context_, [call] { call->Begin(/*fresh=*/false); });
  }

  void Poll(int64_t until) override {
    if (context_.run_one_until(ToSteadyTime(until)) == 0) return;
    for (int i = 1; i < kHandlersOfPoll && context_.poll_one() > 0; ++i) {
    }
  }

  void CancelAll() override {
    for (const std::shared_ptr<Call>& call : calls_) call->Cancel();
  }

 private:
  // One request, from its start to its end.
  class Call final : public std::enable_shared_from_this<Call> {
   public:
    Call(HttpTransport& transport, RequestObserver* observer, int64_t deadline)
        : transport_(transport), observer_(observer), deadline_(deadline), events_(observer) {}

    void Prepare(std::string body) {
      // A server that knows how long we wait can refuse at once what it could not end in time.
      const double seconds = static_cast<double>(deadline_ - SteadyMicros()) / 1e6;
      request_.set("X-Request-Timeout",
                   absl::StrFormat("%.3f", std::clamp(seconds, 0.001, kLongestTimeout)));
      request_.version(11);
      request_.method(http::verb::post);
      request_.target(transport_.options_.path);
      SetHead(transport_.options_, request_);
      request_.set(http::field::content_type, "application/json");
      request_.body() = std::move(body);
      request_.prepare_payload();
    }

    // `fresh`: on a new connection, whatever is idle.
    void Begin(bool fresh) {
      if (cancelled_) return End("CANCELLED", "");
      reused_ = !fresh && !transport_.idle_.empty();
      if (reused_) {
        connection_ = std::move(transport_.idle_.back());
        transport_.idle_.pop_back();
        return Write();
      }
      connection_ = std::make_unique<Connection>(transport_.context_, transport_.options_);
      connection_->lowest().expires_at(ToSteadyTime(deadline_));
      connection_->Open(transport_.endpoints_, [self = shared_from_this()](ErrorCode error) {
        if (error) return self->Fail(error);
        ErrorCode ignored;
        self->connection_->lowest().socket().set_option(Tcp::no_delay(true), ignored);
        self->Write();
      });
    }

    void Cancel() {
      cancelled_ = true;
      if (connection_ != nullptr) connection_->lowest().cancel();
    }

   private:
    void Write() {
      if (EndsHere()) return;
      connection_->lowest().expires_at(ToSteadyTime(deadline_));
      connection_->With([this](auto& stream) {
        http::async_write(stream, request_, [self = shared_from_this()](ErrorCode error, size_t) {
          if (error) return self->Fail(error);
          self->ReadHead();
        });
      });
    }

    void ReadHead() {
      if (EndsHere()) return;
      parser_.emplace();
      // 1.74 takes "no limit" for a limit of nothing where a length is given.
      parser_->body_limit(std::numeric_limits<uint64_t>::max());
      connection_->With([this](auto& stream) {
        http::async_read_header(stream, connection_->buffer, *parser_,
                                [self = shared_from_this()](ErrorCode error, size_t) {
                                  if (error) return self->Fail(error);
                                  self->begun_ = true;
                                  self->ReadBody();
                                });
      });
    }

    void ReadBody() {
      if (parser_->is_done()) return Complete();
      if (EndsHere()) return;
      auto& body = parser_->get().body();
      body.data = piece_.data();
      body.size = piece_.size();
      body.more = true;
      connection_->With([this](auto& stream) {
        http::async_read_some(stream, connection_->buffer, *parser_,
                              [self = shared_from_this()](ErrorCode error, size_t) {
                                if (error && error != http::error::need_buffer) {
                                  return self->Fail(error);
                                }
                                self->TakePiece();
                              });
      });
    }

    void TakePiece() {
      const size_t bytes = piece_.size() - parser_->get().body().size;
      const absl::string_view piece(piece_.data(), bytes);
      if (parser_->get().result() == http::status::ok) {
        events_.Take(piece);
        // What was read with it comes in the next pieces.
        if (connection_->buffer.size() <= kMostBetweenChunks) {
          observer_->OnMessageEnd(SteadyMicros());
        }
      } else if (error_body_.size() < kMostErrorBytes) {
        error_body_.append(piece.data(), piece.size());
      }
      ReadBody();
    }

    void Complete() {
      const auto& response = parser_->get();
      if (response.keep_alive() && !cancelled_) {
        transport_.idle_.push_back(std::move(connection_));
      }
      if (response.result() != http::status::ok) {
        return End(absl::StrCat("HTTP ", response.result_int()), ErrorMessage(error_body_));
      }
      observer_->OnMessageEnd(SteadyMicros());
      if (!events_.fault().empty()) return End("STREAM_ERROR", events_.fault());
      if (!events_.done()) return End("STREAM_ERROR", "the stream ended without [DONE]");
      End("", "");
    }

    // A cancel, or the deadline, ends only an operation that waits: one that was done just then, as
    // every read is of a server that sends without a pause, goes on to the next.
    bool EndsHere() {
      if (cancelled_) {
        End("CANCELLED", "");
      } else if (SteadyMicros() >= deadline_) {
        Fail(beast::error::timeout);
      } else {
        return false;
      }
      return true;
    }

    void Fail(ErrorCode error) {
      if (cancelled_) return End("CANCELLED", "");
      if (error == beast::error::timeout) return End("TIMEOUT", "no end before the deadline");
      // The server may close a connection that was idle just when it is used again.
      const bool closed = error == http::error::end_of_stream || error == asio::error::eof ||
                          error == asio::error::connection_reset ||
                          error == asio::error::broken_pipe ||
                          error == asio::ssl::error::stream_truncated;  // the same, under TLS
      if (reused_ && !begun_ && closed) return Begin(/*fresh=*/true);
      End("CONNECTION", absl::StrCat(error.message(), begun_ ? "" : connection_->Advice(error)));
    }

    void End(const std::string& error, const std::string& message) {
      const std::shared_ptr<Call> self = shared_from_this();
      transport_.calls_.erase(self);
      observer_->OnEnd(SteadyMicros(), error, message);
    }

    HttpTransport& transport_;
    RequestObserver* const observer_;
    const int64_t deadline_;
    CompletionEvents events_;
    http::request<http::string_body> request_;
    std::unique_ptr<Connection> connection_;
    std::optional<http::response_parser<http::buffer_body>> parser_;
    std::array<char, kReadBytes> piece_;
    std::string error_body_;
    bool reused_ = false;
    bool begun_ = false;  // a response's head has come
    bool cancelled_ = false;
  };

  const HttpTargetOptions options_;
  asio::io_context context_{1};
  asio::executor_work_guard<asio::io_context::executor_type> work_;
  Tcp::resolver::results_type endpoints_;
  std::vector<std::unique_ptr<Connection>> idle_;
  std::unordered_set<std::shared_ptr<Call>> calls_;
};

}  // namespace

std::string HttpTargetOptions::address() const {
  const bool v6 = host.find(':') != std::string::npos;
  return absl::StrCat(v6 ? "[" : "", host, v6 ? "]:" : ":", port);
}

absl::StatusOr<HttpTargetOptions> ParseHttpTarget(absl::string_view text) {
  const auto bad = [text] {
    return absl::InvalidArgumentError(
        absl::StrCat("\"", text, "\" is not http://host:port or https://host:port"));
  };
  HttpTargetOptions options;
  absl::string_view rest = text;
  if (absl::ConsumePrefix(&rest, "https://")) {
    options.wants_tls = true;
  } else {
    absl::ConsumePrefix(&rest, "http://");
  }
  if (const size_t slash = rest.find('/'); slash != absl::string_view::npos) {
    // Also as OpenAI's clients are given it: what is asked for lies below.
    const absl::string_view path = absl::StripSuffix(rest.substr(slash), "/");
    if (!path.empty()) options.path = std::string(path);
    if (path == "/v1") options.path = "/v1/completions";
    rest = rest.substr(0, slash);
  }
  const size_t colon = rest.rfind(':');
  if (colon == absl::string_view::npos || colon == 0 || colon + 1 == rest.size() ||
      rest.find("//") != absl::string_view::npos) {
    return bad();
  }
  absl::string_view host = rest.substr(0, colon);
  if (absl::ConsumePrefix(&host, "[") && !absl::ConsumeSuffix(&host, "]")) return bad();
  options.host = std::string(host);
  options.port = std::string(rest.substr(colon + 1));
  return options;
}

absl::StatusOr<std::shared_ptr<asio::ssl::context>> MakeHttpClientTls(const ClientTlsFiles& files) {
  auto context = std::make_shared<asio::ssl::context>(asio::ssl::context::tls_client);
  ErrorCode error;
  context->set_verify_mode(asio::ssl::verify_peer, error);
  if (files.ca.empty() || files.ca == "system") {
    if (!error) context->set_default_verify_paths(error);
  } else if (!error) {
    context->load_verify_file(files.ca, error);
  }
  if (!error && !files.certificate.empty()) {
    context->use_certificate_chain_file(files.certificate, error);
    if (!error) context->use_private_key_file(files.key, asio::ssl::context::pem, error);
  }
  if (error) {
    return absl::InvalidArgumentError(absl::StrCat(files.flags, "-ca: ", error.message()));
  }
  return context;
}

absl::StatusOr<std::string> AskHttpModel(const HttpTargetOptions& options, absl::Duration timeout) {
  const std::string address = options.address();
  asio::io_context context;
  Connection connection(context, options);
  ErrorCode error;
  const auto endpoints = Tcp::resolver(context).resolve(options.host, options.port, error);
  if (error) return absl::UnavailableError(absl::StrCat(address, ": ", error.message()));
  connection.lowest().expires_after(absl::ToChronoNanoseconds(timeout));
  http::request<http::empty_body> request(http::verb::get, "/v1/models", 11);
  SetHead(options, request);
  http::response<http::string_body> response;
  // The timeout of the stream holds for asynchronous operations alone.
  connection.Open(endpoints, [&](ErrorCode failed) {
    if (error = failed; error) return;
    connection.With([&](auto& stream) {
      http::async_write(stream, request, [&](ErrorCode not_written, size_t) {
        if (error = not_written; error) return;
        http::async_read(stream, connection.buffer, response,
                         [&](ErrorCode not_read, size_t) { error = not_read; });
      });
    });
  });
  context.run();
  if (error) {
    return absl::UnavailableError(
        absl::StrCat(address, ": ", error.message(), connection.Advice(error)));
  }
  if (response.result() != http::status::ok) {
    return absl::FailedPreconditionError(absl::StrCat(address, ": /v1/models answers ",
                                                      response.result_int(), ": ",
                                                      ErrorMessage(response.body())));
  }
  const nlohmann::json json =
      nlohmann::json::parse(response.body(), nullptr, /*allow_exceptions=*/false);
  if (!json.is_object() || !json.contains("data") || !json["data"].is_array() ||
      json["data"].empty() || !json["data"][0].is_object() || !json["data"][0].contains("id") ||
      !json["data"][0]["id"].is_string()) {
    return absl::FailedPreconditionError(absl::StrCat(address, ": /v1/models names no model"));
  }
  return json["data"][0]["id"].get<std::string>();
}

std::unique_ptr<LoadTransport> MakeHttpTransport(const HttpTargetOptions& options) {
  return std::make_unique<HttpTransport>(options);
}

}  // namespace blockserve
