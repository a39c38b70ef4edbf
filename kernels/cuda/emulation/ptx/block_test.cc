#include "kernels/cuda/emulation/ptx/block.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstring>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "kernels/cuda/emulation/device_memory.h"

namespace blockserve::cuda::emulation::ptx {
namespace {

constexpr int kThreads = 64;
constexpr uint32_t kSharedBytes = 512;

constexpr char kBegin[] = R"(
.entry _Z6kernelPj(
	.param .u64 _Z6kernelPj_param_0
)
.maxntid 64, 1, 1
{
	.reg .pred 	%p<4>;
	.reg .b16 	%rs<4>;
	.reg .b32 	%r<20>;
	.reg .f32 	%f<8>;
	.reg .b64 	%rd<8>;

	ld.param.u64 	%rd1, [_Z6kernelPj_param_0];
	mov.u32 	%r1, %tid.x;
	mul.wide.u32 	%rd2, %r1, 4;
	add.s64 	%rd3, %rd1, %rd2;
	mov.u32 	%r2, blockserve_block_memory;
	shl.b32 	%r3, %r1, 2;
	add.s32 	%r4, %r2, %r3;
)";
constexpr char kEnd[] = R"(
	ret;
}
)";
constexpr char kWait[] = "griddepcontrol.wait;\n";

class PtxBlock : public testing::Test {
 protected:
  void SetUp() override { memory_ = AllocateDeviceMemory(kThreads * sizeof(uint32_t)); }
  void TearDown() override { FreeDeviceMemory(memory_); }

  // Registers: r1 the thread, rd3 the address of its word of device memory, r4 of shared memory.
  Counts RunText(const std::string& text) const {
    const std::map<std::string, Kernel> kernels = ParseText(text, "test.ptx");
    Launch launch;
    launch.threads = kThreads;
    launch.shared_bytes = kSharedBytes;
    launch.parameters.resize(sizeof(memory_));
    std::memcpy(launch.parameters.data(), &memory_, sizeof(memory_));
    Counts counts;
    RunGrid(kernels.at("_Z6kernelPj"), launch, Order::kAscending, &counts);
    return counts;
  }
  Counts Run(const std::string& body) const {
    return RunText(absl::StrCat(kBegin, kWait, body, kEnd));
  }
  std::vector<uint32_t> Results() const {
    std::vector<uint32_t> results(kThreads);
    std::memcpy(results.data(), memory_, kThreads * sizeof(uint32_t));
    return results;
  }

  void* memory_ = nullptr;
};

TEST_F(PtxBlock, LanesThatPartedMeetAgain) {
  // Each lane goes round as often as its number says, and all of a warp are counted after it.
  Run(R"(
	and.b32  	%r5, %r1, 31;
	mov.u32 	%r6, 0;
$L__BB0_1:
	setp.ge.u32 	%p1, %r6, %r5;
	@%p1 bra 	$L__BB0_2;
	add.s32 	%r6, %r6, 1;
	bra.uni 	$L__BB0_1;
$L__BB0_2:
	setp.gt.u32 	%p2, %r6, 4;
	mov.u32 	%r8, -1;
	vote.sync.ballot.b32 	%r7, %p2, %r8;
	st.global.u32 	[%rd3], %r7;
)");
  EXPECT_THAT(Results(), testing::Each(0xffffffe0u));
}

TEST_F(PtxBlock, ExchangesAndArithmeticAreThoseOfTheManual) {
  Run(R"(
	mov.u32 	%r9, 31;
	mov.u32 	%r10, -1;
	shfl.sync.bfly.b32 	%r5|%p1, %r1, 3, %r9, %r10;
	mov.u32 	%r11, 0;
	shfl.sync.up.b32 	%r6|%p2, %r1, 2, %r11, %r10;
	selp.b32 	%r7, 1000, 0, %p2;
	mad.lo.s32 	%r8, %r5, 100, %r6;
	add.s32 	%r8, %r8, %r7;
	cvt.rn.f32.s32 	%f1, %r8;
	fma.rn.f32 	%f2, %f1, 0f40000000, 0f3F800000;
	cvt.rzi.u32.f32 	%r12, %f2;
	st.global.u32 	[%rd3], %r12;
)");
  for (uint32_t thread = 0; thread < kThreads; ++thread) {
    const uint32_t lane = thread % 32;
    const uint32_t expected =
        (thread ^ 3) * 100 + (lane < 2 ? thread : thread - 2) + (lane < 2 ? 0 : 1000);
    EXPECT_EQ(Results()[thread], 2 * expected + 1) << thread;
  }
}

TEST_F(PtxBlock, BitsAndBytesArePickedAsTheManualSays) {
  const auto result = [&](const std::string& body) {
    Run(absl::StrCat("mov.u32 	%r5, 0x81A2C3E4;\nmov.u32 	%r6, 0x10325476;\n", body,
                     "st.global.u32 	[%rd3], %r7;\n"));
    return Results()[0];
  };
  EXPECT_EQ(result("bfe.u32 	%r7, %r5, 4, 12;\n"), 0xc3eu);
  EXPECT_EQ(result("bfe.u32 	%r7, %r5, 28, 12;\n"), 0x8u);
  EXPECT_EQ(result("bfe.u32 	%r7, %r5, 0, 32;\n"), 0x81a2c3e4u);
  EXPECT_EQ(result("bfe.u32 	%r7, %r5, 32, 8;\n"), 0u);
  EXPECT_EQ(result("prmt.b32 	%r7, %r5, %r6, 0x3340U;\n"), 0x8181'76e4u);
  EXPECT_EQ(result("prmt.b32 	%r7, %r5, %r6, 0x5410U;\n"), 0x5476'c3e4u);
  EXPECT_EQ(result("prmt.b32 	%r7, %r5, %r6, 0x8f20U;\n"), 0xff00'a2e4u) << "signs";
  EXPECT_EQ(result("mov.b32 	%f1, %r5;\nmov.b32 	%f2, %r6;\n"
                   "copysign.f32 	%f3, %f1, %f2;\nmov.b32 	%r7, %f3;\n"),
            0x9032'5476u);
  EXPECT_EQ(result("mov.b64 	%rd4, {%r5, %r6};\ncvt.s64.s32 	%rd5, %rd4;\n"
                   "shr.u64 	%rd5, %rd5, 24;\ncvt.u32.u64 	%r7, %rd5;\n"),
            0xffff'ff81u)
      << "of a wide register the low half is converted";
}

constexpr char kOtherWarpsWord[] = R"(
	xor.b32  	%r5, %r3, 128;
	add.s32 	%r5, %r5, %r2;
)";

TEST_F(PtxBlock, ABarrierLetsThreadsReadWhatOthersWrote) {
  Run(absl::StrCat("st.shared.u32 	[%r4], %r1;\nbar.sync 	0;\n", kOtherWarpsWord,
                   "ld.shared.u32 	%r6, [%r5];\nst.global.u32 	[%rd3], %r6;\n"));
  for (uint32_t thread = 0; thread < kThreads; ++thread) {
    EXPECT_EQ(Results()[thread], thread ^ 32);
  }
}

TEST_F(PtxBlock, CopiesAreThereWhenTheyAreWaitedFor) {
  for (uint32_t i = 0; i < kThreads; ++i) static_cast<uint32_t*>(memory_)[i] = 100 + i;
  Run(R"(
	setp.gt.u32 	%p1, %r1, 15;
	@%p1 bra 	$L__BB0_1;
	shl.b32 	%r5, %r1, 4;
	cvt.u64.u32 	%rd4, %r5;
	add.s64 	%rd5, %rd1, %rd4;
	add.s32 	%r6, %r2, %r5;
	mov.u32 	%r7, 16;
	cp.async.cg.shared.global [%r6], [%rd5], 16, %r7;
	cp.async.commit_group;
	cp.async.wait_group 0;
$L__BB0_1:
	bar.sync 	0;
	ld.shared.u32 	%r8, [%r4];
	add.s32 	%r8, %r8, 1;
	st.global.u32 	[%rd3], %r8;
)");
  for (uint32_t thread = 0; thread < kThreads; ++thread) {
    EXPECT_EQ(Results()[thread], 101 + thread);
  }
}

TEST_F(PtxBlock, CountsInstructionsSectorsAndWavefronts) {
  const Counts one = Run("st.shared.u32 	[%r4], %r1;\nst.global.u32 	[%rd3], %r1;\n");
  EXPECT_EQ(one.warps, 2);
  EXPECT_EQ(one.global_sectors, 8);
  EXPECT_EQ(one.shared_wavefronts, 2);
  // Eight banks of which each has four words.
  const Counts conflicts = Run(R"(
	and.b32  	%r5, %r1, 31;
	shl.b32 	%r6, %r5, 4;
	add.s32 	%r6, %r6, %r2;
	setp.gt.u32 	%p1, %r1, 31;
	@%p1 bra 	$L__BB0_1;
	st.shared.u32 	[%r6], %r1;
$L__BB0_1:
)");
  EXPECT_EQ(conflicts.shared_wavefronts, 4);
  EXPECT_EQ(conflicts.least_wavefronts, 1);
}

using PtxFaults = PtxBlock;

TEST_F(PtxFaults, OfAddresses) {
  EXPECT_DEATH(Run("ld.global.u32 	%r5, [%rd3+2];\n"), "misaligned access to global memory");
  EXPECT_DEATH(Run("ld.global.u32 	%r5, [%rd3+4];\n"), "beyond an allocation");
  EXPECT_DEATH(Run("st.global.v2.u32 	[%rd3], {%r1, %r1};\n"), "misaligned");
  EXPECT_DEATH(Run("st.shared.u32 	[%r4+-4], %r1;\n"), "shared memory at -4 of 512");
  EXPECT_DEATH(Run("st.shared.u32 	[%r4+260], %r1;\n"), "shared memory at 512 of 512");
}

TEST_F(PtxFaults, OfAMissingBarrier) {
  EXPECT_DEATH(Run(absl::StrCat("st.shared.u32 	[%r4], %r1;\n", kOtherWarpsWord,
                                "ld.shared.u32 	%r6, [%r5];\n")),
               "no barrier is between them|nobody wrote");
  // Within a warp, and a write after a read.
  const std::string neighbour = R"(
	xor.b32  	%r5, %r3, 4;
	add.s32 	%r5, %r5, %r2;
)";
  EXPECT_DEATH(
      Run(absl::StrCat("st.shared.u32 	[%r4], %r1;\n", neighbour, "ld.shared.u32 	%r6, [%r5];\n")),
      "no barrier is between them");
  const std::string synced =
      absl::StrCat("st.shared.u32 	[%r4], %r1;\nbar.warp.sync 	-1;\n", neighbour,
                   "ld.shared.u32 	%r6, [%r5];\n");
  Run(synced);
  EXPECT_DEATH(Run(absl::StrCat(synced, "st.shared.u32 	[%r4], %r6;\n")), "is read before thread");
  EXPECT_DEATH(Run("ld.shared.u32 	%r6, [%r4];\n"), "nobody wrote");
}

TEST_F(PtxFaults, OfCopiesThatAreNotWaitedFor) {
  const std::string copy = R"(
	shl.b32 	%r5, %r1, 3;
	and.b32  	%r5, %r5, 240;
	cvt.u64.u32 	%rd4, %r5;
	add.s64 	%rd5, %rd1, %rd4;
	and.b32  	%r8, %r1, 1;
	setp.eq.s32 	%p1, %r8, 1;
	add.s32 	%r6, %r2, %r5;
	mov.u32 	%r7, 16;
	@%p1 bra 	$L__BB0_1;
	cp.async.cg.shared.global [%r6], [%rd5], 16, %r7;
	cp.async.commit_group;
)";
  EXPECT_DEATH(Run(absl::StrCat(copy, "ld.shared.u32 	%r9, [%r6];\n$L__BB0_1:\n")),
               "to which a copy is under way");
  EXPECT_DEATH(Run(absl::StrCat(copy, "$L__BB0_1:\n")), "while a copy of it is under way");
}

TEST_F(PtxFaults, OfLanesThatAreNotThere) {
  const std::string vote = R"(
	mov.u32 	%r8, -1;
	setp.gt.u32 	%p1, %r1, 40;
	@%p1 bra 	$L__BB0_1;
	vote.sync.ballot.b32 	%r7, %p1, %r8;
$L__BB0_1:
)";
  EXPECT_DEATH(Run(vote), "some lanes have ended");
  EXPECT_DEATH(
      Run("setp.gt.u32 	%p1, %r1, 40;\n@%p1 bra 	$L__BB0_1;\nbar.sync 	0;\n"
          "$L__BB0_1:\n"),
      "some lanes have ended");
}

TEST_F(PtxFaults, OfEarlierWorkThatIsNotWaitedFor) {
  EXPECT_DEATH(RunText(absl::StrCat(kBegin, "st.global.u32 	[%rd3], %r1;\n", kWait, kEnd)),
               "before earlier work was waited for");
  EXPECT_DEATH(RunText(absl::StrCat(kBegin, kEnd)), "without having waited for earlier work");
  // There is no such thing before 9.0.
  RunText(absl::StrCat(".target sm_80", kBegin, "st.global.u32 	[%rd3], %r1;\n", kEnd));
}

TEST_F(PtxFaults, OfWhatTheInterpreterDoesNotKnow) {
  EXPECT_DEATH(Run("sin.approx.f32 	%f1, %f2;\n"),
               "test.ptx:21: .*does not know sin.approx.f32");
}

}  // namespace
}  // namespace blockserve::cuda::emulation::ptx
