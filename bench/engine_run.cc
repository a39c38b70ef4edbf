#include "bench/engine_run.h"

#include <algorithm>
#include <chrono>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <future>
#include <system_error>
#include <utility>

#include "absl/strings/str_cat.h"

namespace blockserve {
namespace {

double Now() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

int64_t DivideUp(int64_t a, int64_t b) { return (a + b - 1) / b; }

// SplitMix64: prompts must be the same everywhere, and look random.
uint64_t Mix(uint64_t x) {
  x += 0x9e3779b97f4a7c15u;
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
  x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
  return x ^ (x >> 31);
}

bool SameBits(const std::vector<float>& a, const std::vector<float>& b) {
  return a.size() == b.size() &&
         (a.empty() || std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0);
}

// Of all threads of this process, since they began.
double WaitedForCoreSeconds() {
  double nanoseconds = 0;
  std::error_code error;
  for (const auto& task : std::filesystem::directory_iterator("/proc/self/task", error)) {
    std::ifstream file(task.path() / "schedstat");
    double running = 0, waiting = 0;
    if (file >> running >> waiting) nanoseconds += waiting;
  }
  return nanoseconds * 1e-9;
}

// The check's size: more rows than a register tile, several blocks, prompts that span pages.
constexpr int64_t kCheckSequences = 9;
constexpr int64_t kCheckPromptBlocks = 19;
constexpr int64_t kCheckBlocks = 3;
constexpr int64_t kOtherChunk = 5;

}  // namespace

uint64_t HashBytes(const void* data, size_t size, uint64_t hash) {
  const auto* bytes = static_cast<const unsigned char*>(data);
  for (size_t i = 0; i < size; ++i) hash = (hash ^ bytes[i]) * 1099511628211u;
  return hash;
}

std::vector<int32_t> MakePrompt(const ModelConfig& config, uint64_t seed, int64_t sequence,
                                int64_t tokens) {
  std::vector<int32_t> prompt(static_cast<size_t>(tokens));
  for (int64_t i = 0; i < tokens; ++i) {
    const uint64_t random = Mix(Mix(seed) ^ Mix(static_cast<uint64_t>(sequence << 32 | i)));
    prompt[static_cast<size_t>(i)] =
        static_cast<int32_t>(random % static_cast<uint64_t>(config.vocab_size));
  }
  return prompt;
}

absl::StatusOr<std::unique_ptr<EngineRunner>> EngineRunner::Load(const Checkpoint& checkpoint,
                                                                 const EngineRunOptions& options,
                                                                 ThreadPool& pool,
                                                                 const Workload& largest) {
  std::unique_ptr<EngineRunner> runner(new EngineRunner);
  runner->options_ = options;
  runner->sampling_.temperature = options.temperature;
  EngineOptions engine_options;
  engine_options.arithmetic = options.arithmetic;
  engine_options.cuda_device = options.cuda_device;
  engine_options.early_launch = options.early_launch;
  engine_options.pool = &pool;
  engine_options.kernel_target = options.kernels;
  // On the CPU two groups would time two steps at once.
  const bool timed = options.groups < 2 || options.cuda_device >= 0;
  engine_options.timer = timed ? &runner->timer_ : nullptr;
  engine_options.max_rows =
      static_cast<int32_t>(options.batching.prefill_blocks + options.batching.block_rows);
  absl::StatusOr<std::unique_ptr<BlockEngine>> block = LoadBlockEngine(checkpoint, engine_options);
  if (!block.ok()) return block.status();
  runner->block_ = *std::move(block);
  engine_options.max_rows = static_cast<int32_t>(options.batching.token_rows);
  absl::StatusOr<std::unique_ptr<TokenEngine>> token = LoadTokenEngine(checkpoint, engine_options);
  if (!token.ok()) return token.status();
  runner->token_ = *std::move(token);

  const auto pages = [&](int64_t blocks, int64_t sequences) {
    return DivideUp(blocks, options.page_blocks) * sequences;
  };
  const ModelConfig& config = checkpoint.config();
  runner->num_pages_ = std::max(
      pages(PromptBlocks(config, largest) + GeneratedBlocks(config, largest), largest.sequences),
      pages(kCheckPromptBlocks + kCheckBlocks, kCheckSequences));
  absl::Status status = runner->block_->AllocateKv(runner->num_pages_, options.page_blocks);
  if (!status.ok()) return status;
  // Pages as they are in a pool that has been in use: physical memory is there. A device's is.
  for (int64_t page = 1; page < runner->num_pages_ && options.cuda_device < 0; ++page) {
    runner->block_->CopyPage(0, static_cast<int32_t>(page), options.page_blocks);
  }
  runner->kv_bytes_ = runner->num_pages_ * runner->block_->KvBytesPerPage(options.page_blocks);
  return runner;
}

std::vector<EngineRunner::Sequence> EngineRunner::MakeSequences(const Workload& workload,
                                                                int64_t first_sequence) const {
  const ModelConfig& config = block_->config();
  const int64_t prompt_blocks = PromptBlocks(config, workload);
  const int64_t blocks = prompt_blocks + GeneratedBlocks(config, workload);
  const int64_t pages = DivideUp(blocks, options_.page_blocks);
  std::vector<Sequence> sequences(static_cast<size_t>(workload.sequences));
  for (int64_t s = 0; s < workload.sequences; ++s) {
    Sequence& sequence = sequences[static_cast<size_t>(s)];
    sequence.tokens.reserve(static_cast<size_t>(blocks * config.block_length));
    const int64_t pads = prompt_blocks * config.block_length - workload.prompt_tokens;
    sequence.tokens.assign(static_cast<size_t>(pads), config.pad_token_id);
    const std::vector<int32_t> prompt =
        MakePrompt(config, options_.seed, first_sequence + s, workload.prompt_tokens);
    sequence.tokens.insert(sequence.tokens.end(), prompt.begin(), prompt.end());
    // Pages of neighbouring sequences lie mixed, as they do in a pool that has been in use.
    for (int64_t p = 0; p < pages; ++p) {
      sequence.pages.push_back(static_cast<int32_t>(p * workload.sequences + s));
    }
    sequence.seed = options_.seed + static_cast<uint64_t>(first_sequence + s);
    sequence.output.tokens.reserve(static_cast<size_t>(workload.generate_tokens));
    sequence.output.logprobs.reserve(static_cast<size_t>(workload.generate_tokens));
  }
  return sequences;
}

absl::Status EngineRunner::Prefill(std::vector<Sequence>& sequences, int64_t chunk_blocks,
                                   EngineRunResult& result,
                                   const std::function<void(double)>& progress) {
  const ModelConfig& config = block_->config();
  const size_t length = static_cast<size_t>(config.block_length);
  const size_t width = static_cast<size_t>(config.block.hidden_size);
  const int64_t blocks = static_cast<int64_t>(sequences.front().tokens.size() / length);
  contexts_.resize(sequences.size() * width);
  size_t next = 0;
  int64_t done = 0;  // blocks of sequences[next]
  // As the block service does: the engine has the next step when one is done.
  absl::Status status;
  int32_t under_way = 0;
  double last_end = Now();
  const auto finish = [&] {
    status.Update(block_->Finish());
    --under_way;
    const double end = Now();
    result.prefill_step_seconds.push_back(end - std::exchange(last_end, end));
  };
  while (next < sequences.size() && status.ok()) {
    chunks_.clear();
    const size_t first = next;
    for (int64_t budget = chunk_blocks; budget > 0 && next < sequences.size();) {
      Sequence& sequence = sequences[next];
      const int64_t count = std::min(blocks - done, budget);
      BlockChunk& chunk = chunks_.emplace_back();
      chunk.tokens =
          absl::MakeConstSpan(sequence.tokens)
              .subspan(static_cast<size_t>(done) * length, static_cast<size_t>(count) * length);
      chunk.first_block = done;
      chunk.pages = sequence.pages;
      chunk.first_context = blocks - 1;
      done += count;
      budget -= count;
      if (done == blocks) {
        ++next;
        done = 0;
      }
    }
    const absl::Status started = block_->Start(
        chunks_, absl::MakeSpan(contexts_).subspan(first * width, (next - first) * width));
    status.Update(started);
    under_way += started.ok();
    if (under_way == block_->max_in_flight()) finish();
    if (progress) progress(static_cast<double>(next) / static_cast<double>(sequences.size()));
  }
  while (under_way > 0) finish();
  return status;
}

std::vector<EngineRunner::Group> EngineRunner::MakeGroups(std::vector<Sequence>& sequences,
                                                          int32_t groups) {
  const size_t width = static_cast<size_t>(config().block.hidden_size);
  contexts_.resize(sequences.size() * width);
  std::vector<Group> parts;
  for (size_t g = 0; g < static_cast<size_t>(groups); ++g) {
    const size_t begin = sequences.size() * g / static_cast<size_t>(groups);
    const size_t end = sequences.size() * (g + 1) / static_cast<size_t>(groups);
    parts.push_back({absl::MakeSpan(sequences).subspan(begin, end - begin),
                     absl::MakeSpan(contexts_).subspan(begin * width, (end - begin) * width)});
  }
  return parts;
}

absl::Status EngineRunner::WriteBlocks(const Group& group, int32_t limit,
                                       absl::Span<float> logits) {
  const ModelConfig& config = block_->config();
  const size_t width = static_cast<size_t>(config.block.hidden_size);
  const absl::Span<Sequence> sequences = group.sequences;
  const size_t of_row = static_cast<size_t>(limit) * static_cast<size_t>(config.vocab_size);
  const size_t at_once = static_cast<size_t>(options_.batching.token_rows);
  for (size_t first = 0; first < sequences.size(); first += at_once) {
    const size_t count = std::min(at_once, sequences.size() - first);
    rows_.clear();
    results_.resize(count);
    for (size_t i = first; i < first + count; ++i) {
      const Sequence& sequence = sequences[i];
      TokenRow& row = rows_.emplace_back();
      row.context = group.contexts.subspan(i * width, width);
      row.limit = limit;
      row.position = static_cast<int64_t>(sequence.tokens.size());
      row.seed = sequence.seed;
      row.sampling = &sampling_;
      if (!logits.empty()) row.logits = logits.subspan(i * of_row, of_row);
    }
    token_->Decode(rows_, absl::MakeSpan(results_));
    for (size_t i = 0; i < count; ++i) {
      TokenRowResult& result = results_[i];
      if (!result.status.ok()) return result.status;
      Sequence& sequence = sequences[first + i];
      sequence.tokens.insert(sequence.tokens.end(), result.tokens.begin(), result.tokens.end());
      sequence.output.tokens.insert(sequence.output.tokens.end(), result.tokens.begin(),
                                    result.tokens.end());
      sequence.output.logprobs.insert(sequence.output.logprobs.end(), result.logprobs.begin(),
                                      result.logprobs.end());
    }
  }
  return absl::OkStatus();
}

absl::Status EngineRunner::AppendBlocks(const Group& group) {
  const size_t length = static_cast<size_t>(config().block_length);
  chunks_.clear();
  for (const Sequence& sequence : group.sequences) {
    BlockChunk& chunk = chunks_.emplace_back();
    chunk.tokens = absl::MakeConstSpan(sequence.tokens).last(length);
    chunk.first_block = static_cast<int64_t>(sequence.tokens.size() / length) - 1;
    chunk.pages = sequence.pages;
    chunk.first_context = chunk.first_block;
  }
  return block_->Step(chunks_, group.contexts);
}

absl::Status EngineRunner::Decode(std::vector<Sequence>& sequences, int64_t blocks, int64_t tokens,
                                  const std::function<void(int64_t round)>& after_round) {
  const int64_t length = config().block_length;
  const auto limit = [&](int64_t block) {
    return static_cast<int32_t>(std::min(length, tokens - block * length));
  };
  // Where a kernel's time is taken, nothing runs beside it.
  const bool together = options_.groups < 2 || timer_.profiling() || sequences.size() < 2;
  const std::vector<Group> groups = MakeGroups(sequences, together ? 1 : 2);
  for (int64_t i = 0; i < blocks; ++i) {
    absl::Status status;
    if (together) {
      if (i > 0) status = AppendBlocks(groups[0]);
      if (status.ok()) status = WriteBlocks(groups[0], limit(i), {});
    } else {
      // Each group's block i is written while the other one's blocks go through the block decoder:
      // the second group's i - 1, then the first one's i.
      for (size_t g = 0; g < 2 && status.ok(); ++g) {
        std::future<absl::Status> appended;
        if (g == 0 ? i > 0 : i + 1 < blocks) {
          appended = std::async(std::launch::async, [&] { return AppendBlocks(groups[1 - g]); });
        }
        status = WriteBlocks(groups[g], limit(i), {});
        if (appended.valid()) status.Update(appended.get());
      }
    }
    if (!status.ok()) return status;
    if (after_round) after_round(i);
  }
  return absl::OkStatus();
}

absl::StatusOr<EngineRunResult> EngineRunner::Run(const Workload& workload, int64_t first_sequence,
                                                  const std::function<void(double)>& progress) {
  std::vector<Sequence> sequences = MakeSequences(workload, first_sequence);
  EngineRunResult result;
  const Work work = CountWork(config(), Storage(), workload, options_.batching);
  const double prefill_share = work.prefill.flop() / work.all().flop();
  timer_.Reset();
  const double waited_before = WaitedForCoreSeconds();
  const double begin = Now();
  absl::Status status =
      Prefill(sequences, options_.batching.prefill_blocks, result, [&](double share) {
        if (progress) progress(share * prefill_share);
      });
  if (!status.ok()) return status;
  const double prefilled = Now();
  result.prefill_seconds = prefilled - begin;
  result.prefill_times = timer_;
  timer_.Reset();

  const int64_t blocks = GeneratedBlocks(config(), workload);
  result.round_seconds.reserve(static_cast<size_t>(blocks));
  double last = prefilled;
  status = Decode(sequences, blocks, workload.generate_tokens, [&](int64_t round) {
    const double now = Now();
    result.round_seconds.push_back(now - last);
    last = now;
    if (progress) {
      progress(prefill_share +
               (1 - prefill_share) * static_cast<double>(round + 1) / static_cast<double>(blocks));
    }
  });
  if (!status.ok()) return status;
  result.decode_seconds = last - prefilled;
  result.waited_for_core_seconds = WaitedForCoreSeconds() - waited_before;
  result.decode_times = timer_;
  result.output_hash = kHashStart;
  for (Sequence& sequence : sequences) {
    result.output_hash =
        HashBytes(sequence.output.tokens.data(), sequence.output.tokens.size() * sizeof(int32_t),
                  result.output_hash);
    result.output_hash =
        HashBytes(sequence.output.logprobs.data(), sequence.output.logprobs.size() * sizeof(float),
                  result.output_hash);
    result.outputs.push_back(std::move(sequence.output));
  }
  return result;
}

absl::StatusOr<EngineRunner::ProfiledTimes> EngineRunner::Profile(const Workload& workload) {
  const int64_t length = config().block_length;
  const int64_t blocks = GeneratedBlocks(config(), workload);
  const int64_t rounds = std::min<int64_t>(blocks, 4);
  Workload first = workload;
  first.generate_tokens = std::min(workload.generate_tokens, length);
  Workload middle = workload;
  middle.generate_tokens = std::min(workload.generate_tokens, rounds * length);
  middle.prompt_tokens += (workload.generate_tokens - middle.generate_tokens) / 2;
  timer_.SetProfiling(true);
  const absl::StatusOr<EngineRunResult> prefill = Run(first);
  const absl::StatusOr<EngineRunResult> decode = prefill.ok() ? Run(middle) : prefill.status();
  timer_.SetProfiling(false);
  if (!decode.ok()) return decode.status();
  ProfiledTimes times{prefill->prefill_times, decode->decode_times};
  for (int i = 0; i < StepTimer::kNumParts; ++i) {
    const auto part = static_cast<StepTimer::Part>(i);
    // The last block of a sequence goes through no block decoder.
    const int64_t missing = part == StepTimer::kBlockStep ? 1 : 0;
    if (rounds == missing) continue;
    times.decode.Scale(
        part, static_cast<double>(blocks - missing) / static_cast<double>(rounds - missing));
  }
  return times;
}

absl::StatusOr<uint64_t> EngineRunner::CheckBatchInvariance() {
  const int64_t length = config().block_length;
  Workload workload;
  workload.prompt_tokens = kCheckPromptBlocks * length - length / 2;
  workload.generate_tokens = kCheckBlocks * length;
  workload.sequences = kCheckSequences;
  const size_t of_row = static_cast<size_t>(length) * static_cast<size_t>(config().vocab_size);
  // Runs the workload; `logits` becomes those of the first blocks.
  const auto run = [&](std::vector<Sequence>& sequences, int64_t chunk,
                       std::vector<float>& logits) -> absl::Status {
    EngineRunResult ignored;
    logits.assign(sequences.size() * of_row, 0.0f);
    absl::Status status = Prefill(sequences, chunk, ignored, {});
    const Group all = MakeGroups(sequences, 1).front();
    for (int64_t i = 0; i < kCheckBlocks && status.ok(); ++i) {
      if (i > 0) status = AppendBlocks(all);
      if (!status.ok()) break;
      status = WriteBlocks(all, static_cast<int32_t>(length),
                           i == 0 ? absl::MakeSpan(logits) : absl::Span<float>());
    }
    return status;
  };
  std::vector<Sequence> batch = MakeSequences(workload, 0);
  std::vector<float> batch_logits, logits;
  if (absl::Status status = run(batch, options_.batching.prefill_blocks, batch_logits);
      !status.ok()) {
    return status;
  }
  workload.sequences = 1;
  for (const int64_t s : {int64_t{0}, kCheckSequences / 2, kCheckSequences - 1}) {
    std::vector<Sequence> alone = MakeSequences(workload, s);
    if (absl::Status status = run(alone, kOtherChunk, logits); !status.ok()) return status;
    const SequenceOutput& together = batch[static_cast<size_t>(s)].output;
    const bool same_logits =
        std::memcmp(logits.data(), batch_logits.data() + static_cast<size_t>(s) * of_row,
                    of_row * sizeof(float)) == 0;
    if (!same_logits || together.tokens != alone[0].output.tokens ||
        !SameBits(together.logprobs, alone[0].output.logprobs)) {
      return absl::InternalError(
          absl::StrCat("sequence ", s, " of a batch of ", kCheckSequences, " differs from the same",
                       " sequence alone: ", same_logits ? "tokens" : "logits"));
    }
  }
  return HashBytes(batch_logits.data(), batch_logits.size() * sizeof(float));
}

}  // namespace blockserve
