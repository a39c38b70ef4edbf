#include "gateway/retry.h"

#include <algorithm>
#include <cmath>
#include <functional>
#include <string>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "common/status_catalogue.h"

namespace blockserve {

RowAction JudgeRowReply(const absl::Status& status) {
  switch (HandlingOf(status)) {
    case Handling::kNone:
      return RowAction::kDone;
    case Handling::kReject:
      return RowAction::kWorkerFull;
    case Handling::kRetry:
      return RowAction::kElsewhere;
    case Handling::kFail:
      break;
  }
  // The gateway forgets the ids of rows that it cancels, so this one was given up by its worker.
  if (status.code() == absl::StatusCode::kCancelled) return RowAction::kElsewhere;
  if (status.code() == absl::StatusCode::kInternal) return RowAction::kSecondOpinion;
  return RowAction::kFail;
}

int CohortSize(int64_t rows) {
  constexpr int64_t kFewRows = 16;
  if (rows <= kFewRows) return 1;
  return static_cast<int>(std::ceil(std::sqrt(static_cast<double>(rows))));
}

void RowHistory::WorkerDied(bool alone, int64_t rows) {
  if (alone) {
    ++deaths_alone_;
  } else if (++deaths_together_ == 1) {
    cohort_ = CohortSize(rows);
  }
}

int RowHistory::cohort() const {
  if (deaths_alone_ > 0 || deaths_together_ > 1 || last_try()) return 1;
  return deaths_together_ == 1 ? cohort_ : 0;
}

size_t DrawApart(absl::string_view request_key, std::initializer_list<int64_t> which) {
  return std::hash<std::string>()(absl::StrCat(request_key, "/", absl::StrJoin(which, "/")));
}

absl::Duration WaitApart(size_t drawn) {
  return absl::Milliseconds(300 + static_cast<int64_t>(drawn % 700));
}

BlockAction JudgeBlockReply(BlockCall call, const absl::Status& status, bool suspended) {
  if (status.ok()) return BlockAction::kDone;
  if (call == BlockCall::kClose) return BlockAction::kDone;  // gone either way
  if (suspended) return BlockAction::kReopen;
  switch (status.code()) {
    case absl::StatusCode::kResourceExhausted:
      // An append finds the queue full, not the pages: those make it `suspended`.
      return call == BlockCall::kAppend ? BlockAction::kAgain : BlockAction::kOtherReplica;
    case absl::StatusCode::kUnavailable:  // the replica drains or stops
      return call == BlockCall::kOpen ? BlockAction::kOtherReplica : BlockAction::kReopen;
    case absl::StatusCode::kNotFound:
    case absl::StatusCode::kAborted:
    case absl::StatusCode::kCancelled:
      return BlockAction::kReopen;
    case absl::StatusCode::kInvalidArgument:
      // Of an open: what the client asks for cannot be had. Of the others: the replica has another
      // length of the sequence than we have.
      return call == BlockCall::kOpen ? BlockAction::kFail : BlockAction::kReopen;
    default:
      return BlockAction::kFail;
  }
}

absl::Time GiveUpTime(absl::Time away_since, absl::Duration tier_wait, absl::Time deadline) {
  return std::min(away_since + tier_wait, deadline - absl::Milliseconds(200));
}

absl::Status ClientStatus(const absl::Status& status, absl::string_view tier) {
  switch (status.code()) {
    case absl::StatusCode::kInvalidArgument:
    case absl::StatusCode::kResourceExhausted:
    case absl::StatusCode::kUnavailable:
    case absl::StatusCode::kFailedPrecondition:
      return Annotate(status, tier);
    case absl::StatusCode::kDeadlineExceeded:  // which is the client's own, wherever it was noticed
      return absl::DeadlineExceededError("the request's deadline has passed");
    default:
      return absl::InternalError(absl::StrCat(tier, ": ", status.message()));
  }
}

}  // namespace blockserve
