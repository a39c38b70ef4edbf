// Model folders written by tests, to be broken in one place each.
#ifndef BLOCKSERVE_MODEL_MODEL_FOLDER_FOR_TEST_H_
#define BLOCKSERVE_MODEL_MODEL_FOLDER_FOR_TEST_H_

#include <unistd.h>

#include <cstdint>
#include <filesystem>
#include <fstream>
#include <string>

#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"
#include "gtest/gtest.h"

namespace blockserve {

// A folder of the running test's own, empty at first and removed at the end.
class TestFolder {
 public:
  TestFolder() {
    const auto* info = ::testing::UnitTest::GetInstance()->current_test_info();
    std::string name = absl::StrCat(info->test_suite_name(), ".", info->name());
    for (char& c : name) {
      if (c == '/') c = '-';
    }
    path_ = absl::StrCat(::testing::TempDir(), "/", getpid(), "-", name);
    std::filesystem::remove_all(path_);
    std::filesystem::create_directories(path_);
  }
  ~TestFolder() {
    std::error_code ignored;
    std::filesystem::remove_all(path_, ignored);
  }
  TestFolder(const TestFolder&) = delete;
  TestFolder& operator=(const TestFolder&) = delete;

  const std::string& path() const { return path_; }
  std::string File(absl::string_view name) const { return absl::StrCat(path_, "/", name); }
  void Write(absl::string_view name, absl::string_view contents) const {
    std::ofstream(File(name), std::ios::binary)
        .write(contents.data(), static_cast<std::streamsize>(contents.size()));
  }
  void CopyAllFrom(const std::string& folder) const {
    for (const auto& entry : std::filesystem::directory_iterator(folder)) {
      const std::string name = entry.path().filename().string();
      // Not `copy`: the originals may be read-only, and their mode would come along.
      std::ifstream from(entry.path(), std::ios::binary);
      std::ofstream(File(name), std::ios::binary) << from.rdbuf();
    }
  }
  std::string Read(absl::string_view name) const {
    std::ifstream file(File(name), std::ios::binary);
    return std::string(std::istreambuf_iterator<char>(file), {});
  }

 private:
  std::string path_;
};

// A safetensors file of this header and these bytes of data.
inline std::string SafetensorsBytes(absl::string_view header, absl::string_view data) {
  std::string file;
  for (int i = 0; i < 8; ++i) {
    file.push_back(static_cast<char>((uint64_t{header.size()} >> (8 * i)) & 0xFF));
  }
  return absl::StrCat(file, header, data);
}

}  // namespace blockserve

#endif  // BLOCKSERVE_MODEL_MODEL_FOLDER_FOR_TEST_H_
