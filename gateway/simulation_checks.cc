// Simulation: what must hold, whatever happened.
#include "absl/strings/match.h"
#include "gateway/retry_after.h"
#include "gateway/simulation.h"

namespace blockserve {
namespace {

// Two ticks of the core, and what the tiers take to hear of it.
constexpr absl::Duration kLate = absl::Milliseconds(60);
// In gentle weather. Where answers are held, what is compared may be with one that hangs, and is
// waited for as a first open is.
constexpr absl::Duration kLongestStall = absl::Seconds(3);
constexpr absl::Duration kLongestHeld = absl::Seconds(10);

}  // namespace

template <class Call>
void Simulation::CheckEnd(const Call& request, const absl::Status& status, absl::Time asked,
                          absl::Time done) {
  const absl::Time deadline = request.deadline;
  const absl::Time start = absl::FromUnixSeconds(1'000'000);
  SCOPED_TRACE(absl::StrCat(request.request_id, " asked at ", absl::ToDoubleSeconds(asked - start),
                            " done at ", absl::ToDoubleSeconds(done - start), ": ",
                            status.ToString()));
  ++ends_[absl::StatusCodeToString(status.code())];
  absl::Duration stalled;
  for (const Span& stall : stalls_) {
    if (stall.begin <= done && stall.end >= asked) stalled += stall.end - stall.begin;
  }
  EXPECT_LE(done, deadline + kLate + stalled);
  const absl::Duration wait = options_.tier.tier_wait;
  switch (status.code()) {
    case absl::StatusCode::kOk:
      return;
    case absl::StatusCode::kDeadlineExceeded:
      EXPECT_GE(done, deadline);
      return;
    case absl::StatusCode::kUnavailable: {
      // A tier was away for as long as is waited for it, or for as long as the client can wait.
      const absl::Time begin = asked - wait - stalled;
      const bool short_deadline = deadline - done <= absl::Milliseconds(200);
      const absl::Duration least = short_deadline ? absl::ZeroDuration() : wait - kLate - stalled;
      EXPECT_TRUE(token_.OutFor(least, begin, done) || block_.OutFor(least, begin, done));
      return;
    }
    case absl::StatusCode::kInternal: {
      // Workers died of it, as far as can be told from outside. One that has come back is asked for
      // no second opinion before it has answered a probe.
      const absl::Time begin = asked - longest_fault_ - absl::Seconds(3);
      EXPECT_TRUE(token_.MayFail(begin, done, liars_) || block_.MayFail(begin, done, liars_));
      return;
    }
    case absl::StatusCode::kResourceExhausted: {
      // There is no place for it, or it could not end in time at the pace of late; it may come
      // again.
      EXPECT_TRUE(admits_);
      EXPECT_TRUE(RetryAfter(status).has_value());
      const absl::Time begin = asked - longest_fault_ - wait;
      EXPECT_TRUE(deadline - asked < absl::Minutes(1) || request.key == "limited" ||
                  admitted_options_.admission.max_queued < 20 || token_.Blows(begin, done) > 0 ||
                  block_.Blows(begin, done) > 0 ||
                  token_.OutFor(absl::ZeroDuration(), begin, done) ||
                  block_.OutFor(absl::ZeroDuration(), begin, done));
      return;
    }
    case absl::StatusCode::kAborted:
      EXPECT_LT(admitted_options_.slow_reader_timeout, absl::InfiniteDuration());
      return;
    case absl::StatusCode::kFailedPrecondition:
      EXPECT_TRUE(upgraded_);  // those that began it are gone
      return;
    default:
      ADD_FAILURE();
  }
}

template void Simulation::CheckEnd(const GenerationRequest& request, const absl::Status& status,
                                   absl::Time asked, absl::Time done);

void Simulation::CheckClient(const Client& client) {
  SCOPED_TRACE(client.request.request_id);
  const TimedSink& sink = *client.sink;
  const bool deadly = IsDeadly(client.request.request_id);
  EXPECT_LE(sink.done, 1);
  if (!client.cancelled) {
    ASSERT_EQ(sink.done, 1);
    if (deadly && sink.status.code() == absl::StatusCode::kInternal) {
      ++ends_["DEADLY"];
    } else {
      CheckEnd(client.request, sink.status, client.asked, sink.done_at);
    }
  }
  if (gentle_) {
    longest_stall_ = std::max(longest_stall_, sink.longest_stall);
    EXPECT_LE(sink.longest_stall, options_.tier.audit.hold ? kLongestHeld : kLongestStall);
  }
  // Those that had a row of it at first, one with a cohort, and two for the verdict.
  if (deadly && deadly_alone_) {
    const Deadly& what = deadly_.at(client.request.request_id);
    EXPECT_LE(what.kills, what.hangs ? 4 * client.request.n : client.request.n + 3);
  }
  const bool whole = !client.cancelled && sink.status.ok();
  EXPECT_FALSE(whole && deadly);
  Arithmetics arithmetics = client.arithmetics;
  if (sink.started > 0) {
    arithmetics = {sink.first.block_numeric_id(), sink.first.token_numeric_id()};
    if (!client.arithmetics.first.empty()) EXPECT_EQ(arithmetics, client.arithmetics);
  }
  if (arithmetics.first.empty()) {
    EXPECT_FALSE(whole);
    return;
  }
  const std::shared_ptr<RecordingSink> answer = CalmOf(arithmetics).Answer(client.request);
  int64_t completion = 0;
  for (uint32_t i = 0; i < static_cast<uint32_t>(client.request.n); ++i) {
    SCOPED_TRACE(i);
    std::vector<int32_t> tokens = client.had[i];
    const auto now = sink.tokens.find(i);
    if (now != sink.tokens.end()) {
      tokens.insert(tokens.end(), now->second.begin(), now->second.end());
    }
    const std::vector<int32_t>& expected = answer->tokens[i];
    ASSERT_LE(tokens.size(), expected.size());
    EXPECT_TRUE(std::equal(tokens.begin(), tokens.end(), expected.begin()));
    completion += static_cast<int64_t>(expected.size());
    // Of the stream's own part.
    const auto logprobs = sink.logprobs.find(i);
    if (logprobs != sink.logprobs.end()) {
      const std::vector<float>& all = answer->logprobs[i];
      const auto from = all.begin() + static_cast<int64_t>(client.had[i].size());
      ASSERT_LE(logprobs->second.size(), all.size() - client.had[i].size());
      EXPECT_TRUE(std::equal(logprobs->second.begin(), logprobs->second.end(), from));
    }
    std::string text = client.had_text[i];
    const auto told = sink.text.find(i);
    if (told != sink.text.end()) text += told->second;
    EXPECT_TRUE(absl::StartsWith(answer->text[i], text));
    if (!whole) continue;
    EXPECT_EQ(tokens.size(), expected.size());
    EXPECT_EQ(answer->text[i], text);
    if (client.had_end[i]) continue;
    ASSERT_TRUE(sink.finished.contains(i));
    v1::Finished end = sink.finished.at(i);
    v1::Finished expected_end = answer->finished.at(i);
    // Where text was held back, it may come with the end or before it.
    end.clear_text();
    expected_end.clear_text();
    EXPECT_EQ(end.SerializeAsString(), expected_end.SerializeAsString());
  }
  if (whole) EXPECT_EQ(sink.usage.completion_tokens(), completion);
}

void Simulation::Check() {
  for (const auto& client : clients_) CheckClient(*client);
  for (const auto& scorer : scorers_) {
    const TimedScoreSink& sink = *scorer->sink;
    EXPECT_LE(sink.done, 1);
    if (scorer->cancelled) continue;
    ASSERT_EQ(sink.done, 1);
    if (IsDeadly(scorer->request.request_id)) {
      const Deadly& what = deadly_.at(scorer->request.request_id);
      const int at_first = static_cast<int>(workers_.size());
      if (deadly_alone_ && !what.hangs) EXPECT_LE(what.kills, at_first + 3);
      if (sink.response.status().code() == absl::StatusCode::kInternal) {
        ++ends_["DEADLY"];
        continue;
      }
    }
    CheckEnd(scorer->request, sink.response.status(), scorer->asked, sink.done_at);
    if (!sink.response.ok()) continue;
    if (liars_) continue;  // rows of scored texts are not audited
    v1::ScoreResponse response = *sink.response;
    response.clear_usage();
    v1::ScoreResponse expected =
        CalmOf({response.block_numeric_id(), response.token_numeric_id()}).Answer(scorer->request);
    expected.clear_usage();
    EXPECT_EQ(response.SerializeAsString(), expected.SerializeAsString());
  }
  // What is compared after it was told may wait for somebody to compare it with.
  loop_.Advance(options_.tier.tier_wait);
  loop_.Advance(absl::Seconds(1));
  for (const Gateway& gateway : gateways_) {
    if (!liars_) {
      EXPECT_EQ(gateway.core->row_audit().stats().differed, 0);
      EXPECT_EQ(gateway.core->block_tier().audit_stats().differed, 0);
    }
    ExpectNothingLeftOf(*gateway.core);
    if (admits_) EXPECT_EQ(gateway.admitted->live_requests(), 0);
  }
  ExpectNothingHeld();
}

}  // namespace blockserve
