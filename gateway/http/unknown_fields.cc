#include "gateway/http/unknown_fields.h"

#include <algorithm>

#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "common/logging.h"

namespace blockserve {
namespace {

constexpr size_t kMaxLogged = 256;
// One client is not to fill what is logged for all.
constexpr size_t kMaxLoggedOfRequest = 16;

bool LooksLikeAName(const std::string& field) {
  constexpr size_t kMaxBytes = 64;
  return field.size() <= kMaxBytes && std::all_of(field.begin(), field.end(), [](unsigned char c) {
           return absl::ascii_isalnum(c) || c == '_' || c == '.' || c == '-';
         });
}

}  // namespace

void UnknownFieldLog::Note(const std::vector<std::string>& fields) {
  std::vector<std::string> fresh;
  bool last = false;
  {
    MutexLock lock(&mutex_);
    for (const std::string& field : fields) {
      if (logged_.size() >= kMaxLogged || fresh.size() >= kMaxLoggedOfRequest) break;
      if (LooksLikeAName(field) && logged_.insert(field).second) fresh.push_back(field);
    }
    last = !fresh.empty() && logged_.size() >= kMaxLogged;
  }
  if (fresh.empty()) return;
  LogInfo(absl::StrCat(
      "fields of HTTP requests that are not known here, and ignored: ", absl::StrJoin(fresh, ", "),
      last ? absl::StrCat(" (", kMaxLogged, " names have been logged; no further ones are)") : ""));
}

}  // namespace blockserve
