#include "kernels/cuda/runtime.h"

#include "kernels/cuda/device_test_util.h"
#include "kernels/cuda/row_kernels.h"

namespace blockserve::cuda {
namespace {

using Runtime = DeviceTest;

TEST_F(Runtime, MemoryIsZeroedAndCopiesComeBack) {
  absl::StatusOr<DeviceBuffer> buffer = DeviceBuffer::Allocate(1000);
  ASSERT_TRUE(buffer.ok()) << buffer.status();
  EXPECT_EQ(Download<uint8_t>(*buffer), std::vector<uint8_t>(1000, 0));
  const std::vector<int32_t> values = {1, 2, 3, 4};
  const DeviceBuffer from = Upload(values);
  const DeviceBuffer to = Upload(std::vector<int32_t>(4));
  ASSERT_TRUE(CopyOnDevice(to.data(), from.data(), 8, stream()).ok());
  EXPECT_EQ(Download<int32_t>(to), (std::vector<int32_t>{1, 2, 0, 0}));
  ASSERT_TRUE(FillZero(to.data(), 4, stream()).ok());
  EXPECT_EQ(Download<int32_t>(to), (std::vector<int32_t>{0, 2, 0, 0}));
}

TEST_F(Runtime, MoreMemoryThanThereIsIsRefusedAndTheDeviceLives) {
  const absl::StatusOr<DeviceBuffer> buffer = DeviceBuffer::Allocate(int64_t{1} << 50);
  EXPECT_EQ(buffer.status().code(), absl::StatusCode::kResourceExhausted);
  EXPECT_TRUE(DeviceBuffer::Allocate(16).ok());
}

TEST_F(Runtime, ADeviceThatIsNotThereIsNotFound) {
  EXPECT_EQ(GetDeviceInfo(1000).status().code(), absl::StatusCode::kNotFound);
  EXPECT_EQ(GetDeviceInfo(-1).status().code(), absl::StatusCode::kNotFound);
}

TEST_F(Runtime, AStreamWaitsForAnotherOnesEvent) {
  absl::StatusOr<Stream> other = Stream::Create();
  absl::StatusOr<Event> event = Event::Create(true);
  absl::StatusOr<Event> end = Event::Create(true);
  absl::StatusOr<PinnedBuffer> pinned = PinnedBuffer::Allocate(4);
  ASSERT_TRUE(other.ok() && event.ok() && end.ok() && pinned.ok());
  const DeviceBuffer x = Upload(std::vector<float>(8, 1.0f));
  const DeviceBuffer y = Upload(std::vector<float>(8));
  // The copy that the other stream waits for comes after work of its own.
  ASSERT_TRUE(Gelu(ElementType::kF32, x.data(), 8, other->get()).ok());
  ASSERT_TRUE(event->Record(other->get()).ok());
  const Stream mine = *Stream::Create();
  ASSERT_TRUE(mine.Wait(*event).ok());
  ASSERT_TRUE(CopyOnDevice(y.data(), x.data(), 32, mine.get()).ok());
  ASSERT_TRUE(CopyToHost(pinned->data(), y.data(), 4, mine.get()).ok());
  ASSERT_TRUE(end->Record(mine.get()).ok());
  ASSERT_TRUE(end->Synchronize().ok());
  EXPECT_EQ(*end->Done(), true);
  EXPECT_TRUE(end->MillisecondsSince(*event).ok());
  EXPECT_NEAR(*pinned->as<float>(), 0.8413447f, 1e-6f);
}

TEST_F(Runtime, AGraphRunsWhatWasCapturedOverAndOver) {
  const DeviceBuffer x = Upload(std::vector<float>(8, 2.0f));
  absl::StatusOr<Stream> captured = Stream::Create();
  ASSERT_TRUE(captured.ok());
  // A kernel's first launch, which loads it, is not for a capture.
  const DeviceBuffer other = Upload(std::vector<float>(8));
  ASSERT_TRUE(Gelu(ElementType::kF32, other.data(), 8, captured->get()).ok());
  ASSERT_TRUE(captured->Synchronize().ok());
  ASSERT_TRUE(captured->BeginCapture().ok());
  ASSERT_TRUE(Gelu(ElementType::kF32, x.data(), 8, captured->get()).ok());
  ASSERT_TRUE(Gelu(ElementType::kF32, x.data(), 8, captured->get()).ok());
  absl::StatusOr<Graph> graph = captured->EndCapture();
  ASSERT_TRUE(graph.ok()) << graph.status();
  EXPECT_EQ(Download<float>(x)[0], 2.0f) << "nothing runs while it is captured";
  const auto gelu = [](double value) { return value / 2 * (1 + std::erf(value / std::sqrt(2.0))); };
  ASSERT_TRUE(graph->Launch(stream()).ok());
  EXPECT_NEAR(Download<float>(x)[0], gelu(gelu(2.0)), 1e-6);
  ASSERT_TRUE(graph->Launch(stream()).ok());
  EXPECT_NEAR(Download<float>(x)[7], gelu(gelu(gelu(gelu(2.0)))), 1e-6);
}

}  // namespace
}  // namespace blockserve::cuda
