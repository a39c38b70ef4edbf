#include "block_service/float_buffers.h"

#include <memory>
#include <thread>
#include <utility>
#include <vector>

#include "gtest/gtest.h"

namespace blockserve {
namespace {

TEST(FloatBuffers, WhatIsGivenBackIsUsedAgain) {
  FloatBuffers buffers;
  std::shared_ptr<float[]> first = buffers.Take(100);
  const float* const place = first.get();
  const std::shared_ptr<float[]> second = buffers.Take(100);
  EXPECT_NE(second.get(), place) << "it is in use";
  first.reset();
  EXPECT_EQ(buffers.Take(40).get(), place);
}

TEST(FloatBuffers, OneThatIsTooSmallIsReplaced) {
  FloatBuffers buffers;
  buffers.Take(10).reset();
  const std::shared_ptr<float[]> large = buffers.Take(1000);
  for (size_t i = 0; i < 1000; ++i) large[i] = 1;  // seen by the address sanitizer
}

TEST(FloatBuffers, ABufferMayOutliveThemAndBeGivenBackByAnotherThread) {
  std::shared_ptr<float[]> last;
  {
    FloatBuffers buffers;
    std::vector<std::thread> threads;
    for (int i = 0; i < 100; ++i) {
      std::shared_ptr<float[]> buffer = buffers.Take(64);
      buffer[0] = static_cast<float>(i);
      last = buffer;
      threads.emplace_back([i, buffer = std::move(buffer)] { EXPECT_EQ(buffer[0], i); });
    }
    for (std::thread& thread : threads) thread.join();
  }
  EXPECT_EQ(last[0], 99);
}

}  // namespace
}  // namespace blockserve
