// What clients call, as metrics and logs tell it apart.
#ifndef BLOCKSERVE_GATEWAY_REQUEST_METHOD_H_
#define BLOCKSERVE_GATEWAY_REQUEST_METHOD_H_

#include "absl/strings/string_view.h"

namespace blockserve {

enum class RequestMethod { kGenerate, kScore, kTokenize, kDetokenize };
inline constexpr int kRequestMethods = 4;

inline absl::string_view MethodName(RequestMethod method) {
  switch (method) {
    case RequestMethod::kGenerate:
      return "generate";
    case RequestMethod::kScore:
      return "score";
    case RequestMethod::kTokenize:
      return "tokenize";
    case RequestMethod::kDetokenize:
      return "detokenize";
  }
  return "unknown";
}

}  // namespace blockserve

#endif  // BLOCKSERVE_GATEWAY_REQUEST_METHOD_H_
