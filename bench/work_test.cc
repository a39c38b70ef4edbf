#include "bench/work.h"

#include "gtest/gtest.h"

namespace blockserve {
namespace {

StackConfig Stack(int32_t width, int32_t layers) {
  StackConfig stack;
  stack.hidden_size = width;
  stack.num_heads = width / 64;
  stack.num_layers = layers;
  stack.intermediate_size = 4 * width;
  return stack;
}

ModelConfig Block85M() {
  ModelConfig config;
  config.block_length = 4;
  config.vocab_size = 50304;
  config.embedding_width = 192;
  config.block = Stack(768, 6);
  config.token = Stack(768, 6);
  config.expansion_ratio = 2;
  return config;
}

ModelConfig Vanilla160M() {
  ModelConfig config;
  config.kind = ModelKind::kVanilla;
  config.strategy = DecodingStrategy::kHeadOnly;
  config.vocab_size = 50304;
  config.embedding_width = 768;
  config.block = Stack(768, 12);
  config.token = Stack(768, 0);
  return config;
}

// MODEL section 6: 21 + 106 + 77 and a little for the expansion.
TEST(CountWork, GivesThePublishedArithmeticOfTheBlockTransformer) {
  const Workload workload{4000, 4000, 3};
  const Work work = CountWork(Block85M(), Storage(), workload, Batching());
  const double tokens = 12000;
  EXPECT_NEAR(work.prefill.product_flop / tokens, 21.2e6, 0.1e6);
  EXPECT_NEAR(work.block_step.product_flop / tokens, 21.2e6, 0.1e6);
  EXPECT_NEAR((work.first_step + work.later_steps).product_flop / tokens, 106.2e6, 0.1e6);
  EXPECT_NEAR(work.head.product_flop / tokens, 77.3e6, 0.1e6);
  EXPECT_NEAR(work.decode().product_flop / tokens, 205e6, 1e6);
}

TEST(CountWork, GivesTheArithmeticOfAPlainTransformer) {
  const Workload workload{1000, 1000, 1};
  const Work work = CountWork(Vanilla160M(), Storage(), workload, Batching());
  EXPECT_NEAR(work.prefill.product_flop / 1000, 170e6, 0.2e6);
  EXPECT_NEAR(work.decode().product_flop / 1000, 247e6, 1e6);
  EXPECT_EQ(work.expansion.flop(), 0);
  EXPECT_EQ(work.later_steps.flop(), 0);
}

TEST(CountWork, AttendsToTheRealContext) {
  // Prompt of 2 blocks: positions 0 and 1 see 1 + 2; generation of 3 blocks appends 2: 3 + 4.
  const Workload workload{8, 12, 5};
  const Work work = CountWork(Block85M(), Storage(), workload, Batching());
  EXPECT_DOUBLE_EQ(work.prefill.attention_flop, 5 * 3 * 4.0 * 768 * 6);
  EXPECT_DOUBLE_EQ(work.block_step.attention_flop, 5 * 7 * 4.0 * 768 * 6);
  EXPECT_DOUBLE_EQ(work.first_step.attention_flop, 5 * 3 * 3 * 4.0 * 768 * 6);
  EXPECT_DOUBLE_EQ(work.later_steps.attention_flop, 5 * 3 * (3 + 4 + 5) * 4.0 * 768 * 6);
}

TEST(CountWork, CountsALastBlockThatIsNotFull) {
  const Workload full{4, 8, 1}, part{4, 5, 1};
  const Work a = CountWork(Block85M(), Storage(), full, Batching());
  const Work b = CountWork(Block85M(), Storage(), part, Batching());
  EXPECT_DOUBLE_EQ(a.first_step.product_flop, b.first_step.product_flop);
  EXPECT_DOUBLE_EQ(b.later_steps.product_flop * 2, a.later_steps.product_flop);
  EXPECT_DOUBLE_EQ(b.head.product_flop * 8, a.head.product_flop * 5);
}

TEST(CountWork, ReadsWeightsOncePerPass) {
  const Workload one{4, 4, 64}, two{4, 4, 65};
  const Work a = CountWork(Block85M(), Storage(), one, Batching());
  const Work b = CountWork(Block85M(), Storage(), two, Batching());
  EXPECT_DOUBLE_EQ(a.head.weight_bytes, 4.0 * 4 * 768 * 50304);
  EXPECT_DOUBLE_EQ(b.head.weight_bytes, 2 * a.head.weight_bytes);
}

TEST(CountWork, ReadsTheCacheOncePerStepOfAPrompt) {
  Batching batching;
  batching.prefill_blocks = 4;
  // 10 blocks in steps of 4: contexts of 4, 8 and 10 are read, 10 blocks written.
  const Work work = CountWork(Block85M(), Storage(), {40, 4, 3}, batching);
  EXPECT_DOUBLE_EQ(work.prefill.kv_bytes, 3 * (4 + 8 + 10 + 10) * 2.0 * 768 * 6 * 4);
}

TEST(StorageOf, KeepsABf16FileAsItIs) {
  EXPECT_EQ(StorageOf(Arithmetic::kF32, false).weight_bytes, 4);
  EXPECT_EQ(StorageOf(Arithmetic::kF32, true).weight_bytes, 2);
  EXPECT_EQ(StorageOf(Arithmetic::kF32, true).kv_bytes, 4);
}

TEST(KvBytesPerToken, IsEightTimesLessForTheBlockTransformer) {
  EXPECT_DOUBLE_EQ(KvBytesPerToken(Block85M(), {2, 2}), 4608);
  EXPECT_DOUBLE_EQ(KvBytesPerToken(Vanilla160M(), {2, 2}), 36864);
}

}  // namespace
}  // namespace blockserve
