// JSON of files that people write, whose objects have each member once.
#ifndef BLOCKSERVE_GATEWAY_UNIQUE_MEMBERS_H_
#define BLOCKSERVE_GATEWAY_UNIQUE_MEMBERS_H_

#include <nlohmann/json.hpp>
#include <optional>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/string_view.h"

namespace blockserve {

// The value, or a discarded one where the text is none. `twice` becomes the name of a member that
// an object has twice, of which the value has the last alone.
inline nlohmann::json ParseUniqueMembers(absl::string_view text,
                                         std::optional<std::string>& twice) {
  using Json = nlohmann::json;
  twice.reset();
  std::vector<std::set<std::string>> open;  // the names of each object that has not ended
  return Json::parse(
      text.begin(), text.end(),
      [&](int /*depth*/, Json::parse_event_t event, Json& parsed) {
        if (event == Json::parse_event_t::object_start) open.emplace_back();
        if (event == Json::parse_event_t::object_end) open.pop_back();
        if (event == Json::parse_event_t::key) {
          std::string name = parsed.get<std::string>();
          if (!open.back().insert(name).second) twice = std::move(name);
        }
        return true;
      },
      /*allow_exceptions=*/false);
}

}  // namespace blockserve

#endif  // BLOCKSERVE_GATEWAY_UNIQUE_MEMBERS_H_
