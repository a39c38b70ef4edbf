// JSON written straight into a string: what is sent per token is not worth a document tree.
#ifndef BLOCKSERVE_GATEWAY_HTTP_JSON_TEXT_H_
#define BLOCKSERVE_GATEWAY_HTTP_JSON_TEXT_H_

#include <cstdint>
#include <string>

#include "absl/strings/string_view.h"
#include "absl/types/span.h"

namespace blockserve {

// `text` is valid UTF-8; without quotes around it.
void AppendJsonEscaped(std::string& out, absl::string_view text);
// With quotes.
void AppendJsonString(std::string& out, absl::string_view text);
// The shortest decimal that reads back as the same float; null where JSON has no number for it.
void AppendJsonFloat(std::string& out, float value);
void AppendJsonIds(std::string& out, absl::Span<const int32_t> ids);

}  // namespace blockserve

#endif  // BLOCKSERVE_GATEWAY_HTTP_JSON_TEXT_H_
