// Finds stop strings in a text that arrives in pieces.
#ifndef BLOCKSERVE_GATEWAY_STOP_MATCHER_H_
#define BLOCKSERVE_GATEWAY_STOP_MATCHER_H_

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "absl/strings/string_view.h"

namespace blockserve {

// Works on bytes, so that what is found does not depend on how the text was cut into pieces. The
// match that is complete first wins; of those complete at the same byte, the longest. The end of
// the text that may still become a stop string is held back; pieces and stop strings of whole UTF-8
// characters give results of whole characters.
class StopMatcher {
 public:
  // `stop_strings`: none empty. With no strings at all nothing is ever held back.
  explicit StopMatcher(std::vector<std::string> stop_strings);

  // Takes the next piece and appends to `text` what can no longer be part of a stop string. Returns
  // the stop string that it completed: it is not in `text`, and what followed it is dropped. Must
  // not be called again after that.
  std::optional<std::string> Push(absl::string_view piece, std::string& text);

  // What is held back, when no more text comes.
  std::string Flush();

  size_t held_bytes() const { return held_.size(); }

 private:
  // A Knuth-Morris-Pratt automaton.
  struct Pattern {
    std::string string;
    std::vector<uint32_t> border;  // [size + 1]: longest proper border of the first i bytes
    size_t matched = 0;            // bytes of `string` that the text ends with
  };
  static void Advance(Pattern& pattern, char byte);

  std::vector<Pattern> patterns_;
  std::string held_;  // the longest end of the text that begins a stop string
};

}  // namespace blockserve

#endif  // BLOCKSERVE_GATEWAY_STOP_MATCHER_H_
