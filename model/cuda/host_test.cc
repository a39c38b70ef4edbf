// The host's side of the CUDA engines: batch ladder, page tables, memory plan, rows in and out.
#include <cstring>
#include <set>
#include <string>
#include <vector>

#include "common/bf16.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "model/cuda/batch_ladder.h"
#include "model/cuda/block_batch.h"
#include "model/cuda/lane_ring.h"
#include "model/cuda/memory_plan.h"
#include "model/cuda/token_batch.h"

namespace blockserve {
namespace {

using ::testing::AllOf;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::Not;

ModelConfig Config() {
  ModelConfig config;
  config.block_length = 4;
  config.vocab_size = 100;
  config.embedding_width = 2;
  config.expansion_ratio = 2;
  for (StackConfig* stack : {&config.block, &config.token}) {
    stack->hidden_size = 8;
    stack->num_heads = 2;
    stack->num_layers = 3;
    stack->intermediate_size = 32;
    stack->max_positions = 512;
  }
  return config;
}

// ---- Batch ladder

TEST(BatchLadder, EverySizeUpToTheLargestHasTheSmallestStepThatHoldsIt) {
  for (const int32_t max_rows : {1, 2, 3, 63, 64, 65, 100, 512, 1000, 4096}) {
    const BatchLadder ladder(max_rows);
    EXPECT_EQ(ladder.max_rows(), max_rows);
    EXPECT_EQ(ladder.sizes().front(), 1);
    for (int32_t rows = 1; rows <= max_rows; ++rows) {
      const int32_t step = ladder.StepFor(rows);
      ASSERT_GE(ladder.sizes()[step], rows);
      if (step > 0) {
        ASSERT_LT(ladder.sizes()[step - 1], rows);
      }
    }
  }
}

TEST(BatchLadder, WastesNoTileOfRowsNorMoreThanAnEighth) {
  const BatchLadder ladder(4096);
  EXPECT_LE(ladder.sizes().size(), 40u);
  for (size_t i = 1; i < ladder.sizes().size(); ++i) {
    const int32_t size = ladder.sizes()[i];
    const int32_t gap = size - ladder.sizes()[i - 1];
    EXPECT_GT(gap, 0);
    if (size > 64) {
      EXPECT_EQ(size % 64, 0);
      EXPECT_LE(gap, std::max(64, size / 8)) << size;
    }
  }
}

// ---- Lanes

TEST(LaneRing, FinishesBatchesInTheirOrderAndNeverSharesALane) {
  LaneRing ring(2);
  EXPECT_TRUE(ring.empty());
  EXPECT_EQ(ring.Start(), 0);
  EXPECT_EQ(ring.Start(), 1);
  EXPECT_TRUE(ring.full());
  for (int32_t i = 0; i < 5; ++i) {
    EXPECT_EQ(ring.oldest(), i % 2);
    ring.Finish();
    EXPECT_FALSE(ring.full());
    EXPECT_EQ(ring.Start(), i % 2);
    EXPECT_EQ(ring.in_flight(), 2);
  }
  ring.Finish();
  ring.Finish();
  EXPECT_TRUE(ring.empty());
}

// ---- Page tables

BlockChunk Chunk(const std::vector<int32_t>& tokens, int64_t first_block,
                 const std::vector<int32_t>& pages, int64_t first_context) {
  BlockChunk chunk;
  chunk.tokens = tokens;
  chunk.first_block = first_block;
  chunk.pages = pages;
  chunk.first_context = first_context;
  return chunk;
}

struct Packed {
  std::vector<cuda::SequenceRow> rows;
  std::vector<int32_t> tokens;
  std::vector<int32_t> wanted;
  std::vector<int32_t> tables;
};

Packed Pack(const BlockBatch& batch, int32_t layout_rows) {
  const BlockIoLayout layout(4, layout_rows);
  std::vector<uint8_t> io(layout.tables + 4096, 0xcd);
  const int64_t bytes = batch.Pack(layout_rows, layout, io.data());
  Packed packed;
  packed.rows.resize(layout_rows);
  packed.tokens.resize(int64_t{layout_rows} * 4);
  packed.wanted.resize(batch.num_wanted());
  packed.tables.resize((bytes - layout.tables) / 4);
  const auto copy = [&](auto& to, int64_t from) {
    if (!to.empty()) std::memcpy(to.data(), io.data() + from, to.size() * sizeof(to[0]));
  };
  copy(packed.rows, layout.sequence_rows);
  copy(packed.tokens, layout.tokens);
  copy(packed.wanted, layout.wanted);
  copy(packed.tables, layout.tables);
  return packed;
}

TEST(BlockBatch, GivesEachPositionItsSequencesTable) {
  BlockBatch batch(4, /*page_blocks=*/2, /*max_rows=*/8, /*table_capacity=*/16);
  const std::vector<int32_t> one = {1, 2, 3, 4};
  const std::vector<int32_t> three = {5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16};
  const std::vector<int32_t> pages_a = {7, 3, 9};
  const std::vector<int32_t> pages_b = {4, 5};
  EXPECT_EQ(batch.Add(Chunk(one, 4, pages_a, 0), 0), 1);  // position 4 lies in page 9
  EXPECT_TRUE(batch.decodes());
  EXPECT_EQ(batch.Add(Chunk(three, 0, pages_b, 2), 0), 3);
  EXPECT_FALSE(batch.decodes());
  EXPECT_EQ(batch.leading_singles(), 1);
  EXPECT_EQ(batch.Add(Chunk(one, 0, pages_b, 0), 0), 1);
  EXPECT_EQ(batch.leading_singles(), 1);
  batch.Clear();
  EXPECT_EQ(batch.leading_singles(), 0);
  EXPECT_EQ(batch.Add(Chunk(one, 4, pages_a, 0), 0), 1);
  EXPECT_EQ(batch.Add(Chunk(three, 0, pages_b, 2), 0), 3);
  EXPECT_EQ(batch.last_position(), 4);
  const Packed packed = Pack(batch, 6);
  EXPECT_THAT(packed.tables, ElementsAre(7, 3, 9, 4, 5));
  EXPECT_THAT(packed.wanted, ElementsAre(0, 3));
  std::vector<int32_t> positions, begins;
  for (const cuda::SequenceRow& row : packed.rows) {
    positions.push_back(row.position);
    begins.push_back(row.pages_begin);
  }
  EXPECT_THAT(positions, ElementsAre(4, 0, 1, 2, -1, -1));
  EXPECT_THAT(absl::MakeSpan(begins).first(4), ElementsAre(0, 3, 3, 3));
  EXPECT_EQ(packed.tokens[0], 1);
  EXPECT_EQ(packed.tokens[4], 5);
  EXPECT_EQ(packed.tokens[15], 16);
  EXPECT_EQ(packed.tokens[16], 0);  // a row that is none still names a token of the table
}

TEST(BlockBatch, OneContextOfManyIsNoDecoding) {
  BlockBatch batch(4, 2, 8, 16);
  const std::vector<int32_t> one = {1, 2, 3, 4};
  const std::vector<int32_t> pages = {0};
  EXPECT_EQ(batch.Add(Chunk(one, 0, pages, 1), 0), 1);
  EXPECT_FALSE(batch.decodes());
  EXPECT_EQ(batch.num_wanted(), 0);
}

TEST(BlockBatch, SpreadsAChunkOverBatchesByRowsAndByTables) {
  const std::vector<int32_t> tokens(4 * 10, 1);
  const std::vector<int32_t> pages = {0, 1, 2, 3, 4};
  const BlockChunk chunk = Chunk(tokens, 0, pages, 0);
  BlockBatch by_rows(4, 2, 4, 16);
  EXPECT_EQ(by_rows.Add(chunk, 0), 4);
  EXPECT_EQ(by_rows.Add(chunk, 4), 0);
  by_rows.Clear();
  EXPECT_EQ(by_rows.Add(chunk, 4), 4);
  by_rows.Clear();
  EXPECT_EQ(by_rows.Add(chunk, 8), 2);
  // Positions 8 and 9 need all five entries, although they are two.
  EXPECT_THAT(Pack(by_rows, 2).tables, ElementsAre(0, 1, 2, 3, 4));

  BlockBatch by_tables(4, 2, 16, 7);
  EXPECT_EQ(by_tables.Add(chunk, 6), 4);
  EXPECT_EQ(by_tables.Add(chunk, 0), 4);  // two entries are left
  EXPECT_EQ(by_tables.Add(chunk, 4), 0);
}

TEST(PageTableCapacity, HoldsOneSequenceThatOwnsEveryPageAndManyUsualOnes) {
  EXPECT_EQ(PageTableCapacity(10'000, 16, 4, 512), 10'000);
  EXPECT_EQ(PageTableCapacity(100, 16, 512, 512), 512 * 32);
  EXPECT_LE(PageTableCapacity(100, 1, 512, int64_t{1} << 40), int64_t{1} << 20);
}

// ---- Rows of the token decoder

TEST(TokenBatch, WhatGoesInAndWhatComesOutAreOnePieceEach) {
  for (const int32_t rows : {1, 7, 64}) {
    const TokenIoLayout layout(Config(), cuda::ElementType::kBf16, rows);
    EXPECT_LT(layout.sample_rows, layout.contexts);
    EXPECT_LT(layout.contexts, layout.states);
    EXPECT_LT(layout.states, layout.tokens);
    EXPECT_LT(layout.tokens, layout.logprobs);
    EXPECT_EQ(layout.upload_bytes(), layout.logprobs);
    EXPECT_EQ(layout.download_bytes(), layout.end - layout.states);
    for (const int64_t offset : {layout.contexts, layout.states, layout.tokens, layout.logprobs}) {
      EXPECT_EQ(offset % 16, 0);
    }
    EXPECT_GE(layout.states - layout.contexts, rows * 16 * 2);  // 8 values, padded to 16
  }
}

TEST(TokenBatch, CarriesEveryFieldOfARow) {
  const ModelConfig config = Config();
  const std::vector<float> context = {1.5f, -2.0f, 0.25f, 3.0f, 0.0f, 1.0f, -1.0f, 0.5f};
  const std::vector<int32_t> forced = {42, 43};
  const std::vector<int32_t> stops = {99, 0};
  const std::vector<LogitBias> bias = {{5, 2.0f}, {6, -1.0f}, {5, 0.5f}};
  const std::vector<TokenCount> counts = {{7, 1, 2}};
  SamplingParameters sampling;
  sampling.temperature = 0.5f;
  sampling.top_k = 3;
  sampling.top_p = 0.9f;
  sampling.min_p = 0.1f;
  sampling.repetition_penalty = 1.2f;
  sampling.presence_penalty = 0.3f;
  sampling.frequency_penalty = 0.4f;
  TokenRow row;
  row.context = context;
  row.forced = forced;
  row.forced_in_prompt = 1;
  row.limit = 3;
  row.position = 17;
  row.seed = 1234567890123;
  row.choice = 2;
  row.sampling = &sampling;
  row.stop_ids = stops;
  row.min_tokens_position = 20;
  row.logit_bias = bias;
  row.counts = counts;
  row.vocab_limit = 90;
  row.top_logprobs = 4;
  row.score_forced = true;
  TokenRow plain;
  plain.context = context;
  plain.limit = 4;
  plain.sampling = &sampling;
  plain.stop_ids = absl::MakeConstSpan(stops).first(1);
  const std::vector<TokenRow> rows = {plain, row};

  const TokenIoLayout layout(config, cuda::ElementType::kBf16, 4);
  std::vector<uint8_t> io(layout.end, 0xcd);
  std::vector<uint8_t> lists(TokenListCapacity(config, 4), 0xcd);
  const int64_t used =
      PackTokenRows(config, cuda::ElementType::kBf16, rows, 4, layout, io.data(), lists.data());
  EXPECT_LE(used, static_cast<int64_t>(lists.size()));
  const auto* packed = reinterpret_cast<const cuda::SampleRow*>(io.data() + layout.sample_rows);
  const cuda::SampleRow& to = packed[1];
  EXPECT_EQ(to.seed, row.seed);
  EXPECT_EQ(to.position, 17);
  EXPECT_EQ(to.min_tokens_position, 20);
  EXPECT_EQ(to.choice, 2u);
  EXPECT_EQ(to.limit, 3);
  EXPECT_EQ(to.forced, 2);
  EXPECT_EQ(to.forced_in_prompt, 1);
  EXPECT_EQ(to.vocab_limit, 90);
  EXPECT_EQ(to.top_logprobs, 4);
  EXPECT_EQ(to.score_forced, 1);
  EXPECT_EQ(to.temperature, 0.5f);
  EXPECT_EQ(to.top_k, 3);
  EXPECT_EQ(to.top_p, 0.9f);
  EXPECT_EQ(to.min_p, 0.1f);
  EXPECT_EQ(to.repetition_penalty, 1.2f);
  EXPECT_EQ(to.presence_penalty, 0.3f);
  EXPECT_EQ(to.frequency_penalty, 0.4f);
  ASSERT_EQ(to.bias_end - to.bias_begin, 3);
  const auto* biases = reinterpret_cast<const cuda::SampleBias*>(lists.data());
  // By id, those of one in the order of the list.
  EXPECT_EQ(biases[to.bias_begin].token, 5);
  EXPECT_EQ(biases[to.bias_begin].bias, 2.0f);
  EXPECT_EQ(biases[to.bias_begin + 1].token, 5);
  EXPECT_EQ(biases[to.bias_begin + 1].bias, 0.5f);
  EXPECT_EQ(biases[to.bias_begin + 2].token, 6);
  ASSERT_EQ(to.counts_end - to.counts_begin, 1);
  const auto* packed_counts = reinterpret_cast<const cuda::SampleCount*>(lists.data());
  EXPECT_EQ(packed_counts[to.counts_begin].token, 7);
  EXPECT_EQ(packed_counts[to.counts_begin].in_prompt, 1);
  EXPECT_EQ(packed_counts[to.counts_begin].in_output, 2);
  ASSERT_EQ(to.stops_end - to.stops_begin, 2);
  EXPECT_EQ(reinterpret_cast<const int32_t*>(lists.data())[to.stops_begin], 0);
  EXPECT_EQ(reinterpret_cast<const int32_t*>(lists.data())[to.stops_begin + 1], 99);
  EXPECT_EQ(packed[0].saved_begin, 0);
  EXPECT_EQ(to.saved_begin, 1 + 4);  // the first row's stop id, and L
  EXPECT_LE(to.saved_begin + 6 + 4, TokenSavedFloats(config, 4, used));
  const auto* contexts = reinterpret_cast<const uint16_t*>(io.data() + layout.contexts);
  EXPECT_EQ(FloatFromBf16(contexts[16 + 1]), -2.0f);
  const auto* tokens = reinterpret_cast<const int32_t*>(io.data() + layout.tokens);
  EXPECT_EQ(tokens[4], 42);
  EXPECT_EQ(tokens[5], 43);
  for (int i = 2; i < 4; ++i) EXPECT_EQ(packed[i].limit, 0);  // no row
}

// Products read a row's padding, where a batch of another size had its parameters or tokens: the
// bits of a NaN among them would become the whole row.
TEST(TokenBatch, LeavesNothingOfOtherBatchesBesideAContext) {
  const ModelConfig config = Config();
  const std::vector<float> context(config.block.hidden_size, 1.0f);
  const int64_t padded = cuda::PadElements(config.block.hidden_size);
  ASSERT_GT(padded, config.block.hidden_size);
  const SamplingParameters sampling;
  TokenRow row;
  row.context = context;
  row.limit = 4;
  row.sampling = &sampling;
  for (const cuda::ElementType type : {cuda::ElementType::kF32, cuda::ElementType::kBf16}) {
    const TokenIoLayout layout(config, type, 2);
    std::vector<uint8_t> io(layout.end, 0xff);
    std::vector<uint8_t> lists(TokenListCapacity(config, 2));
    PackTokenRows(config, type, {row, row}, 2, layout, io.data(), lists.data());
    const int64_t element = cuda::ElementBytes(type);
    for (int64_t r = 0; r < 2; ++r) {
      const uint8_t* packed = io.data() + layout.contexts + r * padded * element;
      for (int64_t i = config.block.hidden_size * element; i < padded * element; ++i) {
        EXPECT_EQ(packed[i], 0) << "row " << r << ", byte " << i;
      }
    }
  }
}

TEST(TokenBatch, ListsOfAllRowsLieBesideOneAnother) {
  const ModelConfig config = Config();
  const std::vector<float> context(config.block.hidden_size);
  const SamplingParameters sampling;
  constexpr int kRows = 3, kEntries = 17;
  std::vector<LogitBias> biases[kRows];
  std::vector<TokenCount> counts[kRows];
  std::vector<int32_t> stops[kRows];
  std::vector<TokenRow> rows(kRows);
  for (int r = 0; r < kRows; ++r) {
    for (int i = 0; i < kEntries; ++i) {
      const int32_t token = 20 * r + i;
      biases[r].push_back({token, 0.25f * static_cast<float>(token)});
      counts[r].push_back({token, token + 1, token + 2});
      stops[r].push_back(token);
    }
    rows[r].context = context;
    rows[r].sampling = &sampling;
    rows[r].logit_bias = biases[r];
    rows[r].counts = counts[r];
    rows[r].stop_ids = stops[r];
  }
  const TokenIoLayout layout(config, cuda::ElementType::kF32, kRows);
  std::vector<uint8_t> io(layout.end);
  std::vector<uint8_t> lists(TokenListCapacity(config, kRows));
  PackTokenRows(config, cuda::ElementType::kF32, rows, kRows, layout, io.data(), lists.data());
  const auto* packed = reinterpret_cast<const cuda::SampleRow*>(io.data() + layout.sample_rows);
  for (int r = 0; r < kRows; ++r) {
    ASSERT_EQ(packed[r].bias_end - packed[r].bias_begin, kEntries);
    ASSERT_EQ(packed[r].counts_end - packed[r].counts_begin, kEntries);
    ASSERT_EQ(packed[r].stops_end - packed[r].stops_begin, kEntries);
    for (int i = 0; i < kEntries; ++i) {
      const auto& bias =
          reinterpret_cast<const cuda::SampleBias*>(lists.data())[packed[r].bias_begin + i];
      EXPECT_EQ(bias.token, biases[r][i].token);
      EXPECT_EQ(bias.bias, biases[r][i].bias);
      const auto& count =
          reinterpret_cast<const cuda::SampleCount*>(lists.data())[packed[r].counts_begin + i];
      EXPECT_EQ(count.token, counts[r][i].token);
      EXPECT_EQ(count.in_output, counts[r][i].in_output);
      EXPECT_EQ(reinterpret_cast<const int32_t*>(lists.data())[packed[r].stops_begin + i],
                stops[r][i]);
    }
  }
}

TEST(TokenBatch, RowsWithLongListsGoIntoTheNextBatch) {
  const ModelConfig config = Config();
  const int64_t capacity = TokenListCapacity(config, 4);
  const std::vector<int32_t> many(capacity / 4 / 2 - 8, 1);
  const std::vector<int32_t> too_many(capacity / 4 + 100, 1);
  std::vector<TokenRow> rows(6);
  for (size_t i = 1; i < rows.size(); ++i) rows[i].stop_ids = many;
  EXPECT_EQ(CountRowsThatFit(rows, 4, capacity), 3);  // one without a list, two of almost half
  EXPECT_EQ(CountRowsThatFit(absl::MakeConstSpan(rows).subspan(3), 4, capacity), 2);
  rows[0].stop_ids = too_many;
  EXPECT_EQ(CountRowsThatFit(rows, 4, capacity), 0);
  // Counts of every id always fit.
  std::vector<TokenCount> counts(config.vocab_size);
  rows[0].stop_ids = {};
  rows[0].counts = counts;
  EXPECT_GE(CountRowsThatFit(rows, 1, capacity), 1);
}

TEST(TokenBatch, ResultsAreWhatTheStateSays) {
  const ModelConfig config = Config();
  const TokenIoLayout layout(config, cuda::ElementType::kF32, 2);
  std::vector<uint8_t> io(layout.end);
  auto* states = reinterpret_cast<cuda::SampleState*>(io.data() + layout.states);
  auto* tokens = reinterpret_cast<int32_t*>(io.data() + layout.tokens);
  auto* logprobs = reinterpret_cast<float*>(io.data() + layout.logprobs);
  for (int i = 0; i < 8; ++i) {
    tokens[i] = 10 + i;
    logprobs[i] = -0.5f * static_cast<float>(i);
  }
  const std::vector<int32_t> forced = {14};
  TokenRow row;
  row.forced = forced;
  row.limit = 4;
  const auto unpack = [&](cuda::SampleStatus status, int32_t length) {
    states[1] = {status, length};
    return UnpackTokenRow(config, row, 1, layout, io.data(), {});
  };
  TokenRowResult done = unpack(cuda::SampleStatus::kDone, 4);
  EXPECT_TRUE(done.status.ok());
  EXPECT_FALSE(done.stopped);
  EXPECT_THAT(done.tokens, ElementsAre(15, 16, 17));
  EXPECT_THAT(done.logprobs, ElementsAre(-2.5f, -3.0f, -3.5f));
  const TokenRowResult stopped = unpack(cuda::SampleStatus::kStopped, 2);
  EXPECT_TRUE(stopped.stopped);
  EXPECT_THAT(stopped.tokens, ElementsAre(15));
  const TokenRowResult broken = unpack(cuda::SampleStatus::kNotFinite, 3);
  EXPECT_EQ(broken.status.code(), absl::StatusCode::kInternal);
  EXPECT_THAT(std::string(broken.status.message()), HasSubstr("token 3"));
  EXPECT_EQ(unpack(cuda::SampleStatus::kNothingLeft, 1).status.code(),
            absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(unpack(cuda::SampleStatus::kRunning, 1).status.code(), absl::StatusCode::kInternal);

  row.score_forced = true;
  row.top_logprobs = 2;
  const std::vector<int32_t> top_tokens(2 * 4 * 3, 9);
  const std::vector<float> top_logprobs(2 * 4 * 3, -1.0f);
  states[1] = {cuda::SampleStatus::kDone, 4};
  done = UnpackTokenRow(config, row, 1, layout, io.data(),
                        {top_tokens.data(), top_logprobs.data(), 3});
  EXPECT_THAT(done.tokens, ElementsAre(15, 16, 17));
  EXPECT_THAT(done.logprobs, ElementsAre(-2.0f, -2.5f, -3.0f, -3.5f));
  ASSERT_EQ(done.top.size(), 4u);
  EXPECT_EQ(done.top[3].size(), 2u);
}

// ---- Memory plan

ModelConfig Block85M() {
  ModelConfig config = Config();
  config.vocab_size = 50304;
  config.embedding_width = 192;
  for (StackConfig* stack : {&config.block, &config.token}) {
    stack->hidden_size = 768;
    stack->num_heads = 12;
    stack->num_layers = 6;
    stack->intermediate_size = 3072;
  }
  return config;
}

TEST(MemoryPlan, CountsTheWeightsOfTheReleasedModel) {
  // 85 M parameters in the stacks, and tables of 50,304 rows: [V, 192], [V, 768], head [V, 768].
  const int64_t stack = 6 * (12 * int64_t{768} * 768 + 13 * 768) + 2 * 768;
  const MemoryPlan block = PlanBlockEngine(Block85M(), cuda::ElementType::kBf16, 512, 0);
  EXPECT_NEAR(static_cast<double>(block.weights),
              2.0 * static_cast<double>(stack + int64_t{50304} * 192), 3e6);
  const MemoryPlan token = PlanTokenEngine(Block85M(), cuda::ElementType::kBf16, 2, 512, 512, 0);
  EXPECT_NEAR(static_cast<double>(token.weights),
              2.0 * static_cast<double>(stack + 2 * int64_t{50304} * 768 + 2 * 768 * 768), 3e6);
  // Logits of two lanes of 512 rows are the largest part of what runs.
  EXPECT_GT(token.activations, int64_t{2} * 512 * 50304 * 4);
  EXPECT_LT(token.total(), int64_t{1} << 30);
}

TEST(MemoryPlan, SaysWhatIsNeededAndWhatIsThere) {
  const MemoryPlan plan = PlanTokenEngine(Block85M(), cuda::ElementType::kF32, 2, 512, 512, 5000);
  EXPECT_TRUE(CheckFits(plan, "a token decoder", "cuda:0 (card)", plan.total()).ok());
  const absl::Status status =
      CheckFits(plan, "a token decoder of 1024 rows", "cuda:0 (card)", plan.total() - 1);
  EXPECT_EQ(status.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_THAT(
      std::string(status.message()),
      AllOf(HasSubstr("cuda:0 (card) has "), HasSubstr("a token decoder of 1024 rows needs"),
            HasSubstr(BytesText(plan.total())), Not(HasSubstr("\n"))));
  EXPECT_EQ(BytesText(3'210'000'000), "3.21 GB");
  EXPECT_EQ(BytesText(14'000'000), "14.0 MB");
}

}  // namespace
}  // namespace blockserve
