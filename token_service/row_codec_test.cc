#include "token_service/row_codec.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <functional>
#include <limits>
#include <string>
#include <utility>
#include <vector>

#include "rpc/context_codec.h"

namespace blockserve {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;

ModelConfig Config() {
  ModelConfig config;
  config.block_length = 4;
  config.vocab_size = 100;
  config.block.hidden_size = 2;
  return config;
}

v1::TokenRowRequest GoodRow() {
  v1::TokenRowRequest row;
  row.set_id(1);
  row.add_forced(5);
  row.add_forced(6);
  row.set_forced_in_prompt(1);
  row.set_limit(4);
  row.set_position(10);
  row.set_seed(77);
  row.set_choice(3);
  row.mutable_sampling()->set_temperature(0.5f);
  row.mutable_sampling()->set_presence_penalty(0.25f);
  v1::LogitBias& bias = *row.mutable_sampling()->add_logit_bias();
  bias.set_token(9);
  bias.set_bias(-2);
  row.add_stop_ids(0);
  row.set_min_tokens_position(11);
  row.set_vocab_limit(90);
  row.set_top_logprobs(2);
  row.set_score_forced(true);
  for (const int32_t count : {7, 1, 2}) row.add_counts(count);
  return row;
}

std::string ContextBytes(std::vector<float> values) {
  std::string bytes;
  AppendContexts(values, v1::CONTEXT_TYPE_FLOAT32, bytes);
  return bytes;
}

absl::Status Parse(const v1::TokenRowRequest& request, DecodeRow& row,
                   const std::vector<float>& context = {1, 2}) {
  const std::string bytes = ContextBytes(context);
  return ParseRow(Config(), request, {bytes, v1::CONTEXT_TYPE_FLOAT32}, row);
}

TEST(RowCodec, ReadsEveryField) {
  DecodeRow row;
  const absl::Status status = Parse(GoodRow(), row);
  ASSERT_TRUE(status.ok()) << status;
  EXPECT_THAT(row.context, ElementsAre(1, 2));
  EXPECT_THAT(row.forced, ElementsAre(5, 6));
  EXPECT_EQ(row.forced_in_prompt, 1);
  EXPECT_EQ(row.limit, 4);
  EXPECT_EQ(row.position, 10);
  EXPECT_EQ(row.seed, 77u);
  EXPECT_EQ(row.choice, 3u);
  EXPECT_EQ(row.sampling.temperature, 0.5f);
  EXPECT_EQ(row.sampling.top_p, 1.0f);
  EXPECT_EQ(row.sampling.presence_penalty, 0.25f);
  ASSERT_EQ(row.logit_bias.size(), 1u);
  EXPECT_EQ(row.logit_bias[0].token, 9);
  EXPECT_EQ(row.logit_bias[0].bias, -2.0f);
  EXPECT_THAT(row.stop_ids, ElementsAre(0));
  EXPECT_EQ(row.min_tokens_position, 11);
  EXPECT_EQ(row.vocab_limit, 90);
  EXPECT_EQ(row.top_logprobs, 2);
  EXPECT_TRUE(row.score_forced);
  EXPECT_TRUE(row.logprobs);
  ASSERT_EQ(row.counts.size(), 1u);
  EXPECT_EQ(row.counts[0].token, 7);
  EXPECT_EQ(row.counts[0].in_prompt, 1);
  EXPECT_EQ(row.counts[0].in_output, 2);
}

TEST(RowCodec, RowsWithoutSamplingAreGreedy) {
  v1::TokenRowRequest request;
  request.set_limit(4);
  DecodeRow row;
  ASSERT_TRUE(Parse(request, row).ok());
  EXPECT_EQ(row.sampling.temperature, 0.0f);
  EXPECT_FALSE(row.logprobs);
}

TEST(RowCodec, NamesTheFieldThatIsBad) {
  const float nan = std::numeric_limits<float>::quiet_NaN();
  const float infinity = std::numeric_limits<float>::infinity();
  using Row = v1::TokenRowRequest;
  const std::vector<std::pair<std::string, std::function<void(Row&)>>> faults = {
      {"forced", [](Row& row) { row.set_forced(1, 100); }},
      {"forced", [](Row& row) { row.set_forced(0, -1); }},
      {"forced",
       [](Row& row) {
         for (int i = 0; i < 3; ++i) row.add_forced(1);
       }},
      {"forced", [](Row& row) { row.set_limit(1); }},
      {"forced_in_prompt", [](Row& row) { row.set_forced_in_prompt(3); }},
      {"forced_in_prompt", [](Row& row) { row.set_forced_in_prompt(-1); }},
      {"limit", [](Row& row) { row.set_limit(5); }},
      {"limit", [](Row& row) { row.set_limit(0); }},
      {"limit", [](Row& row) { row.set_limit(-4); }},
      {"position", [](Row& row) { row.set_position(-1); }},
      {"position", [](Row& row) { row.set_position(std::numeric_limits<int64_t>::max()); }},
      {"temperature", [=](Row& row) { row.mutable_sampling()->set_temperature(nan); }},
      {"temperature", [=](Row& row) { row.mutable_sampling()->set_temperature(infinity); }},
      {"temperature", [](Row& row) { row.mutable_sampling()->set_temperature(-1); }},
      {"top_k", [](Row& row) { row.mutable_sampling()->set_top_k(-1); }},
      {"top_p", [](Row& row) { row.mutable_sampling()->set_top_p(0); }},
      {"top_p", [=](Row& row) { row.mutable_sampling()->set_top_p(nan); }},
      {"top_p", [](Row& row) { row.mutable_sampling()->set_top_p(1.5f); }},
      {"min_p", [=](Row& row) { row.mutable_sampling()->set_min_p(nan); }},
      {"min_p", [](Row& row) { row.mutable_sampling()->set_min_p(-0.1f); }},
      {"repetition_penalty", [](Row& row) { row.mutable_sampling()->set_repetition_penalty(0); }},
      {"repetition_penalty",
       [=](Row& row) { row.mutable_sampling()->set_repetition_penalty(nan); }},
      {"presence_penalty", [=](Row& row) { row.mutable_sampling()->set_presence_penalty(nan); }},
      {"frequency_penalty",
       [=](Row& row) { row.mutable_sampling()->set_frequency_penalty(infinity); }},
      {"logit_bias",
       [](Row& row) { row.mutable_sampling()->mutable_logit_bias(0)->set_token(100); }},
      {"logit_bias",
       [=](Row& row) { row.mutable_sampling()->mutable_logit_bias(0)->set_bias(nan); }},
      {"logit_bias",
       [](Row& row) {
         for (int i = 0; i <= kMaxRowLogitBias; ++i) row.mutable_sampling()->add_logit_bias();
       }},
      {"stop_ids", [](Row& row) { row.add_stop_ids(-5); }},
      {"stop_ids", [](Row& row) { row.add_stop_ids(100); }},
      {"stop_ids",
       [](Row& row) {
         for (int i = 0; i <= kMaxRowStopIds; ++i) row.add_stop_ids(1);
       }},
      {"min_tokens_position", [](Row& row) { row.set_min_tokens_position(-1); }},
      {"vocab_limit", [](Row& row) { row.set_vocab_limit(101); }},
      {"vocab_limit", [](Row& row) { row.set_vocab_limit(-1); }},
      {"top_logprobs", [](Row& row) { row.set_top_logprobs(-1); }},
      {"top_logprobs", [](Row& row) { row.set_top_logprobs(100000); }},
      {"counts", [](Row& row) { row.add_counts(1); }},
      {"counts", [](Row& row) { row.set_counts(0, 100); }},
      {"counts", [](Row& row) { row.set_counts(1, -1); }},
      {"counts", [](Row& row) { row.set_counts(2, -1); }},
      {"counts",
       [](Row& row) {
         for (int i = 0; i < 300; ++i) row.add_counts(1);
       }},
  };
  for (size_t i = 0; i < faults.size(); ++i) {
    SCOPED_TRACE(i);
    v1::TokenRowRequest request = GoodRow();
    faults[i].second(request);
    DecodeRow row;
    const absl::Status status = Parse(request, row);
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
    EXPECT_THAT(std::string(status.message()), HasSubstr(faults[i].first));
  }
  for (const float value : {nan, infinity, -infinity}) {
    DecodeRow row;
    const absl::Status status = Parse(GoodRow(), row, {0, value});
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
    EXPECT_THAT(std::string(status.message()), HasSubstr("contexts: value 1"));
  }
}

TEST(RowCodec, SplitsContextsByRow) {
  v1::TokenRequestBatch batch;
  batch.set_context_type(v1::CONTEXT_TYPE_FLOAT32);
  batch.add_rows();
  batch.add_rows();
  batch.set_contexts(ContextBytes({1, 2, 3, 4}));
  std::vector<RowContext> contexts;
  ASSERT_TRUE(SplitContexts(Config(), batch, contexts).ok());
  ASSERT_EQ(contexts.size(), 2u);
  EXPECT_EQ(contexts[1].bytes, ContextBytes({3, 4}));
}

TEST(RowCodec, RefusesContextsOfTheWrongSizeOrType) {
  v1::TokenRequestBatch batch;
  batch.add_rows();
  batch.add_rows();
  std::vector<RowContext> contexts;
  batch.set_contexts(ContextBytes({1, 2, 3, 4}));
  EXPECT_THAT(std::string(SplitContexts(Config(), batch, contexts).message()),
              HasSubstr("context_type"));
  batch.set_context_type(v1::CONTEXT_TYPE_BFLOAT16);
  EXPECT_THAT(std::string(SplitContexts(Config(), batch, contexts).message()),
              HasSubstr("contexts: 16 bytes"));
  batch.set_context_type(v1::CONTEXT_TYPE_FLOAT32);
  batch.mutable_contexts()->push_back('x');
  EXPECT_EQ(SplitContexts(Config(), batch, contexts).code(), absl::StatusCode::kInvalidArgument);
  batch.clear_contexts();
  EXPECT_EQ(SplitContexts(Config(), batch, contexts).code(), absl::StatusCode::kInvalidArgument);
}

TEST(RowCodec, RepliesWithLogprobsOnlyWhereAsked) {
  RowAnswer answer;
  answer.id = 4;
  answer.row = std::make_unique<DecodeRow>();
  answer.result.tokens = {1, 2};
  answer.result.stopped = true;
  answer.result.logprobs = {-1, -2};
  answer.result.top = {{{8, -0.5f}, {9, -0.75f}}, {{6, -0.25f}, {7, -3}}};
  v1::TokenRowReply plain;
  FillReply(answer, plain);
  EXPECT_EQ(plain.id(), 4u);
  EXPECT_FALSE(plain.has_status());
  EXPECT_THAT(plain.tokens(), ElementsAre(1, 2));
  EXPECT_TRUE(plain.stopped());
  EXPECT_EQ(plain.logprobs_size(), 0);

  answer.row->logprobs = true;
  v1::TokenRowReply full;
  FillReply(answer, full);
  EXPECT_THAT(full.logprobs(), ElementsAre(-1, -2));
  EXPECT_THAT(full.top_tokens(), ElementsAre(8, 9, 6, 7));
  EXPECT_THAT(full.top_logprobs(), ElementsAre(-0.5f, -0.75f, -0.25f, -3));

  answer.status = absl::InternalError("logits are not finite");
  v1::TokenRowReply failed;
  FillReply(answer, failed);
  EXPECT_EQ(failed.status().code(), 13);
  EXPECT_EQ(failed.status().message(), "logits are not finite");
  EXPECT_EQ(failed.tokens_size(), 0);
}

}  // namespace
}  // namespace blockserve
