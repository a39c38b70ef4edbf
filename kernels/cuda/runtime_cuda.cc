// kernels/cuda/runtime.h on the CUDA runtime.
#include <cuda_runtime.h>

#include "absl/strings/str_cat.h"
#include "kernels/cuda/cuda_status.h"
#include "kernels/cuda/runtime.h"

// probe_architecture.cu: whether this build holds code that the current device can run.
extern "C" int BlockserveCudaHasCode();
// Whether that code can wait for the kernel before it.
extern "C" int BlockserveCudaLaunchesEarly();

namespace blockserve::cuda {
namespace {

// For destructors: what failed here failed before, where it was reported.
void Ignore(cudaError_t /*error*/) {}

absl::Status NoMemory(cudaError_t error, const char* call, int64_t size_bytes) {
  if (error != cudaErrorMemoryAllocation) return CudaStatus(error, call);
  Ignore(cudaGetLastError());  // not a fault of the device: later calls go on
  size_t free_bytes = 0;
  size_t total_bytes = 0;
  Ignore(cudaMemGetInfo(&free_bytes, &total_bytes));
  return absl::ResourceExhaustedError(absl::StrCat(call, ": no memory for ", size_bytes,
                                                   " bytes; the device has ", free_bytes,
                                                   " free of ", total_bytes));
}

}  // namespace

absl::StatusOr<int32_t> DeviceCount() {
  int count = 0;
  const cudaError_t error = cudaGetDeviceCount(&count);
  if (error == cudaSuccess && count > 0) return count;
  if (error == cudaSuccess || error == cudaErrorNoDevice) {
    return absl::UnavailableError("there is no CUDA device");
  }
  if (error == cudaErrorInsufficientDriver) {
    int driver = 0;
    Ignore(cudaDriverGetVersion(&driver));
    if (driver == 0) return absl::UnavailableError("there is no NVIDIA driver");
    return absl::UnavailableError(absl::StrCat(
        "the NVIDIA driver is too old: it knows CUDA ", driver / 1000, ".", driver % 1000 / 10,
        ", this build needs ", CUDART_VERSION / 1000, ".", CUDART_VERSION % 1000 / 10));
  }
  return absl::UnavailableError(CudaStatus(error, "cudaGetDeviceCount").message());
}

absl::StatusOr<DeviceInfo> GetDeviceInfo(int32_t device) {
  absl::StatusOr<int32_t> count = DeviceCount();
  if (!count.ok()) return count.status();
  if (device < 0 || device >= *count) {
    return absl::NotFoundError(
        absl::StrCat("there is no CUDA device ", device, ", only 0 to ", *count - 1));
  }
  if (absl::Status status = SetDevice(device); !status.ok()) return status;
  cudaDeviceProp properties;
  absl::Status status =
      CudaStatus(cudaGetDeviceProperties(&properties, device), "cudaGetDeviceProperties");
  if (!status.ok()) return status;
  DeviceInfo info;
  info.name = properties.name;
  info.major = properties.major;
  info.minor = properties.minor;
  size_t free_bytes = 0;
  size_t total_bytes = 0;
  status = CudaStatus(cudaMemGetInfo(&free_bytes, &total_bytes), "cudaMemGetInfo");
  if (!status.ok()) return status;
  info.free_bytes = static_cast<int64_t>(free_bytes);
  info.total_bytes = static_cast<int64_t>(total_bytes);
  Ignore(cudaDriverGetVersion(&info.driver_version));
  Ignore(cudaRuntimeGetVersion(&info.runtime_version));
  if (BlockserveCudaHasCode() == 0) {
    return absl::FailedPreconditionError(
        absl::StrCat("CUDA device ", device, " (", info.name, ") has architecture ", info.major,
                     ".", info.minor, ", for which this build has no code"));
  }
  return info;
}

absl::Status SetDevice(int32_t device) {
  return CudaStatus(cudaSetDevice(device), "cudaSetDevice");
}

absl::StatusOr<int32_t> CountMultiprocessors() {
  int device = 0;
  int count = 0;
  absl::Status status = CudaStatus(cudaGetDevice(&device), "cudaGetDevice");
  if (status.ok()) {
    status = CudaStatus(cudaDeviceGetAttribute(&count, cudaDevAttrMultiProcessorCount, device),
                        "cudaDeviceGetAttribute");
  }
  if (!status.ok()) return status;
  return count;
}

absl::Status CheckDevice(int32_t device) {
  if (absl::Status status = SetDevice(device); !status.ok()) return status;
  // What earlier work has left behind is told once; what is told again is there to stay. The
  // default stream has no work of ours: waiting for the whole device is refused while another
  // thread captures a graph, and makes that capture void.
  Ignore(cudaStreamSynchronize(nullptr));
  Ignore(cudaGetLastError());
  return CudaStatus(cudaStreamSynchronize(nullptr), "cudaStreamSynchronize");
}

absl::StatusOr<DeviceBuffer> DeviceBuffer::Allocate(int64_t size_bytes) {
  DeviceBuffer buffer;
  if (size_bytes == 0) return buffer;
  absl::Status status =
      NoMemory(cudaMalloc(&buffer.data_, size_bytes), "device memory", size_bytes);
  if (!status.ok()) return status;
  buffer.size_bytes_ = size_bytes;
  status = CudaStatus(cudaMemset(buffer.data_, 0, size_bytes), "cudaMemset");
  if (!status.ok()) return status;
  // Other streams do not wait for the default one.
  status = CudaStatus(cudaStreamSynchronize(nullptr), "cudaStreamSynchronize");
  if (!status.ok()) return status;
  return buffer;
}

DeviceBuffer::~DeviceBuffer() {
  if (data_ != nullptr) Ignore(cudaFree(data_));
}

absl::StatusOr<PinnedBuffer> PinnedBuffer::Allocate(int64_t size_bytes) {
  PinnedBuffer buffer;
  if (size_bytes == 0) return buffer;
  absl::Status status = NoMemory(cudaHostAlloc(&buffer.data_, size_bytes, cudaHostAllocDefault),
                                 "page-locked memory", size_bytes);
  if (!status.ok()) return status;
  buffer.size_bytes_ = size_bytes;
  __builtin_memset(buffer.data_, 0, size_bytes);
  return buffer;
}

PinnedBuffer::~PinnedBuffer() {
  if (data_ != nullptr) Ignore(cudaFreeHost(data_));
}

Graph::~Graph() {
  if (executable_ != nullptr) Ignore(cudaGraphExecDestroy(executable_));
}

absl::Status Graph::Launch(StreamHandle stream) const {
  if (executable_ == nullptr) return absl::FailedPreconditionError("an empty graph");
  return CudaStatus(cudaGraphLaunch(executable_, stream), "cudaGraphLaunch");
}

absl::StatusOr<Stream> Stream::Create(int64_t workspace_bytes, StreamPriority priority,
                                      KernelLaunch launch) {
  int usual = 0;
  int first = 0;
  absl::Status status = CudaStatus(cudaDeviceGetStreamPriorityRange(&usual, &first),
                                   "cudaDeviceGetStreamPriorityRange");
  if (!status.ok()) return status;
  Stream stream;
  status =
      CudaStatus(cudaStreamCreateWithPriority(&stream.stream_.stream, cudaStreamNonBlocking,
                                              priority == StreamPriority::kFirst ? first : usual),
                 "cudaStreamCreateWithPriority");
  if (!status.ok()) return status;
  stream.stream_.early_launch =
      launch == KernelLaunch::kEarly && BlockserveCudaLaunchesEarly() != 0;
  if (workspace_bytes > 0) {
    absl::StatusOr<DeviceBuffer> workspace = DeviceBuffer::Allocate(workspace_bytes);
    if (!workspace.ok()) return workspace.status();
    stream.workspace_ = *std::move(workspace);
  }
  return stream;
}

Stream::~Stream() {
  if (stream_ == nullptr) return;
  Ignore(cudaStreamSynchronize(stream_));
  Ignore(cudaStreamDestroy(stream_));
}

absl::Status Stream::Synchronize() const {
  return CudaStatus(cudaStreamSynchronize(stream_), "cudaStreamSynchronize");
}

absl::Status Stream::Wait(const Event& event) const {
  return CudaStatus(cudaStreamWaitEvent(stream_, event.event_, 0), "cudaStreamWaitEvent");
}

absl::Status Stream::BeginCapture() const {
  return CudaStatus(cudaStreamBeginCapture(stream_, cudaStreamCaptureModeThreadLocal),
                    "cudaStreamBeginCapture");
}

absl::StatusOr<Graph> Stream::EndCapture() const {
  cudaGraph_t captured = nullptr;
  absl::Status status =
      CudaStatus(cudaStreamEndCapture(stream_, &captured), "cudaStreamEndCapture");
  if (!status.ok()) return status;
  cudaGraphExec_t executable = nullptr;
  status = CudaStatus(cudaGraphInstantiate(&executable, captured, 0), "cudaGraphInstantiate");
  Ignore(cudaGraphDestroy(captured));
  if (!status.ok()) return status;
  Graph graph(executable);
  // Now, where there is memory for it, and not when it is launched for the first time.
  status = CudaStatus(cudaGraphUpload(executable, stream_), "cudaGraphUpload");
  if (!status.ok()) return status;
  return graph;
}

absl::StatusOr<Event> Event::Create(bool timed) {
  Event event;
  const absl::Status status = CudaStatus(
      cudaEventCreateWithFlags(&event.event_, timed ? cudaEventDefault : cudaEventDisableTiming),
      "cudaEventCreateWithFlags");
  if (!status.ok()) return status;
  return event;
}

Event::~Event() {
  if (event_ != nullptr) Ignore(cudaEventDestroy(event_));
}

absl::Status Event::Record(StreamHandle stream) const {
  return CudaStatus(cudaEventRecord(event_, stream), "cudaEventRecord");
}

absl::Status Event::Synchronize() const {
  return CudaStatus(cudaEventSynchronize(event_), "cudaEventSynchronize");
}

absl::StatusOr<bool> Event::Done() const {
  const cudaError_t error = cudaEventQuery(event_);
  if (error == cudaErrorNotReady) return false;
  const absl::Status status = CudaStatus(error, "cudaEventQuery");
  if (!status.ok()) return status;
  return true;
}

absl::StatusOr<float> Event::MillisecondsSince(const Event& begin) const {
  float milliseconds = 0;
  const absl::Status status =
      CudaStatus(cudaEventElapsedTime(&milliseconds, begin.event_, event_), "cudaEventElapsedTime");
  if (!status.ok()) return status;
  return milliseconds;
}

absl::Status CopyToDevice(void* to, const void* from, int64_t size_bytes, StreamHandle stream) {
  if (size_bytes == 0) return absl::OkStatus();
  return CudaStatus(cudaMemcpyAsync(to, from, size_bytes, cudaMemcpyHostToDevice, stream),
                    "cudaMemcpyAsync to the device");
}

absl::Status CopyToHost(void* to, const void* from, int64_t size_bytes, StreamHandle stream) {
  if (size_bytes == 0) return absl::OkStatus();
  return CudaStatus(cudaMemcpyAsync(to, from, size_bytes, cudaMemcpyDeviceToHost, stream),
                    "cudaMemcpyAsync to the host");
}

absl::Status CopyOnDevice(void* to, const void* from, int64_t size_bytes, StreamHandle stream) {
  if (size_bytes == 0) return absl::OkStatus();
  return CudaStatus(cudaMemcpyAsync(to, from, size_bytes, cudaMemcpyDeviceToDevice, stream),
                    "cudaMemcpyAsync on the device");
}

absl::Status FillZero(void* to, int64_t size_bytes, StreamHandle stream) {
  if (size_bytes == 0) return absl::OkStatus();
  return CudaStatus(cudaMemsetAsync(to, 0, size_bytes, stream), "cudaMemsetAsync");
}

}  // namespace blockserve::cuda
