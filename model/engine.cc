#include "model/engine.h"

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "kernels/cpu/cpu_kernels.h"
#include "model/block_engine_cpu.h"
#include "model/cuda/cuda_engines.h"
#include "model/token_engine_cpu.h"

namespace blockserve {
namespace {

absl::Status CheckOptions(const EngineOptions& options) {
  if (options.pool == nullptr) return absl::InvalidArgumentError("EngineOptions.pool is missing");
  if (options.max_rows < 1) {
    return absl::InvalidArgumentError(
        absl::StrCat("EngineOptions.max_rows is ", options.max_rows, ", at least 1 is needed"));
  }
  if (IsCuda(options.arithmetic) != (options.cuda_device >= 0)) {
    return absl::InvalidArgumentError(absl::StrCat("EngineOptions.cuda_device is ",
                                                   options.cuda_device, " with arithmetic ",
                                                   ArithmeticName(options.arithmetic)));
  }
  return absl::OkStatus();
}

absl::StatusOr<const CpuKernels*> ChooseKernels(const EngineOptions& options) {
  const std::vector<KernelTarget> targets = SupportedKernelTargets();
  if (targets.empty()) {
    return absl::FailedPreconditionError("this build has no kernels for this machine");
  }
  const KernelTarget target = options.kernel_target.value_or(targets.front());
  if (std::find(targets.begin(), targets.end(), target) == targets.end()) {
    return absl::InvalidArgumentError(absl::StrCat("kernel_target ", KernelTargetName(target),
                                                   " is not supported by this machine"));
  }
  const CpuKernels& kernels = GetCpuKernels(target);
  if (options.arithmetic == Arithmetic::kBf16Dot && kernels.bf16dot_matmul == nullptr) {
    return absl::FailedPreconditionError(
        absl::StrCat("arithmetic bf16dot needs AVX512-BF16 instructions, which ",
                     options.kernel_target.has_value() ? "this kernel target" : "this machine",
                     " lacks; bf16 runs everywhere"));
  }
  return &kernels;
}

}  // namespace

absl::StatusOr<std::unique_ptr<BlockEngine>> LoadBlockEngine(const Checkpoint& checkpoint,
                                                             const EngineOptions& options) {
  if (absl::Status status = CheckOptions(options); !status.ok()) return status;
  if (IsCuda(options.arithmetic)) return LoadCudaBlockEngine(checkpoint, options);
  const absl::StatusOr<const CpuKernels*> kernels = ChooseKernels(options);
  if (!kernels.ok()) return kernels.status();
  return CpuBlockEngine::Load(checkpoint, options, **kernels);
}

absl::StatusOr<std::unique_ptr<TokenEngine>> LoadTokenEngine(const Checkpoint& checkpoint,
                                                             const EngineOptions& options) {
  if (absl::Status status = CheckOptions(options); !status.ok()) return status;
  if (IsCuda(options.arithmetic)) return LoadCudaTokenEngine(checkpoint, options);
  const absl::StatusOr<const CpuKernels*> kernels = ChooseKernels(options);
  if (!kernels.ok()) return kernels.status();
  return CpuTokenEngine::Load(checkpoint, options, **kernels);
}

}  // namespace blockserve
