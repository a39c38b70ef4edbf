#include "model/cuda/token_engine_cuda.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <string>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/logging.h"
#include "kernels/cuda/attention.h"
#include "kernels/cuda/row_kernels.h"
#include "kernels/cuda/sample.h"
#include "model/cuda/memory_plan.h"
#include "model/device.h"
#include "model/load_progress.h"
#include "model/rotary_table.h"

namespace blockserve {
namespace {

// Two batches in flight: one computes while the host reads and fills the other. Below two tiles of
// rows there is nothing to share out.
constexpr int32_t kLanes = 2;
constexpr int32_t kFewestRowsToShare = 2 * static_cast<int32_t>(cuda::kMatmulRowTile);
// Rows of logits in memory at a time, for each lane: 50,304 of them take 200 kB a row.
constexpr int32_t kHeadRows = 1024;

int32_t LanesFor(int32_t max_rows) { return max_rows >= kFewestRowsToShare ? kLanes : 1; }

int32_t LaneRowsFor(int32_t max_rows) {
  const int32_t lanes = LanesFor(max_rows);
  return std::min(max_rows, static_cast<int32_t>(cuda::PadRows((max_rows + lanes - 1) / lanes)));
}

template <typename T>
absl::Status MoveInto(absl::StatusOr<T> value, T& target) {
  if (!value.ok()) return value.status();
  target = *std::move(value);
  return absl::OkStatus();
}

absl::Status SeeNothing(int32_t, int64_t, int64_t) { return absl::OkStatus(); }

const void* At(const cuda::DeviceBuffer& buffer, int64_t bytes) {
  return buffer.as<uint8_t>() + bytes;
}

}  // namespace

CudaTokenEngine::CudaTokenEngine(const ModelConfig& config, const EngineOptions& options)
    : config_(config),
      arithmetic_(options.arithmetic),
      type_(StoresBf16(options.arithmetic) ? cuda::ElementType::kBf16 : cuda::ElementType::kF32),
      mode_(MatmulModeOf(options.arithmetic)),
      device_(options.cuda_device),
      launch_(KernelLaunchOf(options)),
      max_rows_(options.max_rows),
      lane_rows_(LaneRowsFor(options.max_rows)),
      head_rows_(std::min(lane_rows_, kHeadRows)),
      top_stride_(std::min(kMaxTopLogprobs, config.vocab_size)),
      list_capacity_(TokenListCapacity(config, lane_rows_)),
      ladder_(lane_rows_),
      timer_(options.timer),
      lanes_(LanesFor(options.max_rows)),
      ring_(LanesFor(options.max_rows)) {}

absl::StatusOr<std::unique_ptr<TokenEngine>> CudaTokenEngine::Load(const Checkpoint& checkpoint,
                                                                   const EngineOptions& options) {
  std::unique_ptr<CudaTokenEngine> engine(new CudaTokenEngine(checkpoint.config(), options));
  absl::Status status = engine->LoadWeights(checkpoint, *options.pool);
  for (Lane& lane : engine->lanes_) {
    if (status.ok()) status = engine->AllocateLane(lane);
  }
  if (status.ok()) status = engine->RunEverySize(engine->lanes_.front());
  for (Lane& lane : engine->lanes_) {
    if (status.ok()) status = engine->CaptureGraphs(lane);
  }
  if (!status.ok()) return status;
  return engine;
}

CudaTokenEngine::~CudaTokenEngine() {
  for (const Lane& lane : lanes_) (void)lane.stream.Synchronize();
}

absl::Status CudaTokenEngine::LoadWeights(const Checkpoint& checkpoint, ThreadPool& pool) {
  const int64_t positions = lead() + config_.block_length - 1;
  if (!head_only() && positions > cuda::kMaxTokenPositions) {
    return absl::UnimplementedError(absl::StrCat("blocks of ", positions,
                                                 " positions; the CUDA token decoder runs up to ",
                                                 cuda::kMaxTokenPositions));
  }
  absl::Status status = cuda::SetDevice(device_);
  if (!status.ok()) return status;
  const absl::StatusOr<cuda::DeviceInfo> info = cuda::GetDeviceInfo(device_);
  if (!info.ok()) return info.status();
  const int64_t nodes = static_cast<int64_t>(lanes_.size() * ladder_.sizes().size()) *
                        config_.block_length * (9 * config_.token.num_layers + 8);
  const auto lanes = static_cast<int64_t>(lanes_.size());
  MemoryPlan memory = PlanTokenEngine(config_, type_, lanes, lane_rows_, head_rows_, nodes);
  memory.activations += lanes * cuda::WorkspaceBytes(mode_);
  status = CheckFits(memory, absl::StrCat("a token decoder of ", max_rows_, " rows"),
                     absl::StrCat(DeviceName(device_), " (", info->name, ")"), info->free_bytes);
  if (!status.ok()) return status;
  std::shared_ptr<const cuda::MatmulLibrary> library;
  status = MoveInto(cuda::MatmulLibrary::Load(mode_), library);
  if (!status.ok()) return status;

  ThreadPool::Turn turn(pool);
  LoadProgress progress("the token decoder", StoredBytes(checkpoint, CheckpointPart::kToken),
                        std::chrono::steady_clock::now());
  const LoadContext context{checkpoint, arithmetic_, pool, &progress};
  const absl::StatusOr<DeviceLoader> loader = DeviceLoader::Create(context, type_);
  if (!loader.ok()) return loader.status();
  const int64_t width = config_.token.hidden_size;
  const std::string prefix = head_only() ? "" : "token_decoder.";
  const auto plan = [&](const DeviceMatrix& matrix, bool bias, int64_t max_rows,
                        std::unique_ptr<const cuda::MatmulPlan>& target) {
    cuda::MatmulShape shape;
    shape.n = matrix.n;
    shape.k = matrix.k;
    shape.type = type_;
    shape.output = cuda::ElementType::kF32;
    shape.bias = bias;
    return MoveInto(library->Plan(shape, max_rows), target);
  };

  MatrixForm head;
  head.n = config_.vocab_size;
  head.k = width;
  status = MoveInto(loader->Matrix(prefix + "embed_out", head), head_);
  if (status.ok()) status = plan(head_, false, head_rows_, head_plan_);
  if (!status.ok() || head_only()) return status;

  MatrixForm expansion;
  expansion.n = config_.expansion_ratio * width;
  expansion.k = config_.block.hidden_size;
  expansion.bias = true;
  expansion.vectors = config_.expansion_ratio;
  status = MoveInto(loader->Matrix(prefix + "expansion_layer", expansion), expansion_);
  if (status.ok()) status = plan(expansion_, true, lane_rows_, expansion_plan_);
  if (status.ok()) {
    status = MoveInto(loader->Table(prefix + "gpt_neox.embed_in.weight", config_.vocab_size, width),
                      table_);
  }
  if (status.ok()) {
    status = MoveInto(DeviceStack::Load(*loader, prefix + "gpt_neox.", config_.token, *library,
                                        int64_t{lane_rows_} * lead()),
                      stack_);
  }
  if (!status.ok()) return status;

  RotaryTable rotary(config_.token.rotary_dims(), config_.token.rotary_base);
  rotary.Reserve(positions);
  const int64_t table_bytes = std::max<int64_t>(positions * rotary.dims() / 2 * 4, 16);
  if (rotary.dims() > 0) {
    status = MoveInto(loader->Upload(rotary.cos(), table_bytes), cos_);
    if (status.ok()) status = MoveInto(loader->Upload(rotary.sin(), table_bytes), sin_);
  } else {  // nothing reads them
    status = MoveInto(cuda::DeviceBuffer::Allocate(table_bytes), cos_);
    if (status.ok()) status = MoveInto(cuda::DeviceBuffer::Allocate(table_bytes), sin_);
  }
  std::vector<int32_t> last_inputs(lane_rows_);
  for (int32_t s = 0; s < lane_rows_; ++s) last_inputs[s] = s * lead() + lead() - 1;
  if (status.ok()) {
    status = MoveInto(loader->Upload(last_inputs.data(), lane_rows_ * int64_t{4}), last_inputs_);
  }
  kv_layout_ = KvLayoutOf(config_.token, type_, static_cast<int32_t>(positions));
  return status;
}

absl::Status CudaTokenEngine::AllocateLane(Lane& lane) const {
  // Where the block decoder is on the same device its attention has enough blocks of threads to
  // keep every other kernel waiting, many times over; the token decoder's are short.
  absl::Status status = MoveInto(
      cuda::Stream::Create(cuda::WorkspaceBytes(mode_), cuda::StreamPriority::kFirst, launch_),
      lane.stream);
  if (status.ok()) status = MoveInto(cuda::Event::Create(), lane.done);
  const auto device = [&](int64_t bytes, cuda::DeviceBuffer& target) {
    if (status.ok()) status = MoveInto(cuda::DeviceBuffer::Allocate(bytes), target);
  };
  const auto pinned = [&](int64_t bytes, cuda::PinnedBuffer& target) {
    if (status.ok()) status = MoveInto(cuda::PinnedBuffer::Allocate(bytes), target);
  };
  const int64_t io_bytes = TokenIoLayout(config_, type_, lane_rows_).end;
  // The product of the contexts reads whole tiles of rows.
  const int64_t context_tile = cuda::kMatmulRowTile * cuda::PadElements(config_.block.hidden_size) *
                               cuda::ElementBytes(type_);
  const int64_t top_values = int64_t{lane_rows_} * config_.block_length * top_stride_;
  pinned(io_bytes, lane.host_io);
  pinned(list_capacity_, lane.host_lists);
  pinned(top_values * 4, lane.host_top_tokens);
  pinned(top_values * 4, lane.host_top_logprobs);
  device(io_bytes + context_tile, lane.io);
  device(list_capacity_, lane.lists);
  device(TokenSavedFloats(config_, lane_rows_, list_capacity_) * 4, lane.saved);
  device(top_values * 4, lane.top_tokens);
  device(top_values * 4, lane.top_logprobs);
  device(cuda::PadRows(head_rows_) * head_.n * 4, lane.logits);
  if (head_only() || !status.ok()) return status;
  device(cuda::PadRows(lane_rows_) * expansion_.n * 4, lane.vectors);
  device(int64_t{config_.token.num_layers} * lane_rows_ * kv_layout_.page_bytes(), lane.kv);
  if (status.ok()) {
    status = MoveInto(stack_.Allocate(int64_t{lane_rows_} * lead(), lane_rows_), lane.activations);
  }
  return status;
}

absl::Status CudaTokenEngine::RunEverySize(const Lane& lane) const {
  // The buffers are zero: rows that are none.
  absl::Status status;
  for (const int32_t rows : ladder_.sizes()) {
    if (status.ok()) status = EnqueueBlock(lane, rows, {}, SeeNothing);
  }
  return status.ok() ? lane.stream.Synchronize() : status;
}

absl::Status CudaTokenEngine::CaptureGraphs(Lane& lane) const {
  for (const int32_t rows : ladder_.sizes()) {
    absl::Status status = lane.stream.BeginCapture();
    if (!status.ok()) return status;
    const absl::Status enqueued = EnqueueBlock(lane, rows, {}, SeeNothing);
    absl::StatusOr<cuda::Graph> graph = lane.stream.EndCapture();
    if (!enqueued.ok()) return enqueued;
    if (!graph.ok()) return graph.status();
    lane.graphs.push_back(*std::move(graph));
  }
  return absl::OkStatus();
}

absl::Status CudaTokenEngine::EmbedStep(const Lane& lane, const TokenIoLayout& layout, int32_t rows,
                                        int32_t token) const {
  cuda::EmbedTokensArgs args;
  args.rows = rows;
  args.width = config_.token.hidden_size;
  args.type = type_;
  args.table = table_.data();
  args.table_stride = token_stride();
  args.x = lane.activations.x.as<float>();
  args.x_stride = token_stride();
  if (prefix() && token == 0) {
    // The r vectors of every row, one after the other.
    args.rows = int64_t{rows} * lead();
    args.vectors = lane.vectors.as<float>();
    args.vectors_stride = token_stride();
    return cuda::EmbedTokens(args, lane.stream.get());
  }
  if (!prefix()) {
    args.vectors = lane.vectors.as<float>() + token * token_stride();
    args.vectors_stride = expansion_.n;
  }
  if (token == 0) {
    args.token = config_.bos_token_id;
  } else {
    args.tokens = static_cast<const int32_t*>(At(lane.io, layout.tokens)) + (token - 1);
    args.tokens_stride = config_.block_length;
  }
  return cuda::EmbedTokens(args, lane.stream.get());
}

absl::Status CudaTokenEngine::EnqueueBlock(const Lane& lane, int32_t rows,
                                           const StepProfile& profile, StepSeen seen) const {
  const TokenIoLayout layout(config_, type_, rows);
  const cuda::StreamHandle stream = lane.stream.get();
  const int64_t length = config_.block_length;
  const void* head_input = At(lane.io, layout.contexts);
  absl::Status status;
  if (!head_only()) {
    status = expansion_plan_->Run(At(lane.io, layout.contexts), expansion_.weight.data(),
                                  expansion_.bias.data(), lane.vectors.data(), rows, lane.stream);
    profile.Lap(StepTimer::kMatmul);
    head_input = lane.activations.normed.data();
  }
  for (int32_t token = 0; token < length && status.ok(); ++token) {
    profile.SetPart(token == 0 ? StepTimer::kFirstStep : StepTimer::kLaterSteps);
    if (!head_only()) {
      status = EmbedStep(lane, layout, rows, token);
      if (!status.ok()) return status;
      profile.Lap(StepTimer::kRows);
      const int32_t rows_per_slot = token == 0 ? lead() : 1;
      const auto attention = [&](int32_t layer, const void* qkv, void* attended) {
        cuda::TokenAttentionArgs args;
        args.slots = rows;
        args.rows_per_slot = rows_per_slot;
        args.first_index = token == 0 ? 0 : lead() - 1 + token;
        args.qkv = qkv;
        args.qkv_stride = stack_.qkv_stride();
        args.layout = kv_layout_;
        args.kv = lane.kv.as<uint8_t>() + int64_t{layer} * lane_rows_ * kv_layout_.page_bytes();
        args.rotary_dims = config_.token.rotary_dims();
        args.cos = cos_.as<float>();
        args.sin = sin_.as<float>();
        args.q_scale = 1.0f / std::sqrt(static_cast<float>(config_.token.head_size()));
        args.out = attended;
        args.out_stride = stack_.stride();
        return cuda::TokenAttention(args, stream);
      };
      const absl::StatusOr<const float*> x = stack_.Run(
          int64_t{rows} * rows_per_slot, rows_per_slot > 1 ? last_inputs_.as<int32_t>() : nullptr,
          rows, lane.activations, attention, lane.stream, profile);
      if (!x.ok()) return x.status();
      status = stack_.FinalNorm(rows, *x, type_, lane.activations.normed.data(), stream);
      profile.Lap(StepTimer::kRows);
    }
    for (int64_t begin = 0; begin < rows && status.ok(); begin += head_rows_) {
      const int64_t count = std::min<int64_t>(head_rows_, rows - begin);
      const int64_t row_bytes = head_.k * cuda::ElementBytes(type_);
      status =
          head_plan_->Run(static_cast<const uint8_t*>(head_input) + begin * row_bytes,
                          head_.weight.data(), nullptr, lane.logits.data(), count, lane.stream);
      if (!status.ok()) return status;
      profile.Lap(StepTimer::kHead);
      cuda::SampleArgs args;
      args.rows = count;
      args.vocab_size = config_.vocab_size;
      args.logits = lane.logits.as<float>();
      args.logits_stride = head_.n;
      args.index = token;
      args.block_length = config_.block_length;
      args.sample_rows =
          static_cast<const cuda::SampleRow*>(At(lane.io, layout.sample_rows)) + begin;
      args.biases = lane.lists.as<cuda::SampleBias>();
      args.counts = lane.lists.as<cuda::SampleCount>();
      args.stops = lane.lists.as<int32_t>();
      args.saved = lane.saved.as<float>();
      uint8_t* io = lane.io.as<uint8_t>();
      args.states = reinterpret_cast<cuda::SampleState*>(io + layout.states) + begin;
      args.tokens = reinterpret_cast<int32_t*>(io + layout.tokens) + begin * length;
      args.logprobs = reinterpret_cast<float*>(io + layout.logprobs) + begin * length;
      args.top_tokens = lane.top_tokens.as<int32_t>() + begin * length * top_stride_;
      args.top_logprobs = lane.top_logprobs.as<float>() + begin * length * top_stride_;
      args.top_stride = top_stride_;
      status = cuda::Sample(args, stream);
      profile.Lap(StepTimer::kSampling);
      if (status.ok()) status = seen(token, begin, count);
    }
  }
  return status;
}

void CudaTokenEngine::Start(absl::Span<const TokenRow> rows, absl::Span<TokenRowResult> results) {
  ++batches_started_;
  if (absl::Status status = cuda::SetDevice(device_); !status.ok()) return Fail(results, status);
  size_t next = 0;
  while (next < rows.size()) {
    const int32_t count = CountRowsThatFit(rows.subspan(next), lane_rows_, list_capacity_);
    if (count == 0) {
      results[next] = TokenRowResult();
      results[next++].status = absl::InvalidArgumentError(
          absl::StrCat("logit_bias, counts and stop_ids are longer than the ", list_capacity_,
                       " bytes that this device has for them"));
      continue;
    }
    if (ring_.full()) FinishOldestLane();
    Lane& lane = lanes_[ring_.Start()];
    lane.batch = batches_started_;
    lane.rows = rows.subspan(next, count);
    lane.results = results.subspan(next, count);
    const absl::Status status = StartLane(lane, lane.rows, lane.results);
    if (!status.ok()) {
      // What it was given already must not read the buffers while the next batch fills them.
      (void)lane.stream.Synchronize();
      Fail(lane.results, status);
      lane.rows = {};
    }
    next += static_cast<size_t>(count);
  }
}

void CudaTokenEngine::Finish() {
  ++batches_finished_;
  while (!ring_.empty() && lanes_[ring_.oldest()].batch <= batches_finished_) FinishOldestLane();
}

absl::Status CudaTokenEngine::StartLane(Lane& lane, absl::Span<const TokenRow> rows,
                                        absl::Span<TokenRowResult> results) {
  const int32_t step = ladder_.StepFor(static_cast<int32_t>(rows.size()));
  const int32_t padded = ladder_.sizes()[step];
  const cuda::StreamHandle stream = lane.stream.get();
  lane.layout = TokenIoLayout(config_, type_, padded);
  const int64_t list_bytes =
      PackTokenRows(config_, type_, rows, padded, lane.layout, lane.host_io.as<uint8_t>(),
                    lane.host_lists.as<uint8_t>());
  absl::Status status =
      cuda::CopyToDevice(lane.io.data(), lane.host_io.data(), lane.layout.upload_bytes(), stream);
  if (status.ok() && list_bytes > 0) {
    status = cuda::CopyToDevice(lane.lists.data(), lane.host_lists.data(), list_bytes, stream);
  }
  if (!status.ok()) return status;
  const bool wants_logits = std::any_of(rows.begin(), rows.end(),
                                        [](const TokenRow& row) { return !row.logits.empty(); });
  if (timer_ != nullptr && timer_->profiling() && !wants_logits) {
    status = profiler_.Begin(StepTimer::kExpansion, lane.stream);
    if (status.ok()) status = EnqueueBlock(lane, padded, {&profiler_}, SeeNothing);
    if (status.ok()) status = profiler_.Finish(*timer_);
  } else {
    status = wants_logits ? RunWithLogits(lane, padded) : lane.graphs[step].Launch(stream);
  }
  if (!status.ok()) return status;
  status = cuda::CopyToHost(lane.host_io.as<uint8_t>() + lane.layout.states,
                            At(lane.io, lane.layout.states), lane.layout.download_bytes(), stream);
  lane.tops = std::any_of(rows.begin(), rows.end(),
                          [](const TokenRow& row) { return row.top_logprobs > 0; });
  if (lane.tops && status.ok()) {
    const int64_t bytes =
        static_cast<int64_t>(rows.size()) * config_.block_length * top_stride_ * 4;
    status = cuda::CopyToHost(lane.host_top_tokens.data(), lane.top_tokens.data(), bytes, stream);
    if (status.ok()) {
      status =
          cuda::CopyToHost(lane.host_top_logprobs.data(), lane.top_logprobs.data(), bytes, stream);
    }
  }
  if (status.ok()) status = lane.done.Record(stream);
  return status;
}

absl::Status CudaTokenEngine::RunWithLogits(Lane& lane, int32_t rows) {
  return EnqueueBlock(lane, rows, {}, [&](int32_t token, int64_t begin, int64_t count) {
    absl::Status status;
    for (int64_t i = begin; i < begin + count && status.ok(); ++i) {
      if (i >= static_cast<int64_t>(lane.rows.size())) break;
      const TokenRow& row = lane.rows[static_cast<size_t>(i)];
      if (row.logits.empty() || token >= row.limit) continue;
      status = cuda::CopyToHost(row.logits.data() + int64_t{token} * config_.vocab_size,
                                lane.logits.as<float>() + (i - begin) * head_.n,
                                int64_t{config_.vocab_size} * 4, lane.stream.get());
    }
    return status.ok() ? lane.stream.Synchronize() : status;
  });
}

void CudaTokenEngine::FinishOldestLane() {
  Lane& lane = lanes_[ring_.oldest()];
  ring_.Finish();
  if (lane.rows.empty()) return;
  const absl::Status status = lane.done.Synchronize();
  if (!status.ok()) {
    (void)lane.stream.Synchronize();  // as where a lane was not started
    Fail(lane.results, status);
  }
  const TokenTops tops{lane.host_top_tokens.as<int32_t>(), lane.host_top_logprobs.as<float>(),
                       top_stride_};
  for (size_t i = 0; i < lane.rows.size() && status.ok(); ++i) {
    lane.results[i] = UnpackTokenRow(config_, lane.rows[i], static_cast<int32_t>(i), lane.layout,
                                     lane.host_io.as<uint8_t>(), tops);
  }
  lane.rows = {};
}

void CudaTokenEngine::Fail(absl::Span<TokenRowResult> results, const absl::Status& why) {
  const std::string failure = absl::StrCat(DeviceName(device_), " failed: ", why.message());
  LogError(absl::StrCat("token decoder: ", failure));
  for (TokenRowResult& result : results) {
    result = TokenRowResult();
    result.status = absl::UnavailableError(failure);
  }
  if (!lost_.ok()) return;
  if (absl::Status status = cuda::CheckDevice(device_); !status.ok()) {
    lost_ =
        absl::UnavailableError(absl::StrCat(DeviceName(device_), " is lost: ", status.message()));
  }
}

}  // namespace blockserve
