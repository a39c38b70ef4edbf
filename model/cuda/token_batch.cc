#include "model/cuda/token_batch.h"

#include <algorithm>
#include <cstring>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "common/bf16.h"

namespace blockserve {
namespace {

// Every buffer of a kernel begins at a multiple of 16 bytes.
int64_t Align(int64_t bytes) { return (bytes + 15) / 16 * 16; }

// Lists of three sizes of elements lie in one buffer: each begins where it is a whole number of
// elements from the beginning, so that an index counts from there.
constexpr int64_t kListAlignment = 24;
static_assert(kListAlignment % sizeof(cuda::SampleBias) == 0);
static_assert(kListAlignment % sizeof(cuda::SampleCount) == 0);
static_assert(kListAlignment % sizeof(int32_t) == 0);
int64_t AlignList(int64_t bytes) {
  return (bytes + kListAlignment - 1) / kListAlignment * kListAlignment;
}

constexpr int64_t kUsualListBytes = 4096;  // of a row: some hundred entries

int64_t ListBytes(const TokenRow& row) {
  return AlignList(static_cast<int64_t>(row.logit_bias.size() * sizeof(cuda::SampleBias))) +
         AlignList(static_cast<int64_t>(row.counts.size() * sizeof(cuda::SampleCount))) +
         AlignList(static_cast<int64_t>(row.stop_ids.size() * sizeof(int32_t)));
}

// Appends a list and returns [begin, end) in elements of To.
template <typename To, typename From, typename Convert>
void Append(absl::Span<const From> from, uint8_t* lists, int64_t& used, int32_t& begin,
            int32_t& end, Convert convert) {
  begin = static_cast<int32_t>(used / static_cast<int64_t>(sizeof(To)));
  end = begin + static_cast<int32_t>(from.size());
  To* to = reinterpret_cast<To*>(lists) + begin;
  for (size_t i = 0; i < from.size(); ++i) to[i] = convert(from[i]);
  used += AlignList(static_cast<int64_t>(from.size() * sizeof(To)));
}

// Ascending ids, equal ones in their order. Gateways send lists so.
template <typename T, typename TokenOf>
void SortById(uint8_t* lists, int32_t begin, int32_t end, const TokenOf& token_of) {
  const auto before = [&](const T& a, const T& b) { return token_of(a) < token_of(b); };
  T* list = reinterpret_cast<T*>(lists);
  if (!std::is_sorted(list + begin, list + end, before)) {
    std::stable_sort(list + begin, list + end, before);
  }
}

// The padding is cleared: a batch of another size has left anything there, and products read it.
// Its weights are zero, but zero times a NaN is none.
void PackContext(cuda::ElementType type, absl::Span<const float> context, uint8_t* to) {
  const auto width = static_cast<int64_t>(context.size());
  if (type == cuda::ElementType::kF32) {
    std::memcpy(to, context.data(), context.size() * sizeof(float));
  } else {
    Bf16FromFloats(context.data(), width, reinterpret_cast<uint16_t*>(to));
  }
  std::memset(to + width * cuda::ElementBytes(type), 0,
              (cuda::PadElements(width) - width) * cuda::ElementBytes(type));
}

}  // namespace

TokenIoLayout::TokenIoLayout(const ModelConfig& config, cuda::ElementType type, int32_t rows) {
  const int64_t length = config.block_length;
  const int64_t context_bytes =
      cuda::PadElements(config.block.hidden_size) * cuda::ElementBytes(type);
  contexts = Align(rows * static_cast<int64_t>(sizeof(cuda::SampleRow)));
  states = Align(contexts + rows * context_bytes);
  tokens = Align(states + rows * static_cast<int64_t>(sizeof(cuda::SampleState)));
  logprobs = Align(tokens + rows * length * static_cast<int64_t>(sizeof(int32_t)));
  end = Align(logprobs + rows * length * static_cast<int64_t>(sizeof(float)));
}

int64_t TokenListCapacity(const ModelConfig& config, int32_t max_rows) {
  return AlignList(std::max<int64_t>(32 * int64_t{config.vocab_size}, kUsualListBytes * max_rows));
}

int64_t TokenSavedFloats(const ModelConfig& config, int32_t max_rows, int64_t list_capacity) {
  return list_capacity / static_cast<int64_t>(sizeof(int32_t)) +
         int64_t{max_rows} * config.block_length;
}

int32_t CountRowsThatFit(absl::Span<const TokenRow> rows, int32_t max_rows, int64_t list_capacity) {
  int64_t used = 0;
  int32_t count = 0;
  for (const TokenRow& row : rows.subspan(0, max_rows)) {
    used += ListBytes(row);
    if (used > list_capacity) break;
    ++count;
  }
  return count;
}

int64_t PackTokenRows(const ModelConfig& config, cuda::ElementType type,
                      absl::Span<const TokenRow> rows, int32_t layout_rows,
                      const TokenIoLayout& layout, uint8_t* io, uint8_t* lists) {
  const int64_t length = config.block_length;
  const int64_t context_bytes =
      cuda::PadElements(config.block.hidden_size) * cuda::ElementBytes(type);
  auto* sample_rows = reinterpret_cast<cuda::SampleRow*>(io + layout.sample_rows);
  auto* tokens = reinterpret_cast<int32_t*>(io + layout.tokens);
  std::memset(io + layout.states, 0, layout_rows * sizeof(cuda::SampleState));
  std::memset(tokens, 0, layout_rows * length * sizeof(int32_t));
  int64_t used = 0;
  int64_t saved = 0;
  for (size_t i = 0; i < rows.size(); ++i) {
    const TokenRow& row = rows[i];
    const SamplingParameters& sampling = *row.sampling;
    cuda::SampleRow& to = sample_rows[i];
    to = cuda::SampleRow();
    to.seed = row.seed;
    to.position = row.position;
    to.min_tokens_position = row.min_tokens_position;
    to.choice = row.choice;
    to.limit = row.limit;
    to.forced = static_cast<int32_t>(row.forced.size());
    to.forced_in_prompt = row.forced_in_prompt;
    to.vocab_limit = row.vocab_limit;
    to.top_logprobs = row.top_logprobs;
    to.score_forced = row.score_forced ? 1 : 0;
    to.temperature = sampling.temperature;
    to.top_k = sampling.top_k;
    to.top_p = sampling.top_p;
    to.min_p = sampling.min_p;
    to.repetition_penalty = sampling.repetition_penalty;
    to.presence_penalty = sampling.presence_penalty;
    to.frequency_penalty = sampling.frequency_penalty;
    Append<cuda::SampleBias>(row.logit_bias, lists, used, to.bias_begin, to.bias_end,
                             [](const LogitBias& b) {
                               return cuda::SampleBias{b.token, b.bias};
                             });
    SortById<cuda::SampleBias>(lists, to.bias_begin, to.bias_end,
                               [](const cuda::SampleBias& b) { return b.token; });
    Append<cuda::SampleCount>(row.counts, lists, used, to.counts_begin, to.counts_end,
                              [](const TokenCount& c) {
                                return cuda::SampleCount{c.token, c.in_prompt, c.in_output};
                              });
    Append<int32_t>(row.stop_ids, lists, used, to.stops_begin, to.stops_end,
                    [](int32_t token) { return token; });
    SortById<int32_t>(lists, to.stops_begin, to.stops_end, [](int32_t token) { return token; });
    to.saved_begin = static_cast<int32_t>(saved);
    saved += static_cast<int64_t>(row.logit_bias.size() + row.counts.size() + row.stop_ids.size()) +
             length;
    PackContext(type, row.context, io + layout.contexts + static_cast<int64_t>(i) * context_bytes);
    std::copy(row.forced.begin(), row.forced.end(), tokens + static_cast<int64_t>(i) * length);
  }
  for (int64_t i = static_cast<int64_t>(rows.size()); i < layout_rows; ++i) {
    sample_rows[i] = cuda::SampleRow();
    std::memset(io + layout.contexts + i * context_bytes, 0, context_bytes);
  }
  return used;
}

TokenRowResult UnpackTokenRow(const ModelConfig& config, const TokenRow& row, int32_t index,
                              const TokenIoLayout& layout, const uint8_t* io,
                              const TokenTops& tops) {
  const int64_t length = config.block_length;
  const auto& state = reinterpret_cast<const cuda::SampleState*>(io + layout.states)[index];
  const int32_t* tokens = reinterpret_cast<const int32_t*>(io + layout.tokens) + index * length;
  const float* logprobs = reinterpret_cast<const float*>(io + layout.logprobs) + index * length;
  const int32_t forced = static_cast<int32_t>(row.forced.size());
  TokenRowResult result;
  if (state.status == cuda::SampleStatus::kNotFinite) {
    result.status = absl::InternalError(
        absl::StrCat("logits of token ", state.length, " of the block are not finite"));
  } else if (state.status == cuda::SampleStatus::kNothingLeft) {
    result.status = absl::InvalidArgumentError(
        "logit_bias, penalties and minimum of tokens leave no id to draw");
  } else if (state.status == cuda::SampleStatus::kRunning) {
    result.status = absl::InternalError("the device left a block unfinished");
  }
  result.stopped = state.status == cuda::SampleStatus::kStopped;
  // Of a row that failed, what came before.
  const int32_t end = std::min(state.length, row.limit);
  result.tokens.reserve(row.limit - forced);
  result.logprobs.reserve(row.limit);
  for (int32_t i = row.score_forced ? 0 : forced; i < end; ++i) {
    if (i >= forced) result.tokens.push_back(tokens[i]);
    result.logprobs.push_back(logprobs[i]);
    if (row.top_logprobs == 0) continue;
    const int64_t at = (index * length + i) * tops.stride;
    std::vector<TokenLogprob>& top = result.top.emplace_back();
    for (int32_t k = 0; k < row.top_logprobs; ++k) {
      top.push_back({tops.tokens[at + k], tops.logprobs[at + k]});
    }
  }
  return result;
}

}  // namespace blockserve
