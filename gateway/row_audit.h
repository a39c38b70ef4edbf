// Rows on their way to the token tier, a share of which is decoded by a second worker too and
// compared bit for bit. Where the two differ, a third one settles who is wrong, and that one gets
// nothing more.
#ifndef BLOCKSERVE_GATEWAY_ROW_AUDIT_H_
#define BLOCKSERVE_GATEWAY_ROW_AUDIT_H_

#include <cstdint>
#include <memory>
#include <string>
#include <unordered_map>

#include "absl/status/statusor.h"
#include "gateway/audit.h"
#include "gateway/token_tier.h"

namespace blockserve {

// Lives on the loop; not thread-safe.
class RowAudit {
 public:
  // `tier` must outlive this.
  RowAudit(TokenTier& tier, const AuditOptions& options)
      : tier_(tier), hold_(options.hold), share_(options.rows) {}
  ~RowAudit() { CancelAll(); }

  // As TokenTier's.
  uint64_t Submit(RowJob job);
  void Cancel(uint64_t handle);
  // What is compared after its row was answered is given up too.
  void CancelAll();

  const AuditStats& stats() const { return stats_; }

 private:
  struct Audit {
    RowJob job;                   // `done` is empty once the row was answered
    bool strip_logprobs = false;  // they are compared, but nobody asked for them
    uint64_t row = 0;             // the tier's handle
    TokenRowAnswer first;
    TokenRowAnswer second;
    enum { kFirst, kSecond, kThird } stage = kFirst;
  };

  void SubmitNext(uint64_t id, Audit& audit);
  void OnAnswer(uint64_t id, absl::StatusOr<TokenRowAnswer> answer);
  // Tells the row's answer, unless it has been told.
  void Answer(uint64_t id, absl::StatusOr<TokenRowAnswer> answer);
  void Settle(uint64_t id, Audit& audit, const TokenRowAnswer& third);
  void Condemn(const Audit& audit, const TokenRowAnswer& wrong);

  TokenTier& tier_;
  const bool hold_;
  AuditShare share_;
  AuditStats stats_;
  uint64_t next_id_ = 1;
  std::unordered_map<uint64_t, Audit> audits_;
};

}  // namespace blockserve

#endif  // BLOCKSERVE_GATEWAY_ROW_AUDIT_H_
