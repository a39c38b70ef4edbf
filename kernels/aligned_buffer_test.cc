#include "kernels/aligned_buffer.h"

#include <dlfcn.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <utility>

namespace blockserve {
namespace {

// Without huge pages, and with them.
constexpr size_t kSizes[] = {1, 1000, 65536, (size_t{2} << 20) + 3};

TEST(AlignedBuffer, IsZeroedAndBeginsAtAPage) {
  for (const size_t size : kSizes) {
    AlignedBuffer buffer(size);
    ASSERT_NE(buffer.data(), nullptr);
    EXPECT_EQ(buffer.size_bytes(), size);
    EXPECT_EQ(reinterpret_cast<uintptr_t>(buffer.data()) % 4096, 0u);
    EXPECT_TRUE(
        std::all_of(buffer.data(), buffer.data() + size, [](uint8_t byte) { return byte == 0; }));
    buffer.data()[size - 1] = 7;
    const AlignedBuffer moved = std::move(buffer);
    EXPECT_EQ(moved.data()[size - 1], 7);
  }
  EXPECT_EQ(AlignedBuffer().data(), nullptr);
  EXPECT_EQ(AlignedBuffer(0).data(), nullptr);
}

TEST(AlignedBuffer, AddressSanitizerKnowsItsEnd) {
  const auto is_poisoned = reinterpret_cast<int (*)(const volatile void*)>(
      dlsym(RTLD_DEFAULT, "__asan_address_is_poisoned"));
  if (is_poisoned == nullptr) GTEST_SKIP() << "this build has no AddressSanitizer";
  for (const size_t size : kSizes) {
    const uint8_t* data = nullptr;
    {
      const AlignedBuffer buffer(size);
      data = buffer.data();
      EXPECT_FALSE(is_poisoned(data + size - 1)) << size;
      // Of whole pages the next is another's, or nobody's.
      if (size % 65536 != 0) {
        EXPECT_TRUE(is_poisoned(data + size)) << size;
      }
    }
    EXPECT_FALSE(is_poisoned(data + size)) << size << ": whoever is given the pages next has all";
  }
}

}  // namespace
}  // namespace blockserve
