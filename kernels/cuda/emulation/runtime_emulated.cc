// kernels/cuda/runtime.h on the CPU. Work waits in its stream until someone waits for it, so that a
// host that reads results too early, or changes pinned memory too early, sees wrong values here
// too.
#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <functional>
#include <memory>
#include <mutex>
#include <set>
#include <vector>

#include "absl/strings/str_cat.h"
#include "kernels/cuda/emulation/device_memory.h"
#include "kernels/cuda/emulation/emulator.h"
#include "kernels/cuda/runtime.h"

namespace blockserve::cuda::emulation {
namespace {

using Work = std::function<void()>;

struct StreamState {
  std::deque<Work> queue;
  uint64_t completed = 0;  // of all that was ever queued
  uint64_t issued() const { return completed + queue.size() + (running ? 1 : 0); }
  bool running = false;
  bool capturing = false;
  std::vector<Work> captured;

  void RunUntil(uint64_t sequence) {
    while (completed < sequence && !running) {
      const Work work = std::move(queue.front());
      queue.pop_front();
      running = true;
      work();
      running = false;
      ++completed;
    }
  }
};

// One device, so one for the process: whoever runs emulated work holds the lock.
struct Streams {
  std::recursive_mutex mutex;
};

Streams& TheStreams() {
  static auto* streams = new Streams;
  return *streams;
}

// By Streams::mutex.
struct Failures {
  int64_t first = CallFailures::kAllThatFollow;  // none fails
  int64_t count = 0;
  int64_t calls = 0;
};
Failures failures;

struct Launches {
  int64_t all = 0;
  int64_t early = 0;
};
Launches launches;

}  // namespace

CallFailures::CallFailures(int64_t first, int64_t count) {
  const std::lock_guard lock(TheStreams().mutex);
  failures = {first, count, 0};
}

CallFailures::~CallFailures() {
  const std::lock_guard lock(TheStreams().mutex);
  failures = {};
}

bool CallFailures::any() const {
  const std::lock_guard lock(TheStreams().mutex);
  return failures.calls > failures.first;
}

LaunchCount::LaunchCount() {
  const std::lock_guard lock(TheStreams().mutex);
  all_before_ = launches.all;
  early_before_ = launches.early;
}

int64_t LaunchCount::all() const {
  const std::lock_guard lock(TheStreams().mutex);
  return launches.all - all_before_;
}

int64_t LaunchCount::early() const {
  const std::lock_guard lock(TheStreams().mutex);
  return launches.early - early_before_;
}

DeviceMemoryLimit::DeviceMemoryLimit(int64_t total_bytes)
    : before_(SetDeviceMemoryTotal(total_bytes)) {}
DeviceMemoryLimit::~DeviceMemoryLimit() { SetDeviceMemoryTotal(before_); }

absl::Status CountCall() {
  const std::lock_guard lock(TheStreams().mutex);
  const int64_t call = failures.calls++;
  if (call < failures.first || call - failures.first >= failures.count) return absl::OkStatus();
  return absl::InternalError(absl::StrCat("emulated failure of call ", call));
}

}  // namespace blockserve::cuda::emulation

// The types that CUDA leaves open.
struct CUstream_st {
  std::shared_ptr<blockserve::cuda::emulation::StreamState> state =
      std::make_shared<blockserve::cuda::emulation::StreamState>();
};
struct CUevent_st {
  std::shared_ptr<blockserve::cuda::emulation::StreamState> stream;  // null: never recorded
  uint64_t sequence = 0;
};
struct CUgraphExec_st {
  std::shared_ptr<const std::vector<blockserve::cuda::emulation::Work>> work;
};

namespace blockserve::cuda {
namespace {

using emulation::TheStreams;
using emulation::Work;

absl::Status NoStream() { return absl::InvalidArgumentError("no stream was given"); }

absl::Status Copy(void* to, const void* from, int64_t size_bytes, StreamHandle stream) {
  if (size_bytes == 0) return absl::OkStatus();
  return emulation::Enqueue(stream, [=] { std::memmove(to, from, size_bytes); });
}

}  // namespace

absl::Status emulation::Enqueue(CUstream_st* stream, Work work) {
  if (stream == nullptr) return NoStream();
  if (absl::Status status = CountCall(); !status.ok()) return status;
  const std::lock_guard lock(TheStreams().mutex);
  if (stream->state->capturing) {
    stream->state->captured.push_back(std::move(work));
  } else {
    stream->state->queue.push_back(std::move(work));
  }
  return absl::OkStatus();
}

absl::Status emulation::LoadKernel(StreamHandle stream, const void* kernel, const char* name) {
  if (stream == nullptr) return NoStream();
  const std::lock_guard lock(TheStreams().mutex);
  static std::set<const void*> loaded;
  ++launches.all;
  if (stream.early_launch) ++launches.early;
  if (!stream.stream->state->capturing) {
    loaded.insert(kernel);
  } else if (!loaded.contains(kernel)) {
    return absl::InternalError(absl::StrCat(name, ": captured before it was ever launched"));
  }
  return absl::OkStatus();
}

absl::StatusOr<int32_t> DeviceCount() { return 1; }

absl::StatusOr<DeviceInfo> GetDeviceInfo(int32_t device) {
  if (device != 0) return absl::NotFoundError(absl::StrCat("there is no CUDA device ", device));
  DeviceInfo info;
  info.name = "emulated on the CPU";
  info.total_bytes = emulation::DeviceMemoryTotal();
  info.free_bytes = emulation::DeviceMemoryFree();
  return info;
}

absl::Status SetDevice(int32_t device) { return GetDeviceInfo(device).status(); }

absl::StatusOr<int32_t> CountMultiprocessors() { return 1; }

absl::Status CheckDevice(int32_t device) {
  if (absl::Status status = SetDevice(device); !status.ok()) return status;
  const std::lock_guard lock(TheStreams().mutex);
  const bool lost = emulation::failures.count == emulation::CallFailures::kAllThatFollow &&
                    emulation::failures.calls > emulation::failures.first;
  return lost ? absl::InternalError("emulated loss of the device") : absl::OkStatus();
}

absl::StatusOr<DeviceBuffer> DeviceBuffer::Allocate(int64_t size_bytes) {
  DeviceBuffer buffer;
  if (size_bytes == 0) return buffer;
  if (absl::Status status = emulation::CountCall(); !status.ok()) return status;
  buffer.data_ = emulation::AllocateDeviceMemory(size_bytes);
  if (buffer.data_ == nullptr) {
    return absl::ResourceExhaustedError(absl::StrCat(
        "no device memory for ", size_bytes, " bytes; free are ", emulation::DeviceMemoryFree()));
  }
  buffer.size_bytes_ = size_bytes;
  return buffer;
}

DeviceBuffer::~DeviceBuffer() {
  if (data_ == nullptr) return;
  const std::lock_guard lock(TheStreams().mutex);
  emulation::FreeDeviceMemory(data_);
}

absl::StatusOr<PinnedBuffer> PinnedBuffer::Allocate(int64_t size_bytes) {
  PinnedBuffer buffer;
  if (size_bytes == 0) return buffer;
  if (absl::Status status = emulation::CountCall(); !status.ok()) return status;
  buffer.data_ = std::calloc(size_bytes, 1);
  if (buffer.data_ == nullptr) {
    return absl::ResourceExhaustedError(
        absl::StrCat("no page-locked memory for ", size_bytes, " bytes"));
  }
  buffer.size_bytes_ = size_bytes;
  return buffer;
}

PinnedBuffer::~PinnedBuffer() { std::free(data_); }

Graph::~Graph() { delete executable_; }

absl::Status Graph::Launch(StreamHandle stream) const {
  if (executable_ == nullptr) return absl::FailedPreconditionError("an empty graph");
  return emulation::Enqueue(stream, [all = executable_->work] {
    for (const Work& work : *all) work();
  });
}

absl::StatusOr<Stream> Stream::Create(int64_t workspace_bytes, StreamPriority /*priority*/,
                                      KernelLaunch launch) {
  Stream stream;
  if (workspace_bytes > 0) {
    absl::StatusOr<DeviceBuffer> workspace = DeviceBuffer::Allocate(workspace_bytes);
    if (!workspace.ok()) return workspace.status();
    stream.workspace_ = *std::move(workspace);
  }
  stream.stream_ = {new CUstream_st, launch == KernelLaunch::kEarly};
  return stream;
}

Stream::~Stream() {
  if (stream_ == nullptr) return;
  const std::lock_guard lock(TheStreams().mutex);
  stream_.stream->state->RunUntil(stream_.stream->state->issued());
  delete stream_.stream;
}

absl::Status Stream::Synchronize() const {
  if (stream_ == nullptr) return NoStream();
  const std::lock_guard lock(TheStreams().mutex);
  if (stream_.stream->state->capturing) {
    return absl::FailedPreconditionError("Synchronize while the stream is captured");
  }
  stream_.stream->state->RunUntil(stream_.stream->state->issued());
  return emulation::CountCall();
}

absl::Status Stream::Wait(const Event& event) const {
  if (stream_ == nullptr) return NoStream();
  if (stream_.stream->state->capturing) {
    return absl::FailedPreconditionError("Wait while the stream is captured");
  }
  return emulation::Enqueue(stream_,
                            [stream = event.event_->stream, sequence = event.event_->sequence] {
                              if (stream != nullptr) stream->RunUntil(sequence);
                            });
}

absl::Status Stream::BeginCapture() const {
  if (stream_ == nullptr) return NoStream();
  const std::lock_guard lock(TheStreams().mutex);
  if (stream_.stream->state->capturing) return absl::FailedPreconditionError("captured already");
  if (absl::Status status = emulation::CountCall(); !status.ok()) return status;
  stream_.stream->state->capturing = true;
  stream_.stream->state->captured.clear();
  return absl::OkStatus();
}

absl::StatusOr<Graph> Stream::EndCapture() const {
  if (stream_ == nullptr) return NoStream();
  const std::lock_guard lock(TheStreams().mutex);
  if (!stream_.stream->state->capturing) return absl::FailedPreconditionError("not captured");
  stream_.stream->state->capturing = false;
  if (absl::Status status = emulation::CountCall(); !status.ok()) return status;
  return Graph(new CUgraphExec_st{
      std::make_shared<const std::vector<Work>>(std::move(stream_.stream->state->captured))});
}

absl::StatusOr<Event> Event::Create(bool /*timed*/) {
  Event event;
  event.event_ = new CUevent_st;
  return event;
}

Event::~Event() { delete event_; }

absl::Status Event::Record(StreamHandle handle) const {
  CUstream_st* stream = handle;
  if (stream == nullptr) return NoStream();
  const std::lock_guard lock(TheStreams().mutex);
  if (stream->state->capturing) {
    return absl::FailedPreconditionError("Record while the stream is captured");
  }
  if (absl::Status status = emulation::CountCall(); !status.ok()) return status;
  event_->stream = stream->state;
  event_->sequence = stream->state->issued();
  return absl::OkStatus();
}

absl::Status Event::Synchronize() const {
  const std::lock_guard lock(TheStreams().mutex);
  if (event_->stream != nullptr) event_->stream->RunUntil(event_->sequence);
  return emulation::CountCall();
}

absl::StatusOr<bool> Event::Done() const {
  const bool done = event_->stream == nullptr || event_->stream->completed >= event_->sequence;
  // Nothing goes on by itself here: who asks again and again must see an end.
  if (absl::Status status = Synchronize(); !status.ok()) return status;
  return done;
}

absl::StatusOr<float> Event::MillisecondsSince(const Event& /*begin*/) const { return 0.0f; }

absl::Status CopyToDevice(void* to, const void* from, int64_t size_bytes, StreamHandle stream) {
  return Copy(to, from, size_bytes, stream);
}
absl::Status CopyToHost(void* to, const void* from, int64_t size_bytes, StreamHandle stream) {
  return Copy(to, from, size_bytes, stream);
}
absl::Status CopyOnDevice(void* to, const void* from, int64_t size_bytes, StreamHandle stream) {
  return Copy(to, from, size_bytes, stream);
}
absl::Status FillZero(void* to, int64_t size_bytes, StreamHandle stream) {
  if (size_bytes == 0) return absl::OkStatus();
  return emulation::Enqueue(stream, [=] { std::memset(to, 0, size_bytes); });
}

}  // namespace blockserve::cuda
