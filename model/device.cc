#include "model/device.h"

#include <optional>
#include <utility>
#include <vector>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"
#include "common/logging.h"
#include "kernels/cpu/kernel_target.h"
#include "model/cuda/cuda_engines.h"

namespace blockserve {
namespace {

constexpr int32_t kCpu = -1;
constexpr int32_t kMaxCudaDevice = 1023;

// nullopt: "auto". Errors: INVALID_ARGUMENT naming the flag.
absl::StatusOr<std::optional<int32_t>> ParseDevice(absl::string_view name) {
  if (name == "auto") return std::optional<int32_t>();
  if (name == "cpu") return std::optional<int32_t>(kCpu);
  absl::string_view number = name;
  int32_t index = 0;
  if (absl::ConsumePrefix(&number, "cuda:") &&
      number.find_first_not_of("0123456789") == absl::string_view::npos &&
      absl::SimpleAtoi(number, &index) && index >= 0 && index <= kMaxCudaDevice) {
    return std::optional<int32_t>(index);
  }
  return absl::InvalidArgumentError(
      absl::StrCat("--device is \"", name.substr(0, 60), "\"; it must be auto, cpu or cuda:N"));
}

}  // namespace

std::string ArithmeticFlagHelp() {
  return absl::StrCat("auto, ", ArithmeticNames(/*cuda=*/false, " or "), "; ",
                      ArithmeticNames(/*cuda=*/true, " or "));
}

absl::Status ValidateDeviceFlags(absl::string_view device, absl::string_view arithmetic) {
  const absl::StatusOr<std::optional<int32_t>> parsed = ParseDevice(device);
  if (!parsed.ok()) return parsed.status();
  if (arithmetic == "auto") return absl::OkStatus();
  const absl::StatusOr<Arithmetic> kind = ParseArithmetic(arithmetic);
  if (!kind.ok()) {
    return absl::InvalidArgumentError(absl::StrCat("--arithmetic: ", kind.status().message()));
  }
  if (!parsed->has_value() || IsCuda(*kind) == (**parsed != kCpu)) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat("--arithmetic ", arithmetic, " does not run on ", "--device ", device, "; ",
                   IsCuda(*kind) ? "the CPU's are " : "a CUDA device's are ",
                   ArithmeticNames(/*cuda=*/!IsCuda(*kind), " and ")));
}

absl::StatusOr<EngineChoice> ChooseEngine(absl::string_view device, absl::string_view arithmetic,
                                          const Checkpoint& checkpoint) {
  if (absl::Status status = ValidateDeviceFlags(device, arithmetic); !status.ok()) return status;
  const std::optional<int32_t> asked = *ParseDevice(device);
  EngineChoice choice;
  choice.cuda_device = asked.value_or(kCpu);
  const bool automatic = arithmetic == "auto";
  if (!automatic) choice.arithmetic = *ParseArithmetic(arithmetic);

  // Without a wish for one kind of device, a CUDA device that cannot be used is no error.
  const bool either = !asked.has_value() && automatic;
  if (!asked.has_value() && (automatic || IsCuda(choice.arithmetic))) choice.cuda_device = 0;
  if (choice.cuda_device != kCpu) {
    const absl::Status usable = CheckCudaDevice(choice.cuda_device);
    if (!usable.ok() && !either) {
      return absl::Status(
          usable.code(), absl::StrCat(asked.has_value() ? absl::StrCat("--device ", device)
                                                        : absl::StrCat("--arithmetic ", arithmetic),
                                      ": ", usable.message()));
    }
    if (!usable.ok()) {
      LogDebug(absl::StrCat("device auto: the CPU, for ", usable.message()));
      choice.cuda_device = kCpu;
    }
  }
  if (automatic) {
    const bool bf16 = IsStoredInBf16(checkpoint);
    if (choice.cuda_device == kCpu) {
      choice.arithmetic = bf16 ? Arithmetic::kBf16 : Arithmetic::kF32;
    } else {
      choice.arithmetic = bf16 ? Arithmetic::kCudaBf16 : Arithmetic::kCudaF32;
    }
  }
  if (!IsBatchInvariant(choice.arithmetic)) {
    LogWarning(absl::StrCat("arithmetic ", arithmetic, " is not batch-invariant: what a request ",
                            "is answered may depend on the requests beside it"));
  }
  return choice;
}

std::string EngineName(const EngineChoice& choice) {
  std::string name =
      absl::StrCat(ArithmeticName(choice.arithmetic), " on ", DeviceName(choice.cuda_device));
  const std::vector<KernelTarget> targets = SupportedKernelTargets();
  if (choice.cuda_device == kCpu && !targets.empty()) {
    absl::StrAppend(&name, " (", KernelTargetName(targets.front()), ")");
  }
  return name;
}

}  // namespace blockserve
