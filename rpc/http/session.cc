#include "rpc/http/session.h"

#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "common/random_bits.h"
#include "common/wait_time.h"

namespace blockserve {
namespace {

// What a client may send ahead before we stop listening to it (and notice no more if it leaves).
constexpr size_t kMaxDiscardedBytes = size_t{1} << 20;
constexpr absl::Duration kLingerTime = absl::Seconds(2);
// Of what is given to the network at once: the limit of time is for each such piece, so that a long
// answer may take as long as its client goes on reading.
constexpr size_t kPieceBytes = size_t{64} << 10;
// What an idle connection has beyond what its client is told: a request that is sent just before
// the end arrives later.
constexpr absl::Duration kIdleGrace = absl::Seconds(2);
// While the server drains, for the only request of a connection that has just come.
constexpr absl::Duration kLastChance = absl::Seconds(1);

// Connections that began together are not to end together.
absl::Duration Spread(absl::Duration age) {
  return age * (0.9 + 0.2 * (static_cast<double>(RandomBits() >> 11) * 0x1p-53));
}

std::string DateNow() {
  return absl::FormatTime("%a, %d %b %Y %H:%M:%S GMT", absl::Now(), absl::UTCTimeZone());
}

}  // namespace

void HttpMailbox::Post(std::function<void()> task) {
  MutexLock lock(&mutex_);
  if (loop_ != nullptr) loop_->Post(std::move(task));
}

void HttpMailbox::Close() {
  MutexLock lock(&mutex_);
  loop_ = nullptr;
}

class HttpSession::Exchange final : public HttpExchange {
 public:
  Exchange(std::shared_ptr<HttpSession> session, HttpRequest request)
      : session_(std::move(session)),
        mailbox_(session_->context_->mailbox),
        request_(std::move(request)) {}

  HttpRequest& request() override { return request_; }
  void Post(std::function<void()> task) override { mailbox_->Post(std::move(task)); }

  void Respond(HttpResponse response) override {
    if (session_ == nullptr) return;
    session_->WriteResponse(response);
  }
  void StartStream(HttpResponse head) override {
    if (session_ == nullptr) return;
    session_->streaming_ = true;
    session_->chunked_ = !session_->http_1_0_;
    if (session_->http_1_0_) session_->close_after_ = true;
    session_->stream_head_ =
        session_->Head(head, session_->chunked_ ? "Transfer-Encoding: chunked\r\n" : "");
  }
  void Write(std::string bytes) override {
    if (session_ == nullptr || bytes.empty()) return;
    std::string framed = std::exchange(session_->stream_head_, {});
    if (session_->chunked_) {
      absl::StrAppend(&framed, absl::Hex(bytes.size()), "\r\n", bytes, "\r\n");
    } else {
      framed += bytes;
    }
    if (!session_->departing_.Add(framed.size())) {
      // In the middle of an answer no error can be told.
      const std::shared_ptr<HttpSession> session = session_;
      return session->Lose(HttpLoss::kClientSlow);
    }
    session_->Append(std::move(framed));
  }
  void EndStream() override {
    if (session_ == nullptr) return;
    std::string framed = std::exchange(session_->stream_head_, {});
    if (session_->chunked_) framed += "0\r\n\r\n";
    session_->answered_ = true;
    session_->Append(std::move(framed));
  }
  void set_on_drained(std::function<void()> on_drained) override {
    if (session_ != nullptr) on_drained_ = std::move(on_drained);
  }
  void set_on_lost(std::function<void(HttpLoss)> on_lost) override {
    if (session_ != nullptr) on_lost_ = std::move(on_lost);
  }

  void Drained() {
    if (on_drained_) on_drained_();
  }
  // The answer is out, or the client is lost: nothing of this reaches the session any more.
  void Release(const HttpLoss* loss) {
    const std::shared_ptr<HttpSession> session = std::move(session_);
    session_ = nullptr;
    on_drained_ = nullptr;
    const std::function<void(HttpLoss)> on_lost = std::exchange(on_lost_, nullptr);
    if (loss != nullptr && on_lost) on_lost(*loss);
  }

 private:
  std::shared_ptr<HttpSession> session_;
  const std::shared_ptr<HttpMailbox> mailbox_;
  HttpRequest request_;
  std::function<void()> on_drained_;
  std::function<void(HttpLoss)> on_lost_;
};

HttpSession::HttpSession(std::unique_ptr<HttpTransport> transport, boost::asio::steady_timer timer,
                         std::shared_ptr<const HttpSessionContext> context,
                         std::function<void(HttpSession*)> on_over)
    : transport_(std::move(transport)),
      timer_(std::move(timer)),
      context_(std::move(context)),
      max_age_(Spread(context_->limits.max_age)),
      on_over_(std::move(on_over)),
      arriving_(context_->arrival_room),
      departing_(context_->departure_room) {}

HttpSession::~HttpSession() = default;

void HttpSession::Start() {
  SetDeadline(context_->limits.header_timeout);
  transport_->Handshake([this, self = shared_from_this()](boost::system::error_code error) {
    if (phase_ == Phase::kClosed) return;
    if (error) return CloseNow();
    BeginReading();
  });
}

void HttpSession::Refuse(int status, const std::string& message) {
  SetDeadline(context_->limits.header_timeout);
  transport_->Handshake(
      [this, self = shared_from_this(), status, message](boost::system::error_code error) {
        if (phase_ == Phase::kClosed) return;
        if (error) return CloseNow();
        phase_ = Phase::kReading;
        RespondAndClose(context_->make_error(status, message));
      });
}

void HttpSession::Drain() {
  if (phase_ == Phase::kClosed) return;
  close_after_ = true;
  const bool idle = phase_ == Phase::kReading &&
                    reader_->state() == HttpRequestReader::State::kIdle && early_.empty();
  if (!idle) return;
  if (served_) return CloseNow();
  SetDeadline(kLastChance);
}

void HttpSession::Abort() { Lose(HttpLoss::kServerStops); }

void HttpSession::BeginReading() {
  phase_ = Phase::kReading;
  reader_ = std::make_unique<HttpRequestReader>(context_->limits.read);
  head_only_ = http_1_0_ = streaming_ = chunked_ = answered_ = false;
  request_id_.clear();
  stream_head_.clear();
  absl::Duration idle = context_->limits.idle_timeout;
  if (served_ && ToldIdleSeconds() > 0) idle += kIdleGrace;
  SetDeadline(close_after_ ? kLastChance : idle);
  if (!early_.empty()) {
    OnRequestBytes(std::exchange(early_, {}));
    if (phase_ != Phase::kReading) return;
  }
  ReadMore();
}

void HttpSession::ReadMore() {
  if (reading_ || phase_ == Phase::kClosed) return;
  reading_ = true;
  transport_->ReadSome(boost::asio::buffer(input_),
                       [this, self = shared_from_this()](boost::system::error_code error,
                                                         size_t bytes) { OnRead(error, bytes); });
}

void HttpSession::OnRead(boost::system::error_code error, size_t bytes) {
  reading_ = false;
  const absl::string_view input(input_.data(), bytes);
  switch (phase_) {
    case Phase::kReading:
      if (error) return CloseNow();
      OnRequestBytes(input);
      if (phase_ == Phase::kReading) ReadMore();
      return;
    case Phase::kAnswering:
      if (error) return Lose(HttpLoss::kClientGone);
      if (answered_ && LastBytesAreLeaving() && !close_after_ && early_.size() < input_.size()) {
        // The answer may have reached the client before we were told of it.
        early_.append(input.data(), input.size());
        if (early_.size() < input_.size()) ReadMore();
        return;
      }
      close_after_ = true;
      [[fallthrough]];
    case Phase::kLingering:
      if (error) return CloseNow();
      discarded_bytes_ += bytes;
      if (discarded_bytes_ <= kMaxDiscardedBytes) ReadMore();
      return;
    case Phase::kOpening:
    case Phase::kClosed:
      return;
  }
}

void HttpSession::OnRequestBytes(absl::string_view bytes) {
  const HttpRequestReader::State before = reader_->state();
  const HttpRequestReader::State after = reader_->Feed(bytes);
  using State = HttpRequestReader::State;
  if (after == State::kFailed) {
    return RespondAndClose(context_->make_error(reader_->failure_status(), reader_->failure()));
  }
  if (after == State::kDone) return Dispatch();
  if (!arriving_.Add(bytes.size())) {
    return RespondAndClose(
        context_->make_error(503, "too many long requests are on their way; try again later"));
  }
  if (after == before) return;
  if (after == State::kHeader) SetDeadline(context_->limits.header_timeout);
  if (after == State::kBody) {
    SetDeadline(context_->limits.body_timeout);
    if (context_->check_head) {
      const std::optional<HttpResponse> refusal = context_->check_head(reader_->request());
      if (refusal.has_value()) return RespondAndClose(*refusal);
    }
    if (reader_->TakeExpectation()) {
      out_ += "HTTP/1.1 100 Continue\r\n\r\n";
      Pump();
    }
  }
}

void HttpSession::Dispatch() {
  HttpRequest request = std::move(reader_->request());
  arriving_.Release();
  phase_ = Phase::kAnswering;
  served_ = true;
  ClearDeadline();
  // The next request must not come before this one's answer.
  if (!request.keep_alive || reader_->has_surplus()) close_after_ = true;
  if (absl::FromChrono(std::chrono::steady_clock::now() - begun_) >= max_age_) close_after_ = true;
  reader_.reset();
  discarded_bytes_ = 0;
  http_1_0_ = request.http_1_0;
  BeginAnswer(request);
  exchange_ = std::make_shared<Exchange>(shared_from_this(), std::move(request));
  // Not before the handler has run: it may answer at once.
  context_->handler(exchange_);
  // To notice when the client leaves.
  if (phase_ == Phase::kAnswering) ReadMore();
}

void HttpSession::BeginAnswer(const HttpRequest& request) {
  head_only_ = request.method == "HEAD";
  if (context_->request_id) request_id_ = context_->request_id(request);
}

void HttpSession::RespondAndClose(const HttpResponse& response) {
  BeginAnswer(reader_ != nullptr ? reader_->request() : HttpRequest());
  reader_.reset();
  arriving_.Release();
  phase_ = Phase::kAnswering;
  close_after_ = true;
  WriteResponse(response);
}

std::string HttpSession::Head(const HttpResponse& response, absl::string_view framing) const {
  std::string head = absl::StrCat("HTTP/1.1 ", response.status, " ", HttpReason(response.status),
                                  "\r\nDate: ", DateNow(), "\r\nServer: blockserve\r\n", framing);
  if (!response.content_type.empty()) {
    absl::StrAppend(&head, "Content-Type: ", response.content_type, "\r\n");
  }
  bool named = request_id_.empty();
  for (const auto& [name, value] : response.headers) {
    absl::StrAppend(&head, name, ": ", value, "\r\n");
    named = named || name == kRequestIdHeader;
  }
  if (!named) absl::StrAppend(&head, kRequestIdHeader, ": ", request_id_, "\r\n");
  for (const auto& [name, value] : context_->headers) {
    absl::StrAppend(&head, name, ": ", value, "\r\n");
  }
  if (close_after_) {
    head += "Connection: close\r\n";
  } else if (const int64_t idle_s = ToldIdleSeconds(); idle_s > 0) {
    absl::StrAppend(&head, "Connection: keep-alive\r\nKeep-Alive: timeout=", idle_s, "\r\n");
  } else if (http_1_0_) {
    head += "Connection: keep-alive\r\n";
  }
  head += "\r\n";
  return head;
}

int64_t HttpSession::ToldIdleSeconds() const {
  const absl::Duration idle = context_->limits.idle_timeout;
  return idle == absl::InfiniteDuration() ? 0 : absl::ToInt64Seconds(idle);
}

void HttpSession::WriteResponse(const HttpResponse& response) {
  if (!head_only_ && !departing_.Add(response.body.size())) {
    departing_.Release();
    return WriteResponse(
        context_->make_error(503, "too many long answers wait to be read; try again later"));
  }
  std::string bytes = Head(
      response,
      response.status == 204 ? "" : absl::StrCat("Content-Length: ", response.body.size(), "\r\n"));
  if (!head_only_ && response.status != 204) bytes += response.body;
  answered_ = true;
  Append(std::move(bytes));
}

void HttpSession::Append(std::string bytes) {
  if (out_.empty()) {
    out_ = std::move(bytes);
  } else {
    out_ += bytes;
  }
  Pump();
}

void HttpSession::Pump() {
  if (write_under_way_ || phase_ == Phase::kClosed) return;
  if (unwritten_.empty()) {
    if (out_.empty()) {
      if (answered_ && phase_ == Phase::kAnswering) OnAnswered();
      return;
    }
    writing_.clear();
    std::swap(writing_, out_);
    unwritten_ = writing_;
  }
  const absl::string_view piece = unwritten_.substr(0, kPieceBytes);
  unwritten_.remove_prefix(piece.size());
  write_under_way_ = true;
  if (phase_ == Phase::kAnswering) SetDeadline(context_->limits.write_timeout);
  transport_->Write(boost::asio::buffer(piece.data(), piece.size()),
                    [this, self = shared_from_this(), bytes = piece.size()](
                        boost::system::error_code error, size_t) { OnWritten(error, bytes); });
}

void HttpSession::OnWritten(boost::system::error_code error, size_t bytes) {
  write_under_way_ = false;
  departing_.Remove(bytes);
  // The connection may stay for long: the memory of a long answer is not kept for its next one.
  if (unwritten_.empty() && writing_.size() > HttpRoomShare::kShortBytes) {
    std::string().swap(writing_);
  }
  if (phase_ == Phase::kClosed) return;
  if (error) return Lose(HttpLoss::kClientGone);
  const bool drained = LastBytesAreLeaving();
  if (phase_ == Phase::kAnswering && drained) ClearDeadline();
  if (drained && !answered_ && exchange_ != nullptr) {
    const std::shared_ptr<Exchange> exchange = exchange_;
    exchange->Drained();
  }
  Pump();
}

void HttpSession::OnAnswered() {
  if (const std::shared_ptr<Exchange> exchange = std::exchange(exchange_, nullptr)) {
    exchange->Release(nullptr);
  }
  // What has come early is a request under way, whose client was told that the connection stays.
  if (close_after_ && early_.empty()) return Linger();
  BeginReading();
}

void HttpSession::Linger() {
  // Closing while the client still sends would take our answer away from it.
  phase_ = Phase::kLingering;
  SetDeadline(kLingerTime);
  transport_->ShutdownWrite([self = shared_from_this()] {});
  ReadMore();
}

void HttpSession::Lose(HttpLoss loss) {
  const std::shared_ptr<Exchange> exchange = std::exchange(exchange_, nullptr);
  CloseNow();
  if (exchange != nullptr) exchange->Release(&loss);
}

void HttpSession::CloseNow() {
  if (std::exchange(phase_, Phase::kClosed) == Phase::kClosed) return;
  reader_.reset();
  arriving_.Release();
  departing_.Release();
  ClearDeadline();
  timer_.cancel();
  transport_->Close();
  if (on_over_) std::exchange(on_over_, nullptr)(this);
}

void HttpSession::SetDeadline(absl::Duration from_now) {
  deadline_ = std::chrono::steady_clock::now() + WaitTime(from_now);
  // A timer that fires too early is cheaper than one that is set anew with every write.
  if (deadline_ < armed_) ArmTimer();
}

void HttpSession::ArmTimer() {
  armed_ = deadline_;
  timer_.expires_at(armed_);
  timer_.async_wait([this, self = shared_from_this()](boost::system::error_code error) {
    if (!error) OnTimer();
  });
}

void HttpSession::OnTimer() {
  armed_ = std::chrono::steady_clock::time_point::max();
  if (phase_ == Phase::kClosed || deadline_ == std::chrono::steady_clock::time_point::max()) return;
  if (std::chrono::steady_clock::now() < deadline_) return ArmTimer();
  switch (phase_) {
    case Phase::kReading:
      if (reader_->state() == HttpRequestReader::State::kIdle) return CloseNow();
      return RespondAndClose(context_->make_error(408, "the request did not arrive in time"));
    case Phase::kAnswering:
      return Lose(HttpLoss::kClientSlow);
    case Phase::kOpening:
    case Phase::kLingering:
    case Phase::kClosed:
      return CloseNow();
  }
}

}  // namespace blockserve
