#include "kernels/cuda/emulation/device_memory.h"

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <mutex>

namespace blockserve::cuda::emulation {
namespace {

// Bytes before and after an allocation; as CUDA's, allocations begin at multiples of 256.
constexpr int64_t kGuardBytes = 256;
constexpr uint8_t kGuard = 0xa5;
constexpr int64_t kDefaultTotal = int64_t{4} << 30;

// As with CUDA, there is one device for the whole process.
struct Device {
  std::mutex mutex;
  std::map<uint8_t*, int64_t> allocations;
  int64_t total = kDefaultTotal;
  int64_t used = 0;
};

Device& TheDevice() {
  static auto* device = new Device;
  return *device;
}

int64_t WithGuards(int64_t size_bytes) { return (size_bytes + 255) / 256 * 256 + 2 * kGuardBytes; }

}  // namespace

void* AllocateDeviceMemory(int64_t size_bytes) {
  Device& device = TheDevice();
  const std::lock_guard lock(device.mutex);
  if (size_bytes > device.total - device.used) return nullptr;
  void* memory = std::aligned_alloc(256, WithGuards(size_bytes));
  if (memory == nullptr) return nullptr;
  uint8_t* data = static_cast<uint8_t*>(memory) + kGuardBytes;
  std::memset(data - kGuardBytes, kGuard, kGuardBytes);
  std::memset(data, 0, size_bytes);
  std::memset(data + size_bytes, kGuard, WithGuards(size_bytes) - size_bytes - kGuardBytes);
  device.allocations[data] = size_bytes;
  device.used += size_bytes;
  return data;
}

void FreeDeviceMemory(void* memory) {
  if (memory == nullptr) return;
  Device& device = TheDevice();
  const std::lock_guard lock(device.mutex);
  uint8_t* data = static_cast<uint8_t*>(memory);
  const auto found = device.allocations.find(data);
  if (found == device.allocations.end()) {
    std::fprintf(stderr, "CUDA emulation: free of what was not allocated\n");
    std::abort();
  }
  const int64_t size = found->second;
  for (int64_t i = -kGuardBytes; i < WithGuards(size) - kGuardBytes; ++i) {
    if (i == 0) i = size;
    if (data[i] != kGuard) {
      std::fprintf(stderr, "CUDA emulation: byte %lld of an allocation of %lld was written\n",
                   static_cast<long long>(i), static_cast<long long>(size));
      std::abort();
    }
  }
  device.used -= size;
  device.allocations.erase(found);
  std::free(data - kGuardBytes);
}

int64_t DeviceMemoryTotal() {
  Device& device = TheDevice();
  const std::lock_guard lock(device.mutex);
  return device.total;
}

int64_t DeviceMemoryFree() {
  Device& device = TheDevice();
  const std::lock_guard lock(device.mutex);
  return device.total - device.used;
}

int64_t SetDeviceMemoryTotal(int64_t total_bytes) {
  Device& device = TheDevice();
  const std::lock_guard lock(device.mutex);
  const int64_t before = device.total;
  device.total = total_bytes;
  return before;
}

bool FindDeviceMemory(uint64_t address, uint64_t* begin, uint64_t* end) {
  Device& device = TheDevice();
  const std::lock_guard lock(device.mutex);
  auto after = device.allocations.upper_bound(reinterpret_cast<uint8_t*>(address));
  if (after == device.allocations.begin()) return false;
  const auto& [data, size] = *--after;
  *begin = reinterpret_cast<uint64_t>(data);
  *end = *begin + size;
  return address < *end;
}

std::vector<std::vector<uint8_t>> SaveDeviceMemory() {
  Device& device = TheDevice();
  const std::lock_guard lock(device.mutex);
  std::vector<std::vector<uint8_t>> image;
  for (const auto& [data, size] : device.allocations) image.emplace_back(data, data + size);
  return image;
}

void RestoreDeviceMemory(const std::vector<std::vector<uint8_t>>& image) {
  Device& device = TheDevice();
  const std::lock_guard lock(device.mutex);
  size_t i = 0;
  for (const auto& [data, size] : device.allocations) {
    std::memcpy(data, image[i++].data(), size);
  }
}

void FillDeviceMemory(uint8_t value) {
  Device& device = TheDevice();
  const std::lock_guard lock(device.mutex);
  for (const auto& [data, size] : device.allocations) std::memset(data, value, size);
}

bool DeviceMemoryIsFilled(uint8_t value) {
  Device& device = TheDevice();
  const std::lock_guard lock(device.mutex);
  return std::all_of(device.allocations.begin(), device.allocations.end(), [&](const auto& entry) {
    return std::all_of(entry.first, entry.first + entry.second,
                       [&](uint8_t byte) { return byte == value; });
  });
}

}  // namespace blockserve::cuda::emulation
