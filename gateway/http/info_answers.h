// What the routes answer that tell of this server: its model, its tiers, its page.
#ifndef BLOCKSERVE_GATEWAY_HTTP_INFO_ANSWERS_H_
#define BLOCKSERVE_GATEWAY_HTTP_INFO_ANSWERS_H_

#include <cstdint>

#include "absl/strings/string_view.h"
#include "blockserve/v1/generation.pb.h"
#include "gateway/deployment_status.h"
#include "model/config.h"
#include "model/tokenizer.h"
#include "rpc/http/message.h"

namespace blockserve {

HttpResponse VersionAnswer();
// The page to try the model with.
HttpResponse PageAnswer();
// The list of models, of which there is one; or, by `name` or its id, that one itself: 404 where it
// is another. `created`: Unix time.
HttpResponse ModelsAnswer(const v1::GetModelResponse& model, int64_t created,
                          absl::string_view name);
// The special tokens: what lm-evaluation-harness asks a server for that tokenizes. `tokenizer` may
// be null, which is an error.
HttpResponse TokenizerInfoAnswer(const ModelConfig& config, const Tokenizer* tokenizer);
HttpResponse StatusAnswer(const v1::GetModelResponse& model, const DeploymentStatus& status);

}  // namespace blockserve

#endif  // BLOCKSERVE_GATEWAY_HTTP_INFO_ANSWERS_H_
