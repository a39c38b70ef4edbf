#include "rpc/http/request_reader.h"

#include <algorithm>
#include <boost/asio/buffer.hpp>
#include <boost/beast/http/parser.hpp>
#include <boost/beast/http/string_body.hpp>
#include <optional>
#include <stdexcept>
#include <utility>

#include "absl/strings/ascii.h"
#include "absl/strings/escaping.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"

namespace blockserve {
namespace {

namespace http = boost::beast::http;

// None where a % is not followed by two hexadecimal digits.
std::optional<std::string> PercentDecoded(absl::string_view text) {
  std::string decoded;
  for (size_t i = 0; i < text.size(); ++i) {
    if (text[i] != '%') {
      decoded += text[i];
      continue;
    }
    const absl::string_view digits = text.substr(i + 1, 2);
    if (digits.size() < 2 || !absl::ascii_isxdigit(static_cast<unsigned char>(digits[0])) ||
        !absl::ascii_isxdigit(static_cast<unsigned char>(digits[1]))) {
      return std::nullopt;
    }
    decoded += absl::HexStringToBytes(digits);
    i += 2;
  }
  return decoded;
}

// Path and query of a target in origin form ("/path?query"), or in absolute form, as it is sent to
// proxies ("http://host/path?query": RFC 9112, section 3.2.2). False for a path that is none.
bool ReadTarget(absl::string_view target, HttpRequest& request) {
  for (const absl::string_view scheme : {"http://", "https://"}) {
    if (!absl::StartsWithIgnoreCase(target, scheme)) continue;
    const size_t end = target.find_first_of("/?", scheme.size());
    target = end == absl::string_view::npos ? absl::string_view("/") : target.substr(end);
  }
  const size_t question = target.find('?');
  std::optional<std::string> path = PercentDecoded(target.substr(0, question));
  if (!path.has_value()) return false;
  request.path = path->empty() ? "/" : *std::move(path);
  if (question != absl::string_view::npos) request.query = std::string(target.substr(question + 1));
  return true;
}

// Whether the line that `text` begins with is ended and is of HTTP in a version that is not served.
bool NamesAnotherVersion(absl::string_view text) {
  const absl::string_view line = text.substr(0, text.find("\r\n"));
  const absl::string_view protocol = line.substr(line.rfind(' ') + 1);
  return line.size() < text.size() && absl::StartsWith(protocol, "HTTP/") &&
         !absl::StartsWith(protocol, "HTTP/1.");
}

}  // namespace

absl::string_view HttpReason(int status) {
  const boost::beast::string_view reason = http::obsolete_reason(
      http::int_to_status(static_cast<unsigned>(status < 100 || status > 599 ? 500 : status)));
  if (reason == "<unknown-status>") return "Error";
  return {reason.data(), reason.size()};
}

struct HttpRequestReader::Parser {
  http::request_parser<http::string_body> parser;
};

HttpRequestReader::HttpRequestReader(HttpReadLimits limits)
    : limits_(limits), parser_(std::make_unique<Parser>()) {
  parser_->parser.header_limit(static_cast<std::uint32_t>(limits_.max_header_bytes));
  parser_->parser.body_limit(limits_.max_body_bytes);
}

HttpRequestReader::~HttpRequestReader() = default;

HttpRequestReader::State HttpRequestReader::Fail(int status, std::string message) {
  failure_status_ = status;
  failure_ = std::move(message);
  return state_ = State::kFailed;
}

bool HttpRequestReader::TakeExpectation() {
  return state_ == State::kBody && std::exchange(expects_continue_, false);
}

HttpRequestReader::State HttpRequestReader::Feed(absl::string_view bytes) {
  if (bytes.empty()) return state_;
  pending_.append(bytes.data(), bytes.size());
  if (state_ == State::kIdle) {
    // An empty line before a request is tolerated (RFC 9112, section 2.2).
    const size_t begin = pending_.find_first_not_of("\r\n");
    if (begin == std::string::npos) {
      pending_.resize(pending_.size() > 1 ? 1 : pending_.size());
      return state_;
    }
    pending_.erase(0, begin);
    state_ = State::kHeader;
  }
  auto& parser = parser_->parser;
  size_t taken = 0;
  while (taken < pending_.size() && !parser.is_done()) {
    // The parser takes lines, chunk headers and trailers as a whole, so this bounds each, and with
    // them what waits here. The header's parts it does not add up.
    const size_t room = limits_.max_header_bytes - (header_seen_ ? 0 : header_bytes_);
    if (room == 0) return FailToParse(http::error::header_limit);
    const size_t piece = std::min(pending_.size() - taken, room);
    boost::system::error_code error;
    size_t n = 0;
    try {
      n = parser.put(boost::asio::buffer(pending_.data() + taken, piece), error);
    } catch (const std::length_error&) {
      error = http::error::header_limit;  // of one field: the parser's own
    }
    taken += n;
    if (!header_seen_) header_bytes_ += n;
    if (error == http::error::need_more) {
      error = {};
      if (n == 0 && piece == room) error = http::error::header_limit;
      if (n == 0 && !error) break;
    }
    if (error) return FailToParse(error);
    if (!header_seen_ && parser.is_header_done()) {
      header_seen_ = true;
      if (TakeHeader() == State::kFailed) return state_;
    }
  }
  pending_.erase(0, taken);
  if (!parser.is_done()) return state_;
  request_.body = std::move(parser.get().body());
  return state_ = State::kDone;
}

HttpRequestReader::State HttpRequestReader::FailToParse(boost::system::error_code error) {
  if (error == http::error::header_limit) {
    return Fail(431, absl::StrCat(header_seen_ ? "a chunk's header or the trailers have"
                                               : "request line and headers have",
                                  " more than ", limits_.max_header_bytes, " bytes"));
  }
  if (error == http::error::body_limit) {
    return Fail(413, absl::StrCat("the body has more than ", limits_.max_body_bytes, " bytes"));
  }
  if (error == http::error::bad_version) {
    // Beast says so of whatever follows the target: a blank in it, a line that \n ends.
    return NamesAnotherVersion(pending_)
               ? Fail(505, "only HTTP/1.1 and HTTP/1.0 are served")
               : Fail(400, "the request line is not METHOD TARGET HTTP/1.1, ended by CRLF");
  }
  return Fail(400, absl::StrCat("not an HTTP request: ", error.message()));
}

HttpRequestReader::State HttpRequestReader::TakeHeader() {
  auto& parser = parser_->parser;
  auto& message = parser.get();
  // First: whether a refusal has a body depends on it.
  const boost::beast::string_view method = message.method_string();
  request_.method = std::string(method.data(), method.size());
  const auto version = message.version();
  if (version != 11 && version != 10) {
    return Fail(505, "only HTTP/1.1 and HTTP/1.0 are served");
  }
  const auto hosts = message.count(http::field::host);
  if (hosts > 1 || (hosts == 0 && version == 11)) {
    return Fail(400, "there must be one Host header");
  }
  // Beast does not look at these: who does may see another end of the request than we do.
  if (message.count(http::field::transfer_encoding) > 0) {
    if (version == 10) return Fail(400, "HTTP/1.0 has no Transfer-Encoding");
    if (message.count(http::field::content_length) > 0) {
      return Fail(400, "Content-Length and Transfer-Encoding exclude each other");
    }
    // Beast's chunked() is true of what is packed before, too.
    const boost::beast::string_view encoding = message[http::field::transfer_encoding];
    if (message.count(http::field::transfer_encoding) > 1 ||
        !absl::EqualsIgnoreCase(absl::StripAsciiWhitespace({encoding.data(), encoding.size()}),
                                "chunked")) {
      return Fail(501, "of transfer encodings only chunked is known");
    }
  }
  const boost::beast::string_view expect = message[http::field::expect];
  if (!expect.empty()) {
    if (!absl::EqualsIgnoreCase({expect.data(), expect.size()}, "100-continue")) {
      return Fail(417, "of expectations only 100-continue is known");
    }
    expects_continue_ = version == 11;
  }
  const boost::beast::string_view target = message.target();
  if (!ReadTarget({target.data(), target.size()}, request_)) {
    return Fail(400, "the path has a % that two hexadecimal digits do not follow");
  }
  request_.http_1_0 = version == 10;
  request_.keep_alive = message.keep_alive();
  // Trailers come into the parser's fields: none of ours, and so none that says anything here.
  request_.fields = std::move(static_cast<http::fields&>(message.base()));
  parser.eager(true);
  return state_ = State::kBody;
}

}  // namespace blockserve
