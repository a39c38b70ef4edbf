#include "model/engine_test_util.h"

#include <algorithm>
#include <cstring>
#include <numeric>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_replace.h"
#include "kernels/cpu/cpu_kernels.h"
#include "model/cuda/cuda_engines.h"

namespace blockserve {

std::string WhyNotHere(Arithmetic arithmetic) {
  if (IsCuda(arithmetic)) {
    const absl::Status status = CheckCudaDevice(0);
    return status.ok() ? "" : absl::StrCat("no CUDA device: ", status.message());
  }
  if (arithmetic == Arithmetic::kBf16Dot &&
      GetCpuKernels(SupportedKernelTargets().front()).bf16dot_matmul == nullptr) {
    return "no AVX512-BF16";
  }
  return "";
}

std::string TestName(Arithmetic arithmetic) {
  return absl::StrReplaceAll(ArithmeticName(arithmetic), {{"-", "_"}});
}

absl::StatusOr<std::unique_ptr<TestModel>> TestModel::Load(const std::string& directory,
                                                           const TestModelOptions& options) {
  std::unique_ptr<TestModel> model(new TestModel());
  model->pool_ = std::make_unique<ThreadPool>(options.num_threads);
  absl::StatusOr<std::unique_ptr<Checkpoint>> checkpoint = Checkpoint::Open(directory);
  if (!checkpoint.ok()) return checkpoint.status();
  model->checkpoint_ = *std::move(checkpoint);

  EngineOptions engine_options;
  engine_options.arithmetic = options.arithmetic;
  engine_options.cuda_device = IsCuda(options.arithmetic) ? 0 : -1;
  engine_options.pool = model->pool_.get();
  engine_options.max_rows = options.max_rows;
  engine_options.kernel_target = options.kernel_target;
  engine_options.early_launch = options.early_launch;
  absl::StatusOr<std::unique_ptr<BlockEngine>> block =
      LoadBlockEngine(*model->checkpoint_, engine_options);
  if (!block.ok()) return block.status();
  model->block_ = *std::move(block);
  absl::StatusOr<std::unique_ptr<TokenEngine>> token =
      LoadTokenEngine(*model->checkpoint_, engine_options);
  if (!token.ok()) return token.status();
  model->token_ = *std::move(token);
  absl::Status status = model->block_->AllocateKv(options.num_pages, options.page_blocks);
  if (!status.ok()) return status;
  model->pages_.resize(options.num_pages);
  std::iota(model->pages_.begin(), model->pages_.end(), 0);
  return model;
}

absl::StatusOr<std::vector<float>> TestModel::Prefill(absl::Span<const int32_t> block_tokens,
                                                      int64_t chunk_blocks) {
  const int64_t length = config().block_length;
  const int64_t width = config().block.hidden_size;
  const int64_t blocks = static_cast<int64_t>(block_tokens.size()) / length;
  std::vector<float> contexts(blocks * width);
  for (int64_t first = 0; first < blocks; first += chunk_blocks) {
    const int64_t count = std::min(chunk_blocks, blocks - first);
    BlockChunk chunk;
    chunk.tokens = block_tokens.subspan(first * length, count * length);
    chunk.first_block = first;
    chunk.pages = pages_;
    absl::Status status =
        block_->Step({&chunk, 1}, absl::MakeSpan(contexts).subspan(first * width, count * width));
    if (!status.ok()) return status;
  }
  return contexts;
}

absl::StatusOr<std::vector<float>> TestModel::StepBlock(int64_t position,
                                                        absl::Span<const int32_t> tokens) {
  std::vector<float> context(config().block.hidden_size);
  BlockChunk chunk;
  chunk.tokens = tokens;
  chunk.first_block = position;
  chunk.pages = pages_;
  absl::Status status = block_->Step({&chunk, 1}, absl::MakeSpan(context));
  if (!status.ok()) return status;
  return context;
}

absl::StatusOr<Generated> TestModel::Generate(Alignment alignment, absl::Span<const int32_t> prompt,
                                              int32_t num_tokens,
                                              const SamplingParameters& sampling,
                                              int32_t logit_blocks) {
  const int64_t length = config().block_length;
  const int64_t width = config().block.hidden_size;
  const PromptLayout layout = LayoutPrompt(config(), alignment, prompt);
  Generated generated;
  int64_t block = layout.num_blocks(config());
  absl::StatusOr<std::vector<float>> contexts = Prefill(layout.block_tokens, block);
  if (!contexts.ok()) return contexts.status();
  generated.prompt_contexts = *contexts;
  std::vector<float> context(contexts->end() - width, contexts->end());

  std::vector<int32_t> tokens = layout.forced;
  int64_t position = layout.num_text_tokens;
  while (static_cast<int32_t>(generated.tokens.size()) < num_tokens) {
    std::vector<float> logits;
    if (logit_blocks-- > 0) logits.resize(length * config().vocab_size);
    TokenRow row;
    row.context = context;
    row.forced = tokens;
    row.forced_in_prompt = static_cast<int32_t>(tokens.size());
    row.limit = static_cast<int32_t>(length);
    row.position = position;
    row.seed = 1234;
    row.sampling = &sampling;
    row.logits = absl::MakeSpan(logits);
    absl::Status status = ValidateTokenRow(config(), row);
    if (!status.ok()) return status;
    TokenRowResult result;
    token_->Decode({&row, 1}, {&result, 1});
    if (!result.status.ok()) return result.status;
    generated.tokens.insert(generated.tokens.end(), result.tokens.begin(), result.tokens.end());
    generated.logprobs.insert(generated.logprobs.end(), result.logprobs.begin(),
                              result.logprobs.end());
    generated.logits.insert(generated.logits.end(), logits.begin(), logits.end());
    position += static_cast<int64_t>(result.tokens.size());
    tokens.insert(tokens.end(), result.tokens.begin(), result.tokens.end());
    absl::StatusOr<std::vector<float>> next = StepBlock(block++, tokens);
    if (!next.ok()) return next.status();
    context = *std::move(next);
    tokens.clear();
  }
  generated.tokens.resize(num_tokens);
  generated.logprobs.resize(num_tokens);
  return generated;
}

absl::StatusOr<std::vector<float>> TestModel::Score(Alignment alignment,
                                                    absl::Span<const int32_t> prompt,
                                                    absl::Span<const int32_t> continuation) {
  const int64_t length = config().block_length;
  const int64_t width = config().block.hidden_size;
  const PromptLayout layout = LayoutPrompt(config(), alignment, prompt);
  int64_t block = layout.num_blocks(config());
  absl::StatusOr<std::vector<float>> contexts = Prefill(layout.block_tokens, 3);
  if (!contexts.ok()) return contexts.status();
  std::vector<float> context(contexts->end() - width, contexts->end());

  std::vector<int32_t> text = layout.forced;
  text.insert(text.end(), continuation.begin(), continuation.end());
  const SamplingParameters sampling;
  std::vector<float> logprobs;
  for (size_t begin = 0; begin < text.size(); begin += length) {
    const absl::Span<const int32_t> forced = absl::MakeConstSpan(text).subspan(begin, length);
    TokenRow row;
    row.context = context;
    row.forced = forced;
    row.limit = static_cast<int32_t>(forced.size());
    row.sampling = &sampling;
    row.score_forced = true;
    absl::Status status = ValidateTokenRow(config(), row);
    if (!status.ok()) return status;
    TokenRowResult result;
    token_->Decode({&row, 1}, {&result, 1});
    if (!result.status.ok()) return result.status;
    logprobs.insert(logprobs.end(), result.logprobs.begin(), result.logprobs.end());
    if (static_cast<int64_t>(forced.size()) < length) break;
    absl::StatusOr<std::vector<float>> next = StepBlock(block++, forced);
    if (!next.ok()) return next.status();
    context = *std::move(next);
  }
  logprobs.erase(logprobs.begin(), logprobs.begin() + layout.forced.size());
  return logprobs;
}

std::unique_ptr<TestModel> LoadGolden(const std::string& folder, const TestModelOptions& options) {
  absl::StatusOr<std::unique_ptr<TestModel>> model =
      TestModel::Load(absl::StrCat("tests/golden/", folder), options);
  EXPECT_TRUE(model.ok()) << model.status();
  return model.ok() ? *std::move(model) : nullptr;
}

std::vector<int32_t> RandomTokens(std::mt19937& random, const ModelConfig& config, int64_t count) {
  std::uniform_int_distribution<int32_t> ids(0, config.vocab_size - 1);
  std::vector<int32_t> tokens(count);
  for (int32_t& token : tokens) token = ids(random);
  return tokens;
}

bool SameBits(absl::Span<const float> a, absl::Span<const float> b) {
  return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0;
}

}  // namespace blockserve
