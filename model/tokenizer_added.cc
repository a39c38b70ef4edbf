#include "model/tokenizer_added.h"

#include <algorithm>
#include <utility>

#include "model/tokenizer_unicode.h"

namespace blockserve {
namespace {

bool EndsWithWord(absl::string_view text) {
  return !text.empty() && IsWordCharacter(LastCharacter(text).character);
}

bool StartsWithWord(absl::string_view text) {
  return !text.empty() && IsWordCharacter(NextCharacter(text).character);
}

// Where the white space at the end of `text` begins; never before `floor`.
size_t TrailingSpaceBegin(absl::string_view text, size_t floor) {
  size_t begin = text.size();
  while (begin > floor) {
    const Utf8Step last = LastCharacter(text.substr(0, begin));
    if (!IsWhiteSpace(last.character)) break;
    begin -= last.size;
  }
  return begin;
}

size_t LeadingSpaceSize(absl::string_view text) {
  size_t size = 0;
  while (size < text.size()) {
    const Utf8Step step = NextCharacter(text.substr(size));
    if (!IsWhiteSpace(step.character)) break;
    size += step.size;
  }
  return size;
}

}  // namespace

AddedTokenMatcher::AddedTokenMatcher(std::vector<AddedToken> tokens)
    : tokens_(std::move(tokens)), token_of_node_{-1} {
  for (size_t i = 0; i < tokens_.size(); ++i) {
    uint64_t node = 0;
    for (const char byte : tokens_[i].content) {
      const auto [edge, inserted] = edges_.try_emplace(
          node << 8 | static_cast<uint8_t>(byte), static_cast<uint32_t>(token_of_node_.size()));
      if (inserted) token_of_node_.push_back(-1);
      node = edge->second;
    }
    if (node == 0) continue;  // an empty content matches nothing
    token_of_node_[node] = static_cast<int32_t>(i);
    first_bytes_.set(static_cast<uint8_t>(tokens_[i].content[0]));
  }
}

AddedTokenMatcher::Match AddedTokenMatcher::FindFirst(absl::string_view text, size_t from) const {
  for (size_t begin = from; begin < text.size(); ++begin) {
    if (!first_bytes_.test(static_cast<uint8_t>(text[begin]))) continue;
    Match longest;
    uint64_t node = 0;
    for (size_t end = begin; end < text.size(); ++end) {
      const auto edge = edges_.find(node << 8 | static_cast<uint8_t>(text[end]));
      if (edge == edges_.end()) break;
      node = edge->second;
      if (token_of_node_[node] >= 0) {
        longest = {&tokens_[static_cast<size_t>(token_of_node_[node])], begin, end + 1};
      }
    }
    if (longest.token != nullptr) return longest;
  }
  return {};
}

absl::Status AddedTokenMatcher::Split(absl::string_view text,
                                      absl::FunctionRef<absl::Status(Piece)> piece) const {
  size_t done = 0;  // up to here pieces have been given out
  size_t from = 0;
  while (true) {
    const Match match = FindFirst(text, from);
    if (match.token == nullptr) break;
    from = match.end;
    size_t begin = match.begin;
    size_t end = match.end;
    if (match.token->single_word &&
        (EndsWithWord(text.substr(0, begin)) || StartsWithWord(text.substr(end)))) {
      continue;
    }
    if (match.token->lstrip) {
      // White space that the token before took with it stays with that one.
      begin = std::max(TrailingSpaceBegin(text.substr(0, begin), std::min(done, begin)), done);
    }
    if (match.token->rstrip) end += LeadingSpaceSize(text.substr(end));
    if (begin >= end) continue;  // all of it is white space that the token before took with it
    if (done < begin) {
      const absl::Status status = piece({text.substr(done, begin - done), -1});
      if (!status.ok()) return status;
    }
    const absl::Status status = piece({text.substr(begin, end - begin), match.token->id});
    if (!status.ok()) return status;
    done = end;
  }
  if (done < text.size()) return piece({text.substr(done), -1});
  return absl::OkStatus();
}

}  // namespace blockserve
