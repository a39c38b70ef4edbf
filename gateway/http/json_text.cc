#include "gateway/http/json_text.h"

#include <charconv>
#include <cmath>

#include "absl/strings/str_cat.h"

namespace blockserve {

void AppendJsonEscaped(std::string& out, absl::string_view text) {
  size_t plain = 0;  // where what needs no escape began
  for (size_t i = 0; i < text.size(); ++i) {
    const unsigned char c = static_cast<unsigned char>(text[i]);
    if (c >= 0x20 && c != '"' && c != '\\' && c != 0x7F) continue;
    out.append(text.data() + plain, i - plain);
    plain = i + 1;
    switch (c) {
      case '"':
        out += "\\\"";
        break;
      case '\\':
        out += "\\\\";
        break;
      case '\n':
        out += "\\n";
        break;
      case '\r':
        out += "\\r";
        break;
      case '\t':
        out += "\\t";
        break;
      default:
        absl::StrAppend(&out, "\\u", absl::Hex(c, absl::kZeroPad4));
    }
  }
  out.append(text.data() + plain, text.size() - plain);
}

void AppendJsonString(std::string& out, absl::string_view text) {
  out += '"';
  AppendJsonEscaped(out, text);
  out += '"';
}

void AppendJsonFloat(std::string& out, float value) {
  if (!std::isfinite(value)) {
    out += "null";
    return;
  }
  char digits[32];
  const std::to_chars_result end = std::to_chars(digits, digits + sizeof(digits), value);
  out.append(digits, static_cast<size_t>(end.ptr - digits));
}

void AppendJsonIds(std::string& out, absl::Span<const int32_t> ids) {
  out += '[';
  for (size_t i = 0; i < ids.size(); ++i) absl::StrAppend(&out, i == 0 ? "" : ",", ids[i]);
  out += ']';
}

}  // namespace blockserve
