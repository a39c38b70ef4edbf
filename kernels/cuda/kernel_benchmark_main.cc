// cuda_kernel_benchmark: the time of every kernel and product of a decoder layer at given sizes, on
// CUDA device 0, with the bytes and operations that it needs at least. For tuning: the engines' own
// figures are blockserve-bench's.
//
// Inputs stay in the device's cache where they fit, as they do between the kernels of an engine,
// and what is timed is a graph of runs one after another, as an engine's kernels are: launches one
// by one take the host longer than a small kernel runs. With --once each kernel that an engine uses
// runs once instead, for a profiler: what it reads of the device's counters says why one is slow.
#include <algorithm>
#include <bit>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <functional>
#include <memory>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "absl/flags/flag.h"
#include "absl/flags/parse.h"
#include "absl/flags/usage.h"
#include "absl/strings/str_cat.h"
#include "kernels/cuda/attention.h"
#include "kernels/cuda/matmul.h"
#include "kernels/cuda/matmul_tiles.h"
#include "kernels/cuda/row_kernels.h"
#include "kernels/cuda/runtime.h"
#include "kernels/cuda/sample.h"

ABSL_FLAG(int32_t, rows, 1024, "rows of the batch");
ABSL_FLAG(int32_t, width, 768, "width of the decoder");
ABSL_FLAG(int32_t, heads, 12, "heads");
ABSL_FLAG(int32_t, inner, 3072, "width inside the MLP");
ABSL_FLAG(int32_t, vocab, 50304, "vocabulary");
ABSL_FLAG(int32_t, context_blocks, 272, "blocks that a row of the block decoder attends to");
ABSL_FLAG(int32_t, page_blocks, 16, "blocks of a KV page");
ABSL_FLAG(bool, once, false, "run each kernel once and time nothing, for a profiler");
ABSL_FLAG(int32_t, repeats, 20, "timed graphs of 20 runs");
ABSL_FLAG(int32_t, warm_up_ms, 50, "replays before, that a device at rest has the clocks of work");

namespace blockserve::cuda {
namespace {

constexpr ElementType kType = ElementType::kBf16;
constexpr int64_t kElement = 2;
constexpr int kRunsOfAGraph = 20;
constexpr MatmulMode kModes[] = {MatmulMode::kPinned, MatmulMode::kFastest, MatmulMode::kOwn};
constexpr const char* kModeNames[] = {"pinned", "fastest", "own"};

class Benchmark {
 public:
  absl::Status Run() {
    absl::StatusOr<DeviceInfo> device = GetDeviceInfo(0);
    if (!device.ok()) return device.status();
    absl::StatusOr<Stream> stream = Stream::Create(WorkspaceBytes(MatmulMode::kFastest));
    absl::StatusOr<Event> begin = Event::Create(true);
    absl::StatusOr<Event> end = Event::Create(true);
    for (const absl::Status& status : {stream.status(), begin.status(), end.status()}) {
      if (!status.ok()) return status;
    }
    std::string products;
    for (const MatmulMode mode : kModes) {
      absl::StatusOr<std::shared_ptr<const MatmulLibrary>> library = MatmulLibrary::Load(mode);
      if (absl::IsFailedPrecondition(library.status()) && mode != MatmulMode::kOwn) {
        // The other figures are wanted all the same.
        products = absl::StrCat("own products alone: ", library.status().message());
        libraries_.push_back(nullptr);
        continue;
      }
      if (!library.ok()) return library.status();
      if (products.empty()) products = (*library)->name();
      libraries_.push_back(*std::move(library));
    }
    stream_ = *std::move(stream);
    begin_ = *std::move(begin);
    end_ = *std::move(end);
    std::printf("%s, compute capability %d.%d, %s, %lld rows, bfloat16\n", device->name.c_str(),
                device->major, device->minor, products.c_str(), static_cast<long long>(rows_));
    std::printf("%-44s %10s %10s %9s %9s\n", "", "median us", "p99 us", "GB/s", "TFLOP/s");
    for (const auto step :
         {&Benchmark::Products, &Benchmark::RowKernels, &Benchmark::AttentionOverPages,
          &Benchmark::AttentionOfBlocks, &Benchmark::Sampling}) {
      if (absl::Status status = (this->*step)(); !status.ok()) return status;
    }
    return invariant_;
  }

 private:
  // Normally distributed in bfloat16 or float32; freed with the benchmark.
  void* Random(int64_t count, ElementType type, float scale = 1.0f) {
    std::mt19937 random(static_cast<uint32_t>(buffers_.size()));
    std::normal_distribution<float> normal(0.0f, scale);
    // Repeated after a prime number of values: enough for timing.
    std::vector<float> some(65521);
    for (float& value : some) value = normal(random);
    std::vector<uint8_t> bytes(count * ElementBytes(type));
    for (int64_t i = 0; i < count; ++i) {
      const uint32_t bits = std::bit_cast<uint32_t>(some[i % 65521]);
      const uint16_t high = static_cast<uint16_t>(bits >> 16);
      if (type == ElementType::kF32) {
        std::memcpy(&bytes[i * 4], &bits, 4);
      } else {
        std::memcpy(&bytes[i * 2], &high, 2);
      }
    }
    return Upload(bytes.data(), static_cast<int64_t>(bytes.size()));
  }

  void* Upload(const void* data, int64_t size_bytes) {
    absl::StatusOr<DeviceBuffer> buffer = DeviceBuffer::Allocate(size_bytes);
    if (buffer.ok() && data != nullptr) {
      Keep(CopyToDevice(buffer->data(), data, size_bytes, stream_.get()));
      Keep(stream_.Synchronize());
    }
    Keep(buffer.status());
    if (!buffer.ok()) return nullptr;
    buffers_.push_back(*std::move(buffer));
    return buffers_.back().data();
  }
  void* Zeroed(int64_t size_bytes) { return Upload(nullptr, size_bytes); }
  template <typename T>
  T* UploadAll(const std::vector<T>& values) {
    return static_cast<T*>(Upload(values.data(), static_cast<int64_t>(values.size() * sizeof(T))));
  }

  void Keep(const absl::Status& status) {
    if (status_.ok()) status_ = status;
  }

  // A graph of kRunsOfAGraph runs.
  absl::StatusOr<Graph> Capture(const std::function<absl::Status()>& run) {
    // What is launched first is loaded, which a capture may not.
    Keep(run());
    Keep(stream_.Synchronize());
    if (status_.ok()) Keep(stream_.BeginCapture());
    if (!status_.ok()) return status_;
    for (int i = 0; i < kRunsOfAGraph; ++i) Keep(run());
    absl::StatusOr<Graph> graph = stream_.EndCapture();
    Keep(graph.status());
    if (!status_.ok()) return status_;
    return graph;
  }

  // Microseconds of one `run`: median over the graphs, after which a line is printed. With --once
  // 0.
  absl::StatusOr<double> Time(const std::string& name, double bytes, double operations,
                              const std::function<absl::Status()>& run) {
    if (!status_.ok()) return status_;
    if (once_) {
      std::printf("%s\n", name.c_str());
      Keep(run());
      Keep(stream_.Synchronize());
      if (!status_.ok()) return status_;
      return 0.0;
    }
    const absl::StatusOr<Graph> graph = Capture(run);
    if (!graph.ok()) return graph.status();
    const auto start = std::chrono::steady_clock::now();
    const std::chrono::milliseconds warm_up(absl::GetFlag(FLAGS_warm_up_ms));
    do {
      Keep(graph->Launch(stream_.get()));
      Keep(stream_.Synchronize());
    } while (status_.ok() && std::chrono::steady_clock::now() - start < warm_up);
    std::vector<double> times;
    for (int32_t i = 0; i < absl::GetFlag(FLAGS_repeats); ++i) {
      Keep(begin_.Record(stream_.get()));
      Keep(graph->Launch(stream_.get()));
      Keep(end_.Record(stream_.get()));
      Keep(end_.Synchronize());
      absl::StatusOr<float> milliseconds = end_.MillisecondsSince(begin_);
      Keep(milliseconds.status());
      if (!status_.ok()) {
        Keep(stream_.Synchronize());  // before the buffers go
        return status_;
      }
      times.push_back(*milliseconds * 1e3 / kRunsOfAGraph);
    }
    std::sort(times.begin(), times.end());
    const double median = times[times.size() / 2];
    const double p99 = times[times.size() * 99 / 100];
    // Emulated devices have no time.
    const double per_s = median > 0 ? 1e6 / median : 0;
    std::printf("%-44s %10.1f %10.1f %9.0f %9.1f\n", name.c_str(), median, p99, bytes * per_s / 1e9,
                operations * per_s / 1e12);
    return median;
  }

  // The first row of y, computed among so many.
  absl::StatusOr<std::vector<uint8_t>> FirstRow(const MatmulPlan& plan, const MatmulShape& shape,
                                                const void* x, const void* w, const void* bias,
                                                void* y, int64_t rows) {
    std::vector<uint8_t> row(shape.n * ElementBytes(shape.output));
    const auto row_bytes = static_cast<int64_t>(row.size());
    Keep(FillZero(y, row_bytes, stream_.get()));
    Keep(plan.Run(x, w, bias, y, rows, stream_));
    Keep(CopyToHost(row.data(), y, row_bytes, stream_.get()));
    Keep(stream_.Synchronize());
    if (!status_.ok()) return status_;
    return row;
  }

  absl::Status Products() {
    struct Product {
      const char* name;
      int64_t n;
      int64_t k;
      ElementType output;
      bool bias;
      bool accumulate;
      bool gelu = false;  // in the tiles
    };
    for (const Product& p :
         {Product{"query_key_value", 3 * width_, width_, kType, true, false},
          Product{"attention.dense", width_, width_, ElementType::kF32, true, true},
          Product{"dense_h_to_4h", inner_, width_, kType, true, false, true},
          Product{"dense_4h_to_h", width_, inner_, ElementType::kF32, true, true},
          Product{"embed_out", vocab_, width_, ElementType::kF32, false, false}}) {
      const MatmulShape shape{p.n, p.k, kType, p.output, p.bias, p.accumulate};
      const void* x = Random(PadRows(rows_) * p.k, kType);
      const void* w = Random(p.n * p.k, kType, 0.02f);
      const void* bias = p.bias ? Random(p.n, p.output) : nullptr;
      void* y = Zeroed(PadRows(rows_) * p.n * ElementBytes(p.output));
      if (!status_.ok()) return status_;
      const double bytes =
          static_cast<double>((rows_ * p.k + p.n * p.k) * kElement) +
          static_cast<double>(rows_ * p.n * ElementBytes(p.output)) * (p.accumulate ? 2 : 1);
      const double operations = 2.0 * static_cast<double>(rows_ * p.n) * static_cast<double>(p.k);
      double medians[std::size(kModes)] = {};
      std::vector<uint8_t> pinned_row;
      for (size_t i = 0; i < std::size(kModes); ++i) {
        if (libraries_[i] == nullptr || (once_ && kModes[i] == MatmulMode::kFastest)) continue;
        absl::StatusOr<std::unique_ptr<const MatmulPlan>> plan = libraries_[i]->Plan(shape, rows_);
        if (!plan.ok()) return plan.status();
        const std::string name = absl::StrCat(p.name, ", ", kModeNames[i]);
        const auto run = [&] { return (*plan)->Run(x, w, bias, y, rows_, stream_); };
        if (once_) {
          const absl::StatusOr<double> time = Time(name, bytes, operations, run);
          if (!time.ok()) return time.status();
          continue;
        }
        const absl::StatusOr<std::vector<uint8_t>> among =
            FirstRow(**plan, shape, x, w, bias, y, rows_);
        const absl::StatusOr<std::vector<uint8_t>> alone =
            FirstRow(**plan, shape, x, w, bias, y, 1);
        if (!alone.ok()) return alone.status();
        if (kModes[i] != MatmulMode::kFastest && *among != *alone) {
          // Told at the end: the other figures are wanted all the same.
          invariant_ = absl::InternalError(absl::StrCat(
              p.name, ", ", kModeNames[i], ": not batch-invariant: ", (*plan)->description()));
          std::printf("%s\n", std::string(invariant_.message()).c_str());
        }
        const absl::StatusOr<double> median = Time(name, bytes, operations, run);
        if (!median.ok()) return median.status();
        medians[i] = *median;
        std::printf("    %s\n", (*plan)->description().c_str());
        if (kModes[i] == MatmulMode::kPinned) pinned_row = *among;
        if (kModes[i] == MatmulMode::kOwn && !pinned_row.empty()) {
          std::printf("    the bits are %s\n",
                      *among == pinned_row ? "those of the pinned algorithm" : "its own");
        }
      }
      if (medians[1] > 0) {
        std::printf("    pinned takes %.2f times the fastest, own %.2f times\n",
                    medians[0] / medians[1], medians[2] / medians[1]);
      }
      // What ChooseMatmulTile chooses among.
      for (int32_t tile = 0; tile < kNumMatmulTiles && !once_; ++tile) {
        TiledMatmulArgs args;
        args.rows = rows_;
        args.n = p.n;
        args.k = p.k;
        args.x = x;
        args.w = w;
        args.bias = bias;
        args.output = p.output;
        args.y = y;
        args.gelu = p.gelu;
        args.accumulate = p.accumulate;
        const absl::StatusOr<double> median =
            Time(absl::StrCat(p.name, p.gelu ? " with GELU, own " : ", own ",
                              kMatmulTiles[tile].rows, " x ", kMatmulTiles[tile].columns),
                 bytes, operations, [&] { return TiledMatmul(args, tile, stream_.get()); });
        if (!median.ok()) return median.status();
      }
      buffers_.clear();
    }
    return status_;
  }

  absl::Status RowKernels() {
    LayerNormArgs norm;
    norm.rows = rows_;
    norm.width = width_;
    norm.epsilon = 1e-5f;
    norm.x = static_cast<float*>(Random(rows_ * width_, ElementType::kF32));
    norm.x_stride = width_;
    norm.type = kType;
    for (LayerNormArgs::Output& output : norm.outputs) {
      output = {static_cast<float*>(Random(width_, ElementType::kF32)),
                static_cast<float*>(Random(width_, ElementType::kF32)),
                Zeroed(rows_ * width_ * kElement), width_};
    }
    absl::StatusOr<double> time =
        Time("LayerNorm, two outputs", static_cast<double>(rows_ * width_ * (4 + 2 * kElement)), 0,
             [&] { return LayerNorm(norm, stream_.get()); });
    if (!time.ok()) return time.status();
    void* y = Random(rows_ * inner_, kType);
    time = Time("Gelu", static_cast<double>(rows_ * inner_ * 2 * kElement), 0,
                [&] { return Gelu(kType, y, rows_ * inner_, stream_.get()); });
    buffers_.clear();
    return time.status();
  }

  absl::Status AttentionOverPages() {
    const int64_t size = width_ / heads_;
    const int32_t context = absl::GetFlag(FLAGS_context_blocks);
    const KvLayout layout{static_cast<int32_t>(heads_), static_cast<int32_t>(size),
                          absl::GetFlag(FLAGS_page_blocks), kType};
    const int32_t pages = (context + layout.page_blocks - 1) / layout.page_blocks;
    // As many sequences as rows, or a quarter of what memory is free.
    absl::StatusOr<DeviceInfo> device = GetDeviceInfo(0);
    if (!device.ok()) return device.status();
    const int64_t sequences =
        std::clamp<int64_t>(device->free_bytes / 4 / (pages * layout.page_bytes()), 1, rows_);
    void* kv = Random(sequences * pages * layout.page_stride(), kType);
    std::vector<int32_t> tables(sequences * pages);
    for (size_t i = 0; i < tables.size(); ++i) tables[i] = static_cast<int32_t>(i);
    const float* q =
        static_cast<float*>(Random(rows_ * heads_ * layout.head_stride(), ElementType::kF32));
    BlockAttentionArgs args;
    args.rows = rows_;
    args.q = q;
    args.page_tables = UploadAll(tables);
    args.layout = layout;
    args.kv = kv;
    args.out = Zeroed(rows_ * width_ * kElement);
    args.out_stride = width_;
    const double row_bytes = static_cast<double>(2 * context * width_ * kElement);
    const double operations = 4.0 * static_cast<double>(rows_ * context * width_);
    // Decoding: every row at the end of its own sequence. Prefill: rows of few sequences.
    std::vector<SequenceRow> decode(rows_);
    std::vector<SequenceRow> prefill(rows_);
    double prefill_operations = 0;
    for (int64_t r = 0; r < rows_; ++r) {
      decode[r] = {context - 1, static_cast<int32_t>(r % sequences * pages)};
      prefill[r] = {static_cast<int32_t>(r % context),
                    static_cast<int32_t>(r / context % sequences * pages)};
      prefill_operations += 4.0 * static_cast<double>((prefill[r].position + 1) * width_);
    }
    args.sequence_rows = UploadAll(decode);
    absl::StatusOr<double> time =
        Time(absl::StrCat("BlockAttention, decoding at ", context, " blocks"),
             row_bytes * static_cast<double>(rows_), operations,
             [&] { return BlockAttention(args, stream_.get()); });
    if (!time.ok()) return time.status();
    args.sequence_rows = UploadAll(prefill);
    args.queries_per_block = kAttentionQueries;
    time = Time(absl::StrCat("BlockAttention, prefill of ", context, " blocks"),
                row_bytes * std::ceil(static_cast<double>(rows_) / context), prefill_operations,
                [&] { return BlockAttention(args, stream_.get()); });
    buffers_.clear();
    return time.status();
  }

  absl::Status AttentionOfBlocks() {
    const int64_t size = width_ / heads_;
    const int32_t positions = 5;  // L = 4 after two vectors
    const int32_t dims = static_cast<int32_t>(size) / 8 * 2;
    TokenAttentionArgs args;
    args.layout = {static_cast<int32_t>(heads_), static_cast<int32_t>(size), positions, kType};
    args.slots = rows_;
    args.first_index = positions - 1;
    args.qkv = Random(rows_ * 3 * width_, kType);
    args.qkv_stride = 3 * width_;
    args.kv = Random(rows_ * args.layout.page_stride(), kType);
    args.rotary_dims = dims;
    args.cos = static_cast<float*>(Random(positions * dims, ElementType::kF32));
    args.sin = static_cast<float*>(Random(positions * dims, ElementType::kF32));
    args.out = Zeroed(rows_ * width_ * kElement);
    args.out_stride = width_;
    const absl::StatusOr<double> time =
        Time("TokenAttention, the last of 5 positions",
             static_cast<double>(rows_ * width_ * kElement * (3 + 2 * positions + 1)), 0,
             [&] { return TokenAttention(args, stream_.get()); });
    buffers_.clear();
    return time.status();
  }

  absl::Status Sampling() {
    struct Kind {
      const char* name;
      float temperature;
      int32_t top_k;
      float top_p;
    };
    SampleArgs args;
    args.rows = rows_;
    args.vocab_size = static_cast<int32_t>(vocab_);
    args.logits = static_cast<float*>(Random(rows_ * vocab_, ElementType::kF32, 3.0f));
    args.logits_stride = vocab_;
    args.block_length = 4;
    args.states = static_cast<SampleState*>(Zeroed(rows_ * sizeof(SampleState)));
    args.tokens = static_cast<int32_t*>(Zeroed(rows_ * 16));
    args.logprobs = static_cast<float*>(Zeroed(rows_ * 16));
    args.saved = static_cast<float*>(Zeroed(rows_ * 16));
    for (const Kind& kind : {Kind{"greedy", 0, 0, 1}, Kind{"temperature", 0.8f, 0, 1},
                             Kind{"top-p 0.95", 0.8f, 0, 0.95f}, Kind{"top-k 50", 0.8f, 50, 1}}) {
      std::vector<SampleRow> sample_rows(rows_);
      for (int64_t r = 0; r < rows_; ++r) {
        SampleRow& row = sample_rows[r];
        row.seed = static_cast<uint64_t>(r);
        row.limit = 4;
        row.temperature = kind.temperature;
        row.top_k = kind.top_k;
        row.top_p = kind.top_p;
        row.saved_begin = static_cast<int32_t>(4 * r);
      }
      args.sample_rows = UploadAll(sample_rows);
      const absl::StatusOr<double> time =
          Time(absl::StrCat("Sample, ", kind.name), static_cast<double>(rows_ * vocab_ * 4), 0,
               [&] { return Sample(args, stream_.get()); });
      if (!time.ok()) return time.status();
    }
    buffers_.clear();
    return absl::OkStatus();
  }

  const int64_t rows_ = absl::GetFlag(FLAGS_rows);
  const int64_t width_ = absl::GetFlag(FLAGS_width);
  const int64_t heads_ = absl::GetFlag(FLAGS_heads);
  const int64_t inner_ = absl::GetFlag(FLAGS_inner);
  const int64_t vocab_ = absl::GetFlag(FLAGS_vocab);
  const bool once_ = absl::GetFlag(FLAGS_once);
  absl::Status status_;
  absl::Status invariant_;  // of the products
  Stream stream_;
  Event begin_;
  Event end_;
  std::vector<std::shared_ptr<const MatmulLibrary>> libraries_;  // of kModes; null: not there
  std::vector<DeviceBuffer> buffers_;
};

}  // namespace
}  // namespace blockserve::cuda

int main(int argc, char** argv) {
  std::setvbuf(stdout, nullptr, _IOLBF, 0);  // what was measured is told, whatever comes after
  absl::SetProgramUsageMessage("time of the CUDA kernels at given sizes");
  absl::ParseCommandLine(argc, argv);
  for (const auto& [flag, value] : {std::pair{"rows", absl::GetFlag(FLAGS_rows)},
                                    {"repeats", absl::GetFlag(FLAGS_repeats)},
                                    {"warm_up_ms", absl::GetFlag(FLAGS_warm_up_ms)},
                                    {"width", absl::GetFlag(FLAGS_width)},
                                    {"heads", absl::GetFlag(FLAGS_heads)},
                                    {"inner", absl::GetFlag(FLAGS_inner)},
                                    {"vocab", absl::GetFlag(FLAGS_vocab)},
                                    {"context_blocks", absl::GetFlag(FLAGS_context_blocks)},
                                    {"page_blocks", absl::GetFlag(FLAGS_page_blocks)}}) {
    if (value < 1) {
      std::fprintf(stderr, "cuda_kernel_benchmark: --%s: %d is not positive\n", flag, value);
      return 2;
    }
  }
  if (absl::GetFlag(FLAGS_width) % absl::GetFlag(FLAGS_heads) != 0) {
    std::fprintf(stderr, "cuda_kernel_benchmark: --heads: %d do not divide the width of %d\n",
                 absl::GetFlag(FLAGS_heads), absl::GetFlag(FLAGS_width));
    return 2;
  }
  blockserve::cuda::Benchmark benchmark;
  if (const absl::Status status = benchmark.Run(); !status.ok()) {
    std::fprintf(stderr, "cuda_kernel_benchmark: %s\n", std::string(status.message()).c_str());
    return 1;
  }
  return 0;
}
