// For tests of device code: the same source runs on a device and, with BLOCKSERVE_CUDA_EMULATED, on
// the emulation, where every kernel runs in three orders of its threads (OrderCheck).
#ifndef BLOCKSERVE_KERNELS_CUDA_DEVICE_TEST_UTIL_H_
#define BLOCKSERVE_KERNELS_CUDA_DEVICE_TEST_UTIL_H_

#include <cstdint>
#include <cstring>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "absl/types/span.h"
#include "common/bf16.h"
#include "gtest/gtest.h"
#include "kernels/cuda/element_type.h"
#include "kernels/cuda/runtime.h"
#ifdef BLOCKSERVE_CUDA_EMULATED
#include "kernels/cuda/emulation/emulator.h"
#endif

namespace blockserve::cuda {

inline constexpr double kEpsilon = 0x1p-24;  // half a unit in the last place of 1

// Skips, with the reason, where there is no device.
class DeviceTest : public testing::Test {
 protected:
  void SetUp() override {
    const absl::StatusOr<DeviceInfo> device = GetDeviceInfo(0);
    if (!device.ok()) GTEST_SKIP() << "no CUDA device: " << device.status().message();
    absl::StatusOr<Stream> stream = Stream::Create();
    ASSERT_TRUE(stream.ok()) << stream.status();
    stream_ = *std::move(stream);
  }

  StreamHandle stream() const { return stream_.get(); }
  void Finish() const {
    const absl::Status status = stream_.Synchronize();
    ASSERT_TRUE(status.ok()) << status;
  }

  // Device memory with these contents.
  template <typename T>
  DeviceBuffer Upload(const std::vector<T>& values) const {
    absl::StatusOr<DeviceBuffer> buffer =
        DeviceBuffer::Allocate(static_cast<int64_t>(values.size() * sizeof(T)));
    EXPECT_TRUE(buffer.ok()) << buffer.status();
    const absl::Status status =
        CopyToDevice(buffer->data(), values.data(), buffer->size_bytes(), stream());
    EXPECT_TRUE(status.ok()) << status;
    Finish();
    return *std::move(buffer);
  }
  template <typename T>
  std::vector<T> Download(const DeviceBuffer& buffer) const {
    std::vector<T> values(buffer.size_bytes() / sizeof(T));
    const absl::Status status =
        CopyToHost(values.data(), buffer.data(), buffer.size_bytes(), stream());
    EXPECT_TRUE(status.ok()) << status;
    Finish();
    return values;
  }

  // The same for elements that are stored as `type`.
  DeviceBuffer UploadAs(ElementType type, const std::vector<float>& values) const {
    if (type == ElementType::kF32) return Upload(values);
    std::vector<uint16_t> rounded(values.size());
    for (size_t i = 0; i < values.size(); ++i) rounded[i] = Bf16FromFloat(values[i]);
    return Upload(rounded);
  }
  std::vector<float> DownloadAs(ElementType type, const DeviceBuffer& buffer) const {
    if (type == ElementType::kF32) return Download<float>(buffer);
    std::vector<float> values;
    for (const uint16_t bits : Download<uint16_t>(buffer)) values.push_back(FloatFromBf16(bits));
    return values;
  }

 private:
#ifdef BLOCKSERVE_CUDA_EMULATED
  emulation::OrderCheck order_check_;
#endif
  Stream stream_;
};

// Over both element types.
class DeviceTypeTest : public DeviceTest, public testing::WithParamInterface<ElementType> {
 protected:
  ElementType type() const { return GetParam(); }
  bool bf16() const { return type() == ElementType::kBf16; }
  // A value as it is stored.
  float Stored(float value) const { return bf16() ? RoundToBf16(value) : value; }
  std::vector<float> Stored(std::vector<float> values) const {
    for (float& value : values) value = Stored(value);
    return values;
  }
  // What storing may change.
  double StorageError(double value) const { return bf16() ? 0x1p-8 * std::abs(value) : 0; }
};

inline std::string ElementTypeName(const testing::TestParamInfo<ElementType>& info) {
  return info.param == ElementType::kF32 ? "F32" : "Bf16";
}
#define BLOCKSERVE_OVER_ELEMENT_TYPES(suite)                                                     \
  INSTANTIATE_TEST_SUITE_P(Types, suite, testing::Values(ElementType::kF32, ElementType::kBf16), \
                           ElementTypeName)

inline std::vector<float> Normal(std::mt19937& random, int64_t count, float scale = 1.0f) {
  std::normal_distribution<float> distribution(0.0f, scale);
  std::vector<float> values(count);
  for (float& value : values) value = distribution(random);
  return values;
}

inline bool SameBits(absl::Span<const float> a, absl::Span<const float> b) {
  return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0;
}

// Rows [begin, begin + count) of rows of `stride` values.
template <typename T>
std::vector<T> Rows(const std::vector<T>& values, int64_t stride, int64_t begin, int64_t count) {
  return std::vector<T>(values.begin() + begin * stride, values.begin() + (begin + count) * stride);
}

}  // namespace blockserve::cuda

#endif  // BLOCKSERVE_KERNELS_CUDA_DEVICE_TEST_UTIL_H_
