// One HTTP connection: requests one after the other, each answered before the next is read.
#ifndef BLOCKSERVE_RPC_HTTP_SESSION_H_
#define BLOCKSERVE_RPC_HTTP_SESSION_H_

#include <array>
#include <boost/asio/steady_timer.hpp>
#include <chrono>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "common/mutex.h"
#include "rpc/http/exchange.h"
#include "rpc/http/request_reader.h"
#include "rpc/http/room.h"
#include "rpc/http/transport.h"
#include "rpc/loop.h"

namespace blockserve {

struct HttpConnectionLimits {
  HttpReadLimits read;
  absl::Duration header_timeout = absl::Seconds(10);  // from the first byte to the last header
  absl::Duration body_timeout = absl::Seconds(60);
  // Between two requests. Answers tell its whole seconds, and a little more than that is given.
  absl::Duration idle_timeout = absl::Seconds(120);
  absl::Duration write_timeout =
      absl::Seconds(30);  // for each 64 KiB of what waits, of a client that reads slowly
  // A connection that is about so old (a tenth more or less) is closed after its next answer: its
  // client connects anew, perhaps elsewhere.
  absl::Duration max_age = absl::InfiniteDuration();
};

// Where other threads leave work for a connection's thread, as long as there is one.
class HttpMailbox {
 public:
  explicit HttpMailbox(Loop* loop) : loop_(loop) {}
  void Post(std::function<void()> task);
  // What comes later is dropped.
  void Close();

 private:
  Mutex mutex_;
  Loop* loop_ ABSL_GUARDED_BY(mutex_);
};

struct HttpSessionContext {
  HttpConnectionLimits limits;
  HttpHandler handler;
  // What a request is to be answered whatever its body is, which is then not read; may be null.
  std::function<std::optional<HttpResponse>(const HttpRequest& head)> check_head;
  // Makes what every answer but those of the handler is: the reader's refusals, timeouts.
  std::function<HttpResponse(int status, const std::string& message)> make_error;
  std::vector<std::pair<std::string, std::string>> headers;  // of every answer
  // Names a request, for the X-Request-Id of answers that have none; null: they stay without. Of
  // what is no request yet `request` is empty.
  std::function<std::string(const HttpRequest& request)> request_id;
  std::shared_ptr<HttpMailbox> mailbox;
  std::shared_ptr<HttpRoom> arrival_room;    // for requests that are being read
  std::shared_ptr<HttpRoom> departure_room;  // for answers that their clients have not read yet
};

// Lives on its connection's thread, and as long as anything is under way there.
class HttpSession final : public std::enable_shared_from_this<HttpSession> {
 public:
  HttpSession(std::unique_ptr<HttpTransport> transport, boost::asio::steady_timer timer,
              std::shared_ptr<const HttpSessionContext> context,
              std::function<void(HttpSession*)> on_over);
  ~HttpSession();

  void Start();
  // Answers with `status` without reading a request, and closes.
  void Refuse(int status, const std::string& message);
  // Closes when the request under way, if there is one, has been answered. A connection that has
  // just come may still send its first.
  void Drain();
  // Closes when one request has been answered, which may still have to come.
  void AnswerOnce() { close_after_ = true; }
  // Closes at once.
  void Abort();

 private:
  class Exchange;
  enum class Phase {
    kOpening,
    kReading,
    kAnswering,
    kLingering,  // nothing more is written; the client may still read
    kClosed,
  };

  void ReadMore();
  void OnRead(boost::system::error_code error, size_t bytes);
  void OnRequestBytes(absl::string_view bytes);
  void BeginReading();
  void Dispatch();
  void RespondAndClose(const HttpResponse& response);
  void BeginAnswer(const HttpRequest& request);
  void WriteResponse(const HttpResponse& response);
  std::string Head(const HttpResponse& response, absl::string_view framing) const;
  // How long clients may reckon with an idle connection (Keep-Alive: timeout); 0: they are not
  // told.
  int64_t ToldIdleSeconds() const;

  void Append(std::string bytes);
  void Pump();
  void OnWritten(boost::system::error_code error, size_t bytes);
  // Nothing waits behind what the network has been given.
  bool LastBytesAreLeaving() const { return unwritten_.empty() && out_.empty(); }
  void OnAnswered();
  void Linger();
  void Lose(HttpLoss loss);
  void CloseNow();

  void SetDeadline(absl::Duration from_now);
  void ClearDeadline() { deadline_ = std::chrono::steady_clock::time_point::max(); }
  void ArmTimer();
  void OnTimer();

  const std::unique_ptr<HttpTransport> transport_;
  boost::asio::steady_timer timer_;
  const std::shared_ptr<const HttpSessionContext> context_;
  const std::chrono::steady_clock::time_point begun_ = std::chrono::steady_clock::now();
  const absl::Duration max_age_;
  std::function<void(HttpSession*)> on_over_;

  Phase phase_ = Phase::kOpening;
  std::unique_ptr<HttpRequestReader> reader_;
  std::array<char, 4096> input_;
  HttpRoomShare arriving_;
  bool reading_ = false;        // a read is under way
  size_t discarded_bytes_ = 0;  // sent by the client before it had its answer
  bool close_after_ = false;
  bool served_ = false;  // it has had a request

  std::shared_ptr<Exchange> exchange_;  // of the request that is being answered
  bool head_only_ = false;              // HEAD
  bool http_1_0_ = false;
  std::string request_id_;  // of the request that is being answered; empty: answers name none
  bool streaming_ = false;
  bool chunked_ = false;
  std::string stream_head_;      // until the first write
  bool answered_ = false;        // everything of the answer is in out_ or on its way
  std::string early_;            // of the next request: sent when the answer's last bytes had left
  std::string out_;              // [bytes] to be written next
  std::string writing_;          // [bytes] on their way
  absl::string_view unwritten_;  // of writing_: what the network has not been given yet
  HttpRoomShare departing_;      // of both
  bool write_under_way_ = false;

  std::chrono::steady_clock::time_point deadline_ = std::chrono::steady_clock::time_point::max();
  std::chrono::steady_clock::time_point armed_ = std::chrono::steady_clock::time_point::max();
};

}  // namespace blockserve

#endif  // BLOCKSERVE_RPC_HTTP_SESSION_H_
