// What a CUDA device can do at most, measured as the engines would use it.
#include <algorithm>
#include <bit>
#include <chrono>
#include <cstring>
#include <limits>
#include <memory>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "common/logging.h"
#include "kernels/cuda/matmul.h"
#include "kernels/cuda/runtime.h"
#include "model/cuda/cuda_engines.h"

namespace blockserve {
namespace {

constexpr int64_t kSide = 8192;                     // of the product that is timed
constexpr int64_t kCopyBytes = int64_t{256} << 20;  // far beyond the caches
constexpr int kTries = 5;
constexpr int kRunsOfATry = 4;
constexpr double kWarmUpSeconds = 0.1;  // a device at rest has low clocks

// The shortest of several tries, in seconds for one run. Nothing of them is under way afterwards.
template <typename Run>
absl::StatusOr<double> BestSeconds(const cuda::Stream& stream, const Run& run) {
  absl::StatusOr<cuda::Event> begin = cuda::Event::Create(/*timed=*/true);
  if (!begin.ok()) return begin.status();
  absl::StatusOr<cuda::Event> end = cuda::Event::Create(/*timed=*/true);
  if (!end.ok()) return end.status();
  double best = 0;
  const auto start = std::chrono::steady_clock::now();
  const auto warm = [&] {
    return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count() >=
           kWarmUpSeconds;
  };
  for (int tries = -1; tries < kTries;) {
    absl::Status status = begin->Record(stream.get());
    for (int j = 0; j < kRunsOfATry && status.ok(); ++j) status = run();
    if (status.ok()) status = end->Record(stream.get());
    if (status.ok()) status = end->Synchronize();
    if (!status.ok()) {
      (void)stream.Synchronize();
      return status;
    }
    const absl::StatusOr<float> ms = end->MillisecondsSince(*begin);
    if (!ms.ok()) return ms.status();
    const double seconds = static_cast<double>(*ms) / 1e3 / kRunsOfATry;
    if (tries >= 0) {
      best = tries == 0 ? seconds : std::min(best, seconds);
      ++tries;
    } else if (warm()) {
      tries = 0;
    }
  }
  return best;
}

// Normally distributed values, repeated after 1 MiB. A product of zeros takes less power, and runs
// at a higher clock, than any that an engine computes.
absl::Status FillRandom(const cuda::DeviceBuffer& buffer, cuda::ElementType type,
                        const cuda::Stream& stream) {
  std::vector<uint8_t> values(std::min(buffer.size_bytes(), int64_t{1} << 20));
  const int64_t element = cuda::ElementBytes(type);
  std::mt19937 random(1);
  std::normal_distribution<float> normal(0.0f, 1.0f);
  for (size_t at = 0; at + element <= values.size(); at += element) {
    const uint32_t bits = std::bit_cast<uint32_t>(normal(random));
    const uint32_t stored = type == cuda::ElementType::kF32 ? bits : bits >> 16;
    std::memcpy(&values[at], &stored, element);
  }
  absl::Status status;
  for (int64_t at = 0; at < buffer.size_bytes() && status.ok();) {
    const int64_t size = std::min(static_cast<int64_t>(values.size()), buffer.size_bytes() - at);
    status = cuda::CopyToDevice(buffer.as<uint8_t>() + at, values.data(), size, stream.get());
    at += size;
  }
  const absl::Status done = stream.Synchronize();  // before `values` goes
  return status.ok() ? done : status;
}

absl::StatusOr<double> ProductFlopPerSecond(const cuda::MatmulLibrary& library,
                                            const cuda::Stream& stream, cuda::ElementType type) {
  cuda::MatmulShape shape;
  shape.n = kSide;
  shape.k = kSide;
  shape.type = type;
  shape.output = type;
  const absl::StatusOr<std::unique_ptr<const cuda::MatmulPlan>> plan = library.Plan(shape, kSide);
  if (!plan.ok()) return plan.status();
  const int64_t bytes = kSide * kSide * cuda::ElementBytes(type);
  cuda::DeviceBuffer buffers[3];
  for (cuda::DeviceBuffer& buffer : buffers) {
    absl::StatusOr<cuda::DeviceBuffer> allocated = cuda::DeviceBuffer::Allocate(bytes);
    if (!allocated.ok()) return allocated.status();
    buffer = *std::move(allocated);
  }
  for (int i = 0; i < 2; ++i) {
    if (absl::Status status = FillRandom(buffers[i], type, stream); !status.ok()) return status;
  }
  const absl::StatusOr<double> seconds = BestSeconds(stream, [&] {
    return (*plan)->Run(buffers[0].data(), buffers[1].data(), nullptr, buffers[2].data(), kSide,
                        stream);
  });
  if (!seconds.ok()) return seconds.status();
  return 2.0 * kSide * kSide * kSide / *seconds;
}

}  // namespace

absl::StatusOr<CudaDeviceRates> MeasureCudaDevice(int32_t device, Arithmetic arithmetic) {
  absl::Status status = cuda::SetDevice(device);
  if (!status.ok()) return status;
  const absl::StatusOr<cuda::DeviceInfo> info = cuda::GetDeviceInfo(device);
  if (!info.ok()) return info.status();
  absl::StatusOr<std::shared_ptr<const cuda::MatmulLibrary>> library =
      cuda::MatmulLibrary::Load(cuda::MatmulMode::kFastest);
  if (absl::IsFailedPrecondition(library.status()) && arithmetic == Arithmetic::kCudaBf16Own) {
    library = cuda::MatmulLibrary::Load(cuda::MatmulMode::kOwn);
  }
  if (!library.ok()) return library.status();
  const absl::StatusOr<cuda::Stream> stream =
      cuda::Stream::Create(cuda::WorkspaceBytes(cuda::MatmulMode::kFastest));
  if (!stream.ok()) return stream.status();
  CudaDeviceRates rates;
  rates.name = info->name;
  rates.memory_bytes = info->total_bytes;
  rates.libraries = absl::StrCat("driver ", info->driver_version, ", runtime ",
                                 info->runtime_version, ", ", (*library)->name());
  const absl::StatusOr<double> product = ProductFlopPerSecond(
      **library, *stream,
      StoresBf16(arithmetic) ? cuda::ElementType::kBf16 : cuda::ElementType::kF32);
  // A share of it is all that is lost.
  if (!product.ok()) {
    LogWarning(
        absl::StrCat("the device's rate of products is not known: ", product.status().message()));
  }
  rates.flop_per_s = product.ok() ? *product : std::numeric_limits<double>::quiet_NaN();

  const absl::StatusOr<cuda::DeviceBuffer> from = cuda::DeviceBuffer::Allocate(kCopyBytes);
  if (!from.ok()) return from.status();
  const absl::StatusOr<cuda::DeviceBuffer> to = cuda::DeviceBuffer::Allocate(kCopyBytes);
  if (!to.ok()) return to.status();
  const absl::StatusOr<double> seconds = BestSeconds(*stream, [&] {
    return cuda::CopyOnDevice(to->data(), from->data(), kCopyBytes, stream->get());
  });
  if (!seconds.ok()) return seconds.status();
  rates.bytes_per_s = 2.0 * kCopyBytes / *seconds;
  return rates;
}

}  // namespace blockserve
