// What is asked: request number k of a workload is a function of (options, k) alone, whatever the
// server does and however many threads send. Of a trace its lengths are those of the row that it
// comes by.
#ifndef BLOCKSERVE_BENCH_LOAD_WORKLOAD_H_
#define BLOCKSERVE_BENCH_LOAD_WORKLOAD_H_

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "bench/load_arrivals.h"
#include "bench/load_lengths.h"

namespace blockserve {

struct RequestSpec {
  int64_t index = 0;
  std::string text;             // the prompt; empty: `tokens` is
  std::vector<int32_t> tokens;  // at least one unless there is text
  int32_t max_tokens = 0;
  int32_t n = 1;
  float temperature = 1;
  uint64_t seed = 0;
  bool ignore_eos = true;
  bool shortened = false;  // prompt or output: both would not have fitted into the context
};

// One line of a file of prompts.
struct PromptLine {
  std::string text;
  std::vector<int32_t> tokens;
  int64_t output_tokens = 0;  // 0: by --output-tokens
};
// A line is plain text, or a JSON object with "prompt" or "tokens", and perhaps "output_tokens".
// NOT_FOUND, INVALID_ARGUMENT: naming file and line.
absl::StatusOr<std::vector<PromptLine>> ReadPrompts(const std::string& path);

struct WorkloadOptions {
  LengthDistribution prompt_tokens;
  LengthDistribution output_tokens;
  std::vector<PromptLine> prompts;  // instead of random tokens, one after another
  std::vector<TraceRow> trace;      // lengths of arrival k, where given
  // The first tokens of every random prompt are one of so many common beginnings.
  int64_t shared_prefix_tokens = 0;
  int32_t shared_prefixes = 1;
  int32_t n = 1;
  float temperature = 1;
  bool ignore_eos = true;
  uint64_t seed = 1;
  // Of the model. Random tokens are drawn from 0 .. vocab_size - 1 without those excluded.
  int32_t vocab_size = 0;
  std::vector<int32_t> excluded_tokens;
  int64_t max_total_tokens = 0;  // prompt and output are cut to it; 0: no limit

  // INVALID_ARGUMENT: not one request of these lengths would fit into max_total_tokens.
  absl::Status CheckLengths() const;
};

class Workload {
 public:
  explicit Workload(WorkloadOptions options);

  // Request number `index`, which is arrival number `arrival` of its run.
  RequestSpec Make(int64_t index, int64_t arrival) const;
  const WorkloadOptions& options() const { return options_; }

 private:
  void FillRandom(uint64_t stream, int64_t count, std::vector<int32_t>& tokens) const;

  const WorkloadOptions options_;
  std::vector<std::vector<int32_t>> prefixes_;
};

}  // namespace blockserve

#endif  // BLOCKSERVE_BENCH_LOAD_WORKLOAD_H_
