// Fields of a JSON object that a client sent, read one by one: null counts as absent, and what does
// not fit is told with the field's name.
#ifndef BLOCKSERVE_GATEWAY_HTTP_JSON_FIELDS_H_
#define BLOCKSERVE_GATEWAY_HTTP_JSON_FIELDS_H_

#include <cstdint>
#include <nlohmann/json.hpp>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"

namespace blockserve {

template <class... Parts>
absl::Status FieldError(absl::string_view field, const Parts&... parts) {
  return absl::InvalidArgumentError(absl::StrCat(field, ": ", parts...));
}

// INVALID_ARGUMENT naming the field `body` where it is no JSON object, or nested deeper than
// kMaxJsonDepth.
absl::StatusOr<nlohmann::json> ParseJsonObject(absl::string_view body);

// The first error stays; readers of fields give nothing after it.
class JsonFields {
 public:
  // `object` must outlive this. `prefix`: before the names in messages, e.g. "stream_options.".
  explicit JsonFields(const nlohmann::json& object, std::string prefix = "")
      : object_(object), prefix_(std::move(prefix)) {}

  // The field's value; null where it is absent, or null.
  const nlohmann::json* Find(const std::string& name);
  std::optional<bool> Bool(const std::string& name);
  std::optional<int64_t> Integer(const std::string& name, int64_t least, int64_t most);
  std::optional<float> Number(const std::string& name);
  std::optional<std::string> String(const std::string& name);
  // 64 bits; negative ones as two's complement.
  std::optional<uint64_t> Bits(const std::string& name);
  // Token ids: numbers that fit 32 bits. At most `most`.
  std::optional<std::vector<int32_t>> Ids(const std::string& name, size_t most);

  void Fail(absl::string_view name, absl::string_view what);
  const absl::Status& status() const { return status_; }
  // Those that nobody asked for.
  std::vector<std::string> Unknown() const;

 private:
  const nlohmann::json& object_;
  const std::string prefix_;
  std::set<std::string> known_;
  absl::Status status_;
};

// Elements of an array that are token ids. Errors name `field` with the index.
absl::StatusOr<std::vector<int32_t>> IdsOf(const nlohmann::json& array, absl::string_view field);

}  // namespace blockserve

#endif  // BLOCKSERVE_GATEWAY_HTTP_JSON_FIELDS_H_
