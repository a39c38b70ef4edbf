// Fields that clients of other servers send: those that have another name here, and those that are
// not served.
#ifndef BLOCKSERVE_GATEWAY_HTTP_OTHER_SERVERS_H_
#define BLOCKSERVE_GATEWAY_HTTP_OTHER_SERVERS_H_

#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/string_view.h"
#include "absl/types/span.h"
#include "gateway/http/json_fields.h"

namespace blockserve {

// A field that the client gave by another name than `name`, which messages begin with.
struct RenamedField {
  std::string name;
  std::string given;
};

// Gives each field of `object` the name that it has here, and notes the client's. INVALID_ARGUMENT
// where it is given by two names with two values.
absl::Status TakeAliases(nlohmann::json& object, std::vector<RenamedField>& renamed);
// A message that begins with a field, or a field, by the name that the client gave it.
std::string WithFieldNamesOf(absl::Span<const RenamedField> renamed, absl::string_view message);

// Fails with the first field that is not served here, unless it asks for nothing.
void RefuseUnsupported(JsonFields& fields, bool chat);

}  // namespace blockserve

#endif  // BLOCKSERVE_GATEWAY_HTTP_OTHER_SERVERS_H_
