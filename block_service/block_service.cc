#include "block_service/block_service.h"

#include <grpcpp/support/server_callback.h>

#include <algorithm>
#include <atomic>
#include <limits>
#include <thread>
#include <utility>

#include "absl/strings/str_cat.h"
#include "block_service/block_session.h"
#include "blockserve/v1/block_decoder.grpc.pb.h"
#include "common/logging.h"
#include "common/memory_limit.h"
#include "common/random_bits.h"
#include "common/version.h"
#include "model/device.h"
#include "model/fingerprint.h"
#include "rpc/tier_merge.h"
#include "rpc/tier_protocol.h"

namespace blockserve {
namespace {

constexpr int64_t kMostDefaultKvBytes = int64_t{1} << 30;
// Sequences, and prompt blocks of a step. A GPU needs some thousand rows to be busy.
constexpr int32_t kCpuRows = 256;
constexpr int32_t kCudaRows = 2048;
// Scores of long texts: a reader this far behind does not read.
constexpr int64_t kMaxQueuedReplyBytes = int64_t{256} << 20;

absl::Status BadFlag(absl::string_view flag, int64_t value, absl::string_view rule) {
  return absl::InvalidArgumentError(absl::StrCat("--", flag, " is ", value, "; ", rule));
}

// How many pages the configuration asks for. Errors: INVALID_ARGUMENT naming the flag.
absl::StatusOr<int64_t> CountPages(const BlockServiceConfig& config, const BlockEngine& engine) {
  const int64_t page_bytes = std::max<int64_t>(engine.KvBytesPerPage(config.page_blocks), 1);
  const int64_t least = (kNumericProbeBlocks + config.page_blocks - 1) / config.page_blocks;
  int64_t pages = config.kv_pages;
  if (pages == 0 && config.kv_memory_mib > 0) {
    pages = (config.kv_memory_mib << 20) / page_bytes;
  } else if (pages == 0) {
    const int64_t on_device = engine.DefaultKvBytes();
    pages = (on_device > 0 ? on_device : DefaultKvBytes(MemoryLimitBytes())) / page_bytes;
    const int64_t positions = engine.config().block.max_positions;
    if (positions > 0 && !config.allow_long_contexts) {
      const int64_t longest = (positions + config.page_blocks - 1) / config.page_blocks;
      pages = std::min(pages, std::max(longest * config.max_sequences, least));
    }
  }
  if (pages < least) {
    return absl::InvalidArgumentError(
        absl::StrCat(config.kv_pages > 0 ? "--kv-pages" : "--kv-memory-mib", " gives ", pages,
                     " KV pages; a page of ", config.page_blocks, " blocks takes ", page_bytes,
                     " bytes, and at least ", least, " are needed"));
  }
  return std::min<int64_t>(pages, std::numeric_limits<int32_t>::max());
}

void SetGauges(const BlockMetrics& metrics, const EngineLoop& loop, int64_t pages) {
  const EngineLoopStats stats = loop.stats();
  const BlockSchedulerLoad& load = stats.load.pages;
  metrics.rows_waiting.Set(load.waiting);
  metrics.sequences.Set(load.sequences);
  metrics.pages_free.Set(static_cast<double>(load.free_pages));
  metrics.pages_cached.Set(static_cast<double>(load.cached_pages));
  metrics.pages_used.Set(static_cast<double>(pages - load.free_pages - load.cached_pages));
  metrics.busy.Set(stats.load.busy_share);
  metrics.streams.Set(stats.streams);
}

class BlockDecoderService final : public v1::BlockDecoder::CallbackService {
 public:
  explicit BlockDecoderService(std::shared_ptr<const BlockSessionContext> context)
      : context_(std::move(context)) {}

  grpc::ServerBidiReactor<v1::BlockRequestBatch, v1::BlockReplyBatch>* Run(
      grpc::CallbackServerContext* call) override {
    BlockServerStream::Options options;
    options.limits.max_queued_bytes = kMaxQueuedReplyBytes;
    options.limits.max_merged_bytes = context_->max_reply_bytes;
    options.merge = MergeBlockReplies;
    std::shared_ptr<BlockServerStream> stream = BlockServerStream::Create(call, std::move(options));
    stream->Start(std::make_shared<BlockSession>(stream, ++last_stream_, context_));
    return stream.get();
  }

 private:
  const std::shared_ptr<const BlockSessionContext> context_;
  std::atomic<StreamId> last_stream_{0};
};

}  // namespace

int64_t DefaultKvBytes(int64_t memory_bytes) {
  return std::min(memory_bytes / 4, kMostDefaultKvBytes);
}

absl::Status BlockServiceConfig::Validate() const {
  if (absl::Status status = ValidateDeviceFlags(device, arithmetic); !status.ok()) return status;
  if (kv_memory_mib < 0 || kv_memory_mib > (int64_t{1} << 30)) {
    return BadFlag("kv-memory-mib", kv_memory_mib, "it must be 0 (default) to 2^30");
  }
  if (kv_pages < 0 || kv_pages > std::numeric_limits<int32_t>::max()) {
    return BadFlag("kv-pages", kv_pages, "it must be 0 (by --kv-memory-mib) to 2^31 - 1");
  }
  if (page_blocks < 1 || page_blocks > 1024) {
    return BadFlag("page-blocks", page_blocks, "it must be 1 to 1024");
  }
  if (max_sequences < 0 || max_sequences > 1'000'000) {
    return BadFlag("max-sequences", max_sequences, "it must be 1 to 1000000, or 0 (default)");
  }
  if (prefill_chunk < 0 || prefill_chunk > 65'536) {
    return BadFlag("prefill-chunk", prefill_chunk, "it must be 1 to 65536, or 0 (default)");
  }
  if (groups < 1 || groups > 64) return BadFlag("groups", groups, "it must be 1 to 64");
  if (min_group_blocks < 1) {
    return BadFlag("min-group-blocks", min_group_blocks, "it must be at least 1");
  }
  if (max_items_per_stream < 0) {
    return BadFlag("max-items-per-stream", max_items_per_stream,
                   "it must be at least 1, or 0 (default)");
  }
  return faults.Validate();
}

struct BlockService::Impl {
  SteadyClock steady_clock;
  std::unique_ptr<BlockEngine> engine;
  int64_t pages = 0;
  std::shared_ptr<BlockSessionContext> context;
  std::unique_ptr<EngineLoop> loop;
  std::unique_ptr<BlockDecoderService> service;
  std::thread hasher;
  std::shared_ptr<void> collector;  // last: it reads all that stands above
};

absl::StatusOr<std::unique_ptr<BlockService>> BlockService::Create(const BlockServiceConfig& asked,
                                                                   const Checkpoint& checkpoint,
                                                                   ThreadPool* pool) {
  BlockServiceConfig config = asked;
  if (absl::Status status = config.Validate(); !status.ok()) return status;
  EngineOptions options;
  absl::StatusOr<EngineChoice> choice = ChooseEngine(config.device, config.arithmetic, checkpoint);
  if (!choice.ok()) return choice.status();
  options.arithmetic = choice->arithmetic;
  options.cuda_device = choice->cuda_device;
  options.early_launch = config.early_launch;
  options.pool = pool;
  for (int32_t* rows : {&config.max_sequences, &config.prefill_chunk}) {
    if (*rows == 0) *rows = IsCuda(choice->arithmetic) ? kCudaRows : kCpuRows;
  }
  // Larger steps are run in several batches.
  options.max_rows = config.prefill_chunk + std::min(config.max_sequences, 256);
  BlockServiceParts parts;
  // Before the weights, which may take minutes.
  absl::StatusOr<std::string> tokenizer_hash = TokenizerHash(checkpoint.directory());
  if (!tokenizer_hash.ok()) return tokenizer_hash.status();
  parts.tokenizer_hash = *std::move(tokenizer_hash);
  absl::StatusOr<std::unique_ptr<BlockEngine>> engine = LoadBlockEngine(checkpoint, options);
  if (!engine.ok()) return engine.status();
  LogInfo(absl::StrCat("block decoder: ", EngineName(*choice)));
  parts.engine = *std::move(engine);
  parts.config_hash = ConfigHash(checkpoint.config());
  parts.model_digest = checkpoint.Digest();
  parts.hash_part = [&checkpoint] { return checkpoint.HashTensors(Checkpoint::Part::kBlock); };
  return Create(config, std::move(parts));
}

absl::StatusOr<std::unique_ptr<BlockService>> BlockService::Create(const BlockServiceConfig& config,
                                                                   BlockServiceParts parts) {
  if (absl::Status status = config.Validate(); !status.ok()) return status;
  if (config.max_sequences == 0 || config.prefill_chunk == 0) {
    return absl::InvalidArgumentError("max_sequences or prefill_chunk is 0");
  }
  auto impl = std::make_unique<Impl>();
  impl->engine = std::move(parts.engine);
  BlockEngine& engine = *impl->engine;
  absl::StatusOr<int64_t> pages = CountPages(config, engine);
  if (!pages.ok()) return pages.status();
  impl->pages = *pages;
  if (absl::Status status = engine.AllocateKv(*pages, config.page_blocks); !status.ok()) {
    const absl::string_view flag = absl::IsInvalidArgument(status) ? "--page-blocks"
                                   : config.kv_pages > 0           ? "--kv-pages"
                                                                   : "--kv-memory-mib";
    return absl::Status(status.code(), absl::StrCat(status.message(), " (", flag, ")"));
  }
  if (parts.numeric_id.empty()) {
    absl::StatusOr<std::string> numeric_id = ProbeNumericId(engine);
    if (!numeric_id.ok()) return numeric_id.status();
    parts.numeric_id = *std::move(numeric_id);
  }
  impl->engine = InjectFaults(std::move(impl->engine), config.faults);  // `engine` is in it

  const ModelConfig& model = engine.config();
  const Clock& clock = config.clock != nullptr ? *config.clock : impl->steady_clock;
  const bool bf16 = StoresBf16(engine.arithmetic());
  const int64_t row_bytes = int64_t{model.block.hidden_size} * (bf16 ? 2 : 4);
  BlockSchedulerOptions options;
  options.block_length = model.block_length;
  options.vocab_size = model.vocab_size;
  options.context_width = model.block.hidden_size;
  options.num_pages = *pages;
  options.page_blocks = config.page_blocks;
  options.prefix_cache = config.prefix_cache;
  options.max_sequences = config.max_sequences;
  options.max_positions = config.allow_long_contexts ? 0 : model.block.max_positions;
  options.prefill_chunk_blocks = config.prefill_chunk;
  options.groups = config.groups;
  options.min_group_blocks = config.min_group_blocks;
  options.max_rows_per_reply =
      static_cast<int32_t>(std::max<int64_t>(config.max_reply_bytes / row_bytes, 1));
  options.lease = config.lease;
  BlockMetrics metrics;
  if (config.metrics != nullptr) {
    config.metrics->Declare(kBlockMetrics);
    metrics = BlockMetrics(*config.metrics);
    metrics.page_bytes.Set(static_cast<double>(engine.KvBytesPerPage(config.page_blocks)));
  }
  impl->loop = std::make_unique<EngineLoop>(*impl->engine, options, clock, metrics);
  if (config.metrics != nullptr) {
    impl->collector = config.metrics->OnCollect(
        [metrics, loop = impl->loop.get(), pages = *pages] { SetGauges(metrics, *loop, pages); });
  }

  impl->context = std::make_shared<BlockSessionContext>();
  v1::BlockServiceHello& hello = impl->context->hello;
  v1::TierHello& tier = *hello.mutable_tier();
  tier.set_protocol_version(kTierProtocolVersion);
  tier.set_incarnation(RandomBits());
  tier.set_config_hash(parts.config_hash);
  tier.set_tokenizer_hash(parts.tokenizer_hash);
  tier.set_numeric_id(parts.numeric_id);
  tier.set_model_digest(parts.model_digest);
  tier.set_answers_pings(true);
  tier.set_name(config.name);
  tier.set_version(absl::StrCat(Version(), "+", Commit()));
  hello.set_block_length(model.block_length);
  hello.set_context_width(model.block.hidden_size);
  hello.set_context_type(bf16 ? v1::CONTEXT_TYPE_BFLOAT16 : v1::CONTEXT_TYPE_FLOAT32);
  hello.set_page_blocks(config.page_blocks);
  hello.set_pages(*pages);
  hello.set_max_sequences(config.max_sequences);
  int64_t longest = *pages * config.page_blocks;
  if (options.max_positions > 0) longest = std::min(longest, options.max_positions);
  hello.set_keeps_pools_apart(true);
  hello.set_max_blocks_per_sequence(
      static_cast<int32_t>(std::min<int64_t>(longest, std::numeric_limits<int32_t>::max())));
  impl->context->max_items = config.max_items_per_stream > 0
                                 ? config.max_items_per_stream
                                 : std::max(4096, 2 * config.max_sequences);
  impl->context->max_reply_bytes = config.max_reply_bytes;
  impl->context->clock = &clock;
  impl->context->mailbox = impl->loop->mailbox();
  impl->service = std::make_unique<BlockDecoderService>(impl->context);

  LogInfo(absl::StrCat("block part: ", parts.numeric_id, ", ", *pages, " KV pages of ",
                       config.page_blocks, " blocks (",
                       (*pages * engine.KvBytesPerPage(config.page_blocks)) >> 20, " MiB)"));
  if (options.max_positions > 0 && *pages * config.page_blocks < options.max_positions) {
    LogWarning(absl::StrCat("the KV has room for texts of ",
                            *pages * config.page_blocks * model.block_length,
                            " tokens, the model for ", options.max_positions * model.block_length,
                            ": longer ones are refused (",
                            config.kv_pages > 0 ? "--kv-pages" : "--kv-memory-mib", ")"));
  }
  impl->loop->Start();
  impl->hasher = std::thread([mailbox = impl->loop->mailbox(), hash = std::move(parts.hash_part)] {
    mailbox->Post(PartHashKnown{hash()});
  });
  return std::unique_ptr<BlockService>(new BlockService(std::move(impl)));
}

BlockService::BlockService(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}

BlockService::~BlockService() { Stop(); }

grpc::Service* BlockService::service() { return impl_->service.get(); }

void BlockService::WaitUntilKnown() {
  if (impl_->hasher.joinable()) impl_->hasher.join();
}

void BlockService::StartDraining() { impl_->loop->mailbox()->Post(DrainWanted{}); }

bool BlockService::WaitUntilDrained(absl::Duration timeout) {
  return impl_->loop->WaitUntilEmpty(timeout);
}

void BlockService::Stop() {
  impl_->loop->Stop();
  WaitUntilKnown();
}

EngineLoopStats BlockService::stats() const { return impl_->loop->stats(); }

std::shared_ptr<const Progress> BlockService::progress() const { return impl_->loop->progress(); }

const std::string& BlockService::numeric_id() const {
  return impl_->context->hello.tier().numeric_id();
}

std::string BlockService::InHand() const {
  const BlockSchedulerLoad now = stats().load.pages;
  return absl::StrCat(now.sequences, " sequences, ",
                      impl_->pages - now.free_pages - now.cached_pages, " KV pages");
}

}  // namespace blockserve
