// What the CPU engines promise beyond engine_test.cc and engine_bits_test.cc.
#include <algorithm>
#include <cstring>
#include <memory>
#include <nlohmann/json.hpp>
#include <random>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "common/bf16.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "kernels/cpu/cpu_kernels.h"
#include "model/engine_test_util.h"
#include "model/model_folder_for_test.h"

namespace blockserve {
namespace {

using ::testing::HasSubstr;

class CpuTargets : public testing::TestWithParam<Arithmetic> {};

TEST_P(CpuTargets, AllGiveTheSameBits) {
  for (const char* folder :
       {"concat_l4", "concat_l2_sharded", "widths_differ_l8", "projection_layer_f16", "summation",
        "sequential_residual", "sum_embedder", "vanilla"}) {
    SCOPED_TRACE(folder);
    std::vector<float> expected;
    Generated generated;
    for (const KernelTarget target : SupportedKernelTargets()) {
      TestModelOptions options;
      options.arithmetic = GetParam();
      options.kernel_target = target;
      const std::unique_ptr<TestModel> model = LoadGolden(folder, options);
      ASSERT_NE(model, nullptr);
      std::mt19937 random(2);
      std::uniform_int_distribution<int32_t> ids(0, model->config().vocab_size - 1);
      std::vector<int32_t> tokens(int64_t{40} * model->config().block_length);
      for (int32_t& token : tokens) token = ids(random);
      const std::vector<int32_t> prompt(tokens.begin(), tokens.begin() + 9);
      const std::vector<float> contexts = *model->Prefill(tokens, 40);
      const Generated now = *model->Generate(Alignment::kStart, prompt, 24, {}, 1);
      if (expected.empty()) {
        expected = contexts;
        generated = now;
      }
      EXPECT_TRUE(SameBits(expected, contexts)) << KernelTargetName(target);
      EXPECT_EQ(generated.tokens, now.tokens) << KernelTargetName(target);
      EXPECT_TRUE(SameBits(generated.logprobs, now.logprobs)) << KernelTargetName(target);
      EXPECT_TRUE(SameBits(generated.logits, now.logits)) << KernelTargetName(target);
    }
  }
}

// Not kBf16Dot, whose bits are those of the machine's instruction.
INSTANTIATE_TEST_SUITE_P(Arithmetics, CpuTargets,
                         testing::Values(Arithmetic::kF32, Arithmetic::kBf16, Arithmetic::kInt8),
                         [](const testing::TestParamInfo<Arithmetic>& info) {
                           return TestName(info.param);
                         });

// The float32 tensors of `file` rounded to bfloat16, stored as BF16 or, widened again, as F32.
std::string RoundedToBf16(const std::string& file, bool stored_bf16) {
  uint64_t header_bytes = 0;
  std::memcpy(&header_bytes, file.data(), sizeof(header_bytes));
  nlohmann::ordered_json header = nlohmann::ordered_json::parse(file.substr(8, header_bytes));
  std::string data;
  for (auto& [name, tensor] : header.items()) {
    if (name == "__metadata__") continue;
    const uint64_t begin = tensor["data_offsets"][0], end = tensor["data_offsets"][1];
    const size_t new_begin = data.size();
    if (tensor["dtype"] != "F32") {  // a mask that no engine reads
      data.append(file, 8 + header_bytes + begin, end - begin);
      tensor["data_offsets"] = {new_begin, data.size()};
      continue;
    }
    for (uint64_t at = begin; at < end; at += sizeof(float)) {
      float value = 0;
      std::memcpy(&value, file.data() + 8 + header_bytes + at, sizeof(value));
      const uint16_t bits = Bf16FromFloat(value);
      const float wide = FloatFromBf16(bits);
      if (stored_bf16) {
        data.append(reinterpret_cast<const char*>(&bits), sizeof(bits));
      } else {
        data.append(reinterpret_cast<const char*>(&wide), sizeof(wide));
      }
    }
    if (stored_bf16) tensor["dtype"] = "BF16";
    tensor["data_offsets"] = {new_begin, data.size()};
  }
  return SafetensorsBytes(header.dump(), data);
}

// f32 keeps the weights of a BF16 file in half the memory.
TEST(CpuEngine, F32GivesTheSameBitsForABf16FileAsForItsNumbersInFloat32) {
  for (const char* name : {"concat_l4", "widths_differ_l8", "sum_embedder", "vanilla"}) {
    SCOPED_TRACE(name);
    TestFolder folder;
    folder.CopyAllFrom(absl::StrCat("tests/golden/", name));
    const std::string original = folder.Read("model.safetensors");
    for (const KernelTarget target : SupportedKernelTargets()) {
      SCOPED_TRACE(KernelTargetName(target));
      TestModelOptions options;
      options.kernel_target = target;
      std::vector<float> contexts[2];
      Generated generated[2];
      for (const bool stored_bf16 : {false, true}) {
        folder.Write("model.safetensors", RoundedToBf16(original, stored_bf16));
        const absl::StatusOr<std::unique_ptr<TestModel>> model =
            TestModel::Load(folder.path(), options);
        ASSERT_TRUE(model.ok()) << model.status();
        std::vector<int32_t> tokens(int64_t{40} * (*model)->config().block_length);
        for (size_t i = 0; i < tokens.size(); ++i) {
          tokens[i] = static_cast<int32_t>(i * 31) % (*model)->config().vocab_size;
        }
        contexts[stored_bf16] = *(*model)->Prefill(tokens, 40);
        generated[stored_bf16] =
            *(*model)->Generate(Alignment::kStart, absl::MakeSpan(tokens).first(9), 24, {}, 1);
      }
      EXPECT_TRUE(SameBits(contexts[0], contexts[1]));
      EXPECT_EQ(generated[0].tokens, generated[1].tokens);
      EXPECT_TRUE(SameBits(generated[0].logprobs, generated[1].logprobs));
      EXPECT_TRUE(SameBits(generated[0].logits, generated[1].logits));
    }
  }
}

TEST(CpuEngine, KvBytesPerPageIsWhatPagesTake) {
  TestModelOptions options;
  const std::unique_ptr<TestModel> f32 = LoadGolden("concat_l4", options);
  options.arithmetic = Arithmetic::kBf16;
  const std::unique_ptr<TestModel> bf16 = LoadGolden("concat_l4", options);
  ASSERT_NE(f32, nullptr);
  ASSERT_NE(bf16, nullptr);
  // 2 layers, keys and values, width 64.
  EXPECT_EQ(f32->block().KvBytesPerPage(16), 16 * 2 * 2 * 64 * 4);
  EXPECT_EQ(bf16->block().KvBytesPerPage(16), 16 * 2 * 2 * 64 * 2);
  // Keys lie in groups of 16 blocks once there are so many, values do not.
  EXPECT_EQ(f32->block().KvBytesPerPage(1), 2 * 2 * 64 * 4);
  EXPECT_EQ(f32->block().KvBytesPerPage(17), (32 + 17) * 2 * 64 * 4);
}

TEST(CpuEngine, Bf16DotIsRefusedWithoutItsInstructions) {
  TestModelOptions options;
  options.arithmetic = Arithmetic::kBf16Dot;
  options.kernel_target = SupportedKernelTargets().back();
  const absl::StatusOr<std::unique_ptr<TestModel>> model =
      TestModel::Load("tests/golden/concat_l4", options);
  EXPECT_EQ(model.status().code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(std::string(model.status().message()), HasSubstr("AVX512-BF16"));
}

TEST(CpuEngine, Bf16DotRefusesPagesOfAnOddNumberOfBlocks) {
  if (GetCpuKernels(SupportedKernelTargets().front()).bf16dot_attention == nullptr) {
    GTEST_SKIP() << "this machine has no AVX512-BF16";
  }
  TestModelOptions options;
  options.arithmetic = Arithmetic::kBf16Dot;
  options.page_blocks = 17;
  const absl::StatusOr<std::unique_ptr<TestModel>> model =
      TestModel::Load("tests/golden/concat_l4", options);
  EXPECT_EQ(model.status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(model.status().message()),
              HasSubstr("pages of 17 blocks: arithmetic bf16dot"));
}

TEST(CpuEngine, ArithmeticsHaveNumericIdsOfTheirOwn) {
  std::vector<std::string> ids;
  for (const Arithmetic arithmetic : {Arithmetic::kF32, Arithmetic::kBf16, Arithmetic::kInt8}) {
    TestModelOptions options;
    options.arithmetic = arithmetic;
    const std::unique_ptr<TestModel> model = LoadGolden("concat_l4", options);
    ASSERT_NE(model, nullptr);
    ids.push_back(*ProbeNumericId(model->token()));
    EXPECT_THAT(ids.back(), testing::StartsWith(absl::StrCat(ArithmeticName(arithmetic), "-")));
  }
  const auto hash = [](const std::string& id) { return id.substr(id.find('-')); };
  EXPECT_NE(hash(ids[0]), hash(ids[1]));
  EXPECT_NE(hash(ids[1]), hash(ids[2]));
}

TEST(CpuEngine, NumericIdsAreThoseOfEveryTarget) {
  TestModelOptions options;
  const std::unique_ptr<TestModel> first = LoadGolden("concat_l4", options);
  options.kernel_target = SupportedKernelTargets().back();
  const std::unique_ptr<TestModel> last = LoadGolden("concat_l4", options);
  ASSERT_NE(first, nullptr);
  ASSERT_NE(last, nullptr);
  EXPECT_EQ(*ProbeNumericId(first->block()), *ProbeNumericId(last->block()));
  EXPECT_EQ(*ProbeNumericId(first->token()), *ProbeNumericId(last->token()));
}

// Recorded once, for all machines and compilers: machines of several generations serve one request
// together, and so do two versions while one replaces the other. Who changes bits on purpose, those
// of draws among them, records anew what this prints.
TEST(CpuEngine, BitsAreThoseOfEveryMachine) {
  struct Recorded {
    const char* folder;
    Arithmetic arithmetic;
    const char* block;
    const char* token;
  };
  for (const Recorded& recorded : {
           Recorded{"concat_l4", Arithmetic::kF32, "f32-a5da3b555a8bf018", "f32-2b5ed764e5bf43cf"},
           Recorded{"concat_l4", Arithmetic::kBf16, "bf16-24104573292bb1c9",
                    "bf16-a27c8f112a480657"},
           Recorded{"concat_l4", Arithmetic::kInt8, "int8-ca4555e9a70aef7d",
                    "int8-8bd6381fd243ffb9"},
           Recorded{"widths_differ_l8", Arithmetic::kF32, "f32-f6b346af8127cebe",
                    "f32-586ffbc20aa86cd6"},
           Recorded{"widths_differ_l8", Arithmetic::kInt8, "int8-7bce81ea68c7a5f9",
                    "int8-53c5b0755bf2d38f"},
           Recorded{"vanilla", Arithmetic::kF32, "f32-7bcadab809827f61", "f32-22ad2b8574f1571c"},
           Recorded{"vanilla", Arithmetic::kBf16, "bf16-e141fe9dd40a1d26", "bf16-a6a5f454b1757bcf"},
       }) {
    SCOPED_TRACE(recorded.folder);
    TestModelOptions options;
    options.arithmetic = recorded.arithmetic;
    const std::unique_ptr<TestModel> model = LoadGolden(recorded.folder, options);
    ASSERT_NE(model, nullptr);
    EXPECT_EQ(*ProbeNumericId(model->block()), recorded.block);
    EXPECT_EQ(*ProbeNumericId(model->token()), recorded.token);
  }
}

TEST(CpuEngine, SampledTokensAndLogprobsAreThoseOfEveryMachine) {
  const std::unique_ptr<TestModel> model = LoadGolden("concat_l4", TestModelOptions());
  ASSERT_NE(model, nullptr);
  SamplingParameters sampling;
  sampling.temperature = 0.8f;
  sampling.top_p = 0.95f;
  const absl::StatusOr<Generated> generated =
      model->Generate(Alignment::kEnd, {17, 4, 211}, 12, sampling, 7);
  ASSERT_TRUE(generated.ok()) << generated.status();
  EXPECT_THAT(generated->tokens,
              testing::ElementsAre(137, 456, 169, 497, 344, 137, 326, 243, 137, 351, 188, 201));
  EXPECT_THAT(
      generated->logprobs,
      testing::ElementsAre(-0x1.7f3f6p+1f, -0x1.0c1fcp+2f, -0x1.237cfp+0f, -0x1.20793p-1f,
                           -0x1.a17bcap+1f, -0x1.63accap+0f, -0x1.c9845ap+1f, -0x1.0a0dacp+1f,
                           -0x1.fcc61ap-1f, -0x1.a74c6p-2f, -0x1.10cc92p+2f, -0x1.7e979cp-2f));
}

}  // namespace
}  // namespace blockserve
