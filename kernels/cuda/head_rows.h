// What the attention files share: rotation, runs of rows, and the addresses of keys and values.
#ifndef BLOCKSERVE_KERNELS_CUDA_HEAD_ROWS_H_
#define BLOCKSERVE_KERNELS_CUDA_HEAD_ROWS_H_

#include <cstdint>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "kernels/cuda/attention.h"
#include "kernels/cuda/device_math.h"

namespace blockserve::cuda {

// Element c of a head's row `x`, rotated: half-split pairing on the first `dims` elements. cos and
// sin are the table's row of the position.
template <typename T>
__device__ inline float RotatedElement(const T* x, int c, int dims, const float* cos,
                                       const float* sin) {
  const float value = ToFloat(x[c]);
  if (c >= dims) return value;
  const int half = dims / 2;
  if (c < half) return __fmaf_rn(value, cos[c], -(ToFloat(x[c + half]) * sin[c]));
  return __fmaf_rn(value, cos[c - half], ToFloat(x[c - half]) * sin[c - half]);
}

inline constexpr int kPiece = 8;  // dimensions of a lane

// A lane's dimensions of a row, as they lie in memory.
template <typename T>
struct Piece;
template <>
struct Piece<float> {
  float elements[kPiece] = {};

  __device__ void Load(const float* p) { Load8(p, elements); }
  __device__ void Store(float* p) const {
#pragma unroll
    for (int e = 0; e < kPiece; e += 4) {
      const float* v = elements + e;
      StoreWords(p + e, {__float_as_uint(v[0]), __float_as_uint(v[1]), __float_as_uint(v[2]),
                         __float_as_uint(v[3])});
    }
  }
  __device__ void Unpack(float* out) const {
#pragma unroll
    for (int e = 0; e < kPiece; ++e) out[e] = elements[e];
  }
  __device__ void Pack(const float* values) {
#pragma unroll
    for (int e = 0; e < kPiece; ++e) elements[e] = values[e];
  }
};
template <>
struct Piece<Bf16> {
  uint4 pairs = {};

  __device__ void Load(const Bf16* p) {
    CheckAligned(p, 16);
    pairs = *reinterpret_cast<const uint4*>(p);
  }
  __device__ void Store(Bf16* p) const { StoreWords(p, pairs); }
  __device__ void Unpack(float* out) const {
    UnpackBf16(pairs.x, out);
    UnpackBf16(pairs.y, out + 2);
    UnpackBf16(pairs.z, out + 4);
    UnpackBf16(pairs.w, out + 6);
  }
  __device__ void Pack(const float* v) {
    pairs = {PackBf16(v[0], v[1]), PackBf16(v[2], v[3]), PackBf16(v[4], v[5]),
             PackBf16(v[6], v[7])};
  }
};

// Whether every head's part of a row is of whole pieces, and so is half of what is rotated, so that
// what a piece is rotated with is a piece too: kWhole, here and in kernels.
inline bool HeadsAreWhole(const KvLayout& layout, int32_t rotary_dims, int64_t qkv_stride) {
  return layout.head_size % kPiece == 0 && rotary_dims / 2 % kPiece == 0 &&
         qkv_stride % kPiece == 0;
}

// A lane's dimensions of one row of a head: q rotated and scaled, k rotated. Zeros beyond the head.
template <typename T, bool kWhole>
struct HeadRow {
  float q[kPiece] = {};
  Piece<T> k;
  Piece<T> v;

  // `qkv` is the head's part of the row.
  __device__ void Load(const T* qkv, int size, int first, int dims, const float* cos,
                       const float* sin, float q_scale) {
    if (first >= size) return;
    if constexpr (kWhole) {
      Piece<T> query;
      query.Load(qkv + first);
      k.Load(qkv + size + first);
      v.Load(qkv + 2 * size + first);
      query.Unpack(q);
      if (first < dims) RotatePieces(qkv, size, first, dims / 2, cos, sin);
    } else {
      float key[kPiece] = {};
      float value[kPiece] = {};
#pragma unroll
      for (int e = 0; e < kPiece; ++e) {
        if (first + e >= size) break;
        q[e] = RotatedElement(qkv, first + e, dims, cos, sin);
        key[e] = RotatedElement(qkv + size, first + e, dims, cos, sin);
        value[e] = ToFloat(qkv[2 * size + first + e]);
      }
      k.Pack(key);
      v.Pack(value);
    }
#pragma unroll
    for (int e = 0; e < kPiece; ++e) q[e] *= q_scale;
  }

 private:
  // RotatedElement of all.
  __device__ void RotatePieces(const T* qkv, int size, int first, int half, const float* cos,
                               const float* sin) {
    const bool below = first < half;
    const int other = below ? first + half : first - half;
    Piece<T> other_q;
    Piece<T> other_k;
    float cosines[kPiece];
    float sines[kPiece];
    other_q.Load(qkv + other);
    other_k.Load(qkv + size + other);
    Load8(cos + (below ? first : other), cosines);
    Load8(sin + (below ? first : other), sines);
    float key[kPiece];
    k.Unpack(key);
    const auto rotate = [&](const Piece<T>& others, float* x) {
      float y[kPiece];
      others.Unpack(y);
#pragma unroll
      for (int e = 0; e < kPiece; ++e) {
        const float product = y[e] * sines[e];
        x[e] = __fmaf_rn(x[e], cosines[e], below ? -product : product);
      }
    };
    rotate(other_q, q);
    rotate(other_k, key);
    k.Pack(key);
  }
};

// KvLayout as kernels use it, in elements.
struct KvStrides {
  int32_t page_blocks = 0;
  int32_t page_shift = -1;  // its logarithm, where it has one: divisions are slow
  int32_t head_stride = 0;
  int64_t rows_stride = 0;
  int64_t page_stride = 0;

  explicit KvStrides(const KvLayout& layout)
      : page_blocks(layout.page_blocks),
        head_stride(static_cast<int32_t>(layout.head_stride())),
        rows_stride(layout.rows_stride()),
        page_stride(layout.page_stride()) {
    if ((page_blocks & (page_blocks - 1)) != 0) return;
    for (page_shift = 0; 1 << page_shift < page_blocks;) ++page_shift;
  }

  __device__ int32_t PageOf(int32_t position) const {
    return page_shift >= 0 ? position >> page_shift : position / page_blocks;
  }
  // Of the keys of a head in a page; the values are rows_stride after them.
  __device__ int64_t KeysOffset(int64_t page, int head) const {
    return page * page_stride + head * 2 * rows_stride;
  }
};

// How many of rows[row, end), from `row` on, are consecutive positions of one sequence.
__device__ inline int ConsecutiveRows(const SequenceRow* rows, int64_t row, int64_t end) {
  const SequenceRow first = rows[row];
  int count = 1;
  while (row + count < end) {
    const SequenceRow next = rows[row + count];
    if (next.pages_begin != first.pages_begin || next.position != first.position + count) break;
    ++count;
  }
  return count;
}

inline absl::Status CheckHeads(const char* name, const KvLayout& layout, int32_t rotary_dims,
                               int64_t qkv_stride) {
  if (layout.num_heads < 1 || layout.num_heads > 0xffff || layout.head_size < 1 ||
      layout.head_size > kMaxHeadSize || layout.page_blocks < 1 || rotary_dims < 0 ||
      rotary_dims > layout.head_size || rotary_dims % 2 != 0 ||
      qkv_stride < int64_t{3} * layout.num_heads * layout.head_size) {
    return absl::InvalidArgumentError(absl::StrCat(
        name, ": ", layout.num_heads, " heads of ", layout.head_size, " (at most ", kMaxHeadSize,
        "), ", rotary_dims, " rotated, pages of ", layout.page_blocks, ", stride ", qkv_stride));
  }
  return absl::OkStatus();
}

}  // namespace blockserve::cuda

#endif  // BLOCKSERVE_KERNELS_CUDA_HEAD_ROWS_H_
