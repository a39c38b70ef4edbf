#include "model/checkpoint.h"

#include <memory>
#include <string>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_replace.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "model/model_folder_for_test.h"
#include "nlohmann/json.hpp"

namespace blockserve {
namespace {

using ::testing::AllOf;
using ::testing::Contains;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::Not;

constexpr const char* kGolden[] = {
    "concat_l4", "concat_l2_sharded",   "widths_differ_l8", "projection_layer_f16",
    "summation", "sequential_residual", "sum_embedder",     "vanilla"};

std::unique_ptr<Checkpoint> Open(const std::string& folder) {
  auto checkpoint = Checkpoint::Open(folder);
  EXPECT_TRUE(checkpoint.ok()) << checkpoint.status();
  return checkpoint.ok() ? *std::move(checkpoint) : nullptr;
}

std::string ErrorOf(const std::string& folder) {
  const auto checkpoint = Checkpoint::Open(folder);
  EXPECT_EQ(checkpoint.status().code(), absl::StatusCode::kInvalidArgument);
  return std::string(checkpoint.status().message());
}

TEST(Checkpoint, OpensTheGoldenModels) {
  for (const char* name : kGolden) {
    const auto checkpoint = Open(absl::StrCat("tests/golden/", name));
    ASSERT_NE(checkpoint, nullptr) << name;
    for (const RequiredTensor& required : RequiredTensors(checkpoint->config())) {
      const auto tensor = checkpoint->Find(required.name);
      ASSERT_TRUE(tensor.ok()) << tensor.status();
      EXPECT_EQ(tensor->shape, required.shape);
    }
    EXPECT_EQ(checkpoint->Find("absent").status().code(), absl::StatusCode::kNotFound);
  }
}

TEST(Checkpoint, DividesTensorsBetweenTheTiers) {
  const auto block = Open("tests/golden/projection_layer_f16");
  const auto names = block->PartTensors(Checkpoint::Part::kBlock);
  EXPECT_THAT(names, Contains("embedder.projection_layer.weight"));
  EXPECT_THAT(names, Contains("block_decoder.gpt_neox.layers.1.mlp.dense_4h_to_h.bias"));
  EXPECT_THAT(names, Not(Contains("block_decoder.gpt_neox.embed_in.weight")));
  EXPECT_TRUE(std::is_sorted(names.begin(), names.end()));
  for (const std::string& name : block->PartTensors(Checkpoint::Part::kToken)) {
    EXPECT_TRUE(absl::StartsWith(name, "token_decoder.")) << name;
  }
  const auto vanilla = Open("tests/golden/vanilla");
  EXPECT_THAT(vanilla->PartTensors(Checkpoint::Part::kToken), ElementsAre("embed_out.weight"));
}

TEST(Checkpoint, HashesWhatATierLoads) {
  TestFolder folder;
  folder.CopyAllFrom("tests/golden/concat_l4");
  const auto original = Open(folder.path());
  const std::string block = original->HashTensors(Checkpoint::Part::kBlock);
  const std::string token = original->HashTensors(Checkpoint::Part::kToken);
  EXPECT_EQ(block.size(), 64u);
  EXPECT_NE(block, token);
  original->ReleasePages();
  EXPECT_EQ(original->HashTensors(Checkpoint::Part::kBlock), block);

  // A bit of the left-over tensor, then one of a token decoder's.
  const std::string bytes = folder.Read("model.safetensors");
  const auto change = [&](absl::string_view tensor) {
    const auto view = original->Find(tensor);
    ASSERT_TRUE(view.ok());
    const auto first = original->Find("block_decoder.gpt_neox.embed_in.weight");  // at offset 0
    ASSERT_TRUE(first.ok());
    uint64_t header_bytes = 0;
    for (int i = 0; i < 8; ++i) header_bytes |= uint64_t{static_cast<uint8_t>(bytes[i])} << (8 * i);
    std::string changed = bytes;
    changed[8 + header_bytes + static_cast<size_t>(view->data.data() - first->data.data())] ^= 1;
    folder.Write("changed", changed);
    std::filesystem::rename(folder.File("changed"), folder.File("model.safetensors"));
  };
  change("block_decoder.gpt_neox.embed_in.weight");
  auto changed = Open(folder.path());
  EXPECT_EQ(changed->HashTensors(Checkpoint::Part::kBlock), block);
  EXPECT_EQ(changed->HashTensors(Checkpoint::Part::kToken), token);
  change("token_decoder.embed_out.weight");
  changed = Open(folder.path());
  EXPECT_EQ(changed->HashTensors(Checkpoint::Part::kBlock), block);
  EXPECT_NE(changed->HashTensors(Checkpoint::Part::kToken), token);
}

// Recorded once: versions that tell a model by other hashes cannot serve it together, as they do
// while one replaces the other.
TEST(Checkpoint, HashesAreThoseOfEveryVersion) {
  const auto checkpoint = Open("tests/golden/concat_l4");
  EXPECT_EQ(checkpoint->HashTensors(Checkpoint::Part::kBlock),
            "c4b5ebf177df1db9c82d134d0085bf1b4088d52cc5f4dac654c27effc3b5873a");
  EXPECT_EQ(checkpoint->HashTensors(Checkpoint::Part::kToken),
            "7ab1768e291c7e8637413cd3306943c9390722686d187bc1b255a1e35993eaad");
  EXPECT_EQ(checkpoint->Digest(),
            "0c9f622f7b98669a4410d52c4d8e86a3d87ca2d74ecad87b7bceb5fe55cdbcb6");
}

// Changes the header of a golden model's file: `name` becomes `with` wherever it stands.
void ReplaceInHeader(const TestFolder& folder, absl::string_view name, absl::string_view with) {
  const std::string bytes = folder.Read("model.safetensors");
  uint64_t header_bytes = 0;
  for (int i = 0; i < 8; ++i) header_bytes |= uint64_t{static_cast<uint8_t>(bytes[i])} << (8 * i);
  const std::string header = bytes.substr(8, header_bytes);
  ASSERT_TRUE(absl::StrContains(header, name));
  folder.Write("model.safetensors",
               SafetensorsBytes(absl::StrReplaceAll(header, {{name, with}}),
                                absl::string_view(bytes).substr(8 + header_bytes)));
}

TEST(Checkpoint, NamesAMissingTensor) {
  TestFolder folder;
  folder.CopyAllFrom("tests/golden/concat_l4");
  ReplaceInHeader(folder, "token_decoder.expansion_layer.bias", "token_decoder.elsewhere.bias");
  EXPECT_THAT(
      ErrorOf(folder.path()),
      AllOf(HasSubstr("model.safetensors: "),
            HasSubstr("\"token_decoder.expansion_layer.bias\" is missing"), HasSubstr("[128]")));
}

TEST(Checkpoint, NamesATensorMissingFromTheIndex) {
  TestFolder folder;
  folder.CopyAllFrom("tests/golden/concat_l2_sharded");
  auto index = nlohmann::json::parse(folder.Read("model.safetensors.index.json"));
  index["weight_map"].erase("token_decoder.embed_out.weight");
  folder.Write("model.safetensors.index.json", index.dump());
  EXPECT_THAT(ErrorOf(folder.path()),
              AllOf(HasSubstr("model.safetensors.index.json: "),
                    HasSubstr("\"token_decoder.embed_out.weight\" is missing")));
}

TEST(Checkpoint, NamesAMissingShard) {
  TestFolder folder;
  folder.CopyAllFrom("tests/golden/concat_l2_sharded");
  std::filesystem::remove(folder.File("model-00002-of-00003.safetensors"));
  EXPECT_THAT(ErrorOf(folder.path()), HasSubstr("\"model-00002-of-00003.safetensors\""));
}

TEST(Checkpoint, NamesExpectedAndFoundShape) {
  TestFolder folder;
  folder.CopyAllFrom("tests/golden/concat_l4");
  auto config = nlohmann::json::parse(folder.Read("config.json"));
  config["block_decoder"]["intermediate_size"] = 320;
  folder.Write("config.json", config.dump());
  EXPECT_THAT(ErrorOf(folder.path()),
              AllOf(HasSubstr("\"block_decoder.gpt_neox.layers.0.mlp.dense_h_to_4h.weight\""),
                    HasSubstr("has shape [256, 64]"), HasSubstr("[320, 64]")));
}

TEST(Checkpoint, NamesAWrongDtype) {
  TestFolder folder;
  folder.CopyAllFrom("tests/golden/concat_l4");
  ReplaceInHeader(folder, "\"F32\"", "\"I32\"");
  EXPECT_THAT(ErrorOf(folder.path()),
              AllOf(HasSubstr("\"embedder.embeddings.weight\""), HasSubstr("dtype I32")));
}

TEST(Checkpoint, RefusesAModelOfTheOtherKind) {
  TestFolder folder;
  folder.CopyAllFrom("tests/golden/concat_l4");
  folder.Write("config.json", [] {
    std::ifstream file("tests/golden/vanilla/config.json");
    return std::string(std::istreambuf_iterator<char>(file), {});
  }());
  EXPECT_THAT(ErrorOf(folder.path()), HasSubstr("\"gpt_neox.embed_in.weight\" is missing"));
}

TEST(Checkpoint, IsNotFoundWithoutFiles) {
  EXPECT_EQ(Checkpoint::Open("tests/golden/absent").status().code(), absl::StatusCode::kNotFound);
  TestFolder folder;
  folder.CopyAllFrom("tests/golden/concat_l4");
  std::filesystem::remove(folder.File("model.safetensors"));
  EXPECT_EQ(Checkpoint::Open(folder.path()).status().code(), absl::StatusCode::kNotFound);
}

TEST(IsStoredInBf16, OnlyWhereEveryNeededTensorIs) {
  TestFolder folder;
  folder.CopyAllFrom("tests/golden/projection_layer_f16");
  EXPECT_FALSE(IsStoredInBf16(*Open(folder.path())));
  ReplaceInHeader(folder, "\"F16\"", "\"BF16\"");
  EXPECT_TRUE(IsStoredInBf16(*Open(folder.path())));
}

}  // namespace
}  // namespace blockserve
