#include "model/run_matmul.h"

#include <algorithm>
#include <array>
#include <atomic>

namespace blockserve {
namespace {

// Rows that a thread quantises at a time.
constexpr int64_t kRowGrain = 8;
// Panels that a thread takes at a time, at least: kernels run up to eight side by side.
constexpr int64_t kMinPanels = 8;
// Pieces of a thread's part: one that is held up does not hold up the others for long.
constexpr int64_t kPieces = 16;
constexpr int64_t kMaxParts = 64;

// Bytes from one quantised row of `k` values to the next: an odd number of cache lines.
int64_t QuantizedStride(int64_t k) { return (PadToPanel(k) * 2 + 63) / 64 * 64 | 64; }

// The first panel of part `part` of `parts`; whole groups of `grain` but for the last.
int64_t PartBegin(const PackedMatrix& weights, int64_t part, int64_t parts, int64_t grain) {
  if (part == parts) return weights.num_panels();
  return weights.num_panels() * part / parts / grain * grain;
}

int64_t NumParts(const ThreadPool& pool) {
  return std::min<int64_t>(pool.num_threads(), kMaxParts);
}

struct alignas(64) Part {
  std::atomic<int64_t> next{0};
  int64_t end = 0;
};

}  // namespace

WeightFormat WeightFormatOf(Arithmetic arithmetic, ElementType stored) {
  switch (arithmetic) {
    case Arithmetic::kF32:
      return stored == ElementType::kBf16 ? WeightFormat::kBf16 : WeightFormat::kF32;
    case Arithmetic::kCudaF32:
    case Arithmetic::kCudaBf16:
    case Arithmetic::kCudaBf16Own:
    case Arithmetic::kCudaBf16Fast:
      break;  // the CUDA engines keep their weights on the device
    case Arithmetic::kBf16:
      return WeightFormat::kBf16;
    case Arithmetic::kBf16Dot:
      return WeightFormat::kBf16Dot;
    case Arithmetic::kInt8:
      return WeightFormat::kInt8;
  }
  return WeightFormat::kF32;
}

QuantizedRows::QuantizedRows(Arithmetic arithmetic, int64_t max_rows, int64_t max_k) {
  if (arithmetic != Arithmetic::kBf16Dot && arithmetic != Arithmetic::kInt8) return;
  max_rows_ = max_rows;
  rows_ = AlignedBuffer(max_rows * QuantizedStride(max_k));
  scales_ = AlignedBuffer(max_rows * sizeof(float));
  if (scales_.data() == nullptr) rows_ = AlignedBuffer();
}

void QuantizedRows::Quantize(const CpuKernels& kernels, ThreadPool& pool, MatmulArgs& args) const {
  QuantizeArgs quantize;
  quantize.x = args.x;
  quantize.x_stride = args.x_stride;
  quantize.k = args.weights->k();
  quantize.format = args.weights->format();
  quantize.int8_rows = kernels.int8_rows;
  quantize.quantized = rows_.data();
  quantize.quantized_stride = QuantizedStride(quantize.k);
  quantize.scales = scales_.as<float>();
  pool.ParallelFor((args.rows + kRowGrain - 1) / kRowGrain, [&](int64_t task, int) {
    kernels.quantize(quantize, task * kRowGrain, std::min(args.rows, (task + 1) * kRowGrain));
  });
  args.quantized = quantize.quantized;
  args.quantized_stride = quantize.quantized_stride;
  args.x_scales = quantize.scales;
  args.int8_rows = quantize.int8_rows;
  args.finish_dots = kernels.finish_dots;
}

namespace {

// Parts begin at multiples of `grain` panels.
void RunPieces(const CpuKernels& kernels, ThreadPool& pool, const QuantizedRows& quantized,
               MatmulArgs args, int64_t grain, int64_t piece_panels, const PackedMatrix* next,
               PieceBody body) {
  const PackedMatrix& weights = *args.weights;
  PanelKernel kernel = kernels.matmul;
  if (weights.format() == WeightFormat::kBf16Dot || weights.format() == WeightFormat::kInt8) {
    kernel = weights.format() == WeightFormat::kInt8 ? kernels.int8_matmul : kernels.bf16dot_matmul;
    quantized.Quantize(kernels, pool, args);
  }
  const int64_t parts = NumParts(pool);
  std::array<Part, kMaxParts> all;
  for (int64_t i = 0; i < parts; ++i) {
    all[i].next.store(PartBegin(weights, i, parts, grain), std::memory_order_relaxed);
    all[i].end = PartBegin(weights, i + 1, parts, grain);
  }
  pool.ParallelFor(parts, [&](int64_t, int thread) {
    const int64_t own = thread % parts;
    for (int64_t i = 0; i < parts; ++i) {
      Part& part = all[(own + i) % parts];
      MatmulArgs mine = args;
      if (i == 0) {
        // The pieces of a thread's own part follow one another.
        mine.fetch_end = part.end;
        mine.fetch_next = next;
        if (next != nullptr) mine.fetch_next_panel = PartBegin(*next, own, parts, kMinPanels);
      }
      while (true) {
        const int64_t begin = part.next.fetch_add(piece_panels, std::memory_order_relaxed);
        if (begin >= part.end) break;
        body(mine, kernel, begin, std::min(part.end, begin + piece_panels), thread);
      }
    }
  });
}

}  // namespace

void RunMatmul(const CpuKernels& kernels, ThreadPool& pool, const QuantizedRows& quantized,
               MatmulArgs args, const PackedMatrix* next) {
  const int64_t parts = NumParts(pool);
  const int64_t part_panels = (args.weights->num_panels() + parts - 1) / parts;
  const int64_t piece =
      parts == 1 ? part_panels
                 : (part_panels / kPieces + kMinPanels - 1) / kMinPanels * kMinPanels + kMinPanels;
  RunPieces(kernels, pool, quantized, args, kMinPanels, piece, next,
            [](const MatmulArgs& mine, PanelKernel kernel, int64_t begin, int64_t end, int) {
              kernel(mine, begin, end);
            });
}

void RunMatmulInPieces(const CpuKernels& kernels, ThreadPool& pool, const QuantizedRows& quantized,
                       MatmulArgs args, int64_t piece_panels, PieceBody body) {
  RunPieces(kernels, pool, quantized, args, piece_panels, piece_panels, nullptr, body);
}

}  // namespace blockserve
