#include "common/status_catalogue.h"

#include <array>

#include "absl/strings/str_cat.h"

namespace blockserve {
namespace {

using absl::StatusCode;

// In the order of the codes' numbers.
constexpr std::array<StatusEntry, 17> kCatalogue = {{
    {StatusCode::kOk, "OK", Handling::kNone, 200},
    {StatusCode::kCancelled, "CANCELLED", Handling::kFail, 499},
    // What a broken transport reports: says nothing about the work.
    {StatusCode::kUnknown, "UNKNOWN", Handling::kRetry, 500},
    {StatusCode::kInvalidArgument, "INVALID_ARGUMENT", Handling::kFail, 400},
    {StatusCode::kDeadlineExceeded, "DEADLINE_EXCEEDED", Handling::kFail, 504},
    // A replica that lost the sequence: it is opened again from its tokens.
    {StatusCode::kNotFound, "NOT_FOUND", Handling::kRetry, 404},
    {StatusCode::kAlreadyExists, "ALREADY_EXISTS", Handling::kFail, 409},
    {StatusCode::kPermissionDenied, "PERMISSION_DENIED", Handling::kFail, 403},
    {StatusCode::kResourceExhausted, "RESOURCE_EXHAUSTED", Handling::kReject, 429},
    {StatusCode::kFailedPrecondition, "FAILED_PRECONDITION", Handling::kFail, 412},
    // Two writers of one sequence disagree: no repetition makes them agree.
    {StatusCode::kAborted, "ABORTED", Handling::kFail, 409},
    {StatusCode::kOutOfRange, "OUT_OF_RANGE", Handling::kFail, 400},
    {StatusCode::kUnimplemented, "UNIMPLEMENTED", Handling::kFail, 501},
    // Non-finite numbers, or a request that kills its workers: must not reach one worker after
    // another.
    {StatusCode::kInternal, "INTERNAL", Handling::kFail, 500},
    {StatusCode::kUnavailable, "UNAVAILABLE", Handling::kRetry, 503},
    {StatusCode::kDataLoss, "DATA_LOSS", Handling::kFail, 500},
    {StatusCode::kUnauthenticated, "UNAUTHENTICATED", Handling::kFail, 401},
}};

constexpr bool InOrder() {
  for (size_t i = 0; i < kCatalogue.size(); ++i) {
    if (static_cast<size_t>(kCatalogue[i].code) != i) return false;
  }
  return true;
}
static_assert(InOrder(), "the catalogue is indexed by the code's number");

}  // namespace

const StatusEntry& LookUpStatus(absl::StatusCode code) {
  const int number = static_cast<int>(code);
  if (number < 0 || number >= static_cast<int>(kCatalogue.size())) {
    return kCatalogue[static_cast<size_t>(StatusCode::kUnknown)];
  }
  return kCatalogue[static_cast<size_t>(number)];
}

absl::StatusCode StatusCodeFromWire(int code) {
  return LookUpStatus(static_cast<absl::StatusCode>(code)).code;
}

int StatusCodeToWire(absl::StatusCode code) { return static_cast<int>(LookUpStatus(code).code); }

absl::Status Annotate(const absl::Status& status, absl::string_view prefix) {
  if (status.ok()) return status;
  return absl::Status(status.code(), absl::StrCat(prefix, ": ", status.message()));
}

}  // namespace blockserve
