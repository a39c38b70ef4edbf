// What nvcc's host code asks CUDA's runtime for when it launches a kernel: the kernel's PTX runs on
// the emulation's streams.
#include <cuda_runtime.h>
#include <cxxabi.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "absl/strings/str_split.h"
#include "kernels/cuda/emulation/device_memory.h"
#include "kernels/cuda/emulation/emulator.h"
#include "kernels/cuda/emulation/ptx/block.h"

namespace blockserve::cuda::emulation {
namespace {

thread_local int t_order_checks = 0;

using DeviceMemoryImage = std::vector<std::vector<uint8_t>>;

std::map<std::string, ptx::Kernel> LoadKernels() {
  std::map<std::string, ptx::Kernel> kernels;
  for (const absl::string_view path : absl::StrSplit(BLOCKSERVE_PTX_FILES, ':')) {
    kernels.merge(ptx::ParseFile(std::string(path)));
  }
  return kernels;
}

const ptx::Kernel& KernelOf(const std::string& mangled) {
  static const auto* kernels = new std::map<std::string, ptx::Kernel>(LoadKernels());
  const auto found = kernels->find(ptx::NameWithoutHash(mangled));
  if (found == kernels->end()) {
    std::fprintf(stderr, "PTX: there is no kernel %s\n", mangled.c_str());
    std::abort();
  }
  return found->second;
}

std::map<const void*, std::string>& NamesOfStubs() {
  static auto* names = new std::map<const void*, std::string>;
  return *names;
}

void PrintCounts(const ptx::Kernel& kernel, const ptx::Launch& launch, const ptx::Counts& counts) {
  int status = 0;
  const std::unique_ptr<char, decltype(&std::free)> name(
      abi::__cxa_demangle(kernel.name.c_str(), nullptr, nullptr, &status), &std::free);
  const auto of_warp = [&](int64_t count) {
    return static_cast<double>(count) / static_cast<double>(counts.warps);
  };
  std::fprintf(
      stderr,
      "%s, %u x %u x %u blocks of %u: a warp has %.1f instructions and %.1f moves, %.1f "
      "sectors of global memory, %.1f wavefronts of shared memory, %.1f without conflicts\n",
      name == nullptr ? kernel.name.c_str() : name.get(), launch.grid[0], launch.grid[1],
      launch.grid[2], launch.threads, of_warp(counts.instructions - counts.moves),
      of_warp(counts.moves), of_warp(counts.global_sectors), of_warp(counts.shared_wavefronts),
      of_warp(counts.least_wavefronts));
}

void Run(const ptx::Kernel& kernel, const ptx::Launch& launch) {
  static const bool print = std::getenv("BLOCKSERVE_PTX_COUNTS") != nullptr;
  if (t_order_checks == 0) {
    ptx::Counts counts;
    ptx::RunGrid(kernel, launch, ptx::Order::kAscending, print ? &counts : nullptr);
    if (print) PrintCounts(kernel, launch, counts);
    return;
  }
  const DeviceMemoryImage before = SaveDeviceMemory();
  ptx::RunGrid(kernel, launch, ptx::Order::kAscending, nullptr);
  const DeviceMemoryImage ascending = SaveDeviceMemory();
  for (const ptx::Order order : {ptx::Order::kDescending, ptx::Order::kShuffled}) {
    RestoreDeviceMemory(before);
    ptx::RunGrid(kernel, launch, order, nullptr);
    if (SaveDeviceMemory() == ascending) continue;
    std::fprintf(stderr, "PTX: kernel %s: results depend on the order of warps and blocks\n",
                 kernel.name.c_str());
    std::abort();
  }
}

}  // namespace

OrderCheck::OrderCheck() { ++t_order_checks; }
OrderCheck::~OrderCheck() { --t_order_checks; }

}  // namespace blockserve::cuda::emulation

using blockserve::cuda::emulation::KernelOf;
using blockserve::cuda::emulation::NamesOfStubs;

// By the names and types that nvcc's code links against.
extern "C" {

void** __cudaRegisterFatBinary(void* /*code*/) {
  static void* handle = nullptr;
  return &handle;
}
void __cudaRegisterFatBinaryEnd(void** /*handle*/) {}
void __cudaUnregisterFatBinary(void** /*handle*/) {}
void __cudaRegisterFunction(void** /*handle*/, const char* stub, char* /*function*/,
                            const char* name, int /*limit*/, uint3* /*thread*/, uint3* /*block*/,
                            dim3* /*threads*/, dim3* /*grid*/, int* /*warp*/) {
  NamesOfStubs()[stub] = name;
}
// Of launches that are not ours (LaunchKernel, device_code.h).
cudaError_t __cudaPopCallConfiguration(dim3*, dim3*, size_t*, void*) { std::abort(); }
cudaError_t __cudaGetKernel(cudaKernel_t*, const void*) { std::abort(); }
cudaError_t __cudaLaunchKernel(cudaKernel_t, dim3, dim3, void**, size_t, cudaStream_t) {
  std::abort();
}

// The reason, as CudaStatus words it: the emulated failure of a call.
const char* cudaGetErrorString(cudaError_t error) {
  return error == cudaErrorLaunchFailure ? "emulated failure" : "invalid launch";
}
const char* cudaGetErrorName(cudaError_t error) {
  return error == cudaErrorLaunchFailure ? "cudaErrorLaunchFailure" : "invalid launch";
}

cudaError_t cudaLaunchKernelExC(const cudaLaunchConfig_t* config, const void* stub,
                                void** arguments) {
  namespace emulation = blockserve::cuda::emulation;
  const dim3& grid = config->gridDim;
  emulation::GridShape shape;
  shape.grid = {grid.x, grid.y, grid.z};
  shape.threads = config->blockDim.x;
  shape.shared_bytes = static_cast<int64_t>(config->dynamicSmemBytes);
  if (!shape.CanBeLaunched()) return cudaErrorInvalidConfiguration;
  const std::string& name = NamesOfStubs().at(stub);
  const blockserve::cuda::StreamHandle stream{config->stream, config->numAttrs > 0};
  if (!emulation::LoadKernel(stream, stub, name.c_str()).ok())
    return cudaErrorStreamCaptureInvalidated;
  const emulation::ptx::Kernel& kernel = KernelOf(name);
  emulation::ptx::Launch launch;
  launch.grid[0] = grid.x;
  launch.grid[1] = grid.y;
  launch.grid[2] = grid.z;
  launch.threads = shape.threads;
  launch.shared_bytes = static_cast<uint32_t>(shape.shared_bytes);
  launch.parameters.resize(kernel.parameter_bytes);
  for (size_t i = 0; i < kernel.parameter_sizes.size(); ++i) {
    std::memcpy(launch.parameters.data() + kernel.parameter_offsets[i], arguments[i],
                kernel.parameter_sizes[i]);
  }
  const absl::Status status =
      emulation::Enqueue(config->stream, [&kernel, launch] { emulation::Run(kernel, launch); });
  return status.ok() ? cudaSuccess : cudaErrorLaunchFailure;
}

}  // extern "C"
