// One choice of a generation: what it has, what it waits for, and the next row to be decoded.
//
// This is the part of a request that cannot be computed again, so it is a state machine that
// refuses what does not fit: a late or doubled answer can never write tokens twice.
#ifndef BLOCKSERVE_GATEWAY_CHOICE_STATE_H_
#define BLOCKSERVE_GATEWAY_CHOICE_STATE_H_

#include <cstdint>
#include <memory>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/types/span.h"

namespace blockserve {

enum class ChoicePhase {
  kQueued,             // no replica has been asked yet
  kOpening,            // the prompt is on its way through the block tier
  kWaitingForContext,  // a block is complete; its context row is awaited
  kWaitingForBlock,    // a row is with the token tier
  kPaused,             // the context row is here, but the client does not read
  kFinished,
  kFailed,
};
absl::string_view ChoicePhaseName(ChoicePhase phase);

struct ChoiceSpec {
  int32_t block_length = 1;  // L, tokens
  uint32_t choice = 0;
  uint64_t seed = 0;
  // The prompt without pads; shared by the choices of a request.
  std::shared_ptr<const std::vector<int32_t>> prompt;
  // How many tokens at the prompt's end do not fill a block: forced in the first row. < L.
  int32_t prompt_rest = 0;
  // Blocks that the block tier is given first: the prompt's complete ones, pads included.
  int64_t prompt_blocks = 1;
  int32_t max_tokens = 16;  // of output, `already` included
  int32_t min_tokens = 0;
  int32_t vocab_limit = 0;  // ids from here on cannot be drawn; 0: none
  // Some penalty is not neutral: rows carry counts.
  bool count_output = false;
  // CountPrompt of the prompt without its rest, where the prompt matters to it; shared by the
  // choices of a request. Null: it is not counted.
  std::shared_ptr<const std::vector<int32_t>> prompt_counts;
  // Output that is known before the start (a stream that goes on elsewhere).
  std::vector<int32_t> already;
};

// Of each id among `tokens`, by id: (id, how often it is in the prompt, 0 times in the output).
std::vector<int32_t> CountPrompt(absl::Span<const int32_t> tokens);

// What the token tier is asked for, without transport.
struct RowPlan {
  std::vector<int32_t> forced;
  int32_t forced_in_prompt = 0;
  int32_t limit = 0;     // tokens in the block when it is done, forced ones included; <= L
  int64_t position = 0;  // text position of the token after the forced ones
  int64_t min_tokens_position = 0;
  uint64_t seed = 0;
  uint32_t choice = 0;
  int32_t vocab_limit = 0;
  // (id, in prompt, in output) of the tokens before this block, by id. In the choice, until it
  // moves on.
  absl::Span<const int32_t> counts;
};

// What a block's tokens say by themselves, before stop strings are looked at.
enum class BlockVerdict { kGoesOn, kStopToken, kMaxTokens };

class ChoiceState {
 public:
  explicit ChoiceState(ChoiceSpec spec);

  ChoicePhase phase() const { return phase_; }
  bool over() const { return phase_ == ChoicePhase::kFinished || phase_ == ChoicePhase::kFailed; }
  const std::vector<int32_t>& output() const { return output_; }
  // Text position of the next token.
  int64_t position() const;
  // Complete blocks so far, the prompt's included: the index that the next complete block will
  // have.
  int64_t blocks() const { return spec_.prompt_blocks + own_blocks_; }
  int64_t prompt_blocks() const { return spec_.prompt_blocks; }
  // Complete blocks beside the prompt's that `already` filled: to be opened with the prompt.
  // [own blocks * L]
  std::vector<int32_t> OwnBlocks() const;

  // Moves; FAILED_PRECONDITION naming both states where the move does not exist, and nothing
  // changes.
  absl::Status Open();  // queued -> opening
  // opening or waiting for context -> waiting for block, or paused unless `may_run`. `block` is the
  // index of the block that the context row belongs to: it must be the last complete one.
  absl::Status TakeContext(int64_t block, bool may_run);
  absl::Status Unpause();  // paused -> waiting for block
  // queued -> finished: `already` is all of its output.
  absl::Status Conclude();
  absl::Status Fail();  // anything but finished or failed -> failed

  // The row to be decoded; only while waiting for a block.
  absl::StatusOr<RowPlan> PlanRow() const;

  // What `tokens`, the answer to PlanRow's row, mean; INTERNAL when they do not answer it (more
  // than asked for, fewer without a stop).
  absl::StatusOr<BlockVerdict> Judge(absl::Span<const int32_t> tokens, bool stopped) const;
  // The block is complete and the choice goes on: waiting for block -> waiting for context. Returns
  // the block's L tokens, to be appended as block blocks() - 1.
  absl::StatusOr<std::vector<int32_t>> AcceptBlock(absl::Span<const int32_t> tokens);
  // The choice ends with `tokens`: waiting for block -> finished.
  absl::Status Finish(absl::Span<const int32_t> tokens);

 private:
  absl::Status Refuse(absl::string_view move) const;
  // Tokens that the block being written has when its row is done, those known before included.
  int32_t RowLimit() const;
  void CountBlock(absl::Span<const int32_t> block, int32_t in_prompt);
  void Count(int32_t token, bool in_prompt);

  const ChoiceSpec spec_;
  const int64_t prompt_tokens_;
  ChoicePhase phase_ = ChoicePhase::kQueued;
  std::vector<int32_t> output_;
  int64_t own_blocks_ = 0;
  std::vector<int32_t> forced_;  // tokens known of the block that is being written
  int32_t forced_in_prompt_ = 0;
  std::vector<int32_t> counts_;  // RowPlan::counts
};

}  // namespace blockserve

#endif  // BLOCKSERVE_GATEWAY_CHOICE_STATE_H_
