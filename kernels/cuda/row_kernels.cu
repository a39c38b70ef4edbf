#include <type_traits>

#include "absl/strings/str_cat.h"
#include "kernels/cuda/device_math.h"
#include "kernels/cuda/row_kernels.h"

namespace blockserve::cuda {
namespace {

constexpr int kThreads = 128;
constexpr int kWarpsPerBlock = kThreads / kWarp;
constexpr int kGeluThreads = 256;
constexpr int64_t kMaxGridX = 0x7fffffff;

dim3 Blocks(int64_t count) { return dim3(static_cast<uint32_t>(count)); }

// A status where the launch cannot be made: more rows than a grid has blocks.
absl::Status CheckRows(const char* name, int64_t rows) {
  if (rows >= 0 && rows <= kMaxGridX) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat(name, ": ", rows, " rows"));
}

absl::Status Invalid(const char* name, absl::string_view what) {
  return absl::InvalidArgumentError(absl::StrCat(name, ": ", what));
}

// --- LayerNorm: a warp a row. Lane l takes the groups of four elements l, l + 32, …

// Groups of a lane that stay in registers; those of wider rows are read again where they are used.
constexpr int kKeptGroups = 8;

// `count` elements, four or what is left of the row, from `i` on.
template <typename T>
__device__ void NormalizeGroup(const LayerNormArgs::Output& output, int64_t row, int i, int count,
                               const float* x, float mean, float scale) {
  if (output.y == nullptr) return;
  T* y = static_cast<T*>(output.y) + row * output.y_stride + i;
  const auto normalized = [&](int j, float weight, float bias) {
    return __fmaf_rn((x[j] - mean) * scale, weight, bias);
  };
  if (count == 4) {
    float weight[4];
    float bias[4];
    Load4(output.weight + i, weight);
    Load4(output.bias + i, bias);
    float values[4];
#pragma unroll
    for (int j = 0; j < 4; ++j) values[j] = normalized(j, weight[j], bias[j]);
    Store4(y, values);
  } else {
    for (int j = 0; j < count; ++j) {
      y[j] = FromFloat<T>(normalized(j, output.weight[i + j], output.bias[i + j]));
    }
  }
}

template <typename T>
__global__ void __launch_bounds__(kThreads) LayerNormKernel(LayerNormArgs args) {
  WaitForEarlierWork();
  const int64_t row = int64_t{blockIdx.x} * kWarpsPerBlock + threadIdx.x / kWarp;
  if (row >= args.rows) return;
  const int lane = threadIdx.x % kWarp;
  const float* x = args.x + row * args.x_stride;
  const int groups = static_cast<int>(args.width / 4);
  float kept[kKeptGroups][4];
#pragma unroll
  for (int g = 0; g < kKeptGroups; ++g) {
    const int group = lane + g * kWarp;
    if (group < groups) Load4(x + 4 * group, kept[g]);
  }
  // The rest of the row, fewer than four, is the last group of its lane.
  const int rest_count = lane == groups % kWarp ? static_cast<int>(args.width % 4) : 0;
  float rest[3];
  for (int j = 0; j < rest_count; ++j) rest[j] = x[4 * groups + j];
  // take(first element, count, elements) for the lane's groups.
  const auto for_each_group = [&](const auto& take) {
#pragma unroll
    for (int g = 0; g < kKeptGroups; ++g) {
      const int group = lane + g * kWarp;
      if (group < groups) take(4 * group, 4, kept[g]);
    }
#pragma unroll 4
    for (int group = lane + kKeptGroups * kWarp; group < groups; group += kWarp) {
      float values[4];
      Load4(x + 4 * group, values);
      take(4 * group, 4, values);
    }
    if (rest_count > 0) take(4 * groups, rest_count, rest);
  };

  float sum = 0.0f;
  for_each_group([&](int /*i*/, int count, const float* values) {
    for (int j = 0; j < count; ++j) sum += values[j];
  });
  const float mean = __fdiv_rn(WarpSum(sum), static_cast<float>(args.width));
  float squares = 0.0f;
  for_each_group([&](int /*i*/, int count, const float* values) {
    for (int j = 0; j < count; ++j) {
      const float d = values[j] - mean;
      squares = __fmaf_rn(d, d, squares);
    }
  });
  const float variance = __fdiv_rn(WarpSum(squares), static_cast<float>(args.width));
  const float scale = __fdiv_rn(1.0f, __fsqrt_rn(variance + args.epsilon));
  // Weights of several groups are asked for before any of them is used: a store keeps the compiler
  // from moving a load before it, and each of them is far away.
  constexpr int kTogether = 4;
#pragma unroll
  for (int first = 0; first < kKeptGroups; first += kTogether) {
    if (first * kWarp >= groups) break;
#pragma unroll
    for (int o = 0; o < 2; ++o) {
      const LayerNormArgs::Output& output = args.outputs[o];
      if (output.y == nullptr) continue;
      float weight[kTogether][4];
      float bias[kTogether][4];
#pragma unroll
      for (int g = 0; g < kTogether; ++g) {
        const int group = lane + (first + g) * kWarp;
        if (group < groups) Load4(output.weight + 4 * group, weight[g]);
        if (group < groups) Load4(output.bias + 4 * group, bias[g]);
      }
      T* y = static_cast<T*>(output.y) + row * output.y_stride;
#pragma unroll
      for (int g = 0; g < kTogether; ++g) {
        const int group = lane + (first + g) * kWarp;
        float values[4];
#pragma unroll
        for (int j = 0; j < 4; ++j) {
          values[j] = __fmaf_rn((kept[first + g][j] - mean) * scale, weight[g][j], bias[g][j]);
        }
        if (group < groups) Store4(y + 4 * group, values);
      }
    }
  }
#pragma unroll 1
  for (int group = lane + kKeptGroups * kWarp; group < groups; group += kWarp) {
    float values[4];
    Load4(x + 4 * group, values);
    for (const LayerNormArgs::Output& output : args.outputs) {
      NormalizeGroup<T>(output, row, 4 * group, 4, values, mean, scale);
    }
  }
  if (rest_count > 0) {
    for (const LayerNormArgs::Output& output : args.outputs) {
      NormalizeGroup<T>(output, row, 4 * groups, rest_count, rest, mean, scale);
    }
  }
}

// --- GELU: eight elements a thread.

template <typename T>
__global__ void __launch_bounds__(kGeluThreads) GeluKernel(T* y, int64_t groups) {
  WaitForEarlierWork();
  const int64_t group = int64_t{blockIdx.x} * kGeluThreads + threadIdx.x;
  if (group >= groups) return;
  float values[8];
  Load8(y + group * 8, values);
  for (float& value : values) {
    if constexpr (std::is_same_v<T, Bf16>) {
      value = GeluForBf16(value);
    } else {
      value = GeluOf(value);
    }
  }
  Store8(y + group * 8, values);
}

// --- Gathering and embedding: a block a row.

__global__ void __launch_bounds__(kThreads) GatherRowsKernel(GatherRowsArgs args) {
  WaitForEarlierWork();
  const int64_t row = blockIdx.x;
  const int64_t index = args.indices[row];
  if (index < 0) return;
  const char* from = static_cast<const char*>(args.from) + index * args.from_stride_bytes;
  char* to = static_cast<char*>(args.to) + row * args.to_stride_bytes;
  for (int64_t i = threadIdx.x * 16; i < args.row_bytes; i += kThreads * 16) {
    CheckAligned(from, 16);
    CheckAligned(to, 16);
    *reinterpret_cast<uint4*>(to + i) = *reinterpret_cast<const uint4*>(from + i);
  }
}

template <typename T, typename Y>
__global__ void __launch_bounds__(kThreads) EmbedBlocksKernel(EmbedBlocksArgs args) {
  WaitForEarlierWork();
  const int64_t row = blockIdx.x;
  const int32_t* tokens = args.tokens + row * args.block_length;
  const T* table = static_cast<const T*>(args.table);
  Y* y = static_cast<Y*>(args.y) + row * args.y_stride;
  const int32_t width = static_cast<int32_t>(args.width);
  const bool concat = args.kind == BlockEmbedding::kConcat;
  const int32_t filled = concat ? width * args.block_length : width;
  for (int32_t i = threadIdx.x; i < args.y_stride; i += kThreads) {
    float value = 0.0f;
    if (i < filled) {
      if (concat) {
        const int32_t j = i / width;
        value = ToFloat(table[tokens[j] * args.table_stride + (i - j * width)]);
      } else {
        value = ToFloat(table[tokens[0] * args.table_stride + i]);
        for (int32_t j = 1; j < args.block_length; ++j) {
          value += ToFloat(table[tokens[j] * args.table_stride + i]);
        }
      }
    }
    y[i] = FromFloat<Y>(value);
  }
}

template <typename T>
__global__ void __launch_bounds__(kThreads) EmbedTokensKernel(EmbedTokensArgs args) {
  WaitForEarlierWork();
  const int64_t row = blockIdx.x;
  const int32_t token = args.tokens != nullptr ? args.tokens[row * args.tokens_stride] : args.token;
  const float* vector =
      args.vectors != nullptr ? args.vectors + row * args.vectors_stride : nullptr;
  const T* embedding =
      token >= 0 ? static_cast<const T*>(args.table) + token * args.table_stride : nullptr;
  float* x = args.x + row * args.x_stride;
  for (int64_t i = threadIdx.x; i < args.x_stride; i += kThreads) {
    float value = 0.0f;
    if (i < args.width) {
      if (vector != nullptr) value = vector[i];
      if (embedding != nullptr) {
        const float embedded = ToFloat(embedding[i]);
        value = vector != nullptr ? value + embedded : embedded;
      }
    }
    x[i] = value;
  }
}

}  // namespace

absl::Status LayerNorm(const LayerNormArgs& args, StreamHandle stream) {
  const char* name = "LayerNorm";
  if (absl::Status status = CheckRows(name, args.rows); !status.ok()) return status;
  if (args.width < 1 || args.x_stride < args.width || args.x_stride % 4 != 0) {
    return Invalid(name, absl::StrCat("width ", args.width, ", stride ", args.x_stride));
  }
  for (const LayerNormArgs::Output& output : args.outputs) {
    if (output.y != nullptr && (output.y_stride < args.width || output.y_stride % 4 != 0)) {
      return Invalid(name, absl::StrCat("output stride ", output.y_stride));
    }
  }
  if (args.rows == 0) return absl::OkStatus();
  const dim3 grid = Blocks((args.rows + kWarpsPerBlock - 1) / kWarpsPerBlock);
  return args.type == ElementType::kF32
             ? LaunchKernel(name, LayerNormKernel<float>, grid, kThreads, 0, stream, args)
             : LaunchKernel(name, LayerNormKernel<Bf16>, grid, kThreads, 0, stream, args);
}

absl::Status Gelu(ElementType type, void* y, int64_t count, StreamHandle stream) {
  const int64_t groups = count / 8;
  const int64_t blocks = (groups + kGeluThreads - 1) / kGeluThreads;
  if (count < 0 || count % 8 != 0 || blocks > kMaxGridX) {
    return Invalid("Gelu", absl::StrCat(count, " elements"));
  }
  if (count == 0) return absl::OkStatus();
  return type == ElementType::kF32
             ? LaunchKernel("Gelu", GeluKernel<float>, Blocks(blocks), kGeluThreads, 0, stream,
                            static_cast<float*>(y), groups)
             : LaunchKernel("Gelu", GeluKernel<Bf16>, Blocks(blocks), kGeluThreads, 0, stream,
                            static_cast<Bf16*>(y), groups);
}

absl::Status GatherRows(const GatherRowsArgs& args, StreamHandle stream) {
  const char* name = "GatherRows";
  if (absl::Status status = CheckRows(name, args.rows); !status.ok()) return status;
  if (args.row_bytes < 0 || args.row_bytes % 16 != 0 || args.from_stride_bytes % 16 != 0 ||
      args.to_stride_bytes % 16 != 0) {
    return Invalid(name, absl::StrCat("rows of ", args.row_bytes, " bytes"));
  }
  if (args.rows == 0 || args.row_bytes == 0) return absl::OkStatus();
  return LaunchKernel(name, GatherRowsKernel, Blocks(args.rows), kThreads, 0, stream, args);
}

absl::Status EmbedBlocks(const EmbedBlocksArgs& args, StreamHandle stream) {
  const char* name = "EmbedBlocks";
  if (absl::Status status = CheckRows(name, args.rows); !status.ok()) return status;
  const int64_t filled =
      args.kind == BlockEmbedding::kConcat ? args.width * args.block_length : args.width;
  if (args.block_length < 1 || args.width < 1 || args.table_stride < args.width ||
      args.y_stride < filled || args.y_stride > kMaxGridX) {
    return Invalid(name, absl::StrCat("blocks of ", args.block_length, ", width ", args.width,
                                      ", stride ", args.y_stride));
  }
  if (args.rows == 0) return absl::OkStatus();
  const auto launch = [&](auto* kernel) {
    return LaunchKernel(name, kernel, Blocks(args.rows), kThreads, 0, stream, args);
  };
  const bool bf16_table = args.type == ElementType::kBf16;
  if (args.y_type == ElementType::kF32) {
    return bf16_table ? launch(EmbedBlocksKernel<Bf16, float>)
                      : launch(EmbedBlocksKernel<float, float>);
  }
  return bf16_table ? launch(EmbedBlocksKernel<Bf16, Bf16>)
                    : launch(EmbedBlocksKernel<float, Bf16>);
}

absl::Status EmbedTokens(const EmbedTokensArgs& args, StreamHandle stream) {
  const char* name = "EmbedTokens";
  if (absl::Status status = CheckRows(name, args.rows); !status.ok()) return status;
  if (args.width < 1 || args.x_stride < args.width ||
      (args.table != nullptr && args.table_stride < args.width) ||
      (args.table == nullptr && (args.tokens != nullptr || args.token >= 0))) {
    return Invalid(name, absl::StrCat("width ", args.width, ", stride ", args.x_stride));
  }
  if (args.rows == 0) return absl::OkStatus();
  return args.type == ElementType::kF32
             ? LaunchKernel(name, EmbedTokensKernel<float>, Blocks(args.rows), kThreads, 0, stream,
                            args)
             : LaunchKernel(name, EmbedTokensKernel<Bf16>, Blocks(args.rows), kThreads, 0, stream,
                            args);
}

}  // namespace blockserve::cuda
