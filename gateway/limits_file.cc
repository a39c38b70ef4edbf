#include "gateway/limits_file.h"

#include <cmath>
#include <limits>

#include "absl/strings/str_cat.h"
#include "common/json.h"
#include "common/read_file.h"
#include "nlohmann/json.hpp"

namespace blockserve {
namespace {

using Json = nlohmann::json;

constexpr size_t kMaxFileBytes = size_t{16} << 20;

absl::Status Bad(absl::string_view where, absl::string_view what) {
  return absl::InvalidArgumentError(absl::StrCat(where, " ", what));
}

absl::Status ReadLimits(const std::string& where, const Json& json, KeyLimits& limits) {
  if (!json.is_object()) return Bad(where, "must be an object");
  for (const auto& [name, value] : json.items()) {
    const std::string member = absl::StrCat(where, ".", name);
    if (!value.is_number()) return Bad(member, "must be a number");
    const double number = value.get<double>();
    const bool whole = std::isfinite(number) && number == std::floor(number);
    if (name == "requests_per_second") {
      limits.requests_per_second = number;
    } else if (name == "weight") {
      limits.weight = number;
    } else if (name == "max_requests" || name == "burst") {
      if (!whole || std::abs(number) > std::numeric_limits<int32_t>::max()) {
        return Bad(member, "must be a whole number below 2^31");
      }
      (name == "burst" ? limits.burst : limits.max_requests) = static_cast<int32_t>(number);
    } else if (name == "max_tokens") {
      if (!whole || std::abs(number) > 0x1p53) return Bad(member, "must be a whole number");
      limits.max_tokens = static_cast<int64_t>(number);
    } else {
      return Bad(member,
                 "is not known; limits are max_requests, max_tokens, requests_per_second, "
                 "burst and weight");
    }
  }
  const absl::Status status = limits.Validate();
  return status.ok() ? status : Bad(where, absl::StrCat("is wrong: ", status.message()));
}

}  // namespace

absl::Status ParseLimits(absl::string_view text, AdmissionOptions& options) {
  const absl::StatusOr<Json> parsed = ParseJson(text, "");
  if (!parsed.ok()) return parsed.status();
  const Json& json = *parsed;
  if (!json.is_object()) return absl::InvalidArgumentError("it is no JSON object");
  for (const auto& [name, value] : json.items()) {
    if (name != "default" && name != "keys") {
      return Bad(name, "is not known; members are default and keys");
    }
  }
  KeyLimits defaults;
  if (json.contains("default")) {
    if (absl::Status status = ReadLimits("default", json["default"], defaults); !status.ok()) {
      return status;
    }
  }
  std::map<std::string, KeyLimits> limits;
  if (json.contains("keys")) {
    if (!json["keys"].is_object()) return Bad("keys", "must be an object");
    for (const auto& [name, value] : json["keys"].items()) {
      KeyLimits& key = limits.emplace(name, defaults).first->second;
      if (absl::Status status = ReadLimits(absl::StrCat("keys.", name), value, key); !status.ok()) {
        return status;
      }
    }
  }
  options.default_limits = defaults;
  options.limits = std::move(limits);
  return absl::OkStatus();
}

absl::Status ReadLimitsFile(const std::string& path, AdmissionOptions& options) {
  const absl::StatusOr<std::string> text = ReadFile(path);
  if (!text.ok()) return Bad(absl::StrCat(path, ":"), text.status().message());
  if (text->size() > kMaxFileBytes) {
    return absl::InvalidArgumentError(absl::StrCat(path, ": larger than 16 MiB"));
  }
  const absl::Status status = ParseLimits(*text, options);
  return status.ok() ? status
                     : absl::Status(status.code(), absl::StrCat(path, ": ", status.message()));
}

}  // namespace blockserve
