#include "rpc/http/session.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <boost/asio/error.hpp>
#include <boost/asio/io_context.hpp>
#include <cstring>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"

namespace blockserve {
namespace {

using ::testing::AllOf;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::Not;

// The client's end of a connection. The session's callbacks run when a test says so.
struct Wire {
  std::function<void(boost::system::error_code)> handshake;
  HttpTransport::Done read;  // under way, if not null
  boost::asio::mutable_buffer read_into;
  HttpTransport::Done write;  // under way, if not null
  std::string writing;
  bool shut = false;
  bool closed = false;
};

class WireTransport final : public HttpTransport {
 public:
  explicit WireTransport(std::shared_ptr<Wire> wire) : wire_(std::move(wire)) {}
  void Handshake(std::function<void(boost::system::error_code)> done) override {
    wire_->handshake = std::move(done);
  }
  void ReadSome(boost::asio::mutable_buffer buffer, Done done) override {
    EXPECT_FALSE(wire_->read) << "one read at a time";
    wire_->read_into = buffer;
    wire_->read = std::move(done);
  }
  void Write(boost::asio::const_buffer buffer, Done done) override {
    EXPECT_FALSE(wire_->write) << "one write at a time";
    EXPECT_FALSE(wire_->shut);
    wire_->writing.assign(static_cast<const char*>(buffer.data()), buffer.size());
    wire_->write = std::move(done);
  }
  void ShutdownWrite(std::function<void()> done) override { wire_->shut = true; }
  void Close() override { wire_->closed = true; }

 private:
  const std::shared_ptr<Wire> wire_;
};

// One connection, whose handler leaves its exchanges to the test.
class HttpSessionTest : public testing::Test {
 protected:
  HttpSessionTest() {
    context_->limits.header_timeout = context_->limits.body_timeout =
        context_->limits.idle_timeout = context_->limits.write_timeout = absl::InfiniteDuration();
    context_->handler = [this](std::shared_ptr<HttpExchange> exchange) {
      exchange->set_on_lost([this](HttpLoss loss) { losses_.push_back(loss); });
      exchange_ = std::move(exchange);
      if (answer_at_once_) exchange_->Respond(Plain(200, "at once"));
    };
    context_->make_error = Plain;
    context_->arrival_room = std::make_shared<HttpRoom>(100'000);
    context_->departure_room = std::make_shared<HttpRoom>(100'000);
  }
  ~HttpSessionTest() override { Disconnect(); }

  static HttpResponse Plain(int status, const std::string& body) {
    HttpResponse response;
    response.status = status;
    response.content_type = "text/plain";
    response.body = body;
    return response;
  }

  void Disconnect() {
    if (session_ != nullptr) session_->Abort();
    // As Boost.Asio does when a socket closes: what is under way ends.
    if (wire_ != nullptr) wire_->handshake = nullptr;
    EndReading(boost::asio::error::operation_aborted);
    EndWriting(boost::asio::error::operation_aborted);
    RunTimers();
  }
  // After the connection before, if there was one, has ended.
  void Connect() {
    Disconnect();
    overs_ = 0;
    losses_.clear();
    wire_ = std::make_shared<Wire>();
    session_ = std::make_shared<HttpSession>(std::make_unique<WireTransport>(wire_),
                                             boost::asio::steady_timer(io_), context_,
                                             [this](HttpSession*) { ++overs_; });
  }
  void Open() {
    Connect();
    session_->Start();
    Shake();
  }
  void Shake(boost::system::error_code error = {}) {
    std::exchange(wire_->handshake, nullptr)(error);
  }
  // What of `bytes` the session reads; the others wait in the network.
  size_t Send(absl::string_view bytes) {
    size_t sent = 0;
    while (sent < bytes.size() && wire_->read) {
      const size_t piece = std::min(bytes.size() - sent, wire_->read_into.size());
      std::memcpy(wire_->read_into.data(), bytes.data() + sent, piece);
      sent += piece;
      std::exchange(wire_->read, nullptr)({}, piece);
    }
    return sent;
  }
  void EndReading(boost::system::error_code error) {
    if (wire_ != nullptr && wire_->read) std::exchange(wire_->read, nullptr)(error, 0);
  }
  void Leave() { EndReading(boost::asio::error::eof); }
  void EndWriting(boost::system::error_code error) {
    if (wire_ != nullptr && wire_->write) std::exchange(wire_->write, nullptr)(error, 0);
  }
  // All that the session writes until it has nothing more to write.
  std::string Receive() {
    std::string received;
    while (wire_->write) {
      received += std::exchange(wire_->writing, {});
      std::exchange(wire_->write, nullptr)({}, received.size());
    }
    return received;
  }
  // Those that are due: limits of no time are over at once, infinite ones never.
  void RunTimers() {
    io_.restart();
    io_.poll();
  }
  void Respond(std::string body) { exchange_->Respond(Plain(200, std::move(body))); }
  bool closed() const { return wire_->closed; }

  boost::asio::io_context io_;
  const std::shared_ptr<HttpSessionContext> context_ = std::make_shared<HttpSessionContext>();
  std::shared_ptr<Wire> wire_;
  std::shared_ptr<HttpSession> session_;
  std::shared_ptr<HttpExchange> exchange_;  // of the last request
  std::vector<HttpLoss> losses_;
  bool answer_at_once_ = false;
  int overs_ = 0;
};

constexpr char kGet[] = "GET /a HTTP/1.1\r\nHost: a\r\n\r\n";

TEST_F(HttpSessionTest, AnswersOneRequestAfterTheOther) {
  context_->limits.idle_timeout = absl::Seconds(90);
  Open();
  for (const char* body : {"one", "two"}) {
    EXPECT_EQ(Send(kGet), std::string(kGet).size());
    ASSERT_NE(exchange_, nullptr);
    EXPECT_EQ(exchange_->request().path, "/a");
    EXPECT_FALSE(wire_->write) << "nothing is said before the answer";
    Respond(body);
    EXPECT_THAT(Receive(),
                AllOf(testing::StartsWith("HTTP/1.1 200 OK\r\n"),
                      HasSubstr("Content-Length: 3\r\n"), HasSubstr("Content-Type: text/plain\r\n"),
                      HasSubstr("Connection: keep-alive\r\nKeep-Alive: timeout=90\r\n"),
                      testing::EndsWith(absl::StrCat("\r\n\r\n", body))));
    exchange_.reset();
  }
  Leave();
  EXPECT_TRUE(closed());
  EXPECT_EQ(overs_, 1);
  EXPECT_THAT(losses_, IsEmpty()) << "both were answered";
}

TEST_F(HttpSessionTest, AnAnswerMayBeThereAtOnce) {
  answer_at_once_ = true;
  Open();
  for (int i = 0; i < 2; ++i) {
    EXPECT_EQ(Send(kGet), std::string(kGet).size());
    EXPECT_THAT(Receive(), HasSubstr("at once"));
  }
}

TEST_F(HttpSessionTest, WhoWantsNoFurtherAnswerGetsAnEndOfTheConnection) {
  for (const char* request :
       {"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n", "GET / HTTP/1.0\r\n\r\n"}) {
    Open();
    Send(request);
    Respond("x");
    EXPECT_FALSE(wire_->shut);
    EXPECT_THAT(Receive(), HasSubstr("Connection: close\r\n")) << request;
    EXPECT_TRUE(wire_->shut);
    EXPECT_FALSE(closed()) << "the client may still send, and would lose the answer";
    Leave();
    EXPECT_TRUE(closed());
    EXPECT_EQ(overs_, 1);
  }
}

TEST_F(HttpSessionTest, TheAnswerToHeadAndOneWithoutContentHaveNoBody) {
  Open();
  Send("HEAD / HTTP/1.1\r\nHost: a\r\n\r\n");
  Respond("four");
  EXPECT_THAT(Receive(), AllOf(HasSubstr("Content-Length: 4\r\n"), testing::EndsWith("\r\n\r\n")));
  Send("OPTIONS / HTTP/1.1\r\nHost: a\r\n\r\n");
  exchange_->Respond(Plain(204, ""));
  EXPECT_THAT(Receive(), AllOf(HasSubstr("204 No Content\r\n"), Not(HasSubstr("Content-Length"))));
  Send(kGet);
  Respond("four");
  EXPECT_THAT(Receive(), testing::EndsWith("\r\n\r\nfour")) << "HEAD was of its request alone";
  Send("HEAD / HTTP/1.1\r\nHost: a\r\n\r\n");
  Respond("four");
  Receive();
  Send("GET /%zz HTTP/1.1\r\nHost: a\r\n\r\n");
  EXPECT_THAT(Receive(), AllOf(HasSubstr(" 400 "), Not(testing::EndsWith("\r\n\r\n"))));
}

TEST_F(HttpSessionTest, ARefusalOfHeadHasNoBody) {
  Open();
  Send("HEAD /%zz HTTP/1.1\r\nHost: a\r\n\r\n");
  EXPECT_THAT(Receive(), AllOf(HasSubstr(" 400 "), testing::EndsWith("\r\n\r\n")));
}

TEST_F(HttpSessionTest, ARequestSentBeforeTheAnswerToTheLastOneIsNotTaken) {
  for (const bool together : {true, false}) {
    Open();
    if (together) {
      Send(absl::StrCat(kGet, kGet));
    } else {
      Send(kGet);
      Send(kGet);
    }
    const HttpExchange* const first = exchange_.get();
    Respond("x");
    EXPECT_THAT(Receive(), HasSubstr("Connection: close\r\n"));
    EXPECT_EQ(exchange_.get(), first);
    EXPECT_TRUE(wire_->shut);
    session_->Abort();
  }
}

TEST_F(HttpSessionTest, ARequestSentWhenTheAnswersLastBytesHadLeftIsTaken) {
  Open();
  Send(kGet);
  Respond("x");
  ASSERT_TRUE(wire_->write) << "we are told of their leaving later than the client has them";
  const std::shared_ptr<HttpExchange> first = std::move(exchange_);
  const std::string next = absl::StrCat(
      "POST /b HTTP/1.1\r\nHost: a\r\nContent-Length: 6000\r\n\r\n", std::string(6000, 'b'));
  const size_t early = Send(next);
  EXPECT_LT(early, next.size()) << "of what comes early not everything is held";
  EXPECT_EQ(exchange_, nullptr);
  Receive();
  EXPECT_EQ(Send(absl::string_view(next).substr(early)), next.size() - early);
  ASSERT_NE(exchange_, nullptr);
  EXPECT_EQ(exchange_->request().body, std::string(6000, 'b'));
  Respond("y");
  EXPECT_THAT(Receive(), AllOf(testing::EndsWith("y"), Not(HasSubstr("Connection: close"))));
}

TEST_F(HttpSessionTest, AWholeEarlyRequestIsAnsweredToo) {
  Open();
  Send(kGet);
  Respond("x");
  const std::shared_ptr<HttpExchange> first = std::move(exchange_);
  Send(kGet);
  Receive();
  ASSERT_NE(exchange_, nullptr);
  Respond("y");
  EXPECT_THAT(Receive(), testing::EndsWith("y"));
  EXPECT_EQ(Send(kGet), std::string(kGet).size());
}

TEST_F(HttpSessionTest, AStreamComesInChunksAndItsHeadWithTheFirst) {
  Open();
  Send(kGet);
  exchange_->StartStream(Plain(200, ""));
  EXPECT_FALSE(wire_->write);
  exchange_->Write("0123456789abcdef");
  EXPECT_THAT(Receive(),
              AllOf(HasSubstr("Transfer-Encoding: chunked\r\n"), Not(HasSubstr("Content-Length")),
                    testing::EndsWith("\r\n\r\n10\r\n0123456789abcdef\r\n")));
  exchange_->Write("");
  EXPECT_FALSE(wire_->write) << "a chunk of no bytes would be the end";
  exchange_->Write("x");
  exchange_->Write("y");
  exchange_->EndStream();
  EXPECT_EQ(Receive(), "1\r\nx\r\n1\r\ny\r\n0\r\n\r\n");
  EXPECT_EQ(Send(kGet), std::string(kGet).size()) << "the connection goes on";
  Respond("z");
  EXPECT_THAT(Receive(), AllOf(HasSubstr("Content-Length: 1\r\n"), Not(HasSubstr("chunked"))));
}

TEST_F(HttpSessionTest, AStreamToHttp10EndsWithTheConnection) {
  Open();
  Send("GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n");
  exchange_->StartStream(Plain(200, ""));
  exchange_->Write("abc");
  exchange_->EndStream();
  EXPECT_THAT(Receive(), AllOf(HasSubstr("Connection: close\r\n"), Not(HasSubstr("chunked")),
                               testing::EndsWith("\r\n\r\nabc")));
  EXPECT_TRUE(wire_->shut);
}

TEST_F(HttpSessionTest, TellsHowLongItMayBeIdleWhereThatHasAnEnd) {
  const std::pair<absl::Duration, const char*> cases[] = {
      {absl::Seconds(1), "Keep-Alive: timeout=1\r\n"},
      {absl::Milliseconds(2900), "Keep-Alive: timeout=2\r\n"},
      {absl::Milliseconds(900), nullptr},
      {absl::InfiniteDuration(), nullptr}};
  for (const auto& [idle, told] : cases) {
    context_->limits.idle_timeout = idle;
    Open();
    Send(kGet);
    Respond("x");
    if (told != nullptr) {
      EXPECT_THAT(Receive(), HasSubstr(told));
    } else {
      EXPECT_THAT(Receive(), Not(HasSubstr("eep-"))) << "it stays all the same";
    }
    EXPECT_FALSE(wire_->shut);
    session_->Abort();
  }
}

TEST_F(HttpSessionTest, HttpOneZeroIsToldThatItsConnectionStays) {
  Open();
  Send("GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n");
  Respond("x");
  EXPECT_THAT(Receive(), HasSubstr("Connection: keep-alive\r\n"));
  EXPECT_FALSE(wire_->shut);
}

TEST_F(HttpSessionTest, AStreamIsToldWhenEverythingOfItHasLeft) {
  Open();
  Send(kGet);
  int drained = 0;
  exchange_->set_on_drained([&] { ++drained; });
  exchange_->StartStream(Plain(200, ""));
  exchange_->Write("a");
  exchange_->Write("b");
  EXPECT_EQ(drained, 0);
  EndWriting({});
  EXPECT_EQ(drained, 0) << "b is on its way";
  EndWriting({});
  EXPECT_EQ(drained, 1);
  exchange_->EndStream();
  Receive();
  EXPECT_EQ(drained, 1) << "of an answer that is over nobody asks";
}

// The limit of time is for each piece: whoever reads on gets the whole, however long that takes.
TEST_F(HttpSessionTest, ALongAnswerLeavesInPieces) {
  context_->departure_room = std::make_shared<HttpRoom>(1'950'000);
  Open();
  Send(kGet);
  std::string body;
  while (body.size() < 1 << 20) absl::StrAppend(&body, body.size(), ",");
  Respond(body);
  std::string received;
  int pieces = 0;
  for (; wire_->write; ++pieces) {
    EXPECT_LE(wire_->writing.size(), size_t{64} << 10);
    received += std::exchange(wire_->writing, {});
    if (pieces == 3) {
      HttpRoomShare others(context_->departure_room);
      EXPECT_TRUE(others.Add(size_t{1} << 20)) << "what has left takes no room";
    }
    EndWriting({});
  }
  EXPECT_EQ(received.substr(received.find("\r\n\r\n") + 4), body);
  EXPECT_EQ(pieces, 17);
  EXPECT_EQ(Send(kGet), std::string(kGet).size());
  Respond("x");
  EXPECT_THAT(Receive(), testing::EndsWith("\r\n\r\nx"));
}

TEST_F(HttpSessionTest, ARequestBehindALongAnswerIsEarlyWhenItsLastPieceHasLeft) {
  for (const bool last_has_left : {false, true}) {
    Open();
    Send(kGet);
    Respond(std::string(70'000, 'x'));
    if (last_has_left) EndWriting({});
    const std::shared_ptr<HttpExchange> first = std::move(exchange_);
    Send(kGet);
    Receive();
    EXPECT_EQ(exchange_ != nullptr, last_has_left);
    EXPECT_EQ(wire_->shut, !last_has_left);
    session_->Abort();
  }
}

TEST_F(HttpSessionTest, AStreamIsNotDrainedBetweenThePiecesOfALongEvent) {
  Open();
  Send(kGet);
  int drained = 0;
  exchange_->set_on_drained([&] { ++drained; });
  exchange_->StartStream(Plain(200, ""));
  exchange_->Write(std::string(70'000, 'x'));
  EndWriting({});
  EXPECT_EQ(drained, 0);
  EndWriting({});
  EXPECT_EQ(drained, 1);
}

TEST_F(HttpSessionTest, WhoLeavesIsLostOnceAndGetsNothingMore) {
  Open();
  Send(kGet);
  exchange_->StartStream(Plain(200, ""));
  Leave();
  EXPECT_THAT(losses_, ElementsAre(HttpLoss::kClientGone));
  EXPECT_TRUE(closed());
  EXPECT_EQ(overs_, 1);
  exchange_->StartStream(Plain(200, ""));
  exchange_->Write("a");
  exchange_->EndStream();
  exchange_->Respond(Plain(200, "a"));
  exchange_->set_on_lost([this](HttpLoss loss) { losses_.push_back(loss); });
  exchange_->set_on_drained([] {});
  session_->Abort();
  EXPECT_FALSE(wire_->write);
  EXPECT_EQ(losses_.size(), 1u);
  EXPECT_EQ(overs_, 1);
}

TEST_F(HttpSessionTest, AnAnswerThatCannotBeWrittenIsALoss) {
  Open();
  Send(kGet);
  Respond("x");
  EndWriting(boost::asio::error::broken_pipe);
  EXPECT_THAT(losses_, ElementsAre(HttpLoss::kClientGone));
  EXPECT_TRUE(closed());
}

TEST_F(HttpSessionTest, AnAbortIsTheServersLoss) {
  Open();
  Send(kGet);
  session_->Abort();
  EXPECT_THAT(losses_, ElementsAre(HttpLoss::kServerStops));
  EXPECT_TRUE(closed());
  EXPECT_EQ(overs_, 1);
}

// An exchange that is kept when its answer is out, or its client lost, keeps no session.
TEST_F(HttpSessionTest, NothingKeepsASessionThatIsOver) {
  for (const bool answered : {true, false}) {
    Open();
    Send(kGet);
    if (answered) {
      Respond("x");
      Receive();
    }
    Leave();
    const std::weak_ptr<HttpSession> session = std::exchange(session_, nullptr);
    wire_.reset();
    RunTimers();
    EXPECT_TRUE(session.expired()) << answered;
  }
}

TEST_F(HttpSessionTest, AnswersCarryTheNameOfTheirRequestOnce) {
  context_->request_id = [](const HttpRequest& request) {
    return absl::StrCat("id of ", request.path);
  };
  context_->headers = {{"X-All", "1"}};
  Open();
  Send(kGet);
  Respond("x");
  EXPECT_THAT(Receive(), AllOf(HasSubstr("X-Request-Id: id of /a\r\n"), HasSubstr("X-All: 1\r\n")));
  Send(kGet);
  HttpResponse own = Plain(200, "x");
  own.headers = {{kRequestIdHeader, "own"}};
  exchange_->Respond(own);
  EXPECT_THAT(Receive(), AllOf(HasSubstr("X-Request-Id: own\r\n"), Not(HasSubstr("id of"))));
  Send("nonsense\r\n\r\n");
  EXPECT_THAT(Receive(), AllOf(HasSubstr("400 Bad Request\r\n"), HasSubstr("X-All: 1\r\n"),
                               HasSubstr("X-Request-Id: id of \r\n")));
}

TEST_F(HttpSessionTest, WhatTheHeadDecidesNeedsNoBody) {
  context_->check_head = [](const HttpRequest& head) {
    return head.path == "/a" ? std::nullopt : std::make_optional(Plain(404, "not here"));
  };
  constexpr char kRest[] =
      " HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\nExpect: 100-continue\r\n\r\n";
  Open();
  Send(absl::StrCat("POST /b", kRest));
  EXPECT_EQ(exchange_, nullptr);
  EXPECT_THAT(Receive(), AllOf(testing::StartsWith("HTTP/1.1 404 "), Not(HasSubstr("100")),
                               HasSubstr("Connection: close\r\n")));
  session_->Abort();
  Open();
  Send(absl::StrCat("POST /a", kRest));
  EXPECT_EQ(Receive(), "HTTP/1.1 100 Continue\r\n\r\n");
  EXPECT_EQ(exchange_, nullptr);
  Send("ab");
  ASSERT_NE(exchange_, nullptr);
  EXPECT_EQ(exchange_->request().body, "ab");
}

TEST_F(HttpSessionTest, ARefusedConnectionIsToldWithoutBeingRead) {
  Connect();
  session_->Refuse(503, "too many");
  Shake();
  EXPECT_FALSE(wire_->read);
  EXPECT_THAT(Receive(), AllOf(testing::StartsWith("HTTP/1.1 503 "), testing::EndsWith("too many"),
                               HasSubstr("Connection: close\r\n")));
  EXPECT_TRUE(wire_->shut);
  Leave();
  EXPECT_EQ(overs_, 1);
}

TEST_F(HttpSessionTest, AHandshakeThatFailsOrComesTooLateIsTheEnd) {
  for (const bool refuse : {false, true}) {
    for (const bool late : {false, true}) {
      Connect();
      refuse ? session_->Refuse(503, "too many") : session_->Start();
      if (late) session_->Abort();
      Shake(late ? boost::system::error_code() : boost::asio::error::connection_reset);
      EXPECT_TRUE(closed());
      EXPECT_FALSE(wire_->read || wire_->write);
      EXPECT_EQ(overs_, 1);
    }
  }
}

TEST_F(HttpSessionTest, DrainingClosesAConnectionBetweenTwoRequests) {
  Open();
  Send(kGet);
  Respond("x");
  Receive();
  session_->Drain();
  EXPECT_TRUE(closed());
  EXPECT_EQ(overs_, 1);
  session_->Drain();
  EXPECT_EQ(overs_, 1);
}

TEST_F(HttpSessionTest, DrainingWaitsForARequestAndItsAnswer) {
  for (const size_t sent : {size_t{0}, size_t{5}, std::string(kGet).size()}) {
    Open();
    Send(absl::string_view(kGet).substr(0, sent));
    session_->Drain();
    EXPECT_FALSE(closed()) << sent;
    Send(absl::string_view(kGet).substr(sent));
    Respond("x");
    EXPECT_THAT(Receive(), HasSubstr("Connection: close\r\n"));
    EXPECT_TRUE(wire_->shut);
    session_->Abort();
  }
}

TEST_F(HttpSessionTest, DrainingWaitsForAnEarlyRequestToo) {
  Open();
  Send(kGet);
  Respond("x");
  const std::shared_ptr<HttpExchange> first = std::move(exchange_);
  Send(kGet);
  session_->Drain();
  EXPECT_THAT(Receive(), Not(HasSubstr("Connection: close")));
  ASSERT_NE(exchange_, nullptr);
  Respond("y");
  EXPECT_THAT(Receive(), AllOf(HasSubstr("Connection: close\r\n"), testing::EndsWith("y")));
  EXPECT_TRUE(wire_->shut);
}

TEST_F(HttpSessionTest, AnOldConnectionEndsAfterItsNextAnswer) {
  context_->limits.max_age = absl::ZeroDuration();
  Open();
  Send(kGet);
  Respond("x");
  EXPECT_THAT(Receive(), HasSubstr("Connection: close\r\n"));
  EXPECT_TRUE(wire_->shut);
}

// A body of so many bytes, of which one has not come.
std::string Upload(size_t bytes) {
  return absl::StrCat("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: ", bytes + 1, "\r\n\r\n",
                      std::string(bytes, 'b'));
}

TEST_F(HttpSessionTest, LongRequestsOnTheirWayShareARoom) {
  HttpRoomShare others(context_->arrival_room);
  ASSERT_TRUE(others.Add(90'000));
  Open();
  Send(Upload(60'000));
  EXPECT_THAT(Receive(), testing::StartsWith("HTTP/1.1 503 "));
  EXPECT_TRUE(wire_->shut);
  session_->Abort();
  others.Release();
  Open();
  Send(Upload(60'000));
  EXPECT_FALSE(wire_->write);
  EXPECT_FALSE(others.Add(90'000));
  others.Release();
  Send("b");
  ASSERT_NE(exchange_, nullptr);
  EXPECT_TRUE(others.Add(110'000)) << "what has been read takes no room";
  others.Release();
  session_->Abort();
  Open();
  Send(Upload(60'000));
  Leave();
  EXPECT_TRUE(others.Add(110'000)) << "nor what will never be";
}

TEST_F(HttpSessionTest, LongAnswersOnTheirWayShareARoom) {
  HttpRoomShare others(context_->departure_room);
  Open();
  Send(kGet);
  Respond(std::string(60'000, 'x'));
  EXPECT_FALSE(others.Add(90'000));
  others.Release();
  Receive();
  ASSERT_TRUE(others.Add(90'000)) << "what has left takes no room";
  Send(kGet);
  Respond(std::string(60'000, 'x'));
  EXPECT_THAT(Receive(), AllOf(testing::StartsWith("HTTP/1.1 503 "),
                               HasSubstr("too many long answers"), Not(HasSubstr("xx"))));
  Send("HEAD / HTTP/1.1\r\nHost: a\r\n\r\n");
  Respond(std::string(60'000, 'x'));
  EXPECT_THAT(Receive(), testing::StartsWith("HTTP/1.1 200 ")) << "a length takes no room";
  Send(kGet);
  exchange_->StartStream(Plain(200, ""));
  exchange_->Write(std::string(10'000, 'x'));
  exchange_->Write(std::string(60'000, 'x'));
  EXPECT_THAT(losses_, ElementsAre(HttpLoss::kClientSlow));
  EXPECT_TRUE(closed());
  others.Release();
  EXPECT_TRUE(others.Add(110'000));
}

TEST_F(HttpSessionTest, WhoSendsOnAndOnIsNotListenedToForEver) {
  Open();
  Send(kGet);
  const std::string endless(4 << 20, 'x');
  const size_t taken = Send(endless);
  EXPECT_GE(taken, size_t{1} << 20);
  EXPECT_LT(taken, endless.size());
  Respond("x");
  EXPECT_THAT(Receive(), HasSubstr("Connection: close\r\n"));
  EXPECT_LT(Send(endless), endless.size());
  EXPECT_FALSE(closed());
}

TEST_F(HttpSessionTest, WhatDoesNotComeInTimeIsTheEnd) {
  HttpConnectionLimits& limits = context_->limits;
  const HttpConnectionLimits for_ever = limits;
  limits.header_timeout = absl::ZeroDuration();
  Connect();
  session_->Start();
  RunTimers();
  EXPECT_TRUE(closed()) << "no handshake";

  Open();
  RunTimers();
  EXPECT_FALSE(closed()) << "no request: this may take longer";
  Send("GET /a");
  RunTimers();
  EXPECT_THAT(Receive(), testing::StartsWith("HTTP/1.1 408 "));
  EXPECT_TRUE(wire_->shut);
  session_->Abort();

  limits = for_ever;
  limits.body_timeout = absl::ZeroDuration();
  Open();
  Send(Upload(5));
  RunTimers();
  EXPECT_THAT(Receive(), testing::StartsWith("HTTP/1.1 408 "));
  session_->Abort();

  limits = for_ever;
  limits.idle_timeout = absl::ZeroDuration();
  Open();
  RunTimers();
  EXPECT_TRUE(closed()) << "no request";
  EXPECT_FALSE(wire_->write) << "who has asked for nothing is told nothing";

  limits = for_ever;
  limits.write_timeout = absl::ZeroDuration();
  Open();
  Send(kGet);
  EXPECT_THAT(losses_, IsEmpty());
  Respond("x");
  RunTimers();
  EXPECT_THAT(losses_, ElementsAre(HttpLoss::kClientSlow));
  EXPECT_TRUE(closed());
}

TEST_F(HttpSessionTest, AnAnswerMayTakeItsTimeAndSoMayWhatReadsIt) {
  HttpConnectionLimits& limits = context_->limits;
  limits.header_timeout = limits.body_timeout = limits.write_timeout = absl::ZeroDuration();
  Open();
  Send(kGet);
  RunTimers();
  EXPECT_FALSE(closed()) << "it is being made";
  exchange_->StartStream(Plain(200, ""));
  exchange_->Write("a");
  Receive();
  RunTimers();
  EXPECT_FALSE(closed()) << "everything has left";
  exchange_->EndStream();
  Receive();
  RunTimers();
  EXPECT_FALSE(closed()) << "the next request may come later";
  EXPECT_THAT(losses_, IsEmpty());
}

TEST(HttpMailbox, DropsWhatComesAfterItsEnd) {
  struct CountingLoop final : Loop {
    absl::Time Now() const override { return absl::UnixEpoch(); }
    void Post(std::function<void()> task) override { ++posted; }
    void PostAfter(absl::Duration delay, std::function<void()> task) override {}
    int posted = 0;
  } loop;
  HttpMailbox mailbox(&loop);
  mailbox.Post([] {});
  EXPECT_EQ(loop.posted, 1);
  mailbox.Close();
  mailbox.Post([] {});
  EXPECT_EQ(loop.posted, 1);
}

}  // namespace
}  // namespace blockserve
