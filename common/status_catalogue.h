// What a status code asks of whoever receives it: the one table that gateway, tiers and clients
// share.
//
// absl::StatusCode and grpc::StatusCode have the same numbers (those of google.rpc.Code), so that
// the table needs neither gRPC nor protobuf; rpc/status.h converts between the types.
#ifndef BLOCKSERVE_COMMON_STATUS_CATALOGUE_H_
#define BLOCKSERVE_COMMON_STATUS_CATALOGUE_H_

#include "absl/status/status.h"
#include "absl/strings/string_view.h"

namespace blockserve {

enum class Handling {
  kNone,    // OK: nothing to handle
  kRetry,   // the same work may succeed elsewhere or from the start: try it again within its
            // deadline
  kFail,    // the work itself is at fault, or its time is over: tell the client, try nowhere else
  kReject,  // refused for load: try another place at once, then queue or tell the client to come
            // later
};

struct StatusEntry {
  absl::StatusCode code;
  absl::string_view name;  // "UNAVAILABLE"
  Handling handling;
  int http_status;  // what the HTTP front answers
};

// The entry of `code`; that of UNKNOWN for numbers outside google.rpc.Code.
const StatusEntry& LookUpStatus(absl::StatusCode code);

inline Handling HandlingOf(absl::StatusCode code) { return LookUpStatus(code).handling; }
inline Handling HandlingOf(const absl::Status& status) { return HandlingOf(status.code()); }

// From the number on the wire (google.rpc.Code); unknown numbers become UNKNOWN.
absl::StatusCode StatusCodeFromWire(int code);
int StatusCodeToWire(absl::StatusCode code);

// The same code with `prefix` and ": " before the message; OK stays OK.
absl::Status Annotate(const absl::Status& status, absl::string_view prefix);

}  // namespace blockserve

#endif  // BLOCKSERVE_COMMON_STATUS_CATALOGUE_H_
