#include "model/safetensors.h"

#include <cstring>
#include <string>
#include <utility>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "model/model_folder_for_test.h"

namespace blockserve {
namespace {

using ::testing::AllOf;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::StartsWith;

absl::StatusOr<std::vector<TensorView>> Parse(const std::string& file) {
  return ParseSafetensors(
      absl::MakeConstSpan(reinterpret_cast<const uint8_t*>(file.data()), file.size()),
      "m.safetensors");
}

void ExpectRefused(const std::string& file, const char* message) {
  const auto views = Parse(file);
  ASSERT_FALSE(views.ok());
  EXPECT_EQ(views.status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(views.status().message()),
              AllOf(StartsWith("m.safetensors: "), HasSubstr(message)));
}

TEST(Safetensors, ReadsTensorsOfEveryKind) {
  const std::string file = SafetensorsBytes(
      R"({"__metadata__": {"format": "pt"},
          "b": {"dtype": "BF16", "shape": [2, 1], "data_offsets": [9, 13]},
          "a": {"dtype": "F32", "shape": [], "data_offsets": [0, 4]},
          "e": {"dtype": "F16", "shape": [3, 0], "data_offsets": [4, 4]},
          "m": {"dtype": "BOOL", "shape": [5], "data_offsets": [4, 9]},
          "x": {"dtype": "F6_E2M3", "shape": [4], "data_offsets": [13, 16]}}   )",
      "0123456789abcdef");
  const auto views = Parse(file);
  ASSERT_TRUE(views.ok()) << views.status();
  ASSERT_EQ(views->size(), 5u);
  EXPECT_EQ((*views)[0].name, "a");
  EXPECT_EQ((*views)[0].dtype, DType::kF32);
  EXPECT_TRUE((*views)[0].shape.empty());
  EXPECT_EQ((*views)[0].num_elements(), 1);
  EXPECT_EQ((*views)[1].dtype, DType::kBF16);
  EXPECT_THAT((*views)[1].shape, ElementsAre(2, 1));
  EXPECT_EQ(std::memcmp((*views)[1].data.data(), "9abc", 4), 0);
  EXPECT_EQ((*views)[2].num_elements(), 0);
  EXPECT_EQ((*views)[3].dtype, DType::kOther);
  EXPECT_EQ((*views)[3].dtype_name, "BOOL");
  EXPECT_EQ((*views)[4].dtype, DType::kOther);
}

TEST(Safetensors, ReadsAFileWithoutTensors) {
  const auto views = Parse(SafetensorsBytes("{}", ""));
  ASSERT_TRUE(views.ok()) << views.status();
  EXPECT_TRUE(views->empty());
}

TEST(Safetensors, RefusesFilesCutShort) {
  const std::string file = SafetensorsBytes(
      R"({"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}})", "01234567");
  ASSERT_TRUE(Parse(file).ok());
  for (size_t size = 0; size < file.size(); ++size) {
    EXPECT_EQ(Parse(file.substr(0, size)).status().code(), absl::StatusCode::kInvalidArgument)
        << size;
  }
  ExpectRefused(file.substr(0, 5), "has 5 bytes");
  ExpectRefused(file.substr(0, file.size() - 1), "tensor \"a\": data_offsets [0, 8] lie beyond");
}

TEST(Safetensors, RefusesHeadersThatDoNotFit) {
  ExpectRefused(std::string(8, '\xFF') + "{}", "header's length is 18446744073709551615");
  ExpectRefused(std::string("\x03\0\0\0\0\0\0\0{}", 10), "header's length is 3");
  ExpectRefused(SafetensorsBytes("not json", ""), "not valid JSON");
  ExpectRefused(SafetensorsBytes("[]", ""), "is an array");
  ExpectRefused(SafetensorsBytes(std::string(100000, '['), ""), "nested deeper");
}

struct BadEntry {
  const char* name;
  const char* header;
  const char* message;
};

class RefusedSafetensors : public ::testing::TestWithParam<BadEntry> {};
TEST_P(RefusedSafetensors, NamesTheTensor) {
  ExpectRefused(SafetensorsBytes(GetParam().header, "01234567"), GetParam().message);
}

INSTANTIATE_TEST_SUITE_P(
    Each, RefusedSafetensors,
    ::testing::Values(
        BadEntry{"DuplicateKey",
                 R"({"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]},
                     "a": {"dtype": "F32", "shape": [1], "data_offsets": [4, 8]}})",
                 "\"a\" stands twice"},
        BadEntry{"NotAnObject", R"({"a": 5})", "tensor \"a\": is an integer"},
        BadEntry{"NoDtype", R"({"a": {"shape": [2], "data_offsets": [0, 8]}})",
                 "tensor \"a\": dtype"},
        BadEntry{"DtypeType", R"({"a": {"dtype": 32, "shape": [2], "data_offsets": [0, 8]}})",
                 "tensor \"a\": dtype"},
        BadEntry{"NoShape", R"({"a": {"dtype": "F32", "data_offsets": [0, 8]}})",
                 "tensor \"a\": shape"},
        BadEntry{"NegativeShape",
                 R"({"a": {"dtype": "F32", "shape": [-2], "data_offsets": [0, 8]}})",
                 "shape holds -2"},
        BadEntry{"FractionShape",
                 R"({"a": {"dtype": "F32", "shape": [2.0], "data_offsets": [0, 8]}})",
                 "shape holds 2.0"},
        BadEntry{
            "HugeDimension",
            R"({"a": {"dtype": "F32", "shape": [9223372036854775808], "data_offsets": [0, 8]}})",
            "shape holds 9223372036854775808"},
        BadEntry{"OverflowingShape",
                 R"({"a": {"dtype": "F32", "shape": [4294967296, 4294967296, 2],
                           "data_offsets": [0, 8]}})",
                 "more elements than can be counted"},
        BadEntry{"OverflowingBytes",
                 R"({"a": {"dtype": "F32", "shape": [4611686018427387906],
                           "data_offsets": [0, 8]}})",
                 "needs 4611686018427387906 x 4"},
        BadEntry{"NoOffsets", R"({"a": {"dtype": "F32", "shape": [2]}})", "data_offsets"},
        BadEntry{"OneOffset", R"({"a": {"dtype": "F32", "shape": [2], "data_offsets": [0]}})",
                 "data_offsets"},
        BadEntry{"NegativeOffset",
                 R"({"a": {"dtype": "F32", "shape": [2], "data_offsets": [-8, 0]}})",
                 "data_offsets"},
        BadEntry{"FirstOffsetType",
                 R"({"a": {"dtype": "F32", "shape": [2], "data_offsets": ["0", 8]}})",
                 "data_offsets is not an array of two integers"},
        BadEntry{"SecondOffsetType",
                 R"({"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8.0]}})",
                 "data_offsets is not an array of two integers"},
        BadEntry{"Backwards", R"({"a": {"dtype": "F32", "shape": [2], "data_offsets": [8, 0]}})",
                 "run backwards"},
        BadEntry{"Beyond", R"({"a": {"dtype": "F32", "shape": [2], "data_offsets": [4, 12]}})",
                 "lie beyond"},
        BadEntry{"FarBeyond",
                 R"({"a": {"dtype": "F32", "shape": [2],
                           "data_offsets": [18446744073709551607, 18446744073709551615]}})",
                 "lie beyond"},
        BadEntry{"Size", R"({"a": {"dtype": "F32", "shape": [3], "data_offsets": [0, 8]}})",
                 "has 8 bytes; shape [3] of F32 needs 3 x 4"},
        BadEntry{"Overlap",
                 R"({"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]},
                     "b": {"dtype": "F32", "shape": [1], "data_offsets": [4, 8]}})",
                 "tensor \"b\": overlaps \"a\""},
        BadEntry{"Gap",
                 R"({"a": {"dtype": "F16", "shape": [1], "data_offsets": [0, 2]},
                     "b": {"dtype": "F32", "shape": [1], "data_offsets": [4, 8]}})",
                 "tensor \"b\": leaves a gap of 2 bytes after \"a\""},
        BadEntry{"GapInFront", R"({"b": {"dtype": "F32", "shape": [1], "data_offsets": [4, 8]}})",
                 "leaves a gap of 4 bytes"},
        BadEntry{"Rest", R"({"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}})",
                 "4 bytes follow the last tensor"}),
    [](const auto& info) { return std::string(info.param.name); });

constexpr char kHeaderA[] = R"({"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}})";
constexpr char kHeaderBC[] = R"({"b": {"dtype": "F16", "shape": [2], "data_offsets": [0, 4]},
                                 "c": {"dtype": "U8", "shape": [4], "data_offsets": [4, 8]}})";

TEST(SafetensorsSet, PrefersTheSingleFile) {
  TestFolder folder;
  folder.Write("model.safetensors", SafetensorsBytes(kHeaderA, "0123"));
  folder.Write("model.safetensors.index.json", "broken");
  const auto set = SafetensorsSet::OpenDirectory(folder.path());
  ASSERT_TRUE(set.ok()) << set.status();
  EXPECT_THAT(set->Names(), ElementsAre("a"));
  EXPECT_EQ(set->FileOf("a"), folder.File("model.safetensors"));
  EXPECT_EQ(set->FileOf("absent"), folder.File("model.safetensors"));
  EXPECT_EQ(set->Find("absent"), nullptr);
}

TEST(SafetensorsSet, ReadsTheTensorsThatTheIndexNames) {
  TestFolder folder;
  folder.Write("one.safetensors", SafetensorsBytes(kHeaderA, "0123"));
  folder.Write("two.safetensors", SafetensorsBytes(kHeaderBC, "456789AB"));
  folder.Write("model.safetensors.index.json",
               R"({"weight_map": {"c": "two.safetensors", "a": "one.safetensors"}})");
  auto opened = SafetensorsSet::OpenDirectory(folder.path());
  ASSERT_TRUE(opened.ok()) << opened.status();
  const TensorView* before = opened->Find("c");
  const SafetensorsSet set = *std::move(opened);
  EXPECT_THAT(set.Names(), ElementsAre("a", "c"));
  EXPECT_EQ(set.Find("c"), before);
  EXPECT_EQ(set.FileOf("c"), folder.File("two.safetensors"));
  EXPECT_EQ(set.FileOf("b"), folder.File("model.safetensors.index.json"));
  set.ReleasePages();
  EXPECT_EQ(std::memcmp(set.Find("c")->data.data(), "89AB", 4), 0);
}

TEST(SafetensorsSet, NamesWhatIsWrongWithAnIndex) {
  TestFolder folder;
  folder.Write("one.safetensors", SafetensorsBytes(kHeaderA, "0123"));
  const std::pair<const char*, const char*> cases[] = {
      {"{", "not valid JSON"},
      {"[]", "weight_map is missing"},
      {R"({"weight_map": []})", "weight_map is missing or not an object"},
      {R"({"weight_map": {"a": 1}})", "tensor \"a\": its shard is an integer"},
      {R"({"weight_map": {"a": "../one.safetensors"}})", "not a plain file name"},
      {R"({"weight_map": {"a": ""}})", "not a plain file name"},
      {R"({"weight_map": {"a": ".."}})", "not a plain file name"},
      {R"({"weight_map": {"a": "one.safetensors\u0000"}})", "not a plain file name"},
      {R"({"weight_map": {"a": "three.safetensors"}})",
       "shard \"three.safetensors\", which is missing"},
      {R"({"weight_map": {"b": "one.safetensors"}})",
       "tensor \"b\": is not in its shard \"one.safetensors\""},
  };
  for (const auto& [index, message] : cases) {
    folder.Write("model.safetensors.index.json", index);
    const auto set = SafetensorsSet::OpenDirectory(folder.path());
    ASSERT_FALSE(set.ok()) << index;
    EXPECT_EQ(set.status().code(), absl::StatusCode::kInvalidArgument);
    EXPECT_THAT(std::string(set.status().message()),
                AllOf(StartsWith(folder.File("model.safetensors.index.json")), HasSubstr(message)));
  }
}

TEST(SafetensorsSet, RefusesWhatIsNoFile) {
  TestFolder folder;
  EXPECT_EQ(SafetensorsSet::OpenDirectory(folder.path()).status().code(),
            absl::StatusCode::kNotFound);
  EXPECT_EQ(SafetensorsSet::OpenFile(folder.path()).status().code(),
            absl::StatusCode::kInvalidArgument);
  folder.Write("model.safetensors", "");
  EXPECT_EQ(SafetensorsSet::OpenDirectory(folder.path()).status().code(),
            absl::StatusCode::kInvalidArgument);
}

}  // namespace
}  // namespace blockserve
