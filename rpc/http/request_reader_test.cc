#include "rpc/http/request_reader.h"

#include <gtest/gtest.h>

#include <string>

#include "absl/strings/str_cat.h"

namespace blockserve {
namespace {

using State = HttpRequestReader::State;

constexpr char kPost[] =
    "POST /v1/completions?x=1 HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\n\r\nbody";

TEST(HttpRequestReader, ReadsARequestInPiecesOfAnySize) {
  const std::string bytes = kPost;
  for (size_t piece = 1; piece <= bytes.size(); ++piece) {
    HttpRequestReader reader({});
    State state = State::kIdle;
    for (size_t at = 0; at < bytes.size(); at += piece) {
      ASSERT_NE(state, State::kDone);
      state = reader.Feed(bytes.substr(at, piece));
    }
    ASSERT_EQ(state, State::kDone) << reader.failure();
    EXPECT_EQ(reader.request().method, "POST");
    EXPECT_EQ(reader.request().path, "/v1/completions");
    EXPECT_EQ(reader.request().query, "x=1");
    EXPECT_EQ(reader.request().body, "body");
    EXPECT_EQ(reader.request().header("host"), "a");
    EXPECT_TRUE(reader.request().keep_alive);
    EXPECT_FALSE(reader.has_surplus());
  }
}

TEST(HttpRequestReader, ReadsEveryFormOfATarget) {
  const auto path_of = [](const std::string& target) {
    HttpRequestReader reader({});
    const State state = reader.Feed(absl::StrCat("GET ", target, " HTTP/1.1\r\nHost: a\r\n\r\n"));
    if (state != State::kDone) return absl::StrCat(reader.failure_status());
    return absl::StrCat(reader.request().path, " ? ", reader.request().query);
  };
  EXPECT_EQ(path_of("/v1/models/org%2Fmy%20chat?a=%20"), "/v1/models/org/my chat ? a=%20");
  EXPECT_EQ(path_of("http://host:80/health?x"), "/health ? x");
  EXPECT_EQ(path_of("HTTPS://host"), "/ ? ");
  EXPECT_EQ(path_of("http://host?x"), "/ ? x");
  EXPECT_EQ(path_of("/a%4"), "400");
  EXPECT_EQ(path_of("/a%zz"), "400");
}

TEST(HttpRequestReader, TellsTheHeadWhileTheBodyComes) {
  HttpRequestReader reader({});
  EXPECT_EQ(reader.Feed("POST /a HTTP/1.1\r\nHost: b\r\nContent-Length: 4\r\n\r\nbo"),
            State::kBody);
  const HttpRequest& head = reader.request();
  EXPECT_EQ(head.method, "POST");
  EXPECT_EQ(head.path, "/a");
  EXPECT_EQ(head.header("Host"), "b");
  EXPECT_EQ(reader.Feed("dy"), State::kDone);
  EXPECT_EQ(reader.request().header("Host"), "b");
  EXPECT_EQ(reader.request().body, "body");
}

TEST(HttpRequestReader, UndoesChunkedTransfer) {
  HttpRequestReader reader({});
  const State state = reader.Feed(
      "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"
      "3\r\nabc\r\n2;x=y\r\nde\r\n0\r\n\r\n");
  ASSERT_EQ(state, State::kDone) << reader.failure();
  EXPECT_EQ(reader.request().body, "abcde");
}

TEST(HttpRequestReader, TellsOfASecondRequestBehindTheFirst) {
  HttpRequestReader reader({});
  EXPECT_EQ(reader.Feed(absl::StrCat(kPost, "GET / HTTP/1.1\r\n")), State::kDone);
  EXPECT_TRUE(reader.has_surplus());
}

TEST(HttpRequestReader, BoundsHeaderAndBody) {
  HttpReadLimits limits;
  limits.max_header_bytes = 512;
  limits.max_body_bytes = 10;
  const auto status_of = [&](const std::string& bytes) {
    HttpRequestReader reader(limits);
    return reader.Feed(bytes) == State::kFailed ? reader.failure_status() : 0;
  };
  EXPECT_EQ(status_of(absl::StrCat("GET /", std::string(600, 'a'))), 431);
  EXPECT_EQ(status_of(absl::StrCat("GET / HTTP/1.1\r\nHost: a\r\nX: ", std::string(600, 'a'))),
            431);
  EXPECT_EQ(status_of("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 11\r\n\r\n"), 413);
  EXPECT_EQ(status_of("POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"
                      "b\r\n01234567890\r\n"),
            413);
  EXPECT_EQ(status_of("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 10\r\n\r\n0123456789"), 0);
}

TEST(HttpRequestReader, TakesAHeaderThatIsJustWithinItsBound) {
  const std::string head = "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\nX: ";
  const std::string end = "\r\n\r\n";
  HttpReadLimits limits;
  limits.max_header_bytes = 512;
  for (const size_t more : {0, 1}) {
    for (const size_t piece : {size_t{1}, size_t{100}, size_t{1000}}) {
      const std::string bytes = absl::StrCat(
          head, std::string(limits.max_header_bytes - head.size() - end.size() + more, 'a'), end,
          "abc");
      HttpRequestReader reader(limits);
      State state = State::kIdle;
      for (size_t at = 0; at < bytes.size() && state != State::kFailed; at += piece) {
        state = reader.Feed(absl::string_view(bytes).substr(at, piece));
      }
      EXPECT_EQ(state, more == 0 ? State::kDone : State::kFailed) << more << " by " << piece;
    }
  }
}

TEST(HttpRequestReader, ABodyMayBeLongerThanItsHeaderMay) {
  HttpReadLimits limits;
  limits.max_header_bytes = 512;
  const std::string body(5000, 'b');
  for (const std::string& bytes :
       {absl::StrCat("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5000\r\n\r\n", body),
        absl::StrCat("POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n1388\r\n",
                     body, "\r\n0\r\n\r\n")}) {
    HttpRequestReader reader(limits);
    ASSERT_EQ(reader.Feed(bytes), State::kDone) << reader.failure();
    EXPECT_EQ(reader.request().body, body);
    EXPECT_FALSE(reader.has_surplus());
  }
}

constexpr char kChunked[] = "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n";

TEST(HttpRequestReader, BoundsAHeaderThatComesLineByLine) {
  HttpReadLimits limits;
  limits.max_header_bytes = 2000;
  HttpRequestReader reader(limits);
  reader.Feed("GET / HTTP/1.1\r\n");
  int lines = 0;
  while (lines < 100 && reader.Feed(absl::StrCat("X: ", std::string(95, 'a'), "\r\n")) ==
                            HttpRequestReader::State::kHeader) {
    ++lines;
  }
  EXPECT_EQ(reader.failure_status(), 431);
  EXPECT_LE(lines, 20);
}

// In pieces, as a connection brings them.
int StatusInPieces(HttpReadLimits limits, const std::string& bytes, size_t* taken_bytes) {
  HttpRequestReader reader(limits);
  for (size_t at = 0; at < bytes.size(); at += 1000) {
    const State state = reader.Feed(absl::string_view(bytes).substr(at, 1000));
    *taken_bytes = at + 1000;
    if (state == State::kFailed) return reader.failure_status();
  }
  return 0;
}

TEST(HttpRequestReader, HoldsNoMoreOfChunkHeadersAndTrailersThanOfHeaders) {
  HttpReadLimits limits;
  limits.max_header_bytes = 2000;
  const std::string endless(100'000, 'a');
  for (const std::string& rest :
       {absl::StrCat("1;", endless), absl::StrCat("1\r\n{\r\n1;x=", endless),
        absl::StrCat("0\r\nX: ", endless), absl::StrCat("0\r\n", endless)}) {
    size_t taken_bytes = 0;
    EXPECT_EQ(StatusInPieces(limits, absl::StrCat(kChunked, rest), &taken_bytes), 431);
    EXPECT_LE(taken_bytes, 4000u) << rest.substr(0, 20);
  }
  std::string many = absl::StrCat(kChunked, "1\r\n{\r\n0\r\n");
  for (int i = 0; i < 1000; ++i)
    absl::StrAppend(&many, "X", i, ": ", std::string(100, 'a'), "\r\n");
  size_t taken_bytes = 0;
  EXPECT_EQ(StatusInPieces(limits, many, &taken_bytes), 431);
  EXPECT_LE(taken_bytes, 4000u);
}

TEST(HttpRequestReader, AFieldThatTheParserCannotHoldIsRefused) {
  for (const size_t most : {kMostHeaderBytes, size_t{1} << 20}) {
    HttpReadLimits limits;
    limits.max_header_bytes = most;
    for (const std::string& bytes :
         {absl::StrCat(kChunked, "0\r\nX: ", std::string(70'000, 'a'), "\r\n\r\n"),
          absl::StrCat(kChunked, "0\r\n", std::string(70'000, 'a'), ": x\r\n\r\n"),
          absl::StrCat("GET / HTTP/1.1\r\nHost: a\r\nX: ", std::string(70'000, 'a'), "\r\n\r\n")}) {
      HttpRequestReader reader(limits);
      ASSERT_EQ(reader.Feed(bytes), State::kFailed);
      EXPECT_EQ(reader.failure_status(), 431);
    }
  }
}

TEST(HttpRequestReader, WhatTrailersSayIsNoHeader) {
  HttpRequestReader reader({});
  ASSERT_EQ(reader.Feed(absl::StrCat(kChunked,
                                     "1\r\n{\r\n0\r\nX-Request-Id: evil\r\n"
                                     "Connection: close\r\nHost: b\r\n\r\n")),
            State::kDone)
      << reader.failure();
  EXPECT_EQ(reader.request().body, "{");
  EXPECT_EQ(reader.request().header("X-Request-Id"), "");
  EXPECT_EQ(reader.request().header("Host"), "a");
  EXPECT_TRUE(reader.request().keep_alive);
}

TEST(HttpRequestReader, RefusesWhatIsNoPlainHttp1Request) {
  const auto status_of = [](const std::string& bytes) {
    HttpRequestReader reader({});
    return reader.Feed(bytes) == State::kFailed ? reader.failure_status() : 0;
  };
  EXPECT_EQ(status_of("hello\r\n\r\n"), 400);
  EXPECT_EQ(status_of("GET / HTTP/1.1\r\n\r\n"), 400) << "no Host";
  EXPECT_EQ(status_of("GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n"), 400);
  EXPECT_EQ(status_of("GET / HTTP/1.0\r\nHost: a\r\nHost: b\r\n\r\n"), 400);
  EXPECT_EQ(status_of("GET / HTTP/3.0\r\nHost: a\r\n\r\n"), 505);
  EXPECT_NE(status_of("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n"
                      "Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n"),
            0)
      << "two ends of one request";
  EXPECT_NE(status_of("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n"
                      "Content-Length: 4\r\n\r\nabcd"),
            0);
  EXPECT_EQ(status_of("POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: gzip\r\n\r\n"), 501);
  for (const char* packed : {"gzip, chunked", "gzip\r\nTransfer-Encoding: chunked"}) {
    EXPECT_EQ(status_of(absl::StrCat("POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: ", packed,
                                     "\r\n\r\n0\r\n\r\n")),
              501)
        << packed;
  }
  EXPECT_EQ(status_of("POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding:  Chunked \r\n\r\n"
                      "0\r\n\r\n"),
            0);
  EXPECT_EQ(status_of("GET /a b HTTP/1.1\r\nHost: a\r\n\r\n"), 400) << "a blank in the target";
  EXPECT_EQ(status_of("GET / HTTP/1.1\nHost: a\n\n"), 400) << "no CR";
  EXPECT_EQ(status_of("POST / HTTP/1.1\r\nHost: a\r\nExpect: 200-ok\r\nContent-Length: 1\r\n\r\n"),
            417);
  EXPECT_EQ(status_of("POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"), 400);
  EXPECT_EQ(status_of("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"), 505);
}

TEST(HttpRequestReader, AsksForAnExpectedContinueOnce) {
  HttpRequestReader reader({});
  EXPECT_EQ(reader.Feed("POST / HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\n"
                        "Content-Length: 2\r\n\r\n"),
            State::kBody);
  EXPECT_TRUE(reader.TakeExpectation());
  EXPECT_FALSE(reader.TakeExpectation());
  EXPECT_EQ(reader.Feed("ab"), State::kDone);
}

TEST(HttpRequestReader, ExpectsNoContinueOfHttp10NorOfABodyThatIsThere) {
  HttpRequestReader old({});
  EXPECT_EQ(old.Feed("POST / HTTP/1.0\r\nExpect: 100-continue\r\nContent-Length: 2\r\n\r\n"),
            State::kBody);
  EXPECT_FALSE(old.TakeExpectation());
  HttpRequestReader whole({});
  EXPECT_EQ(whole.Feed("POST / HTTP/1.1\r\nHost: a\r\nExpect: 100-Continue\r\n"
                       "Content-Length: 2\r\n\r\nab"),
            State::kDone);
  EXPECT_FALSE(whole.TakeExpectation());
}

TEST(HttpReason, IsAWordForEveryNumber) {
  EXPECT_EQ(HttpReason(200), "OK");
  EXPECT_EQ(HttpReason(429), "Too Many Requests");
  EXPECT_EQ(HttpReason(299), "Error");
  for (const int status : {-1, 0, 99, 600, 1000}) EXPECT_FALSE(HttpReason(status).empty());
}

TEST(HttpRequestReader, EmptyLinesBeforeARequestAreNoRequest) {
  HttpRequestReader reader({});
  EXPECT_EQ(reader.Feed("\r\n"), State::kIdle);
  EXPECT_EQ(reader.Feed("\r"), State::kIdle);
  EXPECT_EQ(reader.Feed("\nGET / HTTP/1.0\r\n\r\n"), State::kDone);
  EXPECT_TRUE(reader.request().http_1_0);
  EXPECT_FALSE(reader.request().keep_alive);
}

}  // namespace
}  // namespace blockserve
