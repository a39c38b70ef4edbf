#include "model/cuda/block_engine_cuda.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstring>
#include <limits>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/bf16.h"
#include "kernels/cuda/attention.h"
#include "kernels/cuda/row_kernels.h"
#include "model/block_chunks.h"
#include "model/cuda/memory_plan.h"
#include "model/device.h"
#include "model/load_progress.h"

namespace blockserve {
namespace {

constexpr int32_t kStagings = 2;
// Rotary tables begin with the positions that the pages can hold, up to so many: a position beyond
// them has every graph captured anew while requests wait. At most 16 MiB and a quarter of a second.
constexpr int64_t kFirstPositions = 32768;

template <typename T>
absl::Status MoveInto(absl::StatusOr<T> value, T& target) {
  if (!value.ok()) return value.status();
  target = *std::move(value);
  return absl::OkStatus();
}

}  // namespace

CudaBlockEngine::CudaBlockEngine(const ModelConfig& config, const EngineOptions& options)
    : config_(config),
      arithmetic_(options.arithmetic),
      type_(StoresBf16(options.arithmetic) ? cuda::ElementType::kBf16 : cuda::ElementType::kF32),
      mode_(MatmulModeOf(options.arithmetic)),
      device_(options.cuda_device),
      launch_(KernelLaunchOf(options)),
      max_rows_(options.max_rows),
      ladder_(options.max_rows),
      timer_(options.timer),
      rotary_(config.block.rotary_dims(), config.block.rotary_base),
      staging_(kStagings),
      ring_(kStagings) {}

absl::StatusOr<std::unique_ptr<BlockEngine>> CudaBlockEngine::Load(const Checkpoint& checkpoint,
                                                                   const EngineOptions& options) {
  std::unique_ptr<CudaBlockEngine> engine(new CudaBlockEngine(checkpoint.config(), options));
  absl::Status status = engine->LoadWeights(checkpoint, *options.pool);
  if (!status.ok()) return status;
  return engine;
}

absl::Status CudaBlockEngine::LoadWeights(const Checkpoint& checkpoint, ThreadPool& pool) {
  absl::Status status = cuda::SetDevice(device_);
  if (!status.ok()) return status;
  const absl::StatusOr<cuda::DeviceInfo> info = cuda::GetDeviceInfo(device_);
  if (!info.ok()) return info.status();
  device_name_ = absl::StrCat(DeviceName(device_), " (", info->name, ")");
  const int64_t nodes = static_cast<int64_t>(kStagings * ladder_.sizes().size()) *
                        (10 * config_.block.num_layers + 4);
  MemoryPlan plan = PlanBlockEngine(config_, type_, max_rows_, nodes);
  plan.activations += cuda::WorkspaceBytes(mode_);
  status = CheckFits(plan, absl::StrCat("a block decoder of ", max_rows_, " rows"), device_name_,
                     info->free_bytes);
  if (!status.ok()) return status;
  std::shared_ptr<const cuda::MatmulLibrary> library;
  status = MoveInto(cuda::MatmulLibrary::Load(mode_), library);
  if (status.ok()) {
    status = MoveInto(
        cuda::Stream::Create(cuda::WorkspaceBytes(mode_), cuda::StreamPriority::kUsual, launch_),
        stream_);
  }
  if (status.ok()) status = MoveInto(cuda::Stream::Create(), copies_);
  if (!status.ok()) return status;

  ThreadPool::Turn turn(pool);
  LoadProgress progress("the block decoder", StoredBytes(checkpoint, CheckpointPart::kBlock),
                        std::chrono::steady_clock::now());
  const LoadContext context{checkpoint, arithmetic_, pool, &progress};
  const absl::StatusOr<DeviceLoader> loader = DeviceLoader::Create(context, type_);
  if (!loader.ok()) return loader.status();
  const bool vanilla = config_.kind == ModelKind::kVanilla;
  status =
      MoveInto(loader->Table(vanilla ? "gpt_neox.embed_in.weight" : "embedder.embeddings.weight",
                             config_.vocab_size, config_.embedding_width),
               table_);
  if (status.ok()) {
    status = MoveInto(DeviceStack::Load(*loader, vanilla ? "gpt_neox." : "block_decoder.gpt_neox.",
                                        config_.block, *library, max_rows_),
                      stack_);
  }
  if (status.ok()) status = MoveInto(stack_.Allocate(max_rows_, max_rows_), activations_);
  if (!status.ok()) return status;
  const int64_t q_bytes =
      config_.block.num_heads * KvLayoutOf(config_.block, type_, 1).head_stride() * int64_t{4};
  status = MoveInto(cuda::DeviceBuffer::Allocate(cuda::PadRows(max_rows_) * q_bytes), q_);
  if (!status.ok() || config_.projection != Projection::kProjectionLayer) return status;

  MatrixForm form;
  form.n = config_.block.hidden_size;
  form.k = int64_t{config_.embedding_width} * config_.block_length;
  form.bias = true;
  form.kernel_size = config_.block_length;
  status = MoveInto(loader->Matrix("embedder.projection_layer", form), projection_);
  if (!status.ok()) return status;
  cuda::MatmulShape shape;
  shape.n = projection_.n;
  shape.k = projection_.k;
  shape.type = type_;
  shape.output = cuda::ElementType::kF32;
  shape.bias = true;
  status = MoveInto(library->Plan(shape, max_rows_), projection_plan_);
  if (!status.ok()) return status;
  return MoveInto(cuda::DeviceBuffer::Allocate(cuda::PadRows(max_rows_) * projection_.k *
                                               cuda::ElementBytes(type_)),
                  gathered_);
}

int64_t CudaBlockEngine::KvBytesPerPage(int32_t page_blocks) const {
  return config_.block.num_layers * KvLayoutOf(config_.block, type_, page_blocks).page_bytes();
}

int64_t CudaBlockEngine::DefaultKvBytes() const {
  const absl::StatusOr<cuda::DeviceInfo> info = cuda::GetDeviceInfo(device_);
  return info.ok() ? info->free_bytes / 2 : 0;
}

absl::Status CudaBlockEngine::AllocateKv(int64_t num_pages, int32_t page_blocks) {
  if (num_pages < 1 || page_blocks < 1 || num_pages > std::numeric_limits<int32_t>::max()) {
    return absl::InvalidArgumentError(
        absl::StrCat("KV of ", num_pages, " pages of ", page_blocks, " blocks"));
  }
  absl::Status status = cuda::SetDevice(device_);
  if (!status.ok()) return status;
  const absl::StatusOr<cuda::DeviceInfo> info = cuda::GetDeviceInfo(device_);
  if (!info.ok()) return info.status();
  const int64_t most_positions = num_pages * page_blocks;
  const int64_t capacity = PageTableCapacity(num_pages, page_blocks, max_rows_,
                                             std::max<int64_t>(config_.block.max_positions, 1));
  const int64_t io_bytes = BlockIoLayout(config_.block_length, max_rows_).tables + 4 * capacity;
  const int64_t context_bytes = max_rows_ * stack_.stride() * cuda::ElementBytes(type_);
  // In double: the product may be beyond what an integer holds.
  const double bytes = static_cast<double>(KvBytesPerPage(1)) * static_cast<double>(page_blocks) *
                           static_cast<double>(num_pages) +
                       static_cast<double>(kStagings * (io_bytes + context_bytes));
  if (bytes > static_cast<double>(info->free_bytes)) {
    return absl::ResourceExhaustedError(
        absl::StrCat(device_name_, " has ", BytesText(info->free_bytes), " free; KV of ", num_pages,
                     " pages of ", page_blocks, " blocks needs ",
                     BytesText(static_cast<int64_t>(std::min(bytes, 9e18)))));
  }
  cuda::DeviceBuffer kv;
  status = MoveInto(cuda::DeviceBuffer::Allocate(num_pages * KvBytesPerPage(page_blocks)), kv);
  if (!status.ok()) return status;
  Drain();  // of what uses those that go
  for (Staging& staging : staging_) {
    staging = Staging();
    status = MoveInto(cuda::Event::Create(), staging.done);
    if (status.ok()) status = MoveInto(cuda::Event::Create(), staging.computed);
    if (status.ok()) {
      status = MoveInto(cuda::PinnedBuffer::Allocate(io_bytes), staging.host_io);
    }
    if (status.ok()) {
      status = MoveInto(cuda::PinnedBuffer::Allocate(context_bytes), staging.host_contexts);
    }
    if (status.ok()) status = MoveInto(cuda::DeviceBuffer::Allocate(io_bytes), staging.io);
    if (status.ok())
      status = MoveInto(cuda::DeviceBuffer::Allocate(context_bytes), staging.contexts);
    if (!status.ok()) {
      num_pages_ = 0;
      return status;
    }
  }
  batch_ = BlockBatch(config_.block_length, page_blocks, max_rows_, capacity);
  kv_ = std::move(kv);
  kv_layout_ = KvLayoutOf(config_.block, type_, page_blocks);
  num_pages_ = num_pages;
  status = RunEverySize(staging_.front());
  if (!status.ok()) return status;
  // The probe of the numeric id runs so many whatever the pages hold.
  const int64_t first =
      std::max<int64_t>(std::min(most_positions, kFirstPositions), kNumericProbeBlocks);
  if (first <= positions_) return CaptureGraphs(positions_);
  return EnsurePositions(first);
}

absl::Status CudaBlockEngine::EnsurePositions(int64_t positions) {
  if (positions <= positions_) return absl::OkStatus();
  positions = std::max(positions, 2 * positions_);
  absl::Status status = stream_.Synchronize();
  if (!status.ok()) return status;
  rotary_.Reserve(positions);
  const int64_t bytes = std::max<int64_t>(positions * rotary_.dims() / 2 * 4, 16);
  cuda::DeviceBuffer cos;
  cuda::DeviceBuffer sin;
  status = MoveInto(cuda::DeviceBuffer::Allocate(bytes), cos);
  if (status.ok()) status = MoveInto(cuda::DeviceBuffer::Allocate(bytes), sin);
  if (status.ok() && rotary_.dims() > 0) {
    status = cuda::CopyToDevice(cos.data(), rotary_.cos(), bytes, stream_.get());
    if (status.ok()) {
      status = cuda::CopyToDevice(sin.data(), rotary_.sin(), bytes, stream_.get());
    }
    status.Update(stream_.Synchronize());
  }
  if (!status.ok()) return status;
  cos_ = std::move(cos);
  sin_ = std::move(sin);
  return CaptureGraphs(positions);
}

absl::Status CudaBlockEngine::RunEverySize(const Staging& staging) {
  absl::Status status;
  for (const int32_t rows : ladder_.sizes()) {
    // Rows that are none: neither pages nor rotary tables are touched.
    const int64_t bytes =
        batch_.Pack(rows, BlockIoLayout(config_.block_length, rows), staging.host_io.as<uint8_t>());
    status = cuda::CopyToDevice(staging.io.data(), staging.host_io.data(), bytes, stream_.get());
    if (status.ok()) status = EnqueueBatch(staging, rows, -1, rows, {});
    if (status.ok()) status = stream_.Synchronize();
    if (!status.ok()) return status;
  }
  return absl::OkStatus();
}

absl::Status CudaBlockEngine::CaptureGraphs(int64_t positions) {
  positions_ = 0;  // where this fails the next step captures them
  for (Staging& staging : staging_) {
    staging.graphs.clear();
    for (const int32_t rows : ladder_.sizes()) {
      absl::Status status = stream_.BeginCapture();
      if (!status.ok()) return status;
      const absl::Status enqueued = EnqueueBatch(staging, rows, -1, rows, {});
      absl::StatusOr<cuda::Graph> graph = stream_.EndCapture();
      if (!enqueued.ok()) return enqueued;
      if (!graph.ok()) return graph.status();
      staging.graphs.push_back(*std::move(graph));
    }
  }
  positions_ = positions;
  return absl::OkStatus();
}

void CudaBlockEngine::CopyPage(int32_t from, int32_t to, int32_t blocks) {
  if (from == to || blocks <= 0) return;
  const int64_t bytes = kv_layout_.page_bytes();
  absl::Status status = cuda::SetDevice(device_);
  for (int32_t i = 0; i < config_.block.num_layers && status.ok(); ++i) {
    uint8_t* layer = kv_.as<uint8_t>() + i * num_pages_ * bytes;
    status = cuda::CopyOnDevice(layer + to * bytes, layer + from * bytes, bytes, stream_.get());
  }
  // Whose page that was is not known here: no later context could be trusted.
  if (!status.ok()) Lose(absl::StrCat("a page was not copied: ", status.message()));
}

absl::Status CudaBlockEngine::EnqueueBatch(const Staging& staging, int32_t rows, int32_t wanted,
                                           int32_t singles, const StepProfile& profile) const {
  const BlockIoLayout layout(config_.block_length, rows);
  const cuda::StreamHandle stream = stream_.get();
  const uint8_t* io = staging.io.as<uint8_t>();
  const auto* sequence_rows = reinterpret_cast<const cuda::SequenceRow*>(io + layout.sequence_rows);
  const auto* page_tables = reinterpret_cast<const int32_t*>(io + layout.tables);
  const bool projected = config_.projection == Projection::kProjectionLayer;

  cuda::EmbedBlocksArgs embed;
  embed.kind = config_.projection == Projection::kSum ? cuda::BlockEmbedding::kSum
                                                      : cuda::BlockEmbedding::kConcat;
  embed.rows = rows;
  embed.block_length = config_.block_length;
  embed.tokens = reinterpret_cast<const int32_t*>(io + layout.tokens);
  embed.type = type_;
  embed.table = table_.data();
  embed.table_stride = cuda::PadElements(config_.embedding_width);
  embed.width = config_.embedding_width;
  embed.y_type = projected ? type_ : cuda::ElementType::kF32;
  embed.y = projected ? gathered_.data() : activations_.x.data();
  embed.y_stride = projected ? projection_.k : stack_.stride();
  absl::Status status = cuda::EmbedBlocks(embed, stream);
  if (status.ok() && projected) {
    status = projection_plan_->Run(gathered_.data(), projection_.weight.data(),
                                   projection_.bias.data(), activations_.x.data(), rows, stream_);
  }
  if (!status.ok()) return status;
  profile.Lap(StepTimer::kRows);

  const auto attention = [&](int32_t layer, const void* qkv, void* attended) {
    uint8_t* kv = kv_.as<uint8_t>() + layer * num_pages_ * kv_layout_.page_bytes();
    cuda::SplitQkvArgs split;
    split.rows = rows;
    split.qkv = qkv;
    split.qkv_stride = stack_.qkv_stride();
    split.sequence_rows = sequence_rows;
    split.page_tables = page_tables;
    split.layout = kv_layout_;
    split.kv = kv;
    split.rotary_dims = rotary_.dims();
    split.cos = cos_.as<float>();
    split.sin = sin_.as<float>();
    split.q_scale = 1.0f / std::sqrt(static_cast<float>(config_.block.head_size()));
    split.q = q_.as<float>();
    const absl::Status stored = cuda::SplitQkv(split, stream);
    if (!stored.ok()) return stored;
    cuda::BlockAttentionArgs args;
    args.rows = singles;
    args.q = q_.as<float>();
    args.sequence_rows = sequence_rows;
    args.page_tables = page_tables;
    args.layout = kv_layout_;
    args.kv = kv;
    args.out = attended;
    args.out_stride = stack_.stride();
    args.queries_per_block = 1;
    const absl::Status attended_singles = cuda::BlockAttention(args, stream);
    if (!attended_singles.ok() || singles == rows) return attended_singles;
    args.rows = rows - singles;
    args.q += int64_t{singles} * kv_layout_.num_heads * kv_layout_.head_stride();
    args.sequence_rows += singles;
    args.out =
        static_cast<uint8_t*>(attended) + singles * stack_.stride() * cuda::ElementBytes(type_);
    args.queries_per_block = cuda::kAttentionQueries;
    return cuda::BlockAttention(args, stream);
  };
  const int32_t contexts = wanted < 0 ? rows : wanted;
  const absl::StatusOr<const float*> x =
      stack_.Run(rows, wanted < 0 ? nullptr : reinterpret_cast<const int32_t*>(io + layout.wanted),
                 contexts, activations_, attention, stream_, profile);
  if (!x.ok()) return x.status();
  if (contexts == 0) return absl::OkStatus();
  status = stack_.FinalNorm(contexts, *x, type_, staging.contexts.data(), stream);
  profile.Lap(StepTimer::kRows);
  return status;
}

absl::Status CudaBlockEngine::StartBatch(StepUnderWay& step, float* contexts) {
  absl::Status status = EnsurePositions(batch_.last_position() + 1);
  if (!status.ok()) return status;
  if (ring_.full()) FinishOldest();
  Staging& staging = staging_[ring_.Start()];
  ++step.batches;
  staging.step = &step;
  staging.to = contexts;
  staging.num_wanted = batch_.num_wanted();
  const bool decodes = batch_.decodes();
  const int32_t size = ladder_.StepFor(batch_.num_rows());
  const int32_t rows = decodes ? ladder_.sizes()[size] : batch_.num_rows();
  const int64_t bytes =
      batch_.Pack(rows, BlockIoLayout(config_.block_length, rows), staging.host_io.as<uint8_t>());
  status = cuda::CopyToDevice(staging.io.data(), staging.host_io.data(), bytes, stream_.get());
  if (!status.ok()) return status;
  const bool profiling = timer_ != nullptr && timer_->profiling();
  StepProfile profile;
  if (profiling) {
    status = profiler_.Begin(StepTimer::kBlockStep, stream_);
    if (!status.ok()) return status;
    profile.profiler = &profiler_;
  }
  if (decodes && !profiling) {
    status = staging.graphs[size].Launch(stream_.get());
  } else {
    const bool all = staging.num_wanted == rows;
    status = EnqueueBatch(staging, rows, all || decodes ? -1 : staging.num_wanted,
                          decodes ? rows : batch_.leading_singles(), profile);
    if (profiling && status.ok()) status = profiler_.Finish(*timer_);
  }
  // The next batch computes while they are copied.
  if (status.ok()) status = staging.computed.Record(stream_.get());
  if (status.ok()) status = copies_.Wait(staging.computed);
  if (status.ok() && staging.num_wanted > 0) {
    status = cuda::CopyToHost(staging.host_contexts.data(), staging.contexts.data(),
                              staging.num_wanted * stack_.stride() * cuda::ElementBytes(type_),
                              copies_.get());
  }
  if (status.ok()) status = staging.done.Record(copies_.get());
  batch_.Clear();
  return status;
}

void CudaBlockEngine::Drain() const {
  // Of a failure there is nothing more to tell.
  (void)stream_.Synchronize();
  (void)copies_.Synchronize();
}

void CudaBlockEngine::FinishOldest() {
  Staging& staging = staging_[ring_.oldest()];
  ring_.Finish();
  --staging.step->batches;
  if (absl::Status status = staging.done.Synchronize(); !status.ok()) {
    // It must not read or write the buffers while the next batch does.
    Drain();
    staging.step->status.Update(status);
    return;
  }
  if (staging.to == nullptr) return;
  const int64_t width = config_.block.hidden_size;
  for (int32_t row = 0; row < staging.num_wanted; ++row) {
    float* to = staging.to + row * width;
    if (type_ == cuda::ElementType::kF32) {
      std::memcpy(to, staging.host_contexts.as<float>() + row * stack_.stride(),
                  width * sizeof(float));
      continue;
    }
    FloatsFromBf16(staging.host_contexts.as<uint16_t>() + row * stack_.stride(), width, to);
  }
}

absl::Status CudaBlockEngine::StartBatches(StepUnderWay& step, absl::Span<const BlockChunk> chunks,
                                           float* contexts) {
  absl::Status status = cuda::SetDevice(device_);
  const auto start = [&] {
    const int64_t rows = batch_.num_wanted();
    status = StartBatch(step, contexts);
    contexts += rows * config_.block.hidden_size;
  };
  for (const BlockChunk& chunk : chunks) {
    const int64_t blocks = static_cast<int64_t>(chunk.tokens.size()) / config_.block_length;
    for (int64_t done = 0; done < blocks && status.ok();) {
      const int64_t added = batch_.Add(chunk, done);
      done += added;
      if (done == blocks) break;
      if (added == 0 && batch_.empty()) {
        return absl::InvalidArgumentError("pages: a sequence has more of them than there are");
      }
      start();
    }
  }
  if (status.ok() && !batch_.empty()) start();
  return status;
}

absl::Status CudaBlockEngine::Start(absl::Span<const BlockChunk> chunks,
                                    absl::Span<float> contexts) {
  absl::Status status =
      ValidateBlockChunks(config_, num_pages_, kv_layout_.page_blocks, chunks, contexts);
  if (status.ok()) status = lost_;
  if (!status.ok()) return status;
  StepUnderWay& step = under_way_.emplace_back();
  status = StartBatches(step, chunks, contexts.data());
  if (status.ok()) return status;
  // Nothing of this step is used; what is still in flight must not write where the next one does.
  batch_.Clear();
  Drain();
  for (Staging& staging : staging_) {
    if (staging.step == &step) staging.to = nullptr;
  }
  while (step.batches > 0) FinishOldest();
  under_way_.pop_back();
  return Failure(status);
}

absl::Status CudaBlockEngine::Finish() {
  StepUnderWay& step = under_way_.front();
  while (step.batches > 0) FinishOldest();
  const absl::Status status = std::move(step.status);
  under_way_.pop_front();
  return status.ok() ? status : Failure(status);
}

absl::Status CudaBlockEngine::Failure(const absl::Status& why) {
  if (absl::Status device = cuda::CheckDevice(device_); !device.ok()) Lose(device.message());
  return absl::UnavailableError(absl::StrCat(device_name_, " failed: ", why.message()));
}

void CudaBlockEngine::Lose(absl::string_view why) {
  if (lost_.ok()) lost_ = absl::UnavailableError(absl::StrCat(device_name_, " is lost: ", why));
}

}  // namespace blockserve
