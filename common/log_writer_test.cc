#include "common/log_writer.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/mman.h>
#include <unistd.h>

#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"

namespace blockserve {
namespace {

std::string TellLost(int64_t lost) { return absl::StrCat(lost, " lost\n"); }

// A pipe that holds 4096 bytes.
class LogWriterTest : public ::testing::Test {
 protected:
  void SetUp() override {
    int ends[2];
    ASSERT_EQ(pipe(ends), 0);
    read_end_ = ends[0];
    write_end_ = ends[1];
    ASSERT_EQ(fcntl(write_end_, F_SETPIPE_SZ, 4096), 4096);
  }
  void TearDown() override {
    close(read_end_);
    CloseWriteEnd();
  }
  void CloseWriteEnd() {
    if (write_end_ >= 0) close(write_end_);
    write_end_ = -1;
  }
  // All that comes until the last writer is gone: the thread of a LogWriter is one.
  std::string ReadToTheEnd() {
    CloseWriteEnd();
    std::string all;
    char buffer[4096];
    for (ssize_t got; (got = read(read_end_, buffer, sizeof(buffer))) > 0;) {
      all.append(buffer, static_cast<size_t>(got));
    }
    return all;
  }

  int read_end_ = -1;
  int write_end_ = -1;
};

TEST_F(LogWriterTest, WritesWhatItIsGivenInOrder) {
  {
    LogWriter writer(write_end_, TellLost);
    writer.Write("one\n");
    writer.Write("two\n");
    EXPECT_TRUE(writer.Flush(absl::Minutes(1)));
    writer.Write("three\n");
    EXPECT_EQ(writer.lost(), 0);
  }
  EXPECT_EQ(ReadToTheEnd(), "one\ntwo\nthree\n");
}

TEST_F(LogWriterTest, NobodyWaitsForAPipeThatNobodyReadsAndTheLinesLostAreTold) {
  constexpr int kLines = 10'000;
  auto writer = std::make_unique<LogWriter>(write_end_, TellLost, /*most_queued_bytes=*/16'384);
  // More than pipe and queue hold: to come to the end of this is what is shown.
  for (int i = 0; i < kLines; ++i) writer->Write(absl::StrCat(i, " of them\n"));
  EXPECT_FALSE(writer->Flush(absl::ZeroDuration()));
  const int64_t lost = writer->lost();
  EXPECT_GT(lost, 0);

  std::string read;
  std::thread reader([&] { read = ReadToTheEnd(); });
  EXPECT_TRUE(writer->Flush(absl::Minutes(1)));
  writer->Write("and on\n");
  writer.reset();
  reader.join();
  const std::vector<std::string> lines = absl::StrSplit(read, '\n', absl::SkipEmpty());
  int64_t next = 0;
  int64_t told = 0;
  for (const std::string& line : lines) {
    if (absl::EndsWith(line, " lost")) {
      told += std::stoll(line);
      next += std::stoll(line);
    } else if (line != "and on") {
      EXPECT_EQ(line, absl::StrCat(next++, " of them"));
    }
  }
  EXPECT_EQ(told, lost);
  EXPECT_EQ(next, kLines) << "a line is neither there nor told to be lost";
  EXPECT_EQ(lines.back(), "and on");
}

TEST_F(LogWriterTest, ItsEndDoesNotWaitForEverForAPipeThatNobodyReads) {
  {
    LogWriter writer(write_end_, TellLost);
    for (int i = 0; i < 1000; ++i) writer.Write("a line of a process that ends\n");
  }
  // What is left behind goes with the pipe, or is read after all.
  EXPECT_EQ(ReadToTheEnd().size(), 1000 * sizeof("a line of a process that ends"));
}

TEST_F(LogWriterTest, LinesThatCannotBeWrittenAreCounted) {
  const int full = open("/dev/full", O_WRONLY | O_CLOEXEC);
  ASSERT_GE(full, 0);
  LogWriter writer(full, TellLost);
  for (int i = 0; i < 3; ++i) {
    writer.Write("for a disk that is full\n");
    EXPECT_TRUE(writer.Flush(absl::Minutes(1)));
    EXPECT_EQ(writer.lost(), i + 1);
  }
  close(full);
}

TEST_F(LogWriterTest, ALineThatWasCutByAFullDiskIsNotOneWithTheNext) {
  // A file of one page that cannot grow.
  constexpr off_t kSize = 4096;
  const int file = memfd_create("log", MFD_CLOEXEC | MFD_ALLOW_SEALING);
  ASSERT_GE(file, 0);
  ASSERT_EQ(ftruncate(file, kSize), 0);
  ASSERT_EQ(fcntl(file, F_ADD_SEALS, F_SEAL_GROW), 0);
  LogWriter writer(file, TellLost);
  writer.Write(absl::StrCat(std::string(kSize + 100, 'x'), "\n"));
  EXPECT_TRUE(writer.Flush(absl::Minutes(1)));
  ASSERT_EQ(lseek(file, 0, SEEK_CUR), kSize) << "the line is cut at the end of the page";
  EXPECT_EQ(writer.lost(), 1);
  // Still full.
  writer.Write("neither this one\n");
  EXPECT_TRUE(writer.Flush(absl::Minutes(1)));
  EXPECT_EQ(writer.lost(), 2);
  // There is room again: at the beginning, for the writer has the same place in the file.
  ASSERT_EQ(lseek(file, 0, SEEK_SET), 0);
  writer.Write("the next\n");
  writer.Write("and another\n");
  EXPECT_TRUE(writer.Flush(absl::Minutes(1)));
  writer.Write("the last\n");
  EXPECT_TRUE(writer.Flush(absl::Minutes(1)));
  std::string text(static_cast<size_t>(lseek(file, 0, SEEK_CUR)), '\0');
  ASSERT_EQ(pread(file, text.data(), text.size(), 0), static_cast<ssize_t>(text.size()));
  std::vector<std::string> lines = absl::StrSplit(text, '\n');
  // Where it stands depends on whether the thread came between the two lines.
  EXPECT_EQ(std::erase(lines, "2 lost"), 1u);
  EXPECT_EQ(lines, (std::vector<std::string>{"", "the next", "and another", "the last", ""}));
  EXPECT_EQ(writer.lost(), 2);
  close(file);
}

TEST_F(LogWriterTest, ThreadsWriteWholeLines) {
  {
    LogWriter writer(write_end_, TellLost);
    std::vector<std::thread> threads;
    for (int i = 0; i < 4; ++i) {
      threads.emplace_back([&] {
        for (int line = 0; line < 20; ++line) writer.Write("a whole line\n");
      });
    }
    for (std::thread& thread : threads) thread.join();
  }
  const std::string all = ReadToTheEnd();
  EXPECT_EQ(all.size(), 80 * (sizeof("a whole line")));
  for (const absl::string_view line : absl::StrSplit(all, '\n', absl::SkipEmpty())) {
    EXPECT_EQ(line, "a whole line");
  }
}

TEST_F(LogWriterTest, ALastLineIsWrittenUnlessItWouldMeanToWait) {
  WriteLineWithin(write_end_, "the last one\n", absl::Seconds(1));
  const std::string filler(4096 - sizeof("the last one"), 'x');
  ASSERT_EQ(write(write_end_, filler.data(), filler.size()), static_cast<ssize_t>(filler.size()));
  WriteLineWithin(write_end_, "not this one\n", absl::Milliseconds(1));
  EXPECT_EQ(ReadToTheEnd(), absl::StrCat("the last one\n", filler));
}

}  // namespace
}  // namespace blockserve
