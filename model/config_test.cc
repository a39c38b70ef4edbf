#include "model/config.h"

#include <fstream>
#include <sstream>
#include <string>

#include "absl/strings/str_cat.h"
#include "common/json.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace blockserve {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;
using ::testing::StartsWith;

constexpr char kBlockTransformer[] = R"({
  "model_type": "block_transformer", "block_length": 4, "vocab_size": 512,
  "embedder": {"projection": "concat", "hidden_size": 16},
  "block_decoder": {"hidden_size": 64, "num_attention_heads": 4, "num_hidden_layers": 2},
  "token_decoder": {"hidden_size": 96, "num_attention_heads": 2, "num_hidden_layers": 3,
                    "expansion_ratio": 2, "decoding_strategy": "prefix"}})";
constexpr char kVanilla[] = R"({
  "model_type": "gpt_neox", "vocab_size": 512, "hidden_size": 64, "num_attention_heads": 4,
  "num_hidden_layers": 3})";

// `patch` is an RFC 7386 merge patch: null removes a field.
absl::StatusOr<ModelConfig> Patched(absl::string_view base, absl::string_view patch) {
  nlohmann::json document = nlohmann::json::parse(base.begin(), base.end());
  document.merge_patch(nlohmann::json::parse(patch.begin(), patch.end()));
  return ParseModelConfig(document.dump(), "dir/config.json");
}

TEST(ModelConfig, HasHuggingFacesDefaults) {
  const auto config = Patched(kBlockTransformer, "{}");
  ASSERT_TRUE(config.ok()) << config.status();
  EXPECT_EQ(config->kind, ModelKind::kBlockTransformer);
  EXPECT_EQ(config->default_alignment, Alignment::kEnd);
  EXPECT_EQ(config->bos_token_id, 0);
  EXPECT_EQ(config->eos_token_id, 0);
  EXPECT_EQ(config->block.intermediate_size, 256);
  EXPECT_EQ(config->token.intermediate_size, 384);
  EXPECT_EQ(config->block.max_positions, 2048);
  EXPECT_EQ(config->block.rotary_pct, 0.25);
  EXPECT_EQ(config->block.rotary_base, 10000.0);
  EXPECT_EQ(config->block.layer_norm_eps, 1e-5);
  EXPECT_TRUE(config->block.parallel_residual);
  EXPECT_EQ(config->block.head_size(), 16);
  EXPECT_EQ(config->block.rotary_dims(), 4);
  EXPECT_EQ(config->token.head_size(), 48);
}

TEST(ModelConfig, ReadsVanillaAsBlocksOfOneTokenWithAHeadAlone) {
  const auto config = Patched(kVanilla, R"({"eos_token_id": 0})");
  ASSERT_TRUE(config.ok()) << config.status();
  EXPECT_EQ(config->kind, ModelKind::kVanilla);
  EXPECT_EQ(config->block_length, 1);
  EXPECT_EQ(config->embedding_width, 64);
  EXPECT_EQ(config->strategy, DecodingStrategy::kHeadOnly);
  EXPECT_EQ(config->expansion_ratio, 0);
  EXPECT_EQ(config->token.hidden_size, 64);
  EXPECT_EQ(config->token.num_layers, 0);
  EXPECT_EQ(config->block.num_layers, 3);
}

TEST(ModelConfig, ReadsTheGoldenModels) {
  for (const char* name : {"concat_l4", "sum_embedder", "concat_l2_sharded", "vanilla"}) {
    const auto config = LoadModelConfig(absl::StrCat("tests/golden/", name));
    EXPECT_TRUE(config.ok()) << config.status();
  }
  const auto widths = LoadModelConfig("tests/golden/widths_differ_l8");
  ASSERT_TRUE(widths.ok()) << widths.status();
  EXPECT_EQ(widths->block_length, 8);
  EXPECT_EQ(widths->pad_token_id, 1);
  EXPECT_EQ(widths->bos_token_id, 2);
  EXPECT_EQ(widths->eos_token_id, 2);
  EXPECT_EQ(widths->token.intermediate_size, 192);
  EXPECT_EQ(widths->expansion_ratio, 4);
  const auto sequential = LoadModelConfig("tests/golden/sequential_residual");
  ASSERT_TRUE(sequential.ok()) << sequential.status();
  EXPECT_FALSE(sequential->block.parallel_residual);
  EXPECT_EQ(sequential->block.rotary_pct, 1.0);
  EXPECT_EQ(sequential->token.rotary_base, 500000.0);
  EXPECT_EQ(sequential->token.layer_norm_eps, 1e-6);
  const auto projected = LoadModelConfig("tests/golden/projection_layer_f16");
  ASSERT_TRUE(projected.ok()) << projected.status();
  EXPECT_EQ(projected->projection, Projection::kProjectionLayer);
  EXPECT_EQ(projected->embedding_width, 80);
  EXPECT_EQ(projected->torch_dtype, "float16");
  const auto summation = LoadModelConfig("tests/golden/summation");
  ASSERT_TRUE(summation.ok()) << summation.status();
  EXPECT_EQ(summation->strategy, DecodingStrategy::kSummation);
}

TEST(ModelConfig, KnowsBothNamesOfTheRotarySettings) {
  for (const char* fields :
       {R"("rope_theta": 500000, "partial_rotary_factor": 0.5)",
        R"("rotary_emb_base": 500000, "rotary_pct": 0.5, "rope_theta": 500000.0)",
        R"("rope_parameters": {"rope_type": "default", "rope_theta": 5e5,
                               "partial_rotary_factor": 0.5})"}) {
    const auto config =
        Patched(kBlockTransformer, absl::StrCat("{\"block_decoder\": {", fields, "}}"));
    ASSERT_TRUE(config.ok()) << config.status();
    EXPECT_EQ(config->block.rotary_base, 500000.0) << fields;
    EXPECT_EQ(config->block.rotary_pct, 0.5) << fields;
  }
}

TEST(ModelConfig, ReadsTheModelsOwnAlignment) {
  const auto config = Patched(kBlockTransformer, R"({"default_alignment": "none"})");
  ASSERT_TRUE(config.ok()) << config.status();
  EXPECT_EQ(config->default_alignment, Alignment::kNone);
}

TEST(ModelConfig, AcceptsTheLargestDimensions) {
  const auto config = Patched(kBlockTransformer, R"({
    "block_length": 1024, "vocab_size": 8388608,
    "embedder": {"projection": "projection_layer", "hidden_size": 65536},
    "block_decoder": {"hidden_size": 65536, "intermediate_size": 1048576,
                      "num_hidden_layers": 1024, "max_position_embeddings": 2147483648},
    "token_decoder": {"hidden_size": 65536, "expansion_ratio": 1024}})");
  EXPECT_TRUE(config.ok()) << config.status();
}

struct BadConfig {
  const char* name;
  const char* patch;
  const char* message;  // part of the error, with the field
};

std::string NameOf(const ::testing::TestParamInfo<BadConfig>& info) { return info.param.name; }

void ExpectRefused(const absl::StatusOr<ModelConfig>& config, const char* message) {
  ASSERT_FALSE(config.ok());
  EXPECT_EQ(config.status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(config.status().message()),
              AllOf(StartsWith("dir/config.json: "), HasSubstr(message)));
}

class RefusedBlockConfig : public ::testing::TestWithParam<BadConfig> {};
TEST_P(RefusedBlockConfig, NamesTheField) {
  ExpectRefused(Patched(kBlockTransformer, GetParam().patch), GetParam().message);
}

INSTANTIATE_TEST_SUITE_P(
    Each, RefusedBlockConfig,
    ::testing::Values(
        BadConfig{"NoKind", R"({"model_type": null})", "model_type is missing"},
        BadConfig{"OtherKind", R"({"model_type": "llama"})", "model_type is \"llama\""},
        BadConfig{"KindType", R"({"model_type": 7})", "model_type is an integer"},
        BadConfig{"NoBlockLength", R"({"block_length": null})", "block_length is missing"},
        BadConfig{"ZeroBlockLength", R"({"block_length": 0})", "block_length is 0"},
        BadConfig{"HugeBlockLength", R"({"block_length": 1025})", "block_length is 1025"},
        BadConfig{"StringBlockLength", R"({"block_length": "4"})", "block_length is a string"},
        BadConfig{"FloatBlockLength", R"({"block_length": 4.0})", "block_length is a number"},
        BadConfig{"BooleanVocab", R"({"vocab_size": true})", "vocab_size is a boolean"},
        BadConfig{"NoVocab", R"({"vocab_size": null})", "vocab_size is missing"},
        BadConfig{"NegativeVocab", R"({"vocab_size": -512})", "vocab_size is -512"},
        BadConfig{"HugeVocab", R"({"vocab_size": 18446744073709551615})",
                  "vocab_size is 18446744073709551615"},
        BadConfig{"BosOutside", R"({"bos_token_id": 512})", "bos_token_id is 512"},
        BadConfig{"EosOutside", R"({"eos_token_id": 600})", "eos_token_id is 600"},
        BadConfig{"PadOutside", R"({"pad_token_id": 2000000000})", "pad_token_id is 2000000000"},
        BadConfig{"NegativeEos", R"({"eos_token_id": -1})", "eos_token_id is -1"},
        BadConfig{"EosList", R"({"eos_token_id": [0, 1]})", "eos_token_id is an array"},
        BadConfig{"Dtype", R"({"torch_dtype": "float64"})", "torch_dtype is \"float64\""},
        BadConfig{"Tied", R"({"tie_word_embeddings": true})", "tie_word_embeddings"},
        BadConfig{"Alignment", R"({"default_alignment": "middle"})",
                  "default_alignment is \"middle\""},
        BadConfig{"NoEmbedder", R"({"embedder": null})", "embedder is missing"},
        BadConfig{"EmbedderType", R"({"embedder": "concat"})", "embedder is a string"},
        BadConfig{"EmbedderKind", R"({"embedder": {"type": "roberta"}})",
                  "embedder.type is \"roberta\""},
        BadConfig{"NoProjection", R"({"embedder": {"projection": null}})",
                  "embedder.projection is missing"},
        BadConfig{"Projection", R"({"embedder": {"projection": "mean"}})",
                  "embedder.projection is \"mean\""},
        BadConfig{"NoEmbedderWidth", R"({"embedder": {"hidden_size": null}})",
                  "embedder.hidden_size is missing"},
        BadConfig{"ConcatWidth", R"({"embedder": {"hidden_size": 32}})",
                  "embedder.hidden_size is 32; with concat it must be block_decoder.hidden_size 64 "
                  "/ block_length 4 = 16"},
        BadConfig{"ConcatLength", R"({"block_length": 5})", "block_length 5 does not divide"},
        BadConfig{"SumWidth", R"({"embedder": {"projection": "sum"}})",
                  "embedder.hidden_size is 16; with sum"},
        BadConfig{"NoBlockDecoder", R"({"block_decoder": null})", "block_decoder is missing"},
        BadConfig{"BlockKind", R"({"block_decoder": {"model_type": "t5"}})",
                  "block_decoder.model_type is \"t5\""},
        BadConfig{"NoWidth", R"({"block_decoder": {"hidden_size": null}})",
                  "block_decoder.hidden_size is missing"},
        BadConfig{"ZeroWidth", R"({"block_decoder": {"hidden_size": 0}})",
                  "block_decoder.hidden_size is 0"},
        BadConfig{"HugeWidth", R"({"block_decoder": {"hidden_size": 9223372036854775807}})",
                  "block_decoder.hidden_size is 9223372036854775807"},
        BadConfig{"Heads", R"({"block_decoder": {"num_attention_heads": 5}})",
                  "block_decoder.num_attention_heads is 5, which does not divide hidden_size 64"},
        BadConfig{"ZeroHeads", R"({"block_decoder": {"num_attention_heads": 0}})",
                  "block_decoder.num_attention_heads is 0"},
        BadConfig{"NoLayers", R"({"block_decoder": {"num_hidden_layers": null}})",
                  "block_decoder.num_hidden_layers is missing"},
        BadConfig{"NegativeLayers", R"({"block_decoder": {"num_hidden_layers": -2}})",
                  "block_decoder.num_hidden_layers is -2"},
        BadConfig{"HugeLayers", R"({"block_decoder": {"num_hidden_layers": 4294967298}})",
                  "block_decoder.num_hidden_layers is 4294967298"},
        BadConfig{"HugeIntermediate", R"({"block_decoder": {"intermediate_size": 2147483647}})",
                  "block_decoder.intermediate_size is 2147483647"},
        BadConfig{"ZeroPositions", R"({"block_decoder": {"max_position_embeddings": 0}})",
                  "block_decoder.max_position_embeddings is 0"},
        BadConfig{"OddRotary", R"({"block_decoder": {"rotary_pct": 0.2}})",
                  "rotates 3 dimensions, an odd number"},
        BadConfig{"RotaryShare", R"({"block_decoder": {"rotary_pct": 1.5}})",
                  "block_decoder.rotary_pct is 1.5"},
        BadConfig{"NegativeRotaryShare", R"({"block_decoder": {"rotary_pct": -0.25}})",
                  "block_decoder.rotary_pct is -0.25"},
        BadConfig{"RotaryType", R"({"block_decoder": {"rotary_pct": "0.25"}})",
                  "block_decoder.rotary_pct is a string"},
        BadConfig{"RotaryBase", R"({"block_decoder": {"rotary_emb_base": 0}})",
                  "block_decoder.rotary_emb_base is 0"},
        BadConfig{"Vocabulary", R"({"vocab_size": 16777216})", "vocab_size is 16777216"},
        // Its frequencies are not finite in float32.
        BadConfig{"TinyRotaryBase", R"({"block_decoder": {"rotary_emb_base": 1e-300}})",
                  "block_decoder.rotary_emb_base is 1e-300"},
        BadConfig{"TwoRotaryBases",
                  R"({"block_decoder": {"rotary_emb_base": 10000, "rope_theta": 500000}})",
                  "block_decoder.rope_theta differs"},
        BadConfig{"RotaryScaling",
                  R"({"block_decoder": {"rope_scaling": {"type": "linear", "factor": 2}}})",
                  "block_decoder.rope_scaling.rope_type is \"linear\""},
        BadConfig{"Eps", R"({"token_decoder": {"layer_norm_eps": -1e-5}})",
                  "token_decoder.layer_norm_eps is -1e-05"},
        // Zero in float32.
        BadConfig{"TinyEps", R"({"block_decoder": {"layer_norm_eps": 1e-46}})",
                  "block_decoder.layer_norm_eps is 1e-46"},
        BadConfig{"Residual", R"({"token_decoder": {"use_parallel_residual": 1}})",
                  "token_decoder.use_parallel_residual is an integer"},
        BadConfig{"Act", R"({"token_decoder": {"hidden_act": "gelu_new"}})",
                  "token_decoder.hidden_act is \"gelu_new\""},
        BadConfig{"NoAttentionBias", R"({"token_decoder": {"attention_bias": false}})",
                  "token_decoder.attention_bias"},
        BadConfig{"NoTokenDecoder", R"({"token_decoder": null})", "token_decoder is missing"},
        BadConfig{"TokenHeads", R"({"token_decoder": {"num_attention_heads": 7}})",
                  "token_decoder.num_attention_heads is 7"},
        BadConfig{"Expansion", R"({"token_decoder": {"expansion_method": "linear"}})",
                  "token_decoder.expansion_method is \"linear\""},
        BadConfig{"NoExpansionRatio", R"({"token_decoder": {"expansion_ratio": null}})",
                  "token_decoder.expansion_ratio is missing"},
        BadConfig{"ZeroExpansionRatio", R"({"token_decoder": {"expansion_ratio": 0}})",
                  "token_decoder.expansion_ratio is 0"},
        BadConfig{"NoStrategy", R"({"token_decoder": {"decoding_strategy": null}})",
                  "token_decoder.decoding_strategy is missing"},
        BadConfig{"CrossAttention",
                  R"({"token_decoder": {"decoding_strategy": "cross_attention"}})",
                  "token_decoder.decoding_strategy is \"cross_attention\", which is not supported"},
        BadConfig{"Strategy", R"({"token_decoder": {"decoding_strategy": "magic"}})",
                  "token_decoder.decoding_strategy is \"magic\""},
        BadConfig{
            "SummationRatio", R"({"token_decoder": {"decoding_strategy": "summation"}})",
            "token_decoder.expansion_ratio is 2; with summation it must equal block_length 4"}),
    NameOf);

class RefusedVanillaConfig : public ::testing::TestWithParam<BadConfig> {};
TEST_P(RefusedVanillaConfig, NamesTheField) {
  ExpectRefused(Patched(kVanilla, GetParam().patch), GetParam().message);
}

INSTANTIATE_TEST_SUITE_P(
    Each, RefusedVanillaConfig,
    ::testing::Values(
        BadConfig{"Heads", R"({"num_attention_heads": 6})", "num_attention_heads is 6"},
        BadConfig{"NoWidth", R"({"hidden_size": null})", "hidden_size is missing"},
        BadConfig{"Act", R"({"hidden_act": "relu"})", "hidden_act is \"relu\""},
        // GPTNeoXConfig's default is 2.
        BadConfig{"EosByDefault", R"({"vocab_size": 2})",
                  "eos_token_id is 2, outside of vocab_size 2"},
        BadConfig{"Tied", R"({"tie_word_embeddings": true})", "tie_word_embeddings is true"}),
    NameOf);

TEST(ModelConfig, RefusesTextThatIsNoJsonWithThePlace) {
  const std::string whole = kBlockTransformer;
  for (const size_t size : {size_t{0}, size_t{1}, size_t{20}, whole.size() - 1}) {
    const auto config = ParseModelConfig(whole.substr(0, size), "dir/config.json");
    EXPECT_EQ(config.status().code(), absl::StatusCode::kInvalidArgument) << size;
    EXPECT_THAT(std::string(config.status().message()),
                AllOf(StartsWith("dir/config.json: "), HasSubstr("JSON")))
        << size;
  }
  const auto config = ParseModelConfig("{\n  \"a\": 1,\n  \"b\" 2}", "dir/config.json");
  EXPECT_THAT(std::string(config.status().message()), HasSubstr("line 3, column 7"));
}

TEST(ModelConfig, RefusesOtherJson) {
  ExpectRefused(ParseModelConfig("[1, 2]", "dir/config.json"), "is an array");
  ExpectRefused(ParseModelConfig("3", "dir/config.json"), "is an integer");
  ExpectRefused(ParseModelConfig("{\"a\": 1e999}", "dir/config.json"), "out of range");
  ExpectRefused(ParseModelConfig("{\"a\": 1, \"a\": 2}", "dir/config.json"), "\"a\" stands twice");
  const std::string with_zero = absl::StrCat(kVanilla, "\n", absl::string_view("\0", 1));
  ExpectRefused(ParseModelConfig(with_zero, "dir/config.json"), "a zero byte (line 4, column 1 ");
  ExpectRefused(ParseModelConfig("{\"a\": \"\xFF\"}", "dir/config.json"), "not valid JSON");
}

TEST(ModelConfig, RefusesAVanillaModelWithoutAnEndOfText) {
  nlohmann::json document = nlohmann::json::parse(kVanilla);
  EXPECT_TRUE(ParseModelConfig(document.dump(), "dir/config.json").ok());
  document["eos_token_id"] = nullptr;
  ExpectRefused(ParseModelConfig(document.dump(), "dir/config.json"), "eos_token_id is null");
}

TEST(ModelConfig, RefusesDeepNesting) {
  const std::string objects = [] {
    std::string text;
    for (int i = 0; i < 100000; ++i) text += "{\"a\":";
    return text;
  }();
  ExpectRefused(ParseModelConfig(std::string(1000000, '['), "dir/config.json"), "nested deeper");
  ExpectRefused(ParseModelConfig(objects, "dir/config.json"), "nested deeper");
}

TEST(ModelConfig, IsNotFoundWithoutTheFile) {
  EXPECT_EQ(LoadModelConfig("tests/golden/absent").status().code(), absl::StatusCode::kNotFound);
  EXPECT_EQ(LoadModelConfig("tests/data").status().code(), absl::StatusCode::kNotFound);
}

TEST(Alignment, NamesGoBothWays) {
  for (const Alignment alignment : {Alignment::kEnd, Alignment::kStart, Alignment::kNone}) {
    const auto parsed = ParseAlignment(AlignmentName(alignment));
    ASSERT_TRUE(parsed.ok());
    EXPECT_EQ(*parsed, alignment);
  }
  EXPECT_EQ(ParseAlignment("END").status().code(), absl::StatusCode::kInvalidArgument);
}

}  // namespace
}  // namespace blockserve
