#include "model/json.h"

#include <sys/stat.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <exception>
#include <fstream>
#include <limits>
#include <utility>
#include <vector>

#include "absl/status/status.h"
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

std::string LineAndColumn(absl::string_view text, size_t position) {
  const absl::string_view before = text.substr(0, position == 0 ? 0 : position - 1);
  const size_t line = 1 + static_cast<size_t>(std::count(before.begin(), before.end(), '\n'));
  const size_t line_start = before.rfind('\n');
  const size_t column =
      before.size() - (line_start == absl::string_view::npos ? 0 : line_start + 1) + 1;
  return absl::StrCat("line ", line, ", column ", column);
}

}  // namespace

absl::StatusOr<json> ParseJson(absl::string_view text, absl::string_view source) {
  // The parser takes a zero byte for the end of the text; no JSON has one.
  if (const size_t zero = text.find('\0'); zero != absl::string_view::npos) {
    return absl::InvalidArgumentError(absl::StrCat(source, ": not valid JSON: a zero byte (",
                                                   LineAndColumn(text, zero + 1), " of ",
                                                   text.size(), " bytes)"));
  }
  try {
    DocumentBuilder builder;
    if (json::sax_parse(text.begin(), text.end(), &builder)) return builder.TakeDocument();
    const std::string place =
        builder.error_position() == 0
            ? ""
            : absl::StrCat(" (", LineAndColumn(text, builder.error_position()), " of ", text.size(),
                           " bytes)");
    return absl::InvalidArgumentError(absl::StrCat(source, ": ", builder.error(), place));
  } catch (const std::exception& error) {
    return absl::InvalidArgumentError(absl::StrCat(source, ": not valid JSON: ", error.what()));
  }
}

absl::StatusOr<std::string> ReadFile(const std::string& path, int64_t max_bytes) {
  struct stat info;
  if (stat(path.c_str(), &info) != 0) {
    const int error = errno;
    if (error == ENOENT || error == ENOTDIR) {
      return absl::NotFoundError(absl::StrCat(path, ": no such file"));
    }
    return absl::InvalidArgumentError(absl::StrCat(path, ": ", std::strerror(error)));
  }
  if (!S_ISREG(info.st_mode)) {
    return absl::InvalidArgumentError(absl::StrCat(path, ": not a regular file"));
  }
  if (info.st_size > max_bytes) {
    return absl::InvalidArgumentError(
        absl::StrCat(path, ": has ", info.st_size, " bytes; at most ", max_bytes, " are read"));
  }
  std::ifstream file(path, std::ios::binary);
  if (!file) return absl::InvalidArgumentError(absl::StrCat(path, ": cannot be opened"));
  std::string contents(static_cast<size_t>(info.st_size), '\0');
  file.read(contents.data(), static_cast<std::streamsize>(contents.size()));
  if (file.gcount() != static_cast<std::streamsize>(contents.size())) {
    return absl::InternalError(
        absl::StrCat(path, ": read only ", file.gcount(), " of ", contents.size(), " bytes"));
  }
  return contents;
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
