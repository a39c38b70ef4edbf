// Admission before the core over simulated tiers: what clients get when there is too much, and what
// the metrics tell of it.
#include "gateway/admitted_core.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "absl/strings/str_split.h"
#include "common/log_budget.h"
#include "common/logging.h"
#include "common/metrics.h"
#include "gateway/cache_pool.h"
#include "gateway/core_fixture.h"
#include "gateway/metric_definitions.h"
#include "gateway/retry_after.h"

namespace blockserve {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;

class AdmittedCoreTest : public CoreFixture {
 protected:
  void Make(int block_replicas, int token_workers) {
    MakeCore(block_replicas, token_workers);
    metrics_ = RequestMetrics(registry_);
    admitted_ = std::make_unique<AdmittedCore>(loop_, *core_, admitted_options_, metrics_);
    Connect();
  }
  Stream Ask(GenerationRequest request) {
    Stream stream{request, std::make_shared<RecordingSink>(), 0};
    stream.id = admitted_->Generate(std::move(request), stream.sink);
    return stream;
  }
  double Count(absl::StatusCode outcome) {
    return metrics_.Requests(RequestMethod::kGenerate, outcome).Value();
  }

  MetricRegistry registry_;
  RequestMetrics metrics_;
  AdmittedCoreOptions admitted_options_;
  std::unique_ptr<AdmittedCore> admitted_;
};

TEST_F(AdmittedCoreTest, GivesTheSameTokensAndCountsThem) {
  Make(1, 2);
  std::vector<Stream> streams;
  for (uint64_t i = 0; i < 20; ++i) streams.push_back(Ask(Request(7, 13, i)));
  EXPECT_EQ(admitted_->live_requests(), 20);
  ASSERT_TRUE(RunUntilDone(streams));
  for (const Stream& stream : streams) ExpectExact(stream);
  EXPECT_EQ(Count(absl::StatusCode::kOk), 20);
  EXPECT_EQ(metrics_.completion_tokens.Value(), 20 * 13);
  EXPECT_EQ(metrics_.prompt_tokens.Value(), 20 * 7);
  const std::string text = registry_.RenderText();
  EXPECT_THAT(text, HasSubstr("blockserve_gateway_time_to_first_token_seconds_count 20\n"));
  EXPECT_THAT(text, HasSubstr("blockserve_gateway_queue_seconds_count 20\n"));
  EXPECT_THAT(text,
              HasSubstr("blockserve_gateway_request_seconds_count{method=\"generate\"} 20\n"));
  EXPECT_EQ(admitted_->live_requests(), 0);
  ExpectNothingLeft();
}

TEST_F(AdmittedCoreTest, TooManyEndRefusedAtOnceAndTheOthersInFull) {
  admitted_options_.admission.max_starting = 4;
  admitted_options_.admission.max_queued = 40;
  Make(1, 1);
  std::vector<Stream> streams;
  for (uint64_t i = 0; i < 500; ++i) streams.push_back(Ask(Request(5, 20, i)));
  int refused = 0;  // by the caller's thread: the loop has done nothing yet
  for (const Stream& stream : streams) {
    if (stream.sink->done == 0) continue;
    ++refused;
    EXPECT_EQ(stream.sink->status.code(), absl::StatusCode::kResourceExhausted);
    EXPECT_TRUE(RetryAfter(stream.sink->status).has_value());
  }
  EXPECT_GE(refused, 450);
  ASSERT_TRUE(RunUntilDone(streams));
  int ok = 0;
  for (const Stream& stream : streams) {
    EXPECT_EQ(stream.sink->done, 1);
    if (!stream.sink->status.ok()) continue;
    ++ok;
    ExpectExact(stream);
  }
  EXPECT_EQ(ok + refused, 500);
  EXPECT_EQ(Count(absl::StatusCode::kResourceExhausted), refused);
  EXPECT_EQ(metrics_.refused_for_room.Value(), refused);
  EXPECT_EQ(metrics_.refused_by_limit.Value(), 0);
  ExpectNothingLeft();
}

TEST_F(AdmittedCoreTest, WhatALimitOfItsKeyRefusesIsNotCountedAsWantOfRoom) {
  admitted_options_.admission.limits["a"].max_requests = 2;
  Make(1, 1);
  std::vector<Stream> streams;
  for (uint64_t i = 0; i < 5; ++i) {
    GenerationRequest request = Request(5, 20, i);
    request.key = "a";
    streams.push_back(Ask(request));
  }
  ASSERT_TRUE(RunUntilDone(streams));
  EXPECT_EQ(Count(absl::StatusCode::kResourceExhausted), 3);
  EXPECT_THAT(registry_.RenderText(),
              AllOf(HasSubstr("blockserve_gateway_requests_refused_total{reason=\"limit\"} 3\n"),
                    HasSubstr("blockserve_gateway_requests_refused_total{reason=\"room\"} 0\n")));
}

TEST_F(AdmittedCoreTest, WhatCouldNotEndInTimeBesideTheOthersIsRefusedAtOnce) {
  admitted_options_.admission.live = {.most = 10, .batches = 0};
  Make(1, 1);
  workers_[0]->service_time = absl::Milliseconds(40);  // 10 ms a token
  std::vector<Stream> running;
  for (uint64_t i = 0; i < 10; ++i) running.push_back(Ask(Request(5, 400, i)));
  loop_.Advance(absl::Seconds(1));
  GenerationRequest request = Request(5, 400, 99);
  request.deadline = loop_.Now() + absl::Seconds(5);  // 3 s to wait, 4 to run
  const Stream late = Ask(request);
  request.deadline = loop_.Now() + absl::Seconds(20);
  const Stream waits = Ask(request);
  loop_.RunReady();
  EXPECT_EQ(late.sink->done, 1);
  EXPECT_EQ(late.sink->status.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_THAT(std::string(late.sink->status.message()), HasSubstr("the deadline would pass"));
  ASSERT_TRUE(RunUntilDone({waits}));
  ExpectExact(waits);
}

// When a gateway is lost all of its streams come at once, most of them nearly over.
TEST_F(AdmittedCoreTest, AStreamThatGoesOnIsJudgedByWhatIsLeftOfIt) {
  AdmissionOptions& admission = admitted_options_.admission;
  admission.live = {.most = 20, .batches = 0};
  admission.limits["a"].max_tokens = 60;
  Make(1, 1);
  const Stream whole = Ask(Request(5, 400, 99));
  ASSERT_TRUE(RunUntilDone({whole}));
  workers_[0]->service_time = absl::Milliseconds(40);  // 10 ms a token
  std::vector<Stream> running;
  for (uint64_t i = 0; i < 10; ++i) running.push_back(Ask(Request(5, 2000, i)));
  loop_.Advance(absl::Seconds(2));

  GenerationRequest request = Request(5, 400, 99);
  request.n = 2;
  request.deadline = loop_.Now() + absl::Seconds(2);  // 400 tokens take 4
  const Stream anew = Ask(request);
  loop_.RunReady();
  EXPECT_EQ(anew.sink->status.code(), absl::StatusCode::kResourceExhausted);

  request.key = "a";
  ResumeState& resume = request.resume.emplace();
  resume.model_id = whole.sink->first.model_id();
  resume.block_numeric_id = whole.sink->first.block_numeric_id();
  resume.token_numeric_id = whole.sink->first.token_numeric_id();
  resume.choices.resize(2);
  for (uint32_t i = 0; i < 2; ++i) resume.choices[i].tokens = Expected(request, i);
  resume.choices[1].finished = true;
  resume.choices[0].tokens.resize(350);
  Stream rest{request, std::make_shared<RecordingSink>(), 0};
  rest.sink->received_before[0] = 350;
  admitted_->Generate(request, rest.sink);
  loop_.Advance(absl::Milliseconds(200));
  EXPECT_EQ(metrics_.live_choices.Value(), 11) << "one of its two is over";
  ASSERT_TRUE(RunUntilDone({rest}));
  ASSERT_TRUE(rest.sink->status.ok()) << rest.sink->status;
  std::vector<int32_t> tokens = resume.choices[0].tokens;
  tokens.insert(tokens.end(), rest.sink->tokens[0].begin(), rest.sink->tokens[0].end());
  EXPECT_EQ(tokens, Expected(request, 0));
  for (const Stream& stream : running) admitted_->Cancel(stream.id, ClientHasGone());
  ExpectNothingLeft();
}

TEST_F(AdmittedCoreTest, QueuedRequestsAreRefusedBeforeTheirDeadline) {
  admitted_options_.admission.max_starting = 1;
  Make(1, 1);
  blocks_[0]->frozen = true;
  Stream first = Ask(Request(5, 20, 1));
  loop_.RunReady();
  GenerationRequest request = Request(5, 20, 2);
  request.deadline = loop_.Now() + absl::Seconds(3);
  const Stream waits = Ask(request);
  loop_.Advance(absl::Seconds(2));
  EXPECT_EQ(waits.sink->done, 0);
  loop_.Advance(absl::Seconds(1));
  EXPECT_EQ(waits.sink->done, 1);
  EXPECT_EQ(waits.sink->status.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_TRUE(RetryAfter(waits.sink->status).has_value());
  admitted_->Cancel(first.id, ClientHasGone());
  loop_.Advance(absl::Milliseconds(1));
}

TEST_F(AdmittedCoreTest, ClientsThatGoAreTakenOutOfTheQueueAndOffTheTiers) {
  admitted_options_.admission.max_starting = 2;
  Make(1, 1);
  std::vector<Stream> streams;
  for (uint64_t i = 0; i < 10; ++i) streams.push_back(Ask(Request(5, 2000, i)));
  loop_.Advance(absl::Milliseconds(100));
  for (const Stream& stream : streams) admitted_->Cancel(stream.id, ClientHasGone());
  loop_.Advance(absl::Seconds(1));
  EXPECT_EQ(Count(absl::StatusCode::kCancelled), 10);
  EXPECT_EQ(admitted_->live_requests(), 0);
  for (const Stream& stream : streams) EXPECT_EQ(stream.sink->done, 0);
  const Stream next = Ask(Request(5, 8, 99));
  ASSERT_TRUE(RunUntilDone({next}));
  ExpectExact(next);
  ExpectNothingLeft();
}

TEST_F(AdmittedCoreTest, AStreamWhoseClientDoesNotReadIsCutOff) {
  admitted_options_.slow_reader_timeout = absl::Seconds(30);
  Make(1, 1);
  const Stream slow = Ask(Request(5, 2000, 1));
  const Stream reads = Ask(Request(5, 2000, 2));
  loop_.Advance(absl::Milliseconds(100));
  slow.sink->wants_more = reads.sink->wants_more = false;
  loop_.Advance(absl::Seconds(20));
  const size_t written = slow.sink->tokens[0].size();
  reads.sink->wants_more = true;
  admitted_->Resume(reads.id);
  loop_.Advance(absl::Seconds(9));
  EXPECT_EQ(slow.sink->done, 0) << "it has some time left";
  EXPECT_EQ(slow.sink->tokens[0].size(), written) << "nothing is written for it meanwhile";
  loop_.Advance(absl::Seconds(2));
  EXPECT_EQ(slow.sink->done, 1);
  EXPECT_EQ(slow.sink->status.code(), absl::StatusCode::kAborted);
  EXPECT_EQ(Count(absl::StatusCode::kAborted), 1);
  ASSERT_TRUE(RunUntilDone({reads}));
  ExpectExact(reads);
  ExpectNothingLeft();
}

TEST_F(AdmittedCoreTest, DrainingRefusesNewRequestsAndServesTheQueue) {
  admitted_options_.admission.max_starting = 1;
  Make(1, 1);
  const Stream runs = Ask(Request(5, 20, 1));
  const Stream queued = Ask(Request(5, 20, 2));
  loop_.RunReady();
  admitted_->StartDraining();
  const Stream late = Ask(Request(5, 20, 3));
  ASSERT_TRUE(RunUntilDone({runs, queued, late}));
  ExpectExact(runs);
  ExpectExact(queued);
  EXPECT_EQ(late.sink->status.code(), absl::StatusCode::kUnavailable);
}

TEST_F(AdmittedCoreTest, EndingTellsEveryQueuedRequest) {
  admitted_options_.admission.max_starting = 1;
  Make(1, 1);
  std::vector<Stream> streams;
  for (uint64_t i = 0; i < 5; ++i) streams.push_back(Ask(Request(5, 20, i)));
  loop_.RunReady();
  admitted_->EndQueued(absl::UnavailableError("the gateway is stopping"));
  core_->EndAll(absl::UnavailableError("the gateway is stopping"));
  streams.push_back(Ask(Request(5, 20, 9)));
  loop_.RunReady();
  for (const Stream& stream : streams) {
    EXPECT_EQ(stream.sink->done, 1);
    EXPECT_EQ(stream.sink->status.code(), absl::StatusCode::kUnavailable);
  }
  EXPECT_EQ(admitted_->live_requests(), 0);
}

TEST_F(AdmittedCoreTest, WhatFrontsRefuseOrAnswerThemselvesIsCountedAndTakenOfTheRate) {
  KeyLimits limits;
  limits.requests_per_second = 1;
  limits.burst = 4;
  limits.max_tokens = 100;
  admitted_options_.admission.limits["a"] = limits;
  Make(1, 1);
  const auto refuse = [this](absl::Status status) {
    admitted_->OnRefused({.method = RequestMethod::kScore, .key = "a", .status = status});
  };
  // Nothing of the rate: there was no room, or nobody showed the key.
  for (int i = 0; i < 10; ++i) {
    refuse(absl::ResourceExhaustedError("more than 1 requests in a second"));
    refuse(absl::UnauthenticatedError("no key"));
  }
  EXPECT_TRUE(admitted_->CheckRate("a").ok());
  refuse(absl::InvalidArgumentError("n: must be 1 to 64"));
  refuse(absl::CancelledError("the client has gone"));
  EXPECT_TRUE(admitted_->TakeFromRate("a").ok());
  // Refused here for what it is.
  GenerationRequest request = Request(50, 60, 1);
  request.key = "a";
  const Stream never = Ask(request);
  EXPECT_TRUE(absl::IsInvalidArgument(never.sink->status)) << never.sink->status;
  const absl::Status refused = admitted_->TakeFromRate("a");
  EXPECT_TRUE(absl::IsResourceExhausted(refused)) << refused;
  EXPECT_EQ(RetryAfter(refused), absl::Seconds(1));
  EXPECT_TRUE(admitted_->TakeFromRate("").ok()) << "no limit";
  EXPECT_EQ(metrics_.Requests(RequestMethod::kScore, absl::StatusCode::kInvalidArgument).Value(),
            1);

  admitted_->OnAnswered(RequestMethod::kTokenize, absl::OkStatus(), absl::Milliseconds(3));
  admitted_->OnAnswered(RequestMethod::kDetokenize, refused, absl::ZeroDuration());
  EXPECT_EQ(metrics_.Requests(RequestMethod::kTokenize, absl::StatusCode::kOk).Value(), 1);
  EXPECT_EQ(
      metrics_.Requests(RequestMethod::kDetokenize, absl::StatusCode::kResourceExhausted).Value(),
      1);
  EXPECT_THAT(registry_.RenderText(),
              HasSubstr("blockserve_gateway_request_seconds_count{method=\"tokenize\"} 1\n"));
}

TEST_F(AdmittedCoreTest, StrangersFillNoLog) {
  admitted_options_.log_requests = true;
  Make(1, 1);
  testing::internal::CaptureStderr();
  ASSERT_TRUE(ConfigureLogging({.program = "p"}).ok());
  const auto refuse = [&](const char* id, const absl::Status& status) {
    admitted_->OnRefused({.request_id = id, .status = status});
  };
  for (int i = 0; i < 1000; ++i) refuse("stranger", absl::UnauthenticatedError("no key"));
  for (int i = 0; i < 50; ++i) refuse("caller", absl::InvalidArgumentError("n: too many"));
  const std::string written = testing::internal::GetCapturedStderr();
  const auto lines = [&](absl::string_view id) {
    const std::vector<std::string> pieces = absl::StrSplit(written, id);
    return static_cast<int>(pieces.size()) - 1;
  };
  EXPECT_EQ(lines("request_id=stranger"), LogBudget::kLines) << "the clock stands still";
  EXPECT_EQ(lines("request_id=caller"), 50);
}

// A few clients that send one text after another keep neither a place between queue and first block
// nor every row of the workers.
TEST_F(AdmittedCoreTest, ManyTextsDoNotStopGenerations) {
  admitted_options_.admission.max_starting = 2;
  admitted_options_.block_length = kSimulatedLength;
  admitted_options_.capacity = [this] {
    TokenCapacity capacity = core_->token_tier().Capacity(4);
    capacity.scoring_rows = core_->scoring_rows().under_way();
    return capacity;
  };
  Make(1, 1);
  workers_[0]->Kill();
  workers_[0]->max_rows = 32;
  workers_[0]->Restart();
  Connect();
  std::vector<std::shared_ptr<RecordingScoreSink>> texts;
  const auto keep_scoring = [&] {
    size_t under_way = 0;
    for (const auto& sink : texts) under_way += sink->done == 0 ? 1 : 0;
    for (; under_way < 40; ++under_way) {
      ScoringRequest request;
      request.tokens.assign(1000, static_cast<int32_t>(texts.size()));
      request.deadline = loop_.Now() + absl::Minutes(10);
      texts.push_back(std::make_shared<RecordingScoreSink>());
      admitted_->Score(std::move(request), texts.back());
    }
  };
  keep_scoring();
  loop_.Advance(absl::Seconds(1));
  std::vector<Stream> streams;
  for (uint64_t i = 0; i < 8; ++i) streams.push_back(Ask(Request(5, 200, i)));
  // 50 blocks of 2 ms each, 4 ms where they wait for a step of the texts.
  for (int i = 0; i < 300; ++i) {
    loop_.Advance(absl::Milliseconds(1));
    keep_scoring();
    ASSERT_LE(core_->token_tier().rows(), 3 * 32 + 8);
  }
  for (const Stream& stream : streams) ExpectExact(stream);
  EXPECT_GT(metrics_.Requests(RequestMethod::kScore, absl::StatusCode::kOk).Value(), 2)
      << "and the texts go on";
  admitted_->EndQueued(absl::UnavailableError("the gateway is stopping"));
  core_->EndAll(absl::UnavailableError("the gateway is stopping"));
}

TEST_F(AdmittedCoreTest, ScoresToo) {
  admitted_options_.admission.max_starting = 1;
  Make(1, 1);
  std::vector<std::shared_ptr<RecordingScoreSink>> sinks;
  for (int i = 0; i < 5; ++i) {
    ScoringRequest request;
    for (int32_t j = 0; j < 11; ++j) request.tokens.push_back(j + i);
    request.first_scored = 1;
    request.deadline = loop_.Now() + absl::Minutes(1);
    sinks.push_back(std::make_shared<RecordingScoreSink>());
    admitted_->Score(std::move(request), sinks.back());
  }
  loop_.Advance(absl::Seconds(5));
  for (const auto& sink : sinks) {
    EXPECT_EQ(sink->done, 1);
    EXPECT_TRUE(sink->response.ok()) << sink->response.status();
  }
  EXPECT_EQ(metrics_.Requests(RequestMethod::kScore, absl::StatusCode::kOk).Value(), 5);
  EXPECT_EQ(admitted_->live_requests(), 0);
}

TEST_F(AdmittedCoreTest, SetsWhosePrefixCacheIsItsOwn) {
  admitted_options_.owns_prefix_cache = [](const std::string& key) { return key == "alice"; };
  Make(1, 1);
  for (const char* key : {"alice", "bob"}) {
    GenerationRequest request = Request(8, 4, 1);
    request.key = key;
    request.cache_salt = "s";
    request.own_prefix_cache = std::string(key) == "bob";  // is not for its front to say
    const Stream stream = Ask(std::move(request));
    ASSERT_TRUE(RunUntilDone({stream}));
    ExpectExact(stream);
    ScoringRequest scoring;
    scoring.key = key;
    scoring.tokens = stream.request.prompt;
    scoring.first_scored = 6;
    scoring.deadline = loop_.Now() + absl::Minutes(1);
    const auto sink = std::make_shared<RecordingScoreSink>();
    admitted_->Score(std::move(scoring), sink);
    ASSERT_TRUE(loop_.RunUntil([&] { return sink->done > 0; }, absl::Minutes(1)));
  }
  EXPECT_THAT(blocks_[0]->pools,
              ::testing::ElementsAre(CachePoolOf("alice", "s"), CachePoolOf("alice", ""),
                                     CachePoolOf("", "s"), CachePoolOf("", "")));
}

}  // namespace
}  // namespace blockserve
