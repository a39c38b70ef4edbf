#include "kernels/cuda/runtime.h"

#include "kernels/cuda/device_test_util.h"
#include "kernels/cuda/matmul_tiles.h"
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

// A chain in which every kernel reads what the one before it writes, and writes what an earlier one
// reads: the residual stream of a layer's second half, over and over.
class EarlyLaunch : public DeviceTest {
 protected:
#ifdef BLOCKSERVE_CUDA_EMULATED
  static constexpr int64_t kRows = 20;
#else
  static constexpr int64_t kRows = 300;
#endif
  static constexpr int64_t kWidth = 64;
  static constexpr int64_t kInner = 192;
  static constexpr int kRounds = 6;

  void SetUp() override {
    DeviceTest::SetUp();
    if (IsSkipped()) return;
    std::mt19937 random(23);
    x_before_ = Normal(random, kRows * kWidth);
    up_ = UploadAs(ElementType::kBf16, Normal(random, kInner * kWidth, 0.2f));
    down_ = UploadAs(ElementType::kBf16, Normal(random, kInner * kWidth, 0.1f));
    gains_ = Upload(std::vector<float>(kWidth, 1.0f));
    zeros_ = Upload(std::vector<float>(kWidth));
    x_ = Upload(x_before_);
    normed_ = UploadAs(ElementType::kBf16, std::vector<float>(kRows * kWidth));
    intermediate_ = UploadAs(ElementType::kBf16, std::vector<float>(kRows * kInner));
  }

  absl::Status RunChain(const Stream& on) const {
    absl::Status status;
    for (int round = 0; round < kRounds && status.ok(); ++round) {
      LayerNormArgs norm;
      norm.rows = kRows;
      norm.width = norm.x_stride = kWidth;
      norm.epsilon = 1e-5f;
      norm.x = x_.as<float>();
      norm.type = ElementType::kBf16;
      norm.outputs[0] = {gains_.as<float>(), zeros_.as<float>(), normed_.data(), kWidth};
      status = LayerNorm(norm, on.get());
      TiledMatmulArgs product;
      product.rows = kRows;
      product.n = kInner;
      product.k = kWidth;
      product.x = normed_.data();
      product.w = up_.data();
      product.output = ElementType::kBf16;
      product.y = intermediate_.data();
      // All tiles in turn: many small blocks of threads, and few large ones.
      if (status.ok()) status = TiledMatmul(product, round % kNumMatmulTiles, on.get());
      if (status.ok()) {
        status = Gelu(ElementType::kBf16, intermediate_.data(), kRows * kInner, on.get());
      }
      product.n = kWidth;
      product.k = kInner;
      product.x = intermediate_.data();
      product.w = down_.data();
      product.output = ElementType::kF32;
      product.y = x_.data();
      product.accumulate = true;
      if (status.ok()) status = TiledMatmul(product, (round + 1) % kNumMatmulTiles, on.get());
    }
    return status;
  }
  // x after `run`, from the same beginning.
  template <typename Run>
  std::vector<float> After(const Stream& on, const Run& run) const {
    absl::Status status = CopyToDevice(x_.data(), x_before_.data(), x_.size_bytes(), on.get());
    if (status.ok()) status = run();
    if (status.ok()) status = on.Synchronize();
    EXPECT_TRUE(status.ok()) << status;
    return Download<float>(x_);
  }

  std::vector<float> x_before_;
  DeviceBuffer up_, down_, gains_, zeros_, x_, normed_, intermediate_;
};

TEST_F(EarlyLaunch, KernelsComputeWhatTheyComputeInTurn) {
  const Stream in_turn = *Stream::Create();
  const Stream early = *Stream::Create(0, StreamPriority::kUsual, KernelLaunch::kEarly);
  const std::vector<float> expected = After(in_turn, [&] { return RunChain(in_turn); });
  EXPECT_FALSE(SameBits(expected, x_before_));
  EXPECT_TRUE(SameBits(After(early, [&] { return RunChain(early); }), expected));

  ASSERT_TRUE(early.BeginCapture().ok());
  const absl::Status given = RunChain(early);
  const absl::StatusOr<Graph> graph = early.EndCapture();
  ASSERT_TRUE(given.ok()) << given;
  ASSERT_TRUE(graph.ok()) << graph.status();
  for (int run = 0; run < 3; ++run) {
    EXPECT_TRUE(SameBits(After(early, [&] { return graph->Launch(early.get()); }), expected))
        << run;
  }
}

#ifdef BLOCKSERVE_CUDA_EMULATED
TEST_F(EarlyLaunch, IsWhatTheStreamSays) {
  const Stream early = *Stream::Create(0, StreamPriority::kUsual, KernelLaunch::kEarly);
  const Stream in_turn = *Stream::Create();
  const emulation::LaunchCount launches;
  ASSERT_TRUE(RunChain(in_turn).ok());
  EXPECT_EQ(launches.all(), 4 * kRounds);
  EXPECT_EQ(launches.early(), 0);
  ASSERT_TRUE(RunChain(early).ok());
  EXPECT_EQ(launches.all(), 8 * kRounds);
  EXPECT_EQ(launches.early(), 4 * kRounds);
}
#endif

}  // namespace
}  // namespace blockserve::cuda
