#include "common/prepare_process.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <unistd.h>

#include <csignal>
#include <cstdlib>
#include <filesystem>
#include <new>
#include <stdexcept>
#include <string>
#include <system_error>
#include <thread>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace blockserve {
namespace {

TEST(PrepareProcessDeathTest, AMappedFileThatIsCutShortIsNamedAsTheReason) {
  const std::string path =
      (std::filesystem::path(::testing::TempDir()) / "prepare_process_test").string();
  EXPECT_EXIT(
      {
        PrepareProcess();
        const int file = open(path.c_str(), O_RDWR | O_CREAT | O_TRUNC, 0600);
        if (ftruncate(file, 4096) != 0) _exit(1);
        const auto* byte =
            static_cast<const volatile char*>(mmap(nullptr, 4096, PROT_READ, MAP_PRIVATE, file, 0));
        if (ftruncate(file, 0) != 0) _exit(1);
        _exit(*byte);
      },
      ::testing::KilledBySignal(SIGBUS), "a mapped file");
  std::filesystem::remove(path);
}

TEST(PrepareProcessDeathTest, WhatIsRefusedIsNamedAsTheReason) {
  const auto end = [](const auto& error) {
    PrepareProcess();
    std::thread([error] { throw error; }).join();
  };
  EXPECT_EXIT(end(std::bad_alloc()), ::testing::KilledBySignal(SIGABRT), "no memory");
  const auto again = std::make_error_code(std::errc::resource_unavailable_try_again);
  EXPECT_EXIT(end(std::system_error(again)), ::testing::KilledBySignal(SIGABRT), "no thread");
  EXPECT_EXIT(end(std::runtime_error("why")), ::testing::KilledBySignal(SIGABRT), "ends: why");
}

// Libraries that get none end the process by these.
TEST(PrepareProcessDeathTest, AFaultOrAnAbortWithoutMemoryIsNamedAsThat) {
  const auto end = [](int signal) {
    PrepareProcess();
    const rlimit none = {0, 0};
    if (setrlimit(RLIMIT_AS, &none) != 0) _exit(0);
    raise(signal);
  };
  EXPECT_DEATH(end(SIGSEGV), "this process ends: it gets no memory");
  EXPECT_DEATH(end(SIGABRT), "this process ends: it gets no memory");
}

TEST(PrepareProcessDeathTest, AFaultOrAnAbortWithMemoryIsNotExplained) {
  const auto end = [](int signal) {
    PrepareProcess();
    raise(signal);
  };
  const auto not_explained = ::testing::Not(::testing::HasSubstr("this process ends"));
  EXPECT_DEATH(end(SIGSEGV), not_explained);
  EXPECT_DEATH(end(SIGABRT), not_explained);
}

}  // namespace
}  // namespace blockserve
