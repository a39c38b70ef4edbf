// What the engines need of a CUDA device, without CUDA's headers: memory, copies, streams, events
// and graphs. Two libraries define these functions:
//   blockserve_kernels_cuda           the CUDA runtime, linked statically; needs no driver to start
//   blockserve_kernels_cuda_emulated  the same calls on the CPU, for tests (emulation/README.md)
//
// Errors of CUDA are INTERNAL with CUDA's text and the call that failed; no memory is
// RESOURCE_EXHAUSTED. Work is asynchronous and in order within a stream: buffers of a copy or a
// kernel must live, and pinned memory must not change, until the stream has been synchronised or an
// event after it is done.
#ifndef BLOCKSERVE_KERNELS_CUDA_RUNTIME_H_
#define BLOCKSERVE_KERNELS_CUDA_RUNTIME_H_

#include <cstddef>
#include <cstdint>
#include <string>
#include <utility>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

// CUDA's own types behind cudaStream_t, cudaEvent_t and cudaGraphExec_t.
struct CUstream_st;
struct CUevent_st;
struct CUgraphExec_st;

namespace blockserve::cuda {

// When a kernel of ours begins.
enum class KernelLaunch {
  kInTurn,  // when all that was given to its stream before has ended
  // Where the device and this build's code for it can (compute capability 9.0), its blocks of
  // threads come to the multiprocessors while the kernel before it ends, and wait there: so much of
  // a launch is hidden (device_code.h). Elsewhere as kInTurn. The same results.
  kEarly,
};

// A stream as kernels take it.
struct StreamHandle {
  CUstream_st* stream = nullptr;
  bool early_launch = false;  // KernelLaunch::kEarly, where it can be

  operator CUstream_st*() const { return stream; }  // NOLINT(google-explicit-constructor)
};

struct DeviceInfo {
  std::string name;
  int32_t major = 0;  // compute capability
  int32_t minor = 0;
  int64_t total_bytes = 0;
  int64_t free_bytes = 0;      // now
  int32_t driver_version = 0;  // of CUDA, e.g. 13000
  int32_t runtime_version = 0;
};

// UNAVAILABLE with a reason in one line: no driver, or no device.
absl::StatusOr<int32_t> DeviceCount();
// FAILED_PRECONDITION where this build has no code for the device's architecture, NOT_FOUND where
// there is no such device, else what DeviceCount says.
absl::StatusOr<DeviceInfo> GetDeviceInfo(int32_t device);
// Makes `device` the one that later calls of this thread mean. Each thread that calls anything here
// or a kernel needs it once.
absl::Status SetDevice(int32_t device);
// Of the current device.
absl::StatusOr<int32_t> CountMultiprocessors();
// OK where the device still computes, to be asked after a call has failed: a fault of the hardware,
// or an access beyond memory, fails every later call of this process. Waits for no stream of ours.
absl::Status CheckDevice(int32_t device);

// Memory of the current device, zeroed. Freeing it waits for nothing that can be relied on: what
// uses it must have ended.
class DeviceBuffer {
 public:
  DeviceBuffer() = default;
  // RESOURCE_EXHAUSTED telling the bytes wanted and free.
  static absl::StatusOr<DeviceBuffer> Allocate(int64_t size_bytes);
  DeviceBuffer(DeviceBuffer&& other) noexcept { *this = std::move(other); }
  DeviceBuffer& operator=(DeviceBuffer&& other) noexcept {
    std::swap(data_, other.data_);
    std::swap(size_bytes_, other.size_bytes_);
    return *this;
  }
  ~DeviceBuffer();

  int64_t size_bytes() const { return size_bytes_; }
  void* data() const { return data_; }
  template <typename T>
  T* as() const {
    return static_cast<T*>(data_);
  }

 private:
  void* data_ = nullptr;
  int64_t size_bytes_ = 0;
};

// Page-locked memory of the host, zeroed: copies from and to it run beside the host. Freed as
// DeviceBuffer.
class PinnedBuffer {
 public:
  PinnedBuffer() = default;
  static absl::StatusOr<PinnedBuffer> Allocate(int64_t size_bytes);
  PinnedBuffer(PinnedBuffer&& other) noexcept { *this = std::move(other); }
  PinnedBuffer& operator=(PinnedBuffer&& other) noexcept {
    std::swap(data_, other.data_);
    std::swap(size_bytes_, other.size_bytes_);
    return *this;
  }
  ~PinnedBuffer();

  int64_t size_bytes() const { return size_bytes_; }
  void* data() const { return data_; }
  template <typename T>
  T* as() const {
    return static_cast<T*>(data_);
  }

 private:
  void* data_ = nullptr;
  int64_t size_bytes_ = 0;
};

// A captured sequence of work on one stream.
class Graph {
 public:
  Graph() = default;
  Graph(Graph&& other) noexcept { *this = std::move(other); }
  Graph& operator=(Graph&& other) noexcept {
    std::swap(executable_, other.executable_);
    return *this;
  }
  ~Graph();

  bool captured() const { return executable_ != nullptr; }
  // Runs it with the pointers and values it was captured with, at the priority of `stream`.
  absl::Status Launch(StreamHandle stream) const;

 private:
  friend class Stream;
  explicit Graph(CUgraphExec_st* executable) : executable_(executable) {}
  CUgraphExec_st* executable_ = nullptr;
};

class Event;

// Whose blocks of threads a multiprocessor takes first where kernels of several streams wait.
enum class StreamPriority { kUsual, kFirst };

class Stream {
 public:
  Stream() = default;
  // `workspace_bytes` of device memory come with it, for whatever runs on it: its work is done one
  // after another. RESOURCE_EXHAUSTED as DeviceBuffer.
  static absl::StatusOr<Stream> Create(int64_t workspace_bytes = 0,
                                       StreamPriority priority = StreamPriority::kUsual,
                                       KernelLaunch launch = KernelLaunch::kInTurn);
  Stream(Stream&& other) noexcept { *this = std::move(other); }
  Stream& operator=(Stream&& other) noexcept {
    std::swap(stream_, other.stream_);
    std::swap(workspace_, other.workspace_);
    return *this;
  }
  ~Stream();

  StreamHandle get() const { return stream_; }
  const DeviceBuffer& workspace() const { return workspace_; }
  // Blocks until all of its work is done; reports the errors of that work.
  absl::Status Synchronize() const;
  // Later work of this stream waits for `event` as it was recorded last.
  absl::Status Wait(const Event& event) const;
  // Until EndCapture what this thread gives to this stream is collected, not run: kernels, products
  // and asynchronous copies, on this stream alone. Nothing may be allocated, freed or waited for.
  absl::Status BeginCapture() const;
  absl::StatusOr<Graph> EndCapture() const;

 private:
  StreamHandle stream_;
  DeviceBuffer workspace_;
};

class Event {
 public:
  Event() = default;
  // `timed`: MillisecondsSince works.
  static absl::StatusOr<Event> Create(bool timed = false);
  Event(Event&& other) noexcept { *this = std::move(other); }
  Event& operator=(Event&& other) noexcept {
    std::swap(event_, other.event_);
    return *this;
  }
  ~Event();

  absl::Status Record(StreamHandle stream) const;
  absl::Status Synchronize() const;
  absl::StatusOr<bool> Done() const;
  // Device time between two timed events that are done. Emulated: 0.
  absl::StatusOr<float> MillisecondsSince(const Event& begin) const;

 private:
  friend class Stream;
  CUevent_st* event_ = nullptr;
};

// Asynchronous; host memory is pinned, or the call may block.
absl::Status CopyToDevice(void* to, const void* from, int64_t size_bytes, StreamHandle stream);
absl::Status CopyToHost(void* to, const void* from, int64_t size_bytes, StreamHandle stream);
absl::Status CopyOnDevice(void* to, const void* from, int64_t size_bytes, StreamHandle stream);
absl::Status FillZero(void* to, int64_t size_bytes, StreamHandle stream);

}  // namespace blockserve::cuda

#endif  // BLOCKSERVE_KERNELS_CUDA_RUNTIME_H_
