// From the bytes of a connection to one request, within limits; without any input or output of its
// own.
#ifndef BLOCKSERVE_RPC_HTTP_REQUEST_READER_H_
#define BLOCKSERVE_RPC_HTTP_REQUEST_READER_H_

#include <boost/system/error_code.hpp>
#include <cstddef>
#include <memory>
#include <string>

#include "absl/strings/string_view.h"
#include "rpc/http/message.h"

namespace blockserve {

struct HttpReadLimits {
  // Request line and headers together; of a chunked body each chunk's header, and all trailers.
  // At most kMostHeaderBytes.
  size_t max_header_bytes = 16 << 10;
  size_t max_body_bytes = 4 << 20;  // after chunked transfer is undone
};
// A header of more the parser cannot hold.
inline constexpr size_t kMostHeaderBytes = 65535;

class HttpRequestReader {
 public:
  enum class State {
    kIdle,    // nothing has come yet
    kHeader,  // in the middle of the request line or the headers
    kBody,
    kDone,    // `request()` is whole
    kFailed,  // `failure_status()` says why; nothing more can be read of this connection
  };

  explicit HttpRequestReader(HttpReadLimits limits);
  ~HttpRequestReader();
  HttpRequestReader(const HttpRequestReader&) = delete;
  HttpRequestReader& operator=(const HttpRequestReader&) = delete;

  // The next bytes of the connection. Not after kDone or kFailed.
  State Feed(absl::string_view bytes);
  State state() const { return state_; }

  // The client waits for "100 Continue" before it sends the body. True once.
  bool TakeExpectation();
  // What came after the end of the request: more than a client may send before it has its answer.
  bool has_surplus() const { return state_ == State::kDone && !pending_.empty(); }

  // Whole but for the body while that comes. What trailers say is not part of it.
  HttpRequest& request() { return request_; }
  // 400, 413, 417, 431, 501 or 505, and what is wrong.
  int failure_status() const { return failure_status_; }
  const std::string& failure() const { return failure_; }

 private:
  struct Parser;

  State Fail(int status, std::string message);
  State FailToParse(boost::system::error_code error);
  // What the header says, once it is whole.
  State TakeHeader();

  const HttpReadLimits limits_;
  std::unique_ptr<Parser> parser_;
  std::string pending_;  // not taken by the parser yet
  size_t header_bytes_ = 0;
  bool expects_continue_ = false;
  bool header_seen_ = false;
  State state_ = State::kIdle;
  HttpRequest request_;
  int failure_status_ = 0;
  std::string failure_;
};

}  // namespace blockserve

#endif  // BLOCKSERVE_RPC_HTTP_REQUEST_READER_H_
