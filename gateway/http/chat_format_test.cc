#include "gateway/http/chat_format.h"

#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <string>

#include "absl/strings/str_cat.h"

namespace blockserve {
namespace {

constexpr char kFormat[] = R"({
  "begin": "<s>",
  "roles": {
    "system": {"before": "[", "after": "]\n"},
    "user": {"before": "U: ", "after": "\n"},
    "assistant": {"before": "A: ", "after": "\n"}
  },
  "answer": "A:",
  "stop": ["\nU:"]
})";

TEST(ChatFormat, PutsTextBeforeAndAfterEachRole) {
  absl::StatusOr<ChatFormat> format = ChatFormat::Parse(kFormat, "f");
  ASSERT_TRUE(format.ok()) << format.status();
  const std::vector<ChatMessage> messages = {
      {"system", "be kind"}, {"user", "hi"}, {"assistant", "yo"}, {"user", "bye"}};
  EXPECT_EQ(format->Render(messages).value(), "<s>[be kind]\nU: hi\nA: yo\nU: bye\nA:");
  EXPECT_EQ(format->stop(), std::vector<std::string>{"\nU:"});
  EXPECT_EQ(format->Render(messages, ChatEnd::kAfterLastMessage).value(),
            "<s>[be kind]\nU: hi\nA: yo\nU: bye\n");
  EXPECT_EQ(
      format->Render(absl::MakeSpan(messages).subspan(0, 3), ChatEnd::kWithinLastMessage).value(),
      "<s>[be kind]\nU: hi\nA: yo");
  EXPECT_EQ(format->Render(std::vector<ChatMessage>{{"developer", "be kind"}}).value(),
            "<s>[be kind]\nA:");
  const std::vector<ChatMessage> with_tool = {{"user", "hi"}, {"tool", "x"}};
  EXPECT_EQ(format->Render(with_tool).status().message(),
            "messages[1].role: must be one of assistant, system, user");
}

TEST(ChatFormat, NamesFileAndFieldOfWhatIsWrong) {
  const auto refusal = [](absl::string_view json) {
    return std::string(ChatFormat::Parse(json, "f.json").status().message());
  };
  EXPECT_EQ(refusal("{}"), "f.json: roles: must be an object with at least one role");
  EXPECT_EQ(refusal(R"({"roles":{"user":{"befor":"x"}}})"),
            "f.json: roles.user.befor: is not known");
  EXPECT_EQ(refusal(R"({"roles":{"user":{"before":7}}})"),
            "f.json: roles.user.before: must be a string");
  EXPECT_EQ(refusal(R"({"roles":{"user":{}},"stop":[""]})"),
            "f.json: stop: must be a list of strings of 1 to 256 bytes");
  EXPECT_EQ(
      refusal(absl::StrCat(R"({"roles":{"user":{}},"stop":[")", std::string(257, 'x'), "\"]}")),
      "f.json: stop: must be a list of strings of 1 to 256 bytes");
  EXPECT_NE(refusal("{").find("f.json: body: is not valid JSON"), std::string::npos);
}

TEST(ChatFormat, AFolderWithAJinjaTemplateAloneIsToldApart) {
  const std::filesystem::path folder =
      std::filesystem::path(testing::TempDir()) / "chat_format_test";
  std::filesystem::remove_all(folder);
  std::filesystem::create_directories(folder);
  const absl::Status none = ChatFormat::Load(folder.string()).status();
  EXPECT_TRUE(absl::IsNotFound(none));
  EXPECT_EQ(none.message().find("Jinja"), absl::string_view::npos);
  std::ofstream(folder / "tokenizer_config.json") << R"({"chat_template":"{{ x }}"})";
  const absl::Status jinja = ChatFormat::Load(folder.string()).status();
  EXPECT_TRUE(absl::IsNotFound(jinja));
  EXPECT_NE(jinja.message().find("Jinja"), absl::string_view::npos);
  std::ofstream(folder / kChatFormatFile) << kFormat;
  EXPECT_TRUE(ChatFormat::Load(folder.string()).ok());
}

// One that is there and can't be read (as a folder can't) is no reason to serve without it.
TEST(ChatFormat, WhatCannotBeReadIsNotTakenForNone) {
  const std::filesystem::path folder = std::filesystem::path(testing::TempDir()) / "chat_folder";
  std::filesystem::create_directories(folder / kChatFormatFile);
  const absl::Status status = ChatFormat::Load(folder.string()).status();
  EXPECT_TRUE(absl::IsInvalidArgument(status));
  EXPECT_EQ(status.message(),
            absl::StrCat((folder / kChatFormatFile).string(), ": cannot be read: Is a directory"));
}

}  // namespace
}  // namespace blockserve
