// What the status of a refusal carries: when its client may come again, and whether a limit of its
// key is why.
#ifndef BLOCKSERVE_GATEWAY_RETRY_AFTER_H_
#define BLOCKSERVE_GATEWAY_RETRY_AFTER_H_

#include <cstdint>
#include <optional>
#include <string>

#include "absl/status/status.h"
#include "absl/strings/cord.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/time/time.h"

namespace blockserve {

inline constexpr absl::string_view kRetryAfterPayload = "blockserve.v1/retry-after-ms";
inline constexpr absl::string_view kKeyLimitPayload = "blockserve.v1/key-limit";

// Room for a request opens quickly.
inline constexpr absl::Duration kRoomOpensAfter = absl::Seconds(1);

inline absl::Status WithRetryAfter(absl::Status status, absl::Duration wait) {
  status.SetPayload(kRetryAfterPayload, absl::Cord(absl::StrCat(absl::ToInt64Milliseconds(wait))));
  return status;
}

// RESOURCE_EXHAUSTED, of what may be had a little later. Without a time it would say that it never
// can be.
inline absl::Status NoRoomYet(absl::string_view message) {
  return WithRetryAfter(absl::ResourceExhaustedError(message), kRoomOpensAfter);
}

// None where the status does not tell.
inline std::optional<absl::Duration> RetryAfter(const absl::Status& status) {
  const absl::optional<absl::Cord> payload = status.GetPayload(kRetryAfterPayload);
  int64_t milliseconds = 0;
  if (!payload.has_value() || !absl::SimpleAtoi(std::string(*payload), &milliseconds)) {
    return std::nullopt;
  }
  return absl::Milliseconds(milliseconds);
}

// The key has had what its limits allow: there may be room for others.
inline absl::Status WithKeyLimit(absl::Status status) {
  status.SetPayload(kKeyLimitPayload, absl::Cord());
  return status;
}
inline bool IsOfKeyLimit(const absl::Status& status) {
  return status.GetPayload(kKeyLimitPayload).has_value();
}

// As HTTP's Retry-After wants it: whole seconds, at least one.
inline int64_t RetryAfterSeconds(absl::Duration wait) {
  const int64_t seconds = absl::ToInt64Seconds(wait + absl::Seconds(1) - absl::Nanoseconds(1));
  return seconds < 1 ? 1 : seconds;
}

}  // namespace blockserve

#endif  // BLOCKSERVE_GATEWAY_RETRY_AFTER_H_
