// A Generate request on its way: context row, block of tokens, context row, for each of its
// choices.
#ifndef BLOCKSERVE_GATEWAY_GENERATION_RUN_H_
#define BLOCKSERVE_GATEWAY_GENERATION_RUN_H_

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <vector>

#include "absl/status/status.h"
#include "gateway/choice_state.h"
#include "gateway/generation.h"
#include "gateway/run.h"
#include "gateway/text_output.h"

namespace blockserve {

class GenerationRun final : public Run {
 public:
  GenerationRun(const RunEnvironment& environment, GenerationId id, GenerationRequest request,
                std::shared_ptr<GenerationSink> sink, std::function<void()> on_over);
  ~GenerationRun() override { *alive_ = false; }

  absl::Time deadline() const override { return request_.deadline; }
  uint32_t priority() const override { return request_.priority; }
  int32_t choices() const override { return request_.n; }
  const ResumeState* resume() const override {
    return request_.resume.has_value() ? &*request_.resume : nullptr;
  }
  absl::string_view model_id() const override { return request_.model_id; }
  CallTiers* call_tiers() const override { return request_.origin.tiers.get(); }
  void Start(std::shared_ptr<const Binding> binding) override;
  void Resume() override;

 private:
  struct Choice {
    Choice(ChoiceSpec spec, TextOutput text) : state(std::move(spec)), text(std::move(text)) {}
    ChoiceState state;
    TextOutput text;
    uint64_t sequence = 0;                             // handle; 0: none
    uint64_t row = 0;                                  // handle; 0: none
    ContextRowPtr context;                             // of the block before the next one
    std::shared_ptr<v1::TokenRowRequest> row_request;  // the last one; null: none yet
    // Of a stream that goes on: its output was complete already, and this is left to be told.
    std::optional<v1::Finished> end;
  };

  void Release() override;
  void Tell(const absl::Status& status) override;

  SequenceSpec SpecOf(size_t index);
  // Of a stream that goes on: what each choice has. False: the run has ended.
  bool TakeOver(size_t index);
  // Opens the first sequence; the others follow it.
  void OpenLeader();
  // Tells that the stream has begun, and the ends that were known before.
  void TellStart();
  // The leader's first context row: the choices that have no block of their own begin from it.
  void Begin(ContextRowPtr row);
  void OnContext(size_t index, int64_t block, ContextRowPtr row);
  void SubmitRow(size_t index);
  // The choice's last row, made into that of the plan: most of it is the same in all of them.
  std::shared_ptr<const v1::TokenRowRequest> UpdateRow(Choice& choice, const RowPlan& plan) const;
  void OnAnswer(size_t index, absl::StatusOr<TokenRowAnswer> answer);
  void OnBlock(size_t index, TokenRowAnswer answer);
  void Emit(size_t index, const TokenRowAnswer& answer, int64_t position, TextOutput::Result text,
            bool ends_choice);
  void FinishChoice(size_t index, v1::Finished finished);
  // Every choice has finished.
  void Complete();

  // Side by side what every block needs: with a thousand runs each line of it comes from memory.
  const RunEnvironment& environment_;
  const std::shared_ptr<GenerationSink> sink_;
  std::shared_ptr<const Binding> binding_;
  std::vector<Choice> choices_;
  const std::shared_ptr<bool> alive_ = std::make_shared<bool>(true);
  v1::Usage usage_;

  const GenerationRequest request_;
  std::shared_ptr<const std::vector<int32_t>> blocks_;  // the prompt's complete ones, pads included
  int64_t reserve_blocks_ = 0;
  size_t leader_ = 0;    // the choice whose sequence is opened first
  int32_t running_ = 0;  // choices not over
};

}  // namespace blockserve

#endif  // BLOCKSERVE_GATEWAY_GENERATION_RUN_H_
