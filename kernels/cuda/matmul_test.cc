#include "kernels/cuda/matmul.h"

#include <cmath>
#include <map>
#include <tuple>

#include "absl/strings/str_cat.h"
#include "kernels/cuda/device_test_util.h"
#include "kernels/cuda/matmul_pinning.h"
#include "kernels/reference.h"

namespace blockserve::cuda {
namespace {

class Matmul : public DeviceTypeTest {
 protected:
  void SetUp() override {
    DeviceTypeTest::SetUp();
    if (IsSkipped() || HasFatalFailure()) return;
    for (const MatmulMode mode : {MatmulMode::kPinned, MatmulMode::kFastest, MatmulMode::kOwn}) {
      absl::StatusOr<std::shared_ptr<const MatmulLibrary>> library = MatmulLibrary::Load(mode);
      // Where there is a device, a skip would pass for a proof.
      ASSERT_TRUE(library.ok()) << library.status();
      EXPECT_EQ((*library)->mode(), mode);
      libraries_.emplace(mode, *std::move(library));
    }
    absl::StatusOr<Stream> with_workspace = Stream::Create(WorkspaceBytes(MatmulMode::kFastest));
    ASSERT_TRUE(with_workspace.ok()) << with_workspace.status();
    workspace_stream_ = *std::move(with_workspace);
  }

  std::unique_ptr<const MatmulPlan> Plan(const MatmulShape& shape, int64_t max_rows,
                                         MatmulMode mode = MatmulMode::kPinned) const {
    absl::StatusOr<std::unique_ptr<const MatmulPlan>> plan =
        libraries_.at(mode)->Plan(shape, max_rows);
    EXPECT_TRUE(plan.ok()) << plan.status();
    return plan.ok() ? *std::move(plan) : nullptr;
  }

  // The results of `rows` rows of x, from what was in y before.
  std::vector<float> Run(const MatmulPlan& plan, const MatmulShape& shape,
                         const std::vector<float>& x, const DeviceBuffer& w,
                         const DeviceBuffer& bias, const std::vector<float>& y_before,
                         int64_t rows) const {
    std::vector<float> padded_x = x;
    padded_x.resize(PadRows(rows) * shape.k);
    std::vector<float> padded_y = y_before;
    padded_y.resize(PadRows(rows) * shape.n);
    const DeviceBuffer device_x = UploadAs(shape.type, padded_x);
    const DeviceBuffer y = UploadAs(shape.output, padded_y);
    absl::Status status =
        plan.Run(device_x.data(), w.data(), bias.data(), y.data(), rows, workspace_stream_);
    if (status.ok()) status = workspace_stream_.Synchronize();
    EXPECT_TRUE(status.ok()) << status;
    std::vector<float> result = DownloadAs(shape.output, y);
    result.resize(rows * shape.n);
    return result;
  }

  // Those whose rows do not depend on the batch.
  std::vector<MatmulMode> InvariantModes() const {
    if (!bf16()) return {MatmulMode::kPinned};
    return {MatmulMode::kPinned, MatmulMode::kOwn};
  }

  std::map<MatmulMode, std::shared_ptr<const MatmulLibrary>> libraries_;
  Stream workspace_stream_;  // for every mode
};

TEST_P(Matmul, IsWithinTheErrorBoundOfItsSums) {
  std::mt19937 random(8);
  for (const auto& [n, k, mode] :
       std::vector<std::tuple<int64_t, int64_t, MatmulMode>>{{48, 64, MatmulMode::kPinned},
                                                             {128, 112, MatmulMode::kPinned},
                                                             {48, 64, MatmulMode::kOwn},
                                                             {128, 112, MatmulMode::kOwn}}) {
    if (mode == MatmulMode::kOwn && !bf16()) continue;
    for (const ElementType output : {ElementType::kF32, ElementType::kBf16}) {
      if (output == ElementType::kBf16 && !bf16()) continue;
      for (const bool with_bias : {false, true}) {
        for (const bool accumulate : {false, true}) {
          if (accumulate && output == ElementType::kBf16) continue;
          const MatmulShape shape{n, k, type(), output, with_bias, accumulate};
          const int64_t rows = 5;
          SCOPED_TRACE(absl::StrCat(rows, " x ", k, " -> ", n, ", bias ", with_bias,
                                    ", accumulate ", accumulate));
          const std::unique_ptr<const MatmulPlan> plan = Plan(shape, rows, mode);
          ASSERT_NE(plan, nullptr);
          SCOPED_TRACE(plan->description());
          const std::vector<float> x = Stored(Normal(random, rows * k));
          const std::vector<float> w = Stored(Normal(random, n * k));
          std::vector<float> bias = Normal(random, n);
          if (output == ElementType::kBf16) bias = Stored(bias);
          if (!with_bias) bias.assign(n, 0.0f);
          const std::vector<float> before = Normal(random, rows * n);
          const DeviceBuffer device_bias = with_bias ? UploadAs(output, bias) : DeviceBuffer();
          const std::vector<float> y =
              Run(*plan, shape, x, UploadAs(type(), w), device_bias, before, rows);
          const std::vector<double> expected = reference::Matmul(x, w, bias, rows, n, k);
          const std::vector<double> bound = reference::MatmulErrorBound(x, w, bias, rows, n, k);
          for (int64_t i = 0; i < rows * n; ++i) {
            const double value = expected[i] + (accumulate ? before[i] : 0.0);
            const double rounding = output == ElementType::kBf16 ? 0x1p-8 * std::abs(value) : 0;
            EXPECT_NEAR(y[i], value, bound[i] + rounding + 2 * kEpsilon * std::abs(value));
          }
        }
      }
    }
  }
}

// What the determinism contract rests on: every row of a large batch has the bits that it has in
// batches of any size and at any place.
TEST_P(Matmul, RowsDoNotDependOnTheBatch) {
  std::mt19937 random(9);
  const ElementType f32 = ElementType::kF32;
#ifdef BLOCKSERVE_CUDA_EMULATED
  const std::vector<MatmulShape> shapes = {{32, 48, type(), type(), true, false},
                                           {32, 48, type(), f32, true, true},
                                           {32, 48, type(), f32, false, false}};
  const int64_t most = 130;
#else
  // The products of the 85 M model: QKV, attention's output, the two of the MLP, expansion and
  // head; and sizes of no tile.
  const std::vector<MatmulShape> shapes = {
      {2304, 768, type(), type(), true, false}, {768, 768, type(), f32, true, true},
      {3072, 768, type(), type(), true, false}, {768, 3072, type(), f32, true, true},
      {1536, 768, type(), f32, true, false},    {50304, 768, type(), f32, false, false},
      {112, 48, type(), f32, true, false}};
  const int64_t most = 1000;
#endif
  for (const MatmulShape& shape : shapes) {
    const auto [n, k] = std::pair(shape.n, shape.k);
    SCOPED_TRACE(absl::StrCat("k = ", k, ", n = ", n));
    const std::vector<float> x = Normal(random, most * k);
    const DeviceBuffer w = UploadAs(type(), Normal(random, n * k));
    const DeviceBuffer bias =
        shape.bias ? UploadAs(shape.output, Normal(random, n)) : DeviceBuffer();
    const std::vector<float> before =
        shape.accumulate ? Normal(random, most * n) : std::vector<float>(most * n);
    for (const MatmulMode mode : InvariantModes()) {
      const std::unique_ptr<const MatmulPlan> plan = Plan(shape, most, mode);
      ASSERT_NE(plan, nullptr);
      const std::vector<float> all = Run(*plan, shape, x, w, bias, before, most);
      for (const int64_t rows : {1, 2, 63, 64, 65, 127, 128, 130, 256, 257, 511, 640}) {
        if (rows > most) continue;
        // The last rows, so that they come to lie elsewhere in the batch.
        const std::vector<float> some = Run(*plan, shape, Rows(x, k, most - rows, rows), w, bias,
                                            Rows(before, n, most - rows, rows), rows);
        EXPECT_TRUE(SameBits(some, absl::MakeConstSpan(all).subspan((most - rows) * n, rows * n)))
            << rows << " rows, " << plan->description();
      }
    }
  }
}

// Two engines that differ in their flags alone have the same bits.
TEST_P(Matmul, ThePinnedAlgorithmDoesNotDependOnTheMostRows) {
  std::mt19937 random(11);
  for (const MatmulShape& shape : {MatmulShape{64, 96, type(), type(), true, false},
                                   MatmulShape{768, 768, type(), ElementType::kF32, true, true}}) {
    SCOPED_TRACE(absl::StrCat("k = ", shape.k, ", n = ", shape.n));
    const std::vector<float> x = Normal(random, shape.k);
    const std::vector<float> before = Normal(random, shape.n);
    const DeviceBuffer w = UploadAs(type(), Normal(random, shape.n * shape.k));
    const DeviceBuffer bias = UploadAs(shape.output, Normal(random, shape.n));
    const std::unique_ptr<const MatmulPlan> first = Plan(shape, 64);
    ASSERT_NE(first, nullptr);
    const std::vector<float> expected = Run(*first, shape, x, w, bias, before, 1);
    for (const int64_t most : {1, 65, 128, 1000, 1024, 2304, 8448, 16384, 65792}) {
      const std::unique_ptr<const MatmulPlan> plan = Plan(shape, most);
      ASSERT_NE(plan, nullptr);
      EXPECT_EQ(plan->description(), first->description()) << "up to " << most << " rows";
      EXPECT_TRUE(SameBits(Run(*plan, shape, x, w, bias, before, 1), expected))
          << "up to " << most << " rows, " << plan->description();
    }
  }
}

TEST_P(Matmul, MoreRowsThanThePinnedAlgorithmRunsAtOnceAreTheSameRows) {
  std::mt19937 random(12);
  const MatmulShape shape{16, 16, type(), ElementType::kF32, true, true};
  const int64_t most = kMaxPinnedRows + 70;
  const std::unique_ptr<const MatmulPlan> plan = Plan(shape, most);
  ASSERT_NE(plan, nullptr);
  const std::vector<float> x = Normal(random, most * shape.k);
  const std::vector<float> before = Normal(random, most * shape.n);
  const DeviceBuffer w = UploadAs(type(), Normal(random, shape.n * shape.k));
  const DeviceBuffer bias = UploadAs(shape.output, Normal(random, shape.n));
  const std::vector<float> all = Run(*plan, shape, x, w, bias, before, most);
  const int64_t some = 130;  // of both pieces
  const std::vector<float> last = Run(*plan, shape, Rows(x, shape.k, most - some, some), w, bias,
                                      Rows(before, shape.n, most - some, some), some);
  EXPECT_TRUE(SameBits(last, absl::MakeConstSpan(all).subspan((most - some) * shape.n)));
}

TEST_P(Matmul, TheFastestModeComputesTheSameProduct) {
  std::mt19937 random(10);
  const MatmulShape shape{64, 32, type(), ElementType::kF32, false, false};
  const int64_t rows = 70;
  const std::unique_ptr<const MatmulPlan> plan = Plan(shape, rows, MatmulMode::kFastest);
  ASSERT_NE(plan, nullptr);
  const std::vector<float> x = Stored(Normal(random, rows * shape.k));
  const std::vector<float> w = Stored(Normal(random, shape.n * shape.k));
  const std::vector<float> none(shape.n, 0.0f);
  const std::vector<float> y = Run(*plan, shape, x, UploadAs(type(), w), DeviceBuffer(), {}, rows);
  const std::vector<double> expected = reference::Matmul(x, w, none, rows, shape.n, shape.k);
  const std::vector<double> bound = reference::MatmulErrorBound(x, w, none, rows, shape.n, shape.k);
  for (size_t i = 0; i < y.size(); ++i) EXPECT_NEAR(y[i], expected[i], bound[i]);
}

TEST_P(Matmul, ShapesOutsideTheContractAreRefused) {
  for (const MatmulShape& shape : {MatmulShape{8, 16, type()}, MatmulShape{16, 24, type()},
                                   MatmulShape{16, 16, ElementType::kF32, ElementType::kBf16}}) {
    for (const auto& [mode, library] : libraries_) {
      EXPECT_EQ(library->Plan(shape, 1).status().code(), absl::StatusCode::kInvalidArgument);
    }
  }
  MatmulShape gelu{16, 16, type()};
  gelu.gelu = true;
  EXPECT_EQ(libraries_.at(MatmulMode::kPinned)->Plan(gelu, 1).status().code(),
            absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(libraries_.at(MatmulMode::kOwn)->Plan(gelu, 1).ok(), bf16());
  const MatmulShape shape{16, 16, type()};
  const std::unique_ptr<const MatmulPlan> plan = Plan(shape, 64);
  ASSERT_NE(plan, nullptr);
  EXPECT_EQ(plan->Run(nullptr, nullptr, nullptr, nullptr, 65, workspace_stream_).code(),
            absl::StatusCode::kInvalidArgument);
  const std::unique_ptr<const MatmulPlan> fastest = Plan(shape, 64, MatmulMode::kFastest);
  ASSERT_NE(fastest, nullptr);
  const absl::StatusOr<Stream> without = Stream::Create();
  ASSERT_TRUE(without.ok()) << without.status();
  EXPECT_EQ(fastest->Run(nullptr, nullptr, nullptr, nullptr, 1, *without).code(),
            absl::StatusCode::kInvalidArgument);
}

BLOCKSERVE_OVER_ELEMENT_TYPES(Matmul);

TEST(ChoosePinned, TakesTheFirstThatRunsForAllNumbersOfRowsAndSaysWhatSpeaksAgainstOthers) {
  using Choice = absl::StatusOr<PinnedChoice<int>>;
  const auto propose = [](int64_t) { return absl::StatusOr<std::vector<int>>({640, 128, 0}); };
  // An algorithm is the number of rows for which it does not run.
  const Choice found =
      ChoosePinned<int>(propose, [](int algorithm, int64_t rows) { return algorithm != rows; });
  ASSERT_TRUE(found.ok());
  EXPECT_EQ(found->algorithm, 0);
  EXPECT_EQ(found->proposals, 3);
  EXPECT_EQ(found->refused_rows, 640);
  const Choice none = ChoosePinned<int>(propose, [](int, int64_t rows) { return rows < 4096; });
  ASSERT_TRUE(none.ok());
  EXPECT_FALSE(none->algorithm.has_value());
  EXPECT_EQ(none->proposals, 3 * std::ssize(kPinnedProposals));
  EXPECT_EQ(none->refused_rows, 4096);
}

}  // namespace
}  // namespace blockserve::cuda
