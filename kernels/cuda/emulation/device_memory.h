// All device memory of the emulation: what OrderCheck saves and compares.
#ifndef BLOCKSERVE_KERNELS_CUDA_EMULATION_DEVICE_MEMORY_H_
#define BLOCKSERVE_KERNELS_CUDA_EMULATION_DEVICE_MEMORY_H_

#include <cstdint>
#include <vector>

namespace blockserve::cuda::emulation {

// Zeroed, between guards; nullptr when the device is full. Freeing checks the guards: the process
// aborts when something wrote beside the allocation.
void* AllocateDeviceMemory(int64_t size_bytes);
void FreeDeviceMemory(void* data);
int64_t DeviceMemoryTotal();
int64_t DeviceMemoryFree();
// Returns the total before.
int64_t SetDeviceMemoryTotal(int64_t total_bytes);

// Begin and end of the allocation that holds the address; false: none does.
bool FindDeviceMemory(uint64_t address, uint64_t* begin, uint64_t* end);

// The contents of every allocation, in order of address.
std::vector<std::vector<uint8_t>> SaveDeviceMemory();
void RestoreDeviceMemory(const std::vector<std::vector<uint8_t>>& image);
// Of every allocation all bytes.
void FillDeviceMemory(uint8_t value);
bool DeviceMemoryIsFilled(uint8_t value);

}  // namespace blockserve::cuda::emulation

#endif  // BLOCKSERVE_KERNELS_CUDA_EMULATION_DEVICE_MEMORY_H_
