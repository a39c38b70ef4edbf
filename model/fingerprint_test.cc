#include "model/fingerprint.h"

#include <functional>
#include <set>
#include <string>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace blockserve {
namespace {

TEST(Sha256, EqualsTheStandardsExamples) {
  Sha256 empty;
  EXPECT_EQ(empty.Hex(), "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855");
  Sha256 abc;
  abc.Update("a");
  abc.Update(absl::string_view("bc"));
  EXPECT_EQ(abc.Hex(), "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
}

TEST(ConfigHash, IsOfTheMeaning) {
  constexpr char kOne[] = R"({"model_type": "gpt_neox", "vocab_size": 9, "hidden_size": 8,
    "num_attention_heads": 1, "num_hidden_layers": 1, "rotary_pct": 0.25})";
  constexpr char kSame[] = R"({"hidden_size":8,"num_attention_heads":1,"num_hidden_layers":1,
    "model_type":"gpt_neox","vocab_size":9,"transformers_version":"4.39.3","intermediate_size":32})";
  const auto one = ParseModelConfig(kOne, "one");
  const auto same = ParseModelConfig(kSame, "same");
  ASSERT_TRUE(one.ok() && same.ok());
  EXPECT_EQ(ConfigHash(*one), ConfigHash(*same));
  // Recorded once: a version with another hash is refused by gateways and workers of all others,
  // and cannot replace them one by one.
  EXPECT_EQ(ConfigHash(*one), "80975befa47a5ffe0fd03317ca0cd18756de3ceb9854b5c74c12d10c8c8f3e0c");
}

TEST(ConfigHash, ChangesWithEveryFieldThatAnAnswerDependsOn) {
  const std::function<void(ModelConfig&)> changes[] = {
      [](ModelConfig&) {},
      [](ModelConfig& c) { c.kind = ModelKind::kVanilla; },
      [](ModelConfig& c) { c.block_length = 2; },
      [](ModelConfig& c) { c.vocab_size = 7; },
      [](ModelConfig& c) { c.bos_token_id = 1; },
      [](ModelConfig& c) { c.eos_token_id = 1; },
      [](ModelConfig& c) { c.pad_token_id = 1; },
      [](ModelConfig& c) { c.projection = Projection::kSum; },
      [](ModelConfig& c) { c.embedding_width = 3; },
      [](ModelConfig& c) { c.expansion_ratio = 3; },
      [](ModelConfig& c) { c.strategy = DecodingStrategy::kSummation; },
      [](ModelConfig& c) { c.default_alignment = Alignment::kNone; },
      [](ModelConfig& c) { c.block.hidden_size = 5; },
      [](ModelConfig& c) { c.block.num_heads = 5; },
      [](ModelConfig& c) { c.block.num_layers = 5; },
      [](ModelConfig& c) { c.block.intermediate_size = 5; },
      [](ModelConfig& c) { c.block.max_positions = 5; },
      [](ModelConfig& c) { c.block.rotary_pct = 0.3; },
      [](ModelConfig& c) { c.block.rotary_base = 10000.000001; },
      [](ModelConfig& c) { c.block.layer_norm_eps = 1.0000001e-5; },
      [](ModelConfig& c) { c.block.parallel_residual = false; },
      [](ModelConfig& c) { c.token.hidden_size = 5; },
      [](ModelConfig& c) { c.token.parallel_residual = false; },
  };
  std::set<std::string> hashes;
  for (const auto& change : changes) {
    ModelConfig config;
    change(config);
    EXPECT_TRUE(hashes.insert(ConfigHash(config)).second);
  }
}

TEST(TokenizerHash, HasAValueForAModelWithoutOne) {
  const auto none = TokenizerHash("tests/golden/concat_l4");
  const auto also_none = TokenizerHash("tests/golden/vanilla");
  ASSERT_TRUE(none.ok()) << none.status();
  EXPECT_EQ(*none, *also_none);
  EXPECT_EQ(none->size(), 64u);
}

TEST(ModelId, DependsOnEachPartInItsPlace) {
  const std::set<std::string> ids = {ModelId("a", "b", "c", "d"), ModelId("x", "b", "c", "d"),
                                     ModelId("a", "x", "c", "d"), ModelId("a", "b", "x", "d"),
                                     ModelId("a", "b", "c", "x"), ModelId("a", "b", "d", "c")};
  EXPECT_EQ(ids.size(), 6u);
  EXPECT_EQ(ids.begin()->size(), 16u);
  EXPECT_EQ(ModelId("a", "b", "c", "d"), ModelId("a", "b", "c", "d"));
}

}  // namespace
}  // namespace blockserve
