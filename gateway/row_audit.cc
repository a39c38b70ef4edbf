#include "gateway/row_audit.h"

#include <cstring>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/logging.h"

namespace blockserve {
namespace {

// Handles of audited rows; the tier's own never grow so large.
constexpr uint64_t kAudited = uint64_t{1} << 63;
// Without hold, of rows that were answered and are still being compared.
constexpr size_t kMostAtOnce = 1024;

// Also for floats: bit for bit, where == would take two NaN for different and two zeros for equal.
template <class Field>
bool SameBits(const Field& a, const Field& b) {
  return a.size() == b.size() &&
         (a.empty() || std::memcmp(a.data(), b.data(), sizeof(*a.data()) * a.size()) == 0);
}

bool Same(const v1::TokenRowReply& a, const v1::TokenRowReply& b) {
  return a.stopped() == b.stopped() && SameBits(a.tokens(), b.tokens()) &&
         SameBits(a.logprobs(), b.logprobs()) && SameBits(a.top_tokens(), b.top_tokens()) &&
         SameBits(a.top_logprobs(), b.top_logprobs());
}

}  // namespace

uint64_t RowAudit::Submit(RowJob job) {
  if (!share_.Take()) return tier_.Submit(std::move(job));
  if (!hold_ && audits_.size() >= kMostAtOnce) {
    ++stats_.skipped;
    return tier_.Submit(std::move(job));
  }
  const uint64_t id = next_id_++ | kAudited;
  Audit& audit = audits_[id];
  audit.job = std::move(job);
  audit.strip_logprobs = !audit.job.row->logprobs();
  if (audit.strip_logprobs) {
    auto with_logprobs = std::make_shared<v1::TokenRowRequest>(*audit.job.row);
    with_logprobs->set_logprobs(true);
    audit.job.row = std::move(with_logprobs);
  }
  SubmitNext(id, audit);
  return id;
}

void RowAudit::Cancel(uint64_t handle) {
  if ((handle & kAudited) == 0) return tier_.Cancel(handle);
  const auto found = audits_.find(handle);
  if (found == audits_.end()) return;
  tier_.Cancel(found->second.row);
  audits_.erase(found);
}

void RowAudit::CancelAll() {
  for (const auto& [id, audit] : audits_) tier_.Cancel(audit.row);
  audits_.clear();
}

void RowAudit::SubmitNext(uint64_t id, Audit& audit) {
  RowJob job;
  job.request = audit.job.request;
  job.group = audit.job.group;
  job.row = audit.job.row;
  job.context = audit.job.context;
  job.deadline = audit.job.deadline;
  job.not_by = audit.job.not_by;
  job.done = [this, id](absl::StatusOr<TokenRowAnswer> answer) { OnAnswer(id, std::move(answer)); };
  audit.row = tier_.Submit(std::move(job));
}

void RowAudit::Answer(uint64_t id, absl::StatusOr<TokenRowAnswer> answer) {
  Audit& audit = audits_.at(id);
  const auto done = std::exchange(audit.job.done, nullptr);
  if (!done) return;
  if (answer.ok() && audit.strip_logprobs) {
    auto reply = std::make_shared<v1::TokenRowReply>(*answer->reply);
    reply->clear_logprobs();
    reply->clear_top_tokens();
    reply->clear_top_logprobs();
    answer->reply = std::move(reply);
  }
  done(std::move(answer));  // which may cancel what it likes
}

void RowAudit::OnAnswer(uint64_t id, absl::StatusOr<TokenRowAnswer> answer) {
  const auto found = audits_.find(id);
  if (found == audits_.end()) return;
  Audit& audit = found->second;
  if (!answer.ok()) {
    if (audit.stage != Audit::kFirst) ++stats_.skipped;
    if (audit.stage == Audit::kThird) {
      LogError(absl::StrCat("audit: request ", audit.job.row->header().request_key(), ": workers '",
                            audit.first.worker->name, "' and '", audit.second.worker->name,
                            "' decode a block differently, and no third one could settle it: ",
                            answer.status().message()));
      answer = absl::InternalError(absl::StrCat("token workers '", audit.first.worker->name,
                                                "' and '", audit.second.worker->name,
                                                "' differ, and no third one could settle it"));
    }
    Answer(id, answer.status());
    audits_.erase(id);
    return;
  }
  audit.job.not_by.push_back(answer->worker->process);
  answer->reply = std::make_shared<const v1::TokenRowReply>(*answer->reply);  // it is kept
  switch (audit.stage) {
    case Audit::kFirst:
      audit.first = *std::move(answer);
      audit.stage = Audit::kSecond;
      SubmitNext(id, audit);
      // The audit goes on by itself: what it needs of the row is its own.
      if (!hold_) Answer(id, audit.first);
      return;
    case Audit::kSecond:
      audit.second = *std::move(answer);
      if (Same(*audit.first.reply, *audit.second.reply)) {
        ++stats_.compared;
        Answer(id, audit.first);
        audits_.erase(id);
        return;
      }
      ++stats_.differed;
      audit.stage = Audit::kThird;
      SubmitNext(id, audit);
      return;
    case Audit::kThird:
      Settle(id, audit, *answer);
      audits_.erase(id);
      return;
  }
}

void RowAudit::Settle(uint64_t id, Audit& audit, const TokenRowAnswer& third) {
  if (Same(*third.reply, *audit.first.reply)) {
    ++stats_.settled;
    Condemn(audit, audit.second);
    Answer(id, audit.first);
  } else if (Same(*third.reply, *audit.second.reply)) {
    ++stats_.settled;
    Condemn(audit, audit.first);
    Answer(id, audit.second);
  } else {
    LogError(absl::StrCat("audit: request ", audit.job.row->header().request_key(), ": workers '",
                          audit.first.worker->name, "', '", audit.second.worker->name, "' and '",
                          third.worker->name, "' each decode a block differently"));
    Answer(id, absl::InternalError("three token workers differ over this request's block"));
  }
}

void RowAudit::Condemn(const Audit& audit, const TokenRowAnswer& wrong) {
  tier_.Condemn(
      wrong.worker->process.incarnation,
      absl::StrCat("answered wrong bits to request ", audit.job.row->header().request_key()));
}

}  // namespace blockserve
