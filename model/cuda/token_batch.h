// Rows of the token decoder as they travel to a device and back: one copy in, one copy out.
#ifndef BLOCKSERVE_MODEL_CUDA_TOKEN_BATCH_H_
#define BLOCKSERVE_MODEL_CUDA_TOKEN_BATCH_H_

#include <cstdint>
#include <optional>

#include "absl/types/span.h"
#include "kernels/cuda/element_type.h"
#include "kernels/cuda/sample.h"
#include "model/config.h"
#include "model/engine.h"

namespace blockserve {

// Byte offsets in the buffer of a batch of `rows` rows, the same on the host and on the device.
// What goes in lies before `logprobs`, what comes out from `states` on.
struct TokenIoLayout {
  TokenIoLayout() = default;
  TokenIoLayout(const ModelConfig& config, cuda::ElementType type, int32_t rows);

  int64_t sample_rows = 0;  // [rows] cuda::SampleRow
  int64_t contexts = 0;     // [rows, D padded] type
  int64_t states = 0;       // [rows] cuda::SampleState
  int64_t tokens = 0;       // [rows, L] int32
  int64_t logprobs = 0;     // [rows, L] float
  int64_t end = 0;

  int64_t upload_bytes() const { return logprobs; }
  int64_t download_bytes() const { return end - states; }
};

// Lists of all rows of a batch (biases, counts, stop ids) share one buffer of so many bytes: what a
// batch of usual requests needs, and the counts of a row that has seen every id.
int64_t TokenListCapacity(const ModelConfig& config, int32_t max_rows);
// Floats that the sampling kernel sets aside for lists in a buffer of `list_capacity` bytes.
int64_t TokenSavedFloats(const ModelConfig& config, int32_t max_rows, int64_t list_capacity);

// How many of `rows`, from the first on and at most `max_rows`, one batch takes; 0: the lists of
// the first one alone are too long.
int32_t CountRowsThatFit(absl::Span<const TokenRow> rows, int32_t max_rows, int64_t list_capacity);

// Writes a batch to host memory: `io` of `layout`, `lists`. Rows of the layout beyond `rows` become
// rows that are none. Returns the bytes of `lists` in use.
int64_t PackTokenRows(const ModelConfig& config, cuda::ElementType type,
                      absl::Span<const TokenRow> rows, int32_t layout_rows,
                      const TokenIoLayout& layout, uint8_t* io, uint8_t* lists);

// The best ids of a batch; only where a row asks for them.
struct TokenTops {
  const int32_t* tokens = nullptr;  // [rows, L, stride]
  const float* logprobs = nullptr;  // [rows, L, stride]
  int32_t stride = 0;
};
// What a device wrote for row `index` of a batch.
TokenRowResult UnpackTokenRow(const ModelConfig& config, const TokenRow& row, int32_t index,
                              const TokenIoLayout& layout, const uint8_t* io,
                              const TokenTops& tops);

}  // namespace blockserve

#endif  // BLOCKSERVE_MODEL_CUDA_TOKEN_BATCH_H_
