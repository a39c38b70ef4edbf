#include "common/memory_limit.h"

#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>

namespace blockserve {
namespace {

class MemoryLimitTest : public ::testing::Test {
 protected:
  MemoryLimitTest() { Write("/proc/meminfo", "MemTotal:       2048 kB\nMemFree:        1 kB\n"); }
  ~MemoryLimitTest() override { std::filesystem::remove_all(root_); }

  void Write(const std::string& path, const std::string& content) {
    const std::filesystem::path file = root_ + path;
    std::filesystem::create_directories(file.parent_path());
    std::ofstream(file) << content;
  }

  const std::string root_ = ::testing::TempDir() + "memory_limit_" +
                            ::testing::UnitTest::GetInstance()->current_test_info()->name();
};

TEST_F(MemoryLimitTest, IsTheMachinesWithoutGroups) {
  EXPECT_EQ(MemoryLimitBytes(root_), 2048 << 10);
}

TEST_F(MemoryLimitTest, IsThatOfTheGroupOrOfOneAroundIt) {
  Write("/proc/self/cgroup", "0::/system.slice/blockserve.service\n");
  Write("/sys/fs/cgroup/system.slice/blockserve.service/memory.max", "max\n");
  EXPECT_EQ(MemoryLimitBytes(root_), 2048 << 10);
  Write("/sys/fs/cgroup/system.slice/memory.max", "1000000\n");
  EXPECT_EQ(MemoryLimitBytes(root_), 1000000);
  Write("/sys/fs/cgroup/system.slice/blockserve.service/memory.max", "900000\n");
  EXPECT_EQ(MemoryLimitBytes(root_), 900000);
}

TEST_F(MemoryLimitTest, IsTheContainersWhereThePathIsTheHosts) {
  Write("/proc/self/cgroup", "3:cpu,cpuacct:/kubepods/a\n2:memory:/kubepods/a\n0::/\n");
  Write("/sys/fs/cgroup/memory/memory.limit_in_bytes", "500000\n");
  EXPECT_EQ(MemoryLimitBytes(root_), 500000);
}

TEST_F(MemoryLimitTest, NoLimitOfVersion1IsANumber) {
  Write("/proc/self/cgroup", "2:memory:/\n");
  Write("/sys/fs/cgroup/memory/memory.limit_in_bytes", "9223372036854771712\n");
  EXPECT_EQ(MemoryLimitBytes(root_), 2048 << 10);
}

TEST_F(MemoryLimitTest, OfThisProcessIsThere) {
  EXPECT_GT(MemoryLimitBytes(), 16 << 20);
  EXPECT_LT(MemoryLimitBytes(), (int64_t{1} << 46) - 1);
}

TEST_F(MemoryLimitTest, IsAnAddressSpaceWhereNothingTells) {
  EXPECT_EQ(MemoryLimitBytes(root_ + "/nowhere"), (int64_t{1} << 46) - 1);
}

}  // namespace
}  // namespace blockserve
