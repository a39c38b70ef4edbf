// Where the engines run and with which arithmetic: what --device and --arithmetic of every program
// that loads an engine mean.
#ifndef BLOCKSERVE_MODEL_DEVICE_H_
#define BLOCKSERVE_MODEL_DEVICE_H_

#include <cstdint>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"
#include "model/arithmetic.h"
#include "model/checkpoint.h"

namespace blockserve {

// The explanation of these flags in every program's --help.
inline constexpr char kDeviceFlagHelp[] = "auto, cpu or cuda:N; auto: cuda:0 where it is usable";
std::string ArithmeticFlagHelp();
inline constexpr char kEarlyLaunchFlagHelp[] =
    "on a CUDA device: a kernel comes to it while the one before ends; not tried on one yet";

struct EngineChoice {
  Arithmetic arithmetic = Arithmetic::kF32;
  int32_t cuda_device = -1;  // -1: the CPU
};

// What can be told without looking at machine or model. Errors: INVALID_ARGUMENT naming the flag.
absl::Status ValidateDeviceFlags(absl::string_view device, absl::string_view arithmetic);

// With both "auto", the first CUDA device where it is usable, else the CPU; either flag alone
// decides for the other. An arithmetic of "auto" loses nothing of the weights: (cuda-)bf16 when
// every tensor is stored so, else (cuda-)f32. What (cuda-)bf16 computes is rounded all the same
// (arithmetic.h says what of it); (cuda-)f32 avoids that. Errors, in one line that begins with the
// flag: those of ValidateDeviceFlags, and why the device that was asked for cannot be used.
absl::StatusOr<EngineChoice> ChooseEngine(absl::string_view device, absl::string_view arithmetic,
                                          const Checkpoint& checkpoint);

// "cpu" or "cuda:0".
inline std::string DeviceName(int32_t cuda_device) {
  return cuda_device < 0 ? "cpu" : absl::StrCat("cuda:", cuda_device);
}

// For logs: "int8 on cpu (amx)", with the instruction set of its kernels, or "cuda-bf16 on cuda:0".
std::string EngineName(const EngineChoice& choice);

}  // namespace blockserve

#endif  // BLOCKSERVE_MODEL_DEVICE_H_
