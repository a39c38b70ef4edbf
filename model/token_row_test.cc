#include <cmath>
#include <limits>
#include <string>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "model/engine.h"

namespace blockserve {
namespace {

using ::testing::HasSubstr;

TEST(ValidateTokenRow, NamesTheField) {
  ModelConfig config;
  config.block_length = 4;
  config.vocab_size = 100;
  config.block.hidden_size = 8;
  const std::vector<float> context(8);
  SamplingParameters sampling;
  TokenRow good;
  good.context = context;
  good.limit = 4;
  good.sampling = &sampling;
  ASSERT_TRUE(ValidateTokenRow(config, good).ok());

  const auto message = [&](auto change) {
    TokenRow row = good;
    SamplingParameters changed;
    row.sampling = &changed;
    change(row, changed);
    const absl::Status status = ValidateTokenRow(config, row);
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
    return std::string(status.message());
  };
  const std::vector<int32_t> five = {1, 2, 3, 4, 5};
  const std::vector<int32_t> outside = {100};
  const std::vector<int32_t> negative = {-1};
  const std::vector<LogitBias> infinite = {{1, INFINITY}};
  const std::vector<LogitBias> far = {{100, 1}};
  const std::vector<LogitBias> absurd = {{1, -2e6f}};
  const std::vector<TokenCount> counts = {{1, -1, 0}};
  const std::vector<TokenCount> many_in_prompt = {{1, (1 << 30) + 1, 0}};
  const std::vector<TokenCount> many_in_output = {{1, 0, std::numeric_limits<int32_t>::max()}};
  const std::vector<TokenCount> twice = {{7, 1, 0}, {1, 1, 0}, {7, 0, 1}};
  using P = SamplingParameters;
  EXPECT_THAT(message([&](TokenRow& r, P&) { r.context = r.context.first(7); }),
              HasSubstr("context"));
  EXPECT_THAT(message([&](TokenRow& r, P&) { r.limit = 0; }), HasSubstr("limit"));
  EXPECT_THAT(message([&](TokenRow& r, P&) { r.limit = 5; }), HasSubstr("limit"));
  EXPECT_THAT(message([&](TokenRow& r, P&) { r.forced = five; }), HasSubstr("forced"));
  EXPECT_THAT(message([&](TokenRow& r, P&) { r.forced = outside; }), HasSubstr("forced"));
  EXPECT_THAT(message([&](TokenRow& r, P&) { r.forced_in_prompt = 1; }),
              HasSubstr("forced_in_prompt"));
  EXPECT_THAT(message([&](TokenRow& r, P&) { r.position = -1; }), HasSubstr("position"));
  EXPECT_THAT(message([&](TokenRow& r, P&) { r.sampling = nullptr; }), HasSubstr("sampling"));
  EXPECT_THAT(message([&](TokenRow& r, P&) { r.stop_ids = negative; }), HasSubstr("stop_ids"));
  EXPECT_THAT(message([&](TokenRow& r, P&) { r.logit_bias = infinite; }), HasSubstr("logit_bias"));
  EXPECT_THAT(message([&](TokenRow& r, P&) { r.logit_bias = far; }), HasSubstr("logit_bias"));
  EXPECT_THAT(message([&](TokenRow& r, P&) { r.logit_bias = absurd; }), HasSubstr("logit_bias"));
  EXPECT_THAT(message([&](TokenRow& r, P&) { r.counts = counts; }), HasSubstr("counts"));
  EXPECT_THAT(message([&](TokenRow& r, P&) { r.counts = many_in_prompt; }), HasSubstr("counts"));
  EXPECT_THAT(message([&](TokenRow& r, P&) { r.counts = many_in_output; }), HasSubstr("counts"));
  EXPECT_THAT(message([&](TokenRow& r, P&) { r.counts = twice; }), HasSubstr("counts: id 7"));
  EXPECT_THAT(message([&](TokenRow& r, P&) { r.vocab_limit = 101; }), HasSubstr("vocab_limit"));
  EXPECT_THAT(message([&](TokenRow& r, P&) { r.top_logprobs = 101; }), HasSubstr("top_logprobs"));
  config.vocab_size = 15;
  EXPECT_THAT(message([&](TokenRow& r, P&) { r.top_logprobs = 16; }), HasSubstr("[0, 15]"));
  config.vocab_size = 100;
  EXPECT_THAT(message([&](TokenRow&, P& p) { p.temperature = -1; }), HasSubstr("temperature"));
  EXPECT_THAT(message([&](TokenRow&, P& p) { p.temperature = NAN; }), HasSubstr("temperature"));
  EXPECT_THAT(message([&](TokenRow&, P& p) { p.top_k = -1; }), HasSubstr("top_k"));
  EXPECT_THAT(message([&](TokenRow&, P& p) { p.top_p = 0; }), HasSubstr("top_p"));
  EXPECT_THAT(message([&](TokenRow&, P& p) { p.min_p = 1.5f; }), HasSubstr("min_p"));
  EXPECT_THAT(message([&](TokenRow&, P& p) { p.repetition_penalty = 0; }),
              HasSubstr("repetition_penalty"));
  EXPECT_THAT(message([&](TokenRow&, P& p) { p.presence_penalty = NAN; }),
              HasSubstr("presence_penalty"));
  EXPECT_THAT(message([&](TokenRow&, P& p) { p.presence_penalty = 2e6f; }),
              HasSubstr("presence_penalty"));
  EXPECT_THAT(message([&](TokenRow&, P& p) { p.frequency_penalty = -2e6f; }),
              HasSubstr("frequency_penalty"));
  EXPECT_THAT(message([&](TokenRow&, P& p) { p.frequency_penalty = INFINITY; }),
              HasSubstr("frequency_penalty"));
}

}  // namespace
}  // namespace blockserve
