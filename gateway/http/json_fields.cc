#include "gateway/http/json_fields.h"

#include <limits>
#include <utility>

#include "common/json.h"

namespace blockserve {
namespace {

// Integers beyond 2^53 are what they say; a float that is whole counts as an integer.
std::optional<int64_t> WholeNumber(const nlohmann::json& value) {
  if (value.is_number_unsigned()) {
    const uint64_t number = value.get<uint64_t>();
    if (number > static_cast<uint64_t>(std::numeric_limits<int64_t>::max())) return std::nullopt;
    return static_cast<int64_t>(number);
  }
  if (value.is_number_integer()) return value.get<int64_t>();
  if (value.is_number_float()) {
    const double number = value.get<double>();
    if (!(number >= -9e15 && number <= 9e15)) return std::nullopt;
    const int64_t whole = static_cast<int64_t>(number);
    if (static_cast<double>(whole) == number) return whole;
  }
  return std::nullopt;
}

}  // namespace

absl::StatusOr<nlohmann::json> ParseJsonObject(absl::string_view body) {
  // The parser takes a zero byte for the end of the text; no JSON has one.
  if (const size_t zero = body.find('\0'); zero != absl::string_view::npos) {
    return FieldError("body", "is not valid JSON in UTF-8, from byte ", zero + 1, " on");
  }
  using Event = nlohmann::json::parse_event_t;
  // Copies and comparisons of a value go one call deeper with each of its levels.
  bool too_deep = false;
  const auto bound_depth = [&too_deep](int open, Event event, nlohmann::json& /*value*/) {
    const bool opens = event == Event::object_start || event == Event::array_start;
    if (opens && open >= kMaxJsonDepth) too_deep = true;
    return !too_deep;
  };
  nlohmann::json parsed;
  try {
    parsed = nlohmann::json::parse(body.begin(), body.end(), bound_depth);
  } catch (const nlohmann::json::parse_error& error) {
    // Its text quotes the body, which need not be UTF-8.
    return FieldError("body", "is not valid JSON in UTF-8, from byte ", error.byte, " on");
  } catch (const nlohmann::json::exception&) {
    return FieldError("body", "has a number that is too large");
  }
  if (too_deep) return FieldError("body", "is nested deeper than ", kMaxJsonDepth, " levels");
  if (!parsed.is_object()) return FieldError("body", "must be a JSON object");
  return parsed;
}

const nlohmann::json* JsonFields::Find(const std::string& name) {
  known_.insert(name);
  if (!status_.ok()) return nullptr;
  const auto found = object_.find(name);
  if (found == object_.end() || found->is_null()) return nullptr;
  return &*found;
}

void JsonFields::Fail(absl::string_view name, absl::string_view what) {
  if (status_.ok()) status_ = FieldError(absl::StrCat(prefix_, name), what);
}

std::optional<bool> JsonFields::Bool(const std::string& name) {
  const nlohmann::json* value = Find(name);
  if (value == nullptr) return std::nullopt;
  if (!value->is_boolean()) {
    Fail(name, "must be true or false");
    return std::nullopt;
  }
  return value->get<bool>();
}

std::optional<int64_t> JsonFields::Integer(const std::string& name, int64_t least, int64_t most) {
  const nlohmann::json* value = Find(name);
  if (value == nullptr) return std::nullopt;
  const std::optional<int64_t> number = WholeNumber(*value);
  if (!number.has_value() || *number < least || *number > most) {
    Fail(name, absl::StrCat("must be an integer of ", least, " to ", most));
    return std::nullopt;
  }
  return number;
}

std::optional<float> JsonFields::Number(const std::string& name) {
  const nlohmann::json* value = Find(name);
  if (value == nullptr) return std::nullopt;
  if (!value->is_number()) {
    Fail(name, "must be a number");
    return std::nullopt;
  }
  return value->get<float>();
}

std::optional<std::string> JsonFields::String(const std::string& name) {
  const nlohmann::json* value = Find(name);
  if (value == nullptr) return std::nullopt;
  if (!value->is_string()) {
    Fail(name, "must be a string");
    return std::nullopt;
  }
  return value->get<std::string>();
}

std::optional<uint64_t> JsonFields::Bits(const std::string& name) {
  const nlohmann::json* value = Find(name);
  if (value == nullptr) return std::nullopt;
  if (value->is_number_unsigned()) return value->get<uint64_t>();
  const std::optional<int64_t> number = WholeNumber(*value);
  if (!number.has_value()) Fail(name, "must be an integer of 64 bits");
  return number.has_value() ? std::optional<uint64_t>(static_cast<uint64_t>(*number))
                            : std::nullopt;
}

std::optional<std::vector<int32_t>> JsonFields::Ids(const std::string& name, size_t most) {
  const nlohmann::json* value = Find(name);
  if (value == nullptr) return std::nullopt;
  if (!value->is_array()) {
    Fail(name, "must be a list of token ids");
    return std::nullopt;
  }
  if (value->size() > most) {
    Fail(name, absl::StrCat("may have ", most, " entries, not ", value->size()));
    return std::nullopt;
  }
  absl::StatusOr<std::vector<int32_t>> ids = IdsOf(*value, absl::StrCat(prefix_, name));
  if (!ids.ok()) {
    status_ = ids.status();
    return std::nullopt;
  }
  return *std::move(ids);
}

std::vector<std::string> JsonFields::Unknown() const {
  std::vector<std::string> unknown;
  for (const auto& [name, value] : object_.items()) {
    if (!known_.contains(name)) unknown.push_back(prefix_ + name);
  }
  return unknown;
}

absl::StatusOr<std::vector<int32_t>> IdsOf(const nlohmann::json& array, absl::string_view field) {
  std::vector<int32_t> ids;
  ids.reserve(array.size());
  for (const nlohmann::json& entry : array) {
    const std::optional<int64_t> id = WholeNumber(entry);
    if (!id.has_value() || *id < 0 || *id > std::numeric_limits<int32_t>::max()) {
      return FieldError(absl::StrCat(field, "[", ids.size(), "]"), "must be a token id");
    }
    ids.push_back(static_cast<int32_t>(*id));
  }
  return ids;
}

}  // namespace blockserve
