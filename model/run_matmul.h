// A matrix product on all threads of a pool.
#ifndef BLOCKSERVE_MODEL_RUN_MATMUL_H_
#define BLOCKSERVE_MODEL_RUN_MATMUL_H_

#include <cstdint>

#include "absl/functional/function_ref.h"
#include "common/thread_pool.h"
#include "kernels/aligned_buffer.h"
#include "kernels/cpu/cpu_kernels.h"
#include "model/arithmetic.h"

namespace blockserve {

// The form in which an arithmetic stores the weights of matrix products that a checkpoint has as
// `stored`. kF32 keeps bfloat16 as it is: widened as they are read, the same numbers in half the
// memory, and the same sums.
WeightFormat WeightFormatOf(Arithmetic arithmetic, ElementType stored);

// Inputs in the form that kBf16Dot and kInt8 multiply; empty for the other arithmetics.
class QuantizedRows {
 public:
  QuantizedRows() = default;
  // Room for `max_rows` rows of at most `max_k` values. data() is missing without memory.
  QuantizedRows(Arithmetic arithmetic, int64_t max_rows, int64_t max_k);
  bool has_memory() const { return max_rows_ == 0 || rows_.data() != nullptr; }

  // Makes args.x the kernels' input: fills `quantized`, and what goes with it, on the pool.
  void Quantize(const CpuKernels& kernels, ThreadPool& pool, MatmulArgs& args) const;

 private:
  int64_t max_rows_ = 0;
  AlignedBuffer rows_;
  AlignedBuffer scales_;
};

// Runs the product that args.weights' format asks for. Every thread takes the panels of its own
// part in order, and then what is left of the others' parts. `next`, if any, is the matrix that
// comes afterwards: the beginnings of its parts are fetched while the last panels are multiplied.
void RunMatmul(const CpuKernels& kernels, ThreadPool& pool, const QuantizedRows& quantized,
               MatmulArgs args, const PackedMatrix* next = nullptr);

// The same in pieces of `piece_panels` panels that begin at multiples of it, for what follows a
// piece while it is in the cache. body(args, kernel, begin, end, thread) calls kernel(args, begin,
// end) for the panels [begin, end); before it may give args.y another place.
using PanelKernel = void (*)(const MatmulArgs& args, int64_t panel_begin, int64_t panel_end);
using PieceBody = absl::FunctionRef<void(MatmulArgs& args, PanelKernel kernel, int64_t begin,
                                         int64_t end, int thread)>;
void RunMatmulInPieces(const CpuKernels& kernels, ThreadPool& pool, const QuantizedRows& quantized,
                       MatmulArgs args, int64_t piece_panels, PieceBody body);

}  // namespace blockserve

#endif  // BLOCKSERVE_MODEL_RUN_MATMUL_H_
