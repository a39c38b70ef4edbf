// One request on its way through the tiers, and what it works with. The core keeps runs, binds them
// to workers and ends them in time; each kind of request is a run of its own.
#ifndef BLOCKSERVE_GATEWAY_RUN_H_
#define BLOCKSERVE_GATEWAY_RUN_H_

#include <cstdint>
#include <functional>
#include <memory>
#include <string>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "gateway/block_tier.h"
#include "gateway/generation.h"
#include "gateway/later.h"
#include "gateway/row_audit.h"
#include "gateway/scoring_rows.h"
#include "model/config.h"
#include "model/tokenizer.h"

namespace blockserve {

// The model and the arithmetic that a request is served with, from its first block to its last.
struct Binding {
  TierGroup block;
  TierGroup token;
  std::string model_id;
  friend bool operator==(const Binding&, const Binding&) = default;
};

// Outlives every run.
struct RunEnvironment {
  const ModelConfig* config = nullptr;
  const Tokenizer* tokenizer = nullptr;  // may be null
  int32_t vocab_limit = 0;               // ids from here on cannot be drawn; 0: none
  Later* later = nullptr;
  BlockTier* block_tier = nullptr;
  RowAudit* token_rows = nullptr;  // the way to the token tier
  ScoringRows* scoring_rows = nullptr;
};

// Lives on the loop. Ends exactly once: by itself, by End or by Cancel.
class Run {
 public:
  // `id`: no other run of this gateway has it, where many may have the same request id, which is
  // their client's. `on_over` is called when it ends; the run itself must then live until the call
  // has returned.
  Run(GenerationId id, std::function<void()> on_over) : id_(id), on_over_(std::move(on_over)) {}
  virtual ~Run() = default;
  Run(const Run&) = delete;
  Run& operator=(const Run&) = delete;

  GenerationId id() const { return id_; }
  virtual absl::Time deadline() const = 0;
  virtual uint32_t priority() const = 0;
  virtual int32_t choices() const = 0;
  // Of the model that the request named by its id, the only one to serve it; empty: any.
  virtual absl::string_view model_id() const = 0;
  // Set where it goes on with a stream, and so must be bound to the workers that began it.
  virtual const ResumeState* resume() const { return nullptr; }
  // Of the call that it is a part of; null: whoever is there may serve it.
  virtual CallTiers* call_tiers() const { return nullptr; }

  // Both tiers are there. Once. `binding`: of all requests that are bound alike.
  virtual void Start(std::shared_ptr<const Binding> binding) = 0;
  virtual void Resume() {}

  bool over() const { return over_; }
  // Ends it with an error, which its client is told.
  void End(const absl::Status& status) {
    if (over_) return;
    Close();
    Tell(status);
  }
  // Its client has gone.
  void Cancel() {
    if (!over_) Close();
  }

 protected:
  // Cancels its rows and closes its sequences.
  virtual void Release() = 0;
  virtual void Tell(const absl::Status& status) = 0;
  // Everything is given back; what is left is to tell the client.
  void Close() {
    over_ = true;
    Release();
    on_over_();
  }

 private:
  const GenerationId id_;
  const std::function<void()> on_over_;
  bool over_ = false;
};

}  // namespace blockserve

#endif  // BLOCKSERVE_GATEWAY_RUN_H_
