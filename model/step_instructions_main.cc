// Runs so many steps of a small model, for step_instructions_test.sh: 8 greedy sequences, one
// thread.
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <numeric>
#include <vector>

#include "common/thread_pool.h"
#include "model/checkpoint.h"
#include "model/engine.h"

namespace blockserve {
namespace {

constexpr int32_t kSequences = 8;
constexpr int32_t kPageBlocks = 16;

absl::Status Run(const std::string& directory, int steps) {
  absl::StatusOr<std::unique_ptr<Checkpoint>> checkpoint = Checkpoint::Open(directory);
  if (!checkpoint.ok()) return checkpoint.status();
  ThreadPool pool(1);
  EngineOptions options;
  options.pool = &pool;
  options.max_rows = 2 * kSequences;
  absl::StatusOr<std::unique_ptr<BlockEngine>> block = LoadBlockEngine(**checkpoint, options);
  if (!block.ok()) return block.status();
  absl::StatusOr<std::unique_ptr<TokenEngine>> token = LoadTokenEngine(**checkpoint, options);
  if (!token.ok()) return token.status();
  const int32_t pages_each = (steps + kPageBlocks) / kPageBlocks;
  absl::Status status = (*block)->AllocateKv(kSequences * pages_each, kPageBlocks);
  if (!status.ok()) return status;

  const ModelConfig& config = (*checkpoint)->config();
  const int64_t width = config.block.hidden_size;
  std::vector<int32_t> pages(kSequences * pages_each);
  std::iota(pages.begin(), pages.end(), 0);
  std::vector<float> contexts(kSequences * width, 0.25f);
  SamplingParameters greedy;
  greedy.temperature = 0;
  std::vector<TokenRow> rows(kSequences);
  std::vector<TokenRowResult> results(kSequences);
  std::vector<BlockChunk> chunks(kSequences);
  for (int step = 0; step < steps; ++step) {
    for (int32_t s = 0; s < kSequences; ++s) {
      rows[s].context = absl::MakeConstSpan(contexts).subspan(s * width, width);
      rows[s].limit = config.block_length;
      rows[s].sampling = &greedy;
    }
    (*token)->Decode(rows, absl::MakeSpan(results));
    for (int32_t s = 0; s < kSequences; ++s) {
      if (!results[s].status.ok()) return results[s].status;
      chunks[s].tokens = results[s].tokens;
      chunks[s].first_block = step;
      chunks[s].pages = absl::MakeConstSpan(pages).subspan(s * pages_each, pages_each);
    }
    status = (*block)->Step(chunks, absl::MakeSpan(contexts));
    if (!status.ok()) return status;
  }
  return absl::OkStatus();
}

}  // namespace
}  // namespace blockserve

int main(int argc, char** argv) {
  if (argc != 3) {
    std::fprintf(stderr, "usage: step_instructions MODEL STEPS\n");
    return 2;
  }
  const absl::Status status = blockserve::Run(argv[1], std::atoi(argv[2]));
  if (!status.ok()) std::fprintf(stderr, "%s\n", status.ToString().c_str());
  return status.ok() ? 0 : 1;
}
