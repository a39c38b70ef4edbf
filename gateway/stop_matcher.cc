#include "gateway/stop_matcher.h"

#include <algorithm>
#include <utility>

namespace blockserve {

StopMatcher::StopMatcher(std::vector<std::string> stop_strings) {
  patterns_.reserve(stop_strings.size());
  for (std::string& string : stop_strings) {
    Pattern pattern;
    pattern.string = std::move(string);
    const std::string& s = pattern.string;
    pattern.border.assign(s.size() + 1, 0);
    for (size_t i = 1, length = 0; i < s.size(); ++i) {
      while (length > 0 && s[i] != s[length]) length = pattern.border[length];
      if (s[i] == s[length]) ++length;
      pattern.border[i + 1] = static_cast<uint32_t>(length);
    }
    patterns_.push_back(std::move(pattern));
  }
}

void StopMatcher::Advance(Pattern& pattern, char byte) {
  const std::string& s = pattern.string;
  while (pattern.matched > 0 && s[pattern.matched] != byte) {
    pattern.matched = pattern.border[pattern.matched];
  }
  if (s[pattern.matched] == byte) ++pattern.matched;
}

std::optional<std::string> StopMatcher::Push(absl::string_view piece, std::string& text) {
  if (patterns_.empty()) {
    text.append(piece.data(), piece.size());
    return std::nullopt;
  }
  for (const char byte : piece) {
    held_.push_back(byte);
    size_t longest = 0;
    const Pattern* complete = nullptr;
    for (Pattern& pattern : patterns_) {
      Advance(pattern, byte);
      longest = std::max(longest, pattern.matched);
      if (pattern.matched == pattern.string.size() &&
          (complete == nullptr || pattern.string.size() > complete->string.size())) {
        complete = &pattern;
      }
    }
    if (complete != nullptr) {
      text.append(held_, 0, held_.size() - complete->string.size());
      held_.clear();
      return complete->string;
    }
    text.append(held_, 0, held_.size() - longest);
    held_.erase(0, held_.size() - longest);
  }
  return std::nullopt;
}

std::string StopMatcher::Flush() {
  for (Pattern& pattern : patterns_) pattern.matched = 0;
  return std::exchange(held_, {});
}

}  // namespace blockserve
