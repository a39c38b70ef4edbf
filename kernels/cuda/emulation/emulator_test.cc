// That the emulation notices what it is there for: planted mistakes in small kernels.
#include "kernels/cuda/emulation/emulator.h"

#include <vector>

#include "gtest/gtest.h"
#include "kernels/cuda/device_math.h"
#include "kernels/cuda/emulation/device_memory.h"

namespace blockserve::cuda {
namespace {

__global__ void SumOfAWarp(float* y) {
  WaitForEarlierWork();
  y[threadIdx.x] = WarpSum(static_cast<float>(threadIdx.x));
}

__global__ void ReverseThroughSharedMemory(float* y, bool with_barrier) {
  WaitForEarlierWork();
  auto* shared = static_cast<float*>(BlockMemory());
  shared[threadIdx.x] = y[threadIdx.x];
  if (with_barrier) __syncthreads();
  y[threadIdx.x] = shared[blockDim.x - 1 - threadIdx.x];
}

__global__ void BarrierOfHalfTheThreads() {
  WaitForEarlierWork();
  if (threadIdx.x < 32) __syncthreads();
}

__global__ void ExchangeOfHalfAWarp(float* y) {
  WaitForEarlierWork();
  if (threadIdx.x < 16) y[threadIdx.x] = WarpSum(1.0f);
}

__global__ void BarriersAtDifferentLines() {
  WaitForEarlierWork();
  if (threadIdx.x < 32) {
    __syncthreads();
  } else {
    __syncthreads();
  }
}

__global__ void BlocksAddToEachOther(float* y) {
  WaitForEarlierWork();
  if (threadIdx.x == 0) y[0] = y[0] * 2.0f + static_cast<float>(blockIdx.x);
}

__global__ void WriteBeyondSharedMemory() {
  WaitForEarlierWork();
  static_cast<float*>(BlockMemory())[threadIdx.x] = 1;
}

__global__ void ReadUnwrittenSharedMemory(float* y) {
  WaitForEarlierWork();
  y[threadIdx.x] = static_cast<float*>(BlockMemory())[threadIdx.x];
}

__global__ void WriteAt(float* y, int at) {
  WaitForEarlierWork();
  if (threadIdx.x == 0) y[at] = 1.0f;
}

__global__ void LoadUnaligned(const float* y) {
  WaitForEarlierWork();
  float values[4];
  Load4(y + 1, values);
}

__global__ void CopyThroughSharedMemory(float* y, bool waits) {
  WaitForEarlierWork();
  auto* shared = static_cast<float*>(BlockMemory());
  const int lane = static_cast<int>(threadIdx.x);
  CopyAsync16(shared + lane * 4, y + lane * 4, lane < 8);
  CommitCopies();
  CopyAsync16(shared + 128 + lane * 4, y, true);
  CommitCopies();
  if (waits) WaitForCopies<1>();
  __syncwarp();
  for (int i = 0; i < 2; ++i) y[lane * 2 + i] = shared[63 - lane * 2 - i];
}

__global__ void EndWithoutWaiting(float* y) {
  if (threadIdx.x == 40) return;
  WaitForEarlierWork();
  y[threadIdx.x] = 1.0f;
}

__global__ void ReadBeforeWaiting(float* y, bool waits) {
  if (waits) WaitForEarlierWork();
  const float value = y[threadIdx.x];
  if (!waits) WaitForEarlierWork();
  y[threadIdx.x] = value + 1.0f;
}

__global__ void WriteBeforeWaiting(float* y) {
  y[threadIdx.x] = 1.0f;
  WaitForEarlierWork();
}

// y [16, 8] = x x^T of the first 8 of 16 rows, x [16, 16].
__global__ void ProductOfAWarp(const uint16_t* x, float* y) {
  WaitForEarlierWork();
  auto* shared = static_cast<uint16_t*>(BlockMemory());
  const int lane = static_cast<int>(threadIdx.x);
  for (int i = lane; i < 256; i += kWarp) shared[i] = x[i];
  __syncwarp();
  uint32_t b[4];
  LoadMatrices<false>(b, shared + lane % 8 * 16 + lane / 8 % 2 * 8);
  uint32_t a[4];
  const uint16_t* at = shared + lane / 4 * 16 + lane % 4 * 2;
  for (int j = 0; j < 4; ++j) {
    const uint16_t* pair = at + j % 2 * 128 + j / 2 * 8;
    a[j] = static_cast<uint32_t>(pair[0]) | static_cast<uint32_t>(pair[1]) << 16;
  }
  float d[4] = {0, 0, 0, 0};
  MultiplyAdd(d, a, b);
  for (int j = 0; j < 4; ++j) y[(lane / 4 + j / 2 * 8) * 8 + lane % 4 * 2 + j % 2] = d[j];
}

class Emulator : public testing::Test {
 protected:
  Emulator() : y_(*DeviceBuffer::Allocate(64 * sizeof(float))), stream_(*Stream::Create()) {
    for (int i = 0; i < 64; ++i) y_.as<float>()[i] = static_cast<float>(i);
  }
  template <typename Kernel, typename... Arguments>
  void Run(Kernel kernel, int blocks, int threads, int64_t shared_bytes, Arguments... arguments) {
    const absl::Status status = LaunchKernel("Planted", kernel, dim3(blocks), threads, shared_bytes,
                                             stream_.get(), arguments...);
    ASSERT_TRUE(status.ok()) << status;
    ASSERT_TRUE(stream_.Synchronize().ok());
  }
  float* y() const { return y_.as<float>(); }

  DeviceBuffer y_;
  Stream stream_;  // ends its work before the buffer goes
};
using EmulatorDeathTest = Emulator;

TEST_F(Emulator, LanesExchangeValues) {
  Run(SumOfAWarp, 1, 64, 0, y());
  for (int i = 0; i < 64; ++i) EXPECT_EQ(y()[i], i < 32 ? 496.0f : 1520.0f);
}

TEST_F(Emulator, ABarrierSeparatesWritesFromReads) {
  const emulation::OrderCheck check;
  Run(ReverseThroughSharedMemory, 1, 64, 256, y(), true);
  for (int i = 0; i < 64; ++i) EXPECT_EQ(y()[i], static_cast<float>(63 - i));
}

TEST_F(EmulatorDeathTest, AMissingBarrierIsFound) {
  const emulation::OrderCheck check;
  EXPECT_DEATH(Run(ReverseThroughSharedMemory, 1, 64, 256, y(), false),
               "kernel Planted: the result depends on the order");
}

TEST_F(EmulatorDeathTest, BlocksThatDependOnOneAnotherAreFound) {
  const emulation::OrderCheck check;
  EXPECT_DEATH(Run(BlocksAddToEachOther, 3, 32, 0, y()),
               "kernel Planted: the result depends on the order");
}

TEST_F(EmulatorDeathTest, ABarrierThatNotAllReachIsFound) {
  EXPECT_DEATH(Run(BarrierOfHalfTheThreads, 1, 64, 0),
               "kernel Planted: a barrier that not all of its threads reach");
  EXPECT_DEATH(Run(ExchangeOfHalfAWarp, 1, 32, 0, y()),
               "kernel Planted: a barrier that not all of its threads reach");
  EXPECT_DEATH(Run(BarriersAtDifferentLines, 1, 64, 0),
               "kernel Planted: threads of a block wait at different barriers");
}

TEST_F(EmulatorDeathTest, WritesBesideWhatWasAllocatedAreFound) {
  EXPECT_DEATH(Run(WriteBeyondSharedMemory, 1, 32, 31 * sizeof(float)),
               "kernel Planted: wrote beyond its shared memory");
  EXPECT_DEATH(
      {
        const DeviceBuffer small = *DeviceBuffer::Allocate(4);
        Run(WriteAt, 1, 32, 0, small.as<float>(), 1);
      },
      "byte 4 of an allocation of 4 was written");
  EXPECT_DEATH(
      {
        const DeviceBuffer small = *DeviceBuffer::Allocate(4);
        Run(WriteAt, 1, 32, 0, small.as<float>(), -1);
      },
      "of an allocation of 4 was written");
}

TEST_F(EmulatorDeathTest, AThreadThatDoesNotWaitForEarlierWorkIsFound) {
  EXPECT_DEATH(Run(EndWithoutWaiting, 1, 64, 0, y()),
               "kernel Planted: a thread ends without WaitForEarlierWork");
}

TEST_F(EmulatorDeathTest, AccessBeforeTheWaitForEarlierWorkIsFound) {
  const emulation::OrderCheck check;
  Run(ReadBeforeWaiting, 2, 32, 0, y(), true);
  EXPECT_EQ(y()[0], 2.0f);
  EXPECT_DEATH(Run(ReadBeforeWaiting, 1, 64, 0, y(), false),
               "memory read before WaitForEarlierWork");
  EXPECT_DEATH(Run(WriteBeforeWaiting, 1, 64, 0, y()),
               "kernel Planted: wrote before WaitForEarlierWork");
}

TEST_F(EmulatorDeathTest, UnalignedAccessIsFound) {
  EXPECT_DEATH(Run(LoadUnaligned, 1, 32, 0, y()), "kernel Planted: misaligned access of 16 bytes");
}

TEST_F(Emulator, SharedMemoryBeginsAsNaN) {
  Run(ReadUnwrittenSharedMemory, 1, 32, 128, y());
  for (int i = 0; i < 32; ++i) EXPECT_TRUE(std::isnan(y()[i]));
}

TEST_F(Emulator, CopiesArriveWhenTheyAreWaitedFor) {
  Run(CopyThroughSharedMemory, 1, 32, 1024, y(), true);
  for (int i = 0; i < 64; ++i) EXPECT_EQ(y()[i], i < 32 ? 0.0f : static_cast<float>(63 - i));
  Run(CopyThroughSharedMemory, 1, 32, 1024, y(), false);
  for (int i = 0; i < 64; ++i) EXPECT_TRUE(std::isnan(y()[i]));
}

TEST_F(Emulator, TensorCoresMultiply) {
  const DeviceBuffer x = *DeviceBuffer::Allocate(256 * 2);
  const DeviceBuffer product = *DeviceBuffer::Allocate(128 * 4);
  const auto value = [](int i) { return static_cast<float>(i * 37 % 31 - 15); };
  for (int i = 0; i < 256; ++i) x.as<uint16_t>()[i] = Bf16FromFloat(value(i));
  Run(ProductOfAWarp, 1, 32, 512, x.as<const uint16_t>(), product.as<float>());
  for (int i = 0; i < 128; ++i) {
    float expected = 0;
    for (int k = 0; k < 16; ++k) expected += value(i / 8 * 16 + k) * value(i % 8 * 16 + k);
    EXPECT_EQ(product.as<float>()[i], expected) << i;
  }
}

TEST_F(Emulator, LaunchesThatADeviceRefusesAreRefused) {
  const auto launch = [&](int blocks, int threads, int64_t shared_bytes) {
    return LaunchKernel("Planted", BarriersAtDifferentLines, dim3(blocks), threads, shared_bytes,
                        stream_.get())
        .code();
  };
  EXPECT_EQ(launch(0, 32, 0), absl::StatusCode::kInternal);
  EXPECT_EQ(launch(1, 2048, 0), absl::StatusCode::kInternal);
  EXPECT_EQ(launch(1, 32, 64 * 1024), absl::StatusCode::kInternal);
}

TEST_F(Emulator, WorkRunsWhenSomebodyWaitsForIt) {
  ASSERT_TRUE(LaunchKernel("WriteAt", WriteAt, dim3(1), 32, 0, stream_.get(), y(), 5).ok());
  EXPECT_EQ(y()[5], 5.0f);
  ASSERT_TRUE(stream_.Synchronize().ok());
  EXPECT_EQ(y()[5], 1.0f);
}

TEST_F(Emulator, ACaptureDoesNotLoadAKernel) {
  const auto launch = [&] {
    return LaunchKernel("Planted", BlocksAddToEachOther, dim3(1), 32, 0, stream_.get(), y()).code();
  };
  ASSERT_TRUE(stream_.BeginCapture().ok());
  EXPECT_EQ(launch(), absl::StatusCode::kInternal);
  ASSERT_TRUE(stream_.EndCapture().ok());
  EXPECT_EQ(launch(), absl::StatusCode::kOk);
  ASSERT_TRUE(stream_.BeginCapture().ok());
  EXPECT_EQ(launch(), absl::StatusCode::kOk);
  ASSERT_TRUE(stream_.EndCapture().ok());
}

TEST_F(Emulator, TheDeviceHasAsMuchMemoryAsATestSays) {
  const emulation::DeviceMemoryLimit limit(1024);
  EXPECT_EQ(GetDeviceInfo(0)->total_bytes, 1024);
  EXPECT_EQ(DeviceBuffer::Allocate(1024).status().code(), absl::StatusCode::kResourceExhausted);
  EXPECT_TRUE(DeviceBuffer::Allocate(512).ok());
}

}  // namespace
}  // namespace blockserve::cuda
