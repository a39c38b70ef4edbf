#include "kernels/cuda/attention.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "absl/strings/str_cat.h"
#include "common/worst_error_for_test.h"
#include "kernels/cuda/device_test_util.h"
#include "kernels/reference.h"

namespace blockserve::cuda {
namespace {

constexpr float kNan = std::numeric_limits<float>::quiet_NaN();

struct Shape {
  int32_t heads;
  int32_t size;
  int32_t dims;  // rotated

  int64_t qkv_stride() const { return PadElements(int64_t{3} * heads * size); }
  int64_t out_stride() const { return PadElements(int64_t{heads} * size); }
};

// One step: rows of the sequences, each a sequence and a position.
struct StepRow {
  int32_t sequence;
  int32_t position;  // negative: no row
};

class Attention : public DeviceTypeTest {
 protected:
  struct Angles {
    DeviceBuffer cos;
    DeviceBuffer sin;
  };
  Angles MakeAngles(const Shape& shape, int64_t positions) const {
    std::vector<float> cos;
    std::vector<float> sin;
    for (int64_t p = 0; p < positions; ++p) {
      for (int32_t i = 0; i < shape.dims / 2; ++i) {
        const double angle = static_cast<double>(p) * std::pow(10000.0, -2.0 * i / shape.dims);
        cos.push_back(static_cast<float>(std::cos(angle)));
        sin.push_back(static_cast<float>(std::sin(angle)));
      }
    }
    return {Upload(cos), Upload(sin)};
  }

  // Device memory of pages: NaN wherever nothing has been written, but zero between the heads'
  // sizes and strides, as the layout says.
  DeviceBuffer MakePages(const KvLayout& layout, int64_t pages) const {
    std::vector<float> values(pages * layout.page_stride());
    for (size_t i = 0; i < values.size(); ++i) {
      values[i] = static_cast<int64_t>(i) % layout.head_stride() < layout.head_size ? kNan : 0.0f;
    }
    return UploadAs(type(), values);
  }

  // Runs the steps over one set of pages, and returns what came out for each (sequence, position):
  // [sequences][positions][out_stride]. qkv: [sequences][positions][qkv_stride].
  std::vector<float> RunSteps(const Shape& shape, const std::vector<float>& qkv, int32_t sequences,
                              int32_t positions, int32_t page_blocks, int32_t queries_per_block,
                              const std::vector<std::vector<StepRow>>& steps) const {
    KvLayout layout{shape.heads, shape.size, page_blocks, type()};
    const int32_t pages_each = (positions + page_blocks - 1) / page_blocks;
    const DeviceBuffer kv = MakePages(layout, sequences * pages_each);
    std::vector<int32_t> tables;  // pages of the sequences interleaved and backwards
    for (int32_t s = 0; s < sequences; ++s) {
      for (int32_t p = 0; p < pages_each; ++p) {
        tables.push_back((pages_each - 1 - p) * sequences + s);
      }
    }
    const DeviceBuffer device_tables = Upload(tables);
    const Angles angles = MakeAngles(shape, positions);
    std::vector<float> out(int64_t{sequences} * positions * shape.out_stride());
    for (const std::vector<StepRow>& step : steps) {
      std::vector<float> step_qkv;
      std::vector<SequenceRow> rows;
      for (const StepRow& row : step) {
        const int64_t at = int64_t{row.sequence} * positions + std::max(row.position, 0);
        const std::vector<float> values = Rows(qkv, shape.qkv_stride(), at, 1);
        step_qkv.insert(step_qkv.end(), values.begin(), values.end());
        rows.push_back({row.position, row.sequence * pages_each});
      }
      const int64_t count = static_cast<int64_t>(step.size());
      const DeviceBuffer device_qkv = UploadAs(type(), step_qkv);
      const DeviceBuffer device_rows = Upload(rows);
      const DeviceBuffer q =
          Upload(std::vector<float>(count * shape.heads * layout.head_stride(), 0.0f));
      const DeviceBuffer device_out =
          UploadAs(type(), std::vector<float>(count * shape.out_stride(), 3.0f));
      SplitQkvArgs split;
      split.rows = count;
      split.qkv = device_qkv.data();
      split.qkv_stride = shape.qkv_stride();
      split.sequence_rows = device_rows.as<SequenceRow>();
      split.page_tables = device_tables.as<int32_t>();
      split.layout = layout;
      split.kv = kv.data();
      split.rotary_dims = shape.dims;
      split.cos = angles.cos.as<float>();
      split.sin = angles.sin.as<float>();
      split.q_scale = 1.0f / std::sqrt(static_cast<float>(shape.size));
      split.q = q.as<float>();
      absl::Status status = SplitQkv(split, stream());
      EXPECT_TRUE(status.ok()) << status;
      BlockAttentionArgs attention;
      attention.rows = count;
      attention.q = q.as<float>();
      attention.sequence_rows = device_rows.as<SequenceRow>();
      attention.page_tables = device_tables.as<int32_t>();
      attention.layout = layout;
      attention.kv = kv.data();
      attention.out = device_out.data();
      attention.out_stride = shape.out_stride();
      attention.queries_per_block = queries_per_block;
      status = BlockAttention(attention, stream());
      EXPECT_TRUE(status.ok()) << status;
      const std::vector<float> result = DownloadAs(type(), device_out);
      for (int64_t r = 0; r < count; ++r) {
        const auto row = result.begin() + r * shape.out_stride();
        if (step[r].position < 0) {
          for (int32_t i = 0; i < shape.heads * shape.size; ++i) EXPECT_EQ(row[i], 0.0f);
          continue;
        }
        std::copy(row, row + shape.out_stride(),
                  out.begin() + (int64_t{step[r].sequence} * positions + step[r].position) *
                                    shape.out_stride());
      }
    }
    return out;
  }

  // The reference of one head of a sequence's position.
  std::vector<double> Expected(const Shape& shape, const float* qkv, int64_t position,
                               int32_t head) const {
    const auto rotated = [&](const float* x, int64_t p) {
      std::vector<double> y = reference::Rotate({x, static_cast<size_t>(shape.dims)}, p, 10000.0);
      y.insert(y.end(), x + shape.dims, x + shape.size);
      return y;
    };
    std::vector<double> keys;
    std::vector<double> values;
    for (int64_t p = 0; p <= position; ++p) {
      const float* row = qkv + p * shape.qkv_stride() + int64_t{3} * head * shape.size;
      for (const double value : rotated(row + shape.size, p)) {
        keys.push_back(Stored(static_cast<float>(value)));
      }
      values.insert(values.end(), row + 2 * shape.size, row + 3 * shape.size);
    }
    const float* row = qkv + position * shape.qkv_stride() + int64_t{3} * head * shape.size;
    return reference::Attention(rotated(row, position), keys, values);
  }

  // Weights are within a few units of one another, values have magnitude 4. A key that falls on the
  // other side of a bf16 tie moves a score by 2^-8 of a product.
  double Tolerance() const { return bf16() ? 3e-2 : 4e-6; }
};

std::vector<std::vector<StepRow>> Prefill(int32_t sequence, int32_t positions,
                                          const std::vector<int32_t>& sizes) {
  std::vector<std::vector<StepRow>> steps;
  int32_t at = 0;
  for (size_t i = 0; at < positions; ++i) {
    steps.emplace_back();
    for (int32_t n = std::min(sizes[i % sizes.size()], positions - at); n > 0; --n) {
      steps.back().push_back({sequence, at++});
    }
  }
  return steps;
}

TEST_P(Attention, OverPagesMatchesTheReference) {
  std::mt19937 random(5);
  for (const Shape& shape : {Shape{2, 16, 4}, Shape{1, 48, 48}, Shape{2, 64, 16}, Shape{1, 128, 32},
                             Shape{3, 20, 10}, Shape{1, 7, 2}, Shape{1, 32, 0}}) {
    SCOPED_TRACE(absl::StrCat("head size ", shape.size));
    const int32_t positions = shape.size == 64 ? 300 : 40;  // three tiles, or a part of one
    const std::vector<float> qkv = Stored(Normal(random, positions * shape.qkv_stride()));
    const std::vector<float> out =
        RunSteps(shape, qkv, 1, positions, 16, kAttentionQueries, Prefill(0, positions, {64}));
    double worst = 0;
    for (int64_t p = 0; p < positions; p += p < 40 ? 1 : 37) {
      for (int32_t head = 0; head < shape.heads; ++head) {
        const std::vector<double> expected = Expected(shape, qkv.data(), p, head);
        for (int32_t i = 0; i < shape.size; ++i) {
          const double actual = out[p * shape.out_stride() + head * shape.size + i];
          const double error = std::abs(actual - expected[i]);
          worst = WorstError(worst, error);
        }
      }
    }
    EXPECT_LE(worst, Tolerance());
  }
}

TEST_P(Attention, BitsDoNotDependOnPagesChunksSharedReadsOrBatch) {
  std::mt19937 random(6);
  for (const Shape& shape :
       {Shape{1, 64, 16}, Shape{1, 128, 32}, Shape{1, 48, 48}, Shape{2, 20, 10}}) {
    SCOPED_TRACE(absl::StrCat("head size ", shape.size));
    const int32_t positions = shape.size == 20 ? 20 : shape.size == 64 ? 150 : 70;
    const int32_t sequences = 3;
    std::vector<float> qkv =
        Stored(Normal(random, int64_t{sequences} * positions * shape.qkv_stride()));
    // The last sequence is broken: the others must not notice.
    for (int64_t i = 0; i < shape.qkv_stride(); ++i) {
      qkv[(int64_t{2} * positions + 3) * shape.qkv_stride() + i] = kNan;
    }
    const int64_t each = positions * shape.out_stride();
    const std::vector<float> expected =
        RunSteps(shape, qkv, sequences, positions, 16, 1, Prefill(1, positions, {positions}));
    const auto expect_same = [&](int32_t page_blocks, int32_t queries,
                                 const std::vector<std::vector<StepRow>>& steps) {
      const std::vector<float> actual =
          RunSteps(shape, qkv, sequences, positions, page_blocks, queries, steps);
      EXPECT_TRUE(SameBits(absl::MakeConstSpan(expected).subspan(each, each),
                           absl::MakeConstSpan(actual).subspan(each, each)))
          << page_blocks << " blocks a page, " << queries << " queries";
    };
    expect_same(16, kAttentionQueries, Prefill(1, positions, {positions}));
    expect_same(5, kAttentionQueries, Prefill(1, positions, {7, 1, 30}));
    expect_same(1, 1, Prefill(1, positions, {64}));
    // Beside others, which are broken, or no row, or at the same position.
    std::vector<std::vector<StepRow>> steps;
    for (int32_t p = 0; p < positions; p += 2) {
      steps.push_back({{2, p}, {2, p + 1}, {0, -1}, {1, p}, {1, p + 1}, {0, p}, {0, p + 1}});
    }
    // Once more, rows of one sequence with others left out between them.
    steps.push_back({{1, 2}, {1, 4}, {1, 5}, {1, 9}, {0, 10}, {1, 11}});
    expect_same(3, kAttentionQueries, steps);
    expect_same(128, 1, steps);
  }
}

// A position that is not finite breaks those that see it, and no other of the same launch.
TEST_P(Attention, WhatAQueryDoesNotSeeMayBeAnything) {
  std::mt19937 random(11);
  const Shape shape{1, 64, 16};
  const int32_t positions = 40;
  const int32_t broken = 21;
  std::vector<float> qkv = Stored(Normal(random, positions * shape.qkv_stride()));
  const auto run = [&] {
    return RunSteps(shape, qkv, 1, positions, 16, kAttentionQueries, Prefill(0, positions, {40}));
  };
  const std::vector<float> whole = run();
  // One dimension of its value.
  qkv[broken * shape.qkv_stride() + 2 * shape.size + 5] = std::numeric_limits<float>::infinity();
  const std::vector<float> actual = run();
  EXPECT_TRUE(SameBits(absl::MakeConstSpan(whole).subspan(0, broken * shape.out_stride()),
                       absl::MakeConstSpan(actual).subspan(0, broken * shape.out_stride())));
  for (int32_t p = broken; p < positions; ++p) {
    EXPECT_FALSE(std::isfinite(actual[p * shape.out_stride() + 5])) << p;
    EXPECT_EQ(actual[p * shape.out_stride() + 20], whole[p * shape.out_stride() + 20]) << p;
  }
}

TEST_P(Attention, OfATokenBlockMatchesTheReferenceInAnySplit) {
  std::mt19937 random(7);
  for (const Shape& shape :
       {Shape{3, 16, 4}, Shape{7, 16, 16}, Shape{5, 32, 16}, Shape{1, 48, 48}, Shape{2, 64, 16},
        Shape{1, 80, 20}, Shape{1, 128, 32}, Shape{3, 7, 2}}) {
    for (const int32_t positions : {5, 40}) {
      if (positions == 40 && shape.size != 16) continue;
      SCOPED_TRACE(absl::StrCat("head size ", shape.size, ", positions ", positions));
      const int32_t slots = 3;
      const KvLayout layout{shape.heads, shape.size, positions, type()};
      const std::vector<float> qkv =
          Stored(Normal(random, int64_t{slots} * positions * shape.qkv_stride()));
      const Angles angles = MakeAngles(shape, positions);
      // Of the slots [first_slot, first_slot + count), in steps of so many rows a slot.
      const auto run = [&](int32_t first_slot, int32_t count, const std::vector<int32_t>& sizes) {
        const DeviceBuffer kv = MakePages(layout, count);
        std::vector<float> out(int64_t{count} * positions * shape.out_stride());
        int32_t first = 0;
        for (size_t step = 0; first < positions; ++step) {
          const int32_t rows = std::min(sizes[step % sizes.size()], positions - first);
          std::vector<float> step_qkv;
          for (int32_t s = 0; s < count; ++s) {
            const std::vector<float> values =
                Rows(qkv, shape.qkv_stride(), int64_t{first_slot + s} * positions + first, rows);
            step_qkv.insert(step_qkv.end(), values.begin(), values.end());
          }
          const DeviceBuffer device_qkv = UploadAs(type(), step_qkv);
          const DeviceBuffer device_out =
              UploadAs(type(), std::vector<float>(count * rows * shape.out_stride()));
          TokenAttentionArgs args;
          args.slots = count;
          args.rows_per_slot = rows;
          args.first_index = first;
          args.qkv = device_qkv.data();
          args.qkv_stride = shape.qkv_stride();
          args.layout = layout;
          args.kv = kv.data();
          args.rotary_dims = shape.dims;
          args.cos = angles.cos.as<float>();
          args.sin = angles.sin.as<float>();
          args.q_scale = 1.0f / std::sqrt(static_cast<float>(shape.size));
          args.out = device_out.data();
          args.out_stride = shape.out_stride();
          const absl::Status status = TokenAttention(args, stream());
          EXPECT_TRUE(status.ok()) << status;
          const std::vector<float> result = DownloadAs(type(), device_out);
          for (int32_t s = 0; s < count; ++s) {
            std::copy_n(result.begin() + int64_t{s} * rows * shape.out_stride(),
                        rows * shape.out_stride(),
                        out.begin() + (int64_t{s} * positions + first) * shape.out_stride());
          }
          first += rows;
        }
        return out;
      };
      const std::vector<float> out = run(0, slots, {2, 1});
      double worst = 0;
      for (int32_t s = 0; s < slots; ++s) {
        const float* slot_qkv = qkv.data() + int64_t{s} * positions * shape.qkv_stride();
        for (int32_t p = 0; p < positions; p += p < 5 ? 1 : 11) {
          for (int32_t head = 0; head < shape.heads; ++head) {
            const std::vector<double> expected = Expected(shape, slot_qkv, p, head);
            for (int32_t i = 0; i < shape.size; ++i) {
              const double actual =
                  out[(int64_t{s} * positions + p) * shape.out_stride() + head * shape.size + i];
              const double error = std::abs(actual - expected[i]);
              worst = WorstError(worst, error);
            }
          }
        }
      }
      EXPECT_LE(worst, Tolerance());
      EXPECT_TRUE(SameBits(out, run(0, slots, {positions})));
      const int64_t each = positions * shape.out_stride();
      EXPECT_TRUE(SameBits(absl::MakeConstSpan(out).subspan(2 * each, each), run(2, 1, {1})));
    }
  }
}

TEST_P(Attention, ShapesThatItCannotHoldAreRefused) {
  TokenAttentionArgs args;
  args.slots = 1;
  args.layout = {1, 16, 5, type()};
  args.qkv_stride = 48;
  args.out_stride = 16;
  args.first_index = 5;
  EXPECT_EQ(TokenAttention(args, stream()).code(), absl::StatusCode::kInvalidArgument);
  args.first_index = 0;
  args.layout.head_size = kMaxHeadSize + 1;
  args.qkv_stride = 1024;
  EXPECT_EQ(TokenAttention(args, stream()).code(), absl::StatusCode::kInvalidArgument);
  BlockAttentionArgs block;
  block.layout = {1, 16, 5, type()};
  block.out_stride = 16;
  block.queries_per_block = 3;
  EXPECT_EQ(BlockAttention(block, stream()).code(), absl::StatusCode::kInvalidArgument);
}

BLOCKSERVE_OVER_ELEMENT_TYPES(Attention);

}  // namespace
}  // namespace blockserve::cuda
