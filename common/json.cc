#include "common/json.h"

#include <algorithm>
#include <exception>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"

namespace blockserve {
namespace {

using nlohmann::json;

// Builds the document from the parser's events, so that a repeated key and the depth are seen as
// they come. Pointers in `open_` stay valid: a container does not grow while one of its elements is
// open.
class DocumentBuilder : public nlohmann::json_sax<json> {
 public:
  json TakeDocument() { return std::move(document_); }
  const std::string& error() const { return error_; }
  size_t error_position() const { return error_position_; }

  bool null() override { return Add(nullptr) != nullptr; }
  bool boolean(bool value) override { return Add(value) != nullptr; }
  bool number_integer(number_integer_t value) override { return Add(value) != nullptr; }
  bool number_unsigned(number_unsigned_t value) override { return Add(value) != nullptr; }
  bool number_float(number_float_t value, const string_t&) override {
    return Add(value) != nullptr;
  }
  bool string(string_t& value) override { return Add(std::move(value)) != nullptr; }
  bool binary(binary_t&) override { return false; }  // not part of JSON text

  bool start_object(size_t) override { return Open(json::object()); }
  bool start_array(size_t) override { return Open(json::array()); }
  bool end_object() override { return Close(); }
  bool end_array() override { return Close(); }

  bool key(string_t& name) override {
    auto [slot, inserted] =
        open_.back()->get_ref<json::object_t&>().emplace(std::move(name), nullptr);
    if (!inserted) {
      error_ = absl::StrCat("the key \"", slot->first, "\" stands twice in one object");
      return false;
    }
    slot_ = &slot->second;
    return true;
  }

  bool parse_error(size_t position, const std::string&, const json::exception& error) override {
    error_ = absl::string_view(error.what()).find("out_of_range") != absl::string_view::npos
                 ? "a number is out of range"
                 : "not valid JSON";
    error_position_ = position;
    return false;
  }

 private:
  json* Add(json value) {
    if (open_.empty()) {
      document_ = std::move(value);
      return &document_;
    }
    if (open_.back()->is_object()) {
      *slot_ = std::move(value);
      return slot_;
    }
    auto& array = open_.back()->get_ref<json::array_t&>();
    array.push_back(std::move(value));
    return &array.back();
  }

  bool Open(json container) {
    if (open_.size() >= kMaxJsonDepth) {
      error_ = absl::StrCat("nested deeper than ", kMaxJsonDepth, " levels");
      return false;
    }
    open_.push_back(Add(std::move(container)));
    return true;
  }

  bool Close() {
    open_.pop_back();
    return true;
  }

  json document_;
  std::vector<json*> open_;
  json* slot_ = nullptr;  // where the value of the last key goes
  std::string error_;
  size_t error_position_ = 0;  // 1-based; 0 when unknown
};

// The column alone in a text of one line, which may itself be a line of a file.
std::string Place(absl::string_view text, size_t position) {
  const absl::string_view before = text.substr(0, position == 0 ? 0 : position - 1);
  const size_t line = 1 + static_cast<size_t>(std::count(before.begin(), before.end(), '\n'));
  const size_t line_start = before.rfind('\n');
  const size_t column =
      before.size() - (line_start == absl::string_view::npos ? 0 : line_start + 1) + 1;
  return absl::StrCat(" (", absl::StrContains(text, '\n') ? absl::StrCat("line ", line, ", ") : "",
                      "column ", column, " of ", text.size(), " bytes)");
}

}  // namespace

absl::StatusOr<json> ParseJson(absl::string_view text, absl::string_view source) {
  const auto refuse = [&](absl::string_view what, absl::string_view place) {
    return absl::InvalidArgumentError(
        absl::StrCat(source, source.empty() ? "" : ": ", what, place));
  };
  // The parser takes a zero byte for the end of the text; no JSON has one.
  if (const size_t zero = text.find('\0'); zero != absl::string_view::npos) {
    return refuse("not valid JSON: a zero byte", Place(text, zero + 1));
  }
  try {
    DocumentBuilder builder;
    if (json::sax_parse(text.begin(), text.end(), &builder)) return builder.TakeDocument();
    return refuse(builder.error(),
                  builder.error_position() == 0 ? "" : Place(text, builder.error_position()));
  } catch (const std::exception& error) {
    return refuse("not valid JSON: ", error.what());
  }
}

absl::string_view JsonTypeName(const json& value) {
  switch (value.type()) {
    case json::value_t::null:
      return "null";
    case json::value_t::boolean:
      return "a boolean";
    case json::value_t::number_integer:
    case json::value_t::number_unsigned:
      return "an integer";
    case json::value_t::number_float:
      return "a number with a fraction or exponent";
    case json::value_t::string:
      return "a string";
    case json::value_t::array:
      return "an array";
    case json::value_t::object:
      return "an object";
    default:
      return "of an unknown type";
  }
}

}  // namespace blockserve
