// What --device and --arithmetic mean together, and what is said where they cannot be had.
#include "model/device.h"

#include <memory>
#include <string>

#include "absl/strings/str_cat.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "kernels/cpu/kernel_target.h"
#include "model/cuda/cuda_engines.h"

namespace blockserve {
namespace {

using ::testing::AllOf;
using ::testing::ContainsRegex;
using ::testing::HasSubstr;
using ::testing::Not;

std::unique_ptr<Checkpoint> F32Model() {
  absl::StatusOr<std::unique_ptr<Checkpoint>> checkpoint =
      Checkpoint::Open("tests/golden/concat_l4");
  EXPECT_TRUE(checkpoint.ok()) << checkpoint.status();
  return checkpoint.ok() ? *std::move(checkpoint) : nullptr;
}

std::string Message(const absl::Status& status) { return std::string(status.message()); }

TEST(DeviceFlags, NameWhatIsWrong) {
  EXPECT_TRUE(ValidateDeviceFlags("auto", "auto").ok());
  EXPECT_TRUE(ValidateDeviceFlags("cpu", "bf16dot").ok());
  EXPECT_TRUE(ValidateDeviceFlags("cuda:0", "cuda-bf16").ok());
  EXPECT_TRUE(ValidateDeviceFlags("cuda:12", "auto").ok());
  EXPECT_TRUE(ValidateDeviceFlags("auto", "cuda-bf16-fast").ok());
  for (const char* bad : {"", "gpu", "cuda", "cuda:", "cuda:-1", "cuda:+1", "cuda:x", "cuda:1024",
                          "CPU", "cuda:0 "}) {
    const absl::Status status = ValidateDeviceFlags(bad, "auto");
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << bad;
    EXPECT_THAT(Message(status), AllOf(HasSubstr("--device"), HasSubstr("auto, cpu or cuda:N")));
  }
  EXPECT_THAT(Message(ValidateDeviceFlags("auto", "fp4")),
              AllOf(HasSubstr("--arithmetic"), HasSubstr("fp4"),
                    HasSubstr("known are auto, f32, bf16, bf16dot and int8; cuda-f32, cuda-bf16, "
                              "cuda-bf16-own and cuda-bf16-fast")));
  EXPECT_THAT(Message(ValidateDeviceFlags("cuda:0", "bf16")),
              AllOf(HasSubstr("--arithmetic bf16"), HasSubstr("a CUDA device's are cuda-f32, ")));
  EXPECT_THAT(Message(ValidateDeviceFlags("cpu", "cuda-f32")),
              AllOf(HasSubstr("--arithmetic cuda-f32"), HasSubstr("bf16, bf16dot and int8")));
}

TEST(DeviceFlags, TheHelpTellsEveryArithmetic) {
  for (const Arithmetic arithmetic : kAllArithmetics) {
    EXPECT_THAT(ArithmeticFlagHelp(),
                ContainsRegex(absl::StrCat("(^|[ ,;])", ArithmeticName(arithmetic), "([ ,;]|$)")));
  }
}

TEST(ChooseEngine, TheCpuTakesF32ForAnF32FileUnlessAsked) {
  const std::unique_ptr<Checkpoint> model = F32Model();
  ASSERT_NE(model, nullptr);
  const absl::StatusOr<EngineChoice> automatic = ChooseEngine("cpu", "auto", *model);
  ASSERT_TRUE(automatic.ok()) << automatic.status();
  EXPECT_EQ(automatic->arithmetic, Arithmetic::kF32);
  EXPECT_EQ(automatic->cuda_device, -1);
  EXPECT_EQ(ChooseEngine("cpu", "bf16", *model)->arithmetic, Arithmetic::kBf16);
  // An arithmetic of the CPU's decides for the CPU.
  EXPECT_EQ(ChooseEngine("auto", "int8", *model)->cuda_device, -1);
}

TEST(ChooseEngine, AutoTakesTheFirstUsableCudaDevice) {
  const std::unique_ptr<Checkpoint> model = F32Model();
  ASSERT_NE(model, nullptr);
  const absl::StatusOr<EngineChoice> choice = ChooseEngine("auto", "auto", *model);
  ASSERT_TRUE(choice.ok()) << choice.status();
  const bool usable = CheckCudaDevice(0).ok();
  EXPECT_EQ(choice->cuda_device, usable ? 0 : -1);
  EXPECT_EQ(choice->arithmetic, usable ? Arithmetic::kCudaF32 : Arithmetic::kF32);
}

TEST(ChooseEngine, SaysInOneLineWhyACudaDeviceCannotBeUsed) {
  const std::unique_ptr<Checkpoint> model = F32Model();
  ASSERT_NE(model, nullptr);
  // No machine has so many.
  const absl::Status status = ChooseEngine("cuda:1000", "auto", *model).status();
  ASSERT_FALSE(status.ok());
  EXPECT_THAT(Message(status), AllOf(HasSubstr("--device cuda:1000: "), Not(HasSubstr("\n"))));
  if (CheckCudaDevice(0).ok()) return;
  EXPECT_THAT(Message(ChooseEngine("auto", "cuda-bf16", *model).status()),
              AllOf(HasSubstr("--arithmetic cuda-bf16: "), Not(HasSubstr("\n"))));
}

TEST(DeviceName, IsWhatTheFlagTakes) {
  EXPECT_EQ(DeviceName(-1), "cpu");
  EXPECT_EQ(DeviceName(2), "cuda:2");
}

TEST(EngineName, TellsTheInstructionSetOfTheCpu) {
  EXPECT_EQ(EngineName({Arithmetic::kInt8, -1}),
            absl::StrCat("int8 on cpu (", KernelTargetName(SupportedKernelTargets().front()), ")"));
  EXPECT_EQ(EngineName({Arithmetic::kCudaBf16, 2}), "cuda-bf16 on cuda:2");
}

}  // namespace
}  // namespace blockserve
