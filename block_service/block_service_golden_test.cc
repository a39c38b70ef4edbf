// The service with real engines on the golden models, over an in-process channel.
#include <cmath>
#include <cstring>
#include <fstream>
#include <memory>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "block_service/block_service.h"
#include "block_service/test_gateway.h"
#include "common/worst_error_for_test.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "model/alignment.h"
#include "model/fingerprint.h"
#include "model/safetensors.h"
#include "nlohmann/json.hpp"

namespace blockserve {
namespace {

using testing::HasSubstr;
using testing::StartsWith;

struct Case {
  std::vector<int32_t> blocks;  // [n, L], pads included
  std::vector<float> contexts;  // [n, D]; empty for the vanilla model
  std::vector<float> logits;    // [steps, V], before each of the first greedy tokens
};

struct Model {
  explicit Model(const std::string& name, BlockServiceConfig config = {}, int threads = 2)
      : directory(absl::StrCat("tests/golden/", name)), pool(threads) {
    absl::StatusOr<std::unique_ptr<Checkpoint>> opened = Checkpoint::Open(directory);
    EXPECT_TRUE(opened.ok()) << opened.status();
    checkpoint = *std::move(opened);
    if (config.kv_pages == 0) config.kv_pages = 256;
    absl::StatusOr<std::unique_ptr<BlockService>> created =
        BlockService::Create(config, *checkpoint, &pool);
    EXPECT_TRUE(created.ok()) << created.status();
    service = *std::move(created);
    server = Serve(*service);
  }
  ~Model() {
    service->Stop();
    server->Shutdown(absl::ZeroDuration());
  }

  static std::vector<float> Floats(const TensorView* tensor) {
    if (tensor == nullptr) return {};
    std::vector<float> values(static_cast<size_t>(tensor->num_elements()));
    std::memcpy(values.data(), tensor->data.data(), tensor->data.size());
    return values;
  }

  // The vanilla model's golden numbers hold no contexts: its head turns them into logits, [V].
  std::vector<float> HeadOf(absl::Span<const float> context) const {
    const TensorView head = checkpoint->Find("embed_out.weight").value();
    const std::vector<float> weights = Floats(&head);
    std::vector<float> logits(weights.size() / context.size());
    for (size_t v = 0; v < logits.size(); ++v) {
      double sum = 0;
      for (size_t i = 0; i < context.size(); ++i) {
        sum += double{weights[v * context.size() + i]} * context[i];
      }
      logits[v] = static_cast<float>(sum);
    }
    return logits;
  }

  std::vector<Case> Cases() const {
    std::ifstream file(absl::StrCat(directory, "/expected.json"));
    const nlohmann::json expected = nlohmann::json::parse(file);
    absl::StatusOr<SafetensorsSet> tensors =
        SafetensorsSet::OpenFile(absl::StrCat(directory, "/expected.safetensors"));
    EXPECT_TRUE(tensors.ok()) << tensors.status();
    std::vector<Case> cases;
    for (size_t i = 0; i < expected["cases"].size(); ++i) {
      const auto prompt = expected["cases"][i]["prompt"].get<std::vector<int32_t>>();
      Case& golden = cases.emplace_back();
      golden.blocks = LayoutPrompt(checkpoint->config(), Alignment::kEnd, prompt).block_tokens;
      golden.contexts = Floats(tensors->Find(absl::StrCat("context.", i)));
      golden.logits = Floats(tensors->Find(absl::StrCat("logits.", i)));
    }
    return cases;
  }

  int32_t length() const { return checkpoint->config().block_length; }
  size_t row_bytes() const {
    return static_cast<size_t>(checkpoint->config().block.hidden_size) * sizeof(float);
  }

  std::string directory;
  std::unique_ptr<Checkpoint> checkpoint;
  ThreadPool pool;
  std::unique_ptr<BlockService> service;
  std::unique_ptr<RpcServer> server;
};

// Within 1e-5 of the largest magnitude.
void ExpectClose(absl::Span<const float> values, absl::Span<const float> expected) {
  ASSERT_EQ(values.size(), expected.size());
  double largest = 0, worst = 0;
  for (size_t i = 0; i < values.size(); ++i) {
    largest = std::max<double>(largest, std::abs(expected[i]));
    worst = WorstError(worst, std::abs(values[i] - expected[i]));
  }
  EXPECT_GT(largest, 0);
  EXPECT_LE(worst, 1e-5 * largest);
}

class BlockServiceGolden : public testing::TestWithParam<std::string> {};

TEST_P(BlockServiceGolden, TheHelloTellsModelAndCapacity) {
  BlockServiceConfig config;
  config.name = "replica 7";
  Model model(GetParam(), config);
  TestGateway gateway(model.server->InProcessChannel());
  ASSERT_TRUE(gateway.Read());
  const v1::BlockServiceHello& hello = gateway.hello;
  EXPECT_EQ(hello.tier().protocol_version(), kTierProtocolVersion);
  EXPECT_EQ(hello.tier().config_hash(), ConfigHash(model.checkpoint->config()));
  EXPECT_EQ(hello.tier().part_hash(), model.checkpoint->HashTensors(Checkpoint::Part::kBlock));
  EXPECT_THAT(hello.tier().numeric_id(), StartsWith("f32-"));
  EXPECT_EQ(hello.tier().name(), "replica 7");
  EXPECT_EQ(hello.block_length(), model.length());
  EXPECT_EQ(hello.context_width(), 64);
  EXPECT_EQ(hello.context_type(), v1::CONTEXT_TYPE_FLOAT32);
  EXPECT_EQ(hello.pages(), 256);
  EXPECT_EQ(hello.page_blocks(), 16);
  EXPECT_EQ(hello.max_blocks_per_sequence(), 2048);
}

TEST_P(BlockServiceGolden, ContextsAreThoseOfTheReference) {
  Model model(GetParam());
  TestGateway gateway(model.server->InProcessChannel());
  const std::vector<Case> cases = model.Cases();
  std::vector<uint64_t> ids;
  for (size_t i = 0; i < cases.size(); ++i) {
    ids.push_back(gateway.Open(i, cases[i].blocks, 0, /*close_after=*/true));
  }
  gateway.Flush();
  for (size_t i = 0; i < cases.size(); ++i) {
    const std::string rows = gateway.Rows(ids[i]);
    std::vector<float> contexts(rows.size() / sizeof(float));
    std::memcpy(contexts.data(), rows.data(), rows.size());
    if (cases[i].contexts.empty()) {
      const std::vector<float> logits =
          model.HeadOf(absl::MakeConstSpan(contexts).last(model.row_bytes() / sizeof(float)));
      ExpectClose(logits, absl::MakeConstSpan(cases[i].logits).subspan(0, logits.size()));
    } else {
      ExpectClose(contexts, cases[i].contexts);
    }
  }
  EXPECT_EQ(model.service->stats().load.pages.sequences, 0);
}

// The contract: a row does not depend on how its blocks came to be.
TEST_P(BlockServiceGolden, RowsAreBitwiseTheSameWhicheverWayTheyCome) {
  BlockServiceConfig small_chunks;
  small_chunks.prefill_chunk = 3;
  small_chunks.page_blocks = 4;
  small_chunks.groups = 1;
  Model model(GetParam());
  Model other(GetParam(), small_chunks, /*threads=*/1);
  const std::vector<int32_t> tokens = model.Cases().back().blocks;
  const size_t length = static_cast<size_t>(model.length());
  const size_t row_bytes = model.row_bytes();
  const int64_t blocks = static_cast<int64_t>(tokens.size() / length);
  const auto block = [&](int64_t i) {
    return absl::MakeConstSpan(tokens).subspan(static_cast<size_t>(i) * length, length);
  };
  const auto first = [&](int64_t n) {
    return absl::MakeConstSpan(tokens).subspan(0, static_cast<size_t>(n) * length);
  };
  // The reference: one prefill of everything, alone.
  TestGateway gateway(model.server->InProcessChannel());
  const uint64_t all = gateway.Open(1, tokens, 0);
  gateway.Flush();
  const std::string reference = gateway.Rows(all);
  ASSERT_EQ(reference.size(), static_cast<size_t>(blocks) * row_bytes);
  const auto row = [&](int64_t i) {
    return reference.substr(static_cast<size_t>(i) * row_bytes, row_bytes);
  };

  // Prefilled in small chunks on other pages, with other work in the batch.
  TestGateway elsewhere(other.server->InProcessChannel());
  std::vector<int32_t> noise(tokens.rbegin(), tokens.rend());
  elsewhere.Open(50, noise);
  elsewhere.Open(51, first(5));
  const uint64_t chunked = elsewhere.Open(1, tokens, 0);
  elsewhere.Flush();
  EXPECT_TRUE(elsewhere.Rows(chunked) == reference);

  // Decoded block by block, together with forks and another sequence.
  const uint64_t start = gateway.Open(2, first(1));
  gateway.Open(3, noise);
  gateway.Flush();
  EXPECT_TRUE(gateway.Rows(start) == row(0));
  const int64_t fork_at = blocks / 2;
  for (int64_t i = 1; i < blocks; ++i) {
    const uint64_t append = gateway.Append(2, i, block(i));
    uint64_t on_fork = 0;
    if (i == fork_at) gateway.Fork(4, 2, fork_at);
    if (i >= fork_at) on_fork = gateway.Append(4, i, block(i));
    gateway.Flush();
    EXPECT_TRUE(gateway.Rows(append) == row(i)) << "decoded block " << i;
    if (on_fork != 0) {
      EXPECT_TRUE(gateway.Rows(on_fork) == row(i)) << "forked block " << i;
    }
  }

  // With a hit in the prefix cache, for each length of prompt.
  gateway.Close(1);
  gateway.Flush();
  int64_t hits = 0;
  for (int64_t n = 1; n <= blocks; ++n) {
    const uint64_t again = gateway.Open(100 + static_cast<uint64_t>(n), first(n));
    gateway.Flush();
    EXPECT_TRUE(gateway.Rows(again) == row(n - 1)) << n << " blocks";
    hits += gateway.Wait(again).cached_blocks;
    gateway.Close(100 + static_cast<uint64_t>(n));
  }
  EXPECT_GT(hits, 0);

  // And repeated.
  const uint64_t repeated = gateway.Append(2, blocks - 1, block(blocks - 1));
  gateway.Flush();
  EXPECT_TRUE(gateway.Rows(repeated) == row(blocks - 1));
}

TEST_P(BlockServiceGolden, Bfloat16RowsTravelAsBfloat16) {
  BlockServiceConfig config;
  config.arithmetic = "bf16";
  Model model(GetParam(), config);
  TestGateway gateway(model.server->InProcessChannel());
  const std::vector<int32_t> tokens = model.Cases().back().blocks;
  const uint64_t all = gateway.Open(1, tokens, 0);
  gateway.Flush();
  const std::string rows = gateway.Rows(all);
  EXPECT_EQ(gateway.hello.context_type(), v1::CONTEXT_TYPE_BFLOAT16);
  EXPECT_THAT(gateway.hello.tier().numeric_id(), StartsWith("bf16-"));
  EXPECT_EQ(rows.size(), tokens.size() / static_cast<size_t>(model.length()) * 64 * 2);
}

INSTANTIATE_TEST_SUITE_P(Models, BlockServiceGolden, testing::Values("concat_l4", "vanilla"),
                         [](const auto& info) { return info.param; });

TEST(BlockServiceCreate, NamesTheFlagThatIsWrong) {
  absl::StatusOr<std::unique_ptr<Checkpoint>> checkpoint =
      Checkpoint::Open("tests/golden/concat_l4");
  ASSERT_TRUE(checkpoint.ok());
  ThreadPool pool(1);
  const auto message = [&](auto change) {
    BlockServiceConfig config;
    change(config);
    const auto service = BlockService::Create(config, **checkpoint, &pool);
    EXPECT_FALSE(service.ok());
    return std::string(service.status().message());
  };
  EXPECT_THAT(message([](auto& c) { c.arithmetic = "f64"; }), HasSubstr("--arithmetic"));
  EXPECT_THAT(message([](auto& c) { c.page_blocks = 0; }), HasSubstr("--page-blocks"));
  EXPECT_THAT(message([](auto& c) { c.max_sequences = -1; }), HasSubstr("--max-sequences"));
  EXPECT_THAT(message([](auto& c) { c.prefill_chunk = -1; }), HasSubstr("--prefill-chunk"));
  EXPECT_THAT(message([](auto& c) { c.groups = 0; }), HasSubstr("--groups"));
  EXPECT_THAT(message([](auto& c) { c.kv_memory_mib = -1; }), HasSubstr("--kv-memory-mib"));
  EXPECT_THAT(message([](auto& c) { c.kv_pages = 2'000'000'000; }), HasSubstr("--kv-pages"));
  EXPECT_THAT(message([](auto& c) {
                c.kv_pages = 1;
                c.page_blocks = 2;
              }),
              HasSubstr("at least"));
}

}  // namespace
}  // namespace blockserve
