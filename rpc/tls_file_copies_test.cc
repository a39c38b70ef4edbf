#include "rpc/tls_file_copies.h"

#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <iterator>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"

namespace blockserve {
namespace {

std::string Read(const std::string& path) {
  std::ifstream file(path);
  return std::string(std::istreambuf_iterator<char>(file), {});
}

// A pair can be used when both files end in the same letter.
absl::Status Agree(const std::vector<std::string>& paths) {
  const std::string a = Read(paths[0]), b = Read(paths[1]);
  if (!a.empty() && !b.empty() && a.back() == b.back()) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat(paths[0], " does not fit"));
}

class TlsFileCopiesTest : public ::testing::Test {
 protected:
  TlsFileCopiesTest() {
    Write(0, "certificate 1");
    Write(1, "key 1");
  }
  void Write(int i, const std::string& content) { std::ofstream(files_[i]) << content; }
  std::unique_ptr<TlsFileCopies> Make() {
    auto made = TlsFileCopies::Make({files_[0], files_[1], ""}, &Agree);
    EXPECT_TRUE(made.ok()) << made.status();
    return *std::move(made);
  }

  const std::vector<std::string> files_ = {::testing::TempDir() + "copied.crt",
                                           ::testing::TempDir() + "copied.key"};
};

TEST_F(TlsFileCopiesTest, AreTheFilesAtFirst) {
  const auto copies = Make();
  EXPECT_EQ(Read(copies->paths()[0]), "certificate 1");
  EXPECT_EQ(Read(copies->paths()[1]), "key 1");
  EXPECT_EQ(copies->paths()[2], "");
}

TEST_F(TlsFileCopiesTest, ChangeTogetherWhenTheFilesCanBeUsed) {
  const auto copies = Make();
  const std::vector<std::string> paths = copies->paths();
  Write(1, "key 2");
  copies->Look();
  EXPECT_EQ(Read(paths[1]), "key 1") << "the certificate is still the old one";
  Write(0, "certificate 2");
  copies->Look();
  EXPECT_EQ(Read(paths[0]), "certificate 2");
  EXPECT_EQ(Read(paths[1]), "key 2");
}

TEST_F(TlsFileCopiesTest, StayWhileTheFilesAreEmptyOrGone) {
  const auto copies = Make();
  Write(0, "");
  copies->Look();
  EXPECT_EQ(Read(copies->paths()[0]), "certificate 1");
  std::filesystem::remove(files_[0]);
  copies->Look();
  EXPECT_EQ(Read(copies->paths()[0]), "certificate 1");
  std::filesystem::create_directory(files_[0]);  // what a file that is mounted leaves, at times
  copies->Look();
  EXPECT_EQ(Read(copies->paths()[0]), "certificate 1");
  std::filesystem::remove(files_[0]);
  Write(0, "renewed 1");
  copies->Look();
  EXPECT_EQ(Read(copies->paths()[0]), "renewed 1");
}

TEST_F(TlsFileCopiesTest, WhatCannotBeUsedAtTheStartIsNamed) {
  Write(0, "certificate 2");
  const auto made = TlsFileCopies::Make({files_[0], files_[1]}, &Agree);
  ASSERT_FALSE(made.ok());
  EXPECT_TRUE(absl::StrContains(made.status().message(), files_[0])) << made.status();
}

}  // namespace
}  // namespace blockserve
