// The bodies of /tokenize and /detokenize: text to token ids and back, as vLLM has them.
#ifndef BLOCKSERVE_GATEWAY_HTTP_TOKENIZE_ANSWERS_H_
#define BLOCKSERVE_GATEWAY_HTTP_TOKENIZE_ANSWERS_H_

#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "blockserve/v1/generation.pb.h"
#include "gateway/validate.h"
#include "rpc/http/message.h"

namespace blockserve {

// `body` is the request's, `model` what is served. Fields that are not known go to `unknown`.
// Errors name the field as HTTP's clients know it.
absl::StatusOr<HttpResponse> TokenizeAnswer(const RequestValidator& validator,
                                            const v1::GetModelResponse& model,
                                            absl::string_view body,
                                            std::vector<std::string>& unknown);
absl::StatusOr<HttpResponse> DetokenizeAnswer(const RequestValidator& validator,
                                              const v1::GetModelResponse& model,
                                              absl::string_view body,
                                              std::vector<std::string>& unknown);

}  // namespace blockserve

#endif  // BLOCKSERVE_GATEWAY_HTTP_TOKENIZE_ANSWERS_H_
