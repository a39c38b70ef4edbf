// The file in which an operator limits keys.
#ifndef BLOCKSERVE_GATEWAY_LIMITS_FILE_H_
#define BLOCKSERVE_GATEWAY_LIMITS_FILE_H_

#include <string>

#include "absl/status/status.h"
#include "absl/strings/string_view.h"
#include "gateway/admission.h"

namespace blockserve {

// JSON: {"default": LIMITS, "keys": {NAME: LIMITS, …}}, both optional, with LIMITS an object of
// max_requests, max_tokens, requests_per_second, burst and weight, each optional (KeyLimits). The
// name "" stands for requests without a key. What a key leaves out is as in "default".
// INVALID_ARGUMENT naming the member.
absl::Status ParseLimits(absl::string_view json, AdmissionOptions& options);

// The same from a file. Errors name it.
absl::Status ReadLimitsFile(const std::string& path, AdmissionOptions& options);

}  // namespace blockserve

#endif  // BLOCKSERVE_GATEWAY_LIMITS_FILE_H_
