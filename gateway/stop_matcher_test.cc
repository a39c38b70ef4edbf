#include "gateway/stop_matcher.h"

#include <random>
#include <string>
#include <vector>

#include "absl/strings/match.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace blockserve {
namespace {

struct Outcome {
  std::string text;
  std::optional<std::string> stop;
  bool operator==(const Outcome&) const = default;
};

Outcome Search(const std::vector<std::string>& stops, const std::vector<std::string>& pieces) {
  StopMatcher matcher(stops);
  Outcome outcome;
  for (const std::string& piece : pieces) {
    outcome.stop = matcher.Push(piece, outcome.text);
    if (outcome.stop.has_value()) return outcome;
  }
  outcome.text += matcher.Flush();
  return outcome;
}

// The rule in its plainest form: grow the text byte by byte, look at its end.
Outcome Reference(const std::vector<std::string>& stops, const std::string& text) {
  for (size_t length = 1; length <= text.size(); ++length) {
    const absl::string_view seen = absl::string_view(text).substr(0, length);
    std::optional<std::string> best;
    for (const std::string& stop : stops) {
      if (absl::EndsWith(seen, stop) && (!best.has_value() || stop.size() > best->size()))
        best = stop;
    }
    if (best.has_value()) return {text.substr(0, length - best->size()), best};
  }
  return {text, std::nullopt};
}

TEST(StopMatcher, PassesTextThroughWithoutStopStrings) {
  StopMatcher matcher({});
  std::string text;
  EXPECT_EQ(matcher.Push("abc", text), std::nullopt);
  EXPECT_EQ(text, "abc");
  EXPECT_EQ(matcher.Flush(), "");
}

TEST(StopMatcher, HoldsBackOnlyWhatMayBeginAStopString) {
  StopMatcher matcher({"\n\nHuman:"});
  std::string text;
  EXPECT_EQ(matcher.Push("Yes.\n", text), std::nullopt);
  EXPECT_EQ(text, "Yes.");
  EXPECT_EQ(matcher.held_bytes(), 1u);
  EXPECT_EQ(matcher.Push("\nHu", text), std::nullopt);
  EXPECT_EQ(text, "Yes.");
  EXPECT_EQ(matcher.Push("ge", text), std::nullopt);
  EXPECT_EQ(text, "Yes.\n\nHuge");
  EXPECT_EQ(matcher.held_bytes(), 0u);
}

TEST(StopMatcher, FindsAStopStringAcrossPiecesAndDropsWhatFollows) {
  EXPECT_EQ(Search({"STOP"}, {"go S", "TO", "P more"}), (Outcome{"go ", "STOP"}));
}

TEST(StopMatcher, TakesTheMatchThatIsCompleteFirst) {
  // "abcd" begins earlier, but "bc" is complete earlier.
  EXPECT_EQ(Search({"abcd", "bc"}, {"xabcd"}), (Outcome{"xa", "bc"}));
}

TEST(StopMatcher, TakesTheLongestOfThoseCompleteTogether) {
  EXPECT_EQ(Search({"c", "abc", "bc"}, {"xabc"}), (Outcome{"x", "abc"}));
}

TEST(StopMatcher, FindsAStopStringThatOverlapsItsOwnBeginning) {
  EXPECT_EQ(Search({"aab"}, {"aa", "aa", "b"}), (Outcome{"aa", "aab"}));
  EXPECT_EQ(Search({"abab!"}, {"ababab!"}), (Outcome{"ab", "abab!"}));
}

TEST(StopMatcher, FlushReturnsWhatWasHeldAndForgetsIt) {
  StopMatcher matcher({"END"});
  std::string text;
  EXPECT_EQ(matcher.Push("the EN", text), std::nullopt);
  EXPECT_EQ(text, "the ");
  EXPECT_EQ(matcher.Flush(), "EN");
  EXPECT_EQ(matcher.Flush(), "");
}

TEST(StopMatcher, DoesNotDependOnHowTheTextIsCut) {
  std::mt19937 random(20240603);
  auto draw = [&](int below) { return static_cast<int>(random() % below); };
  for (int round = 0; round < 2000; ++round) {
    std::vector<std::string> stops(1 + draw(4));
    for (std::string& stop : stops) {
      const int length = 1 + draw(5);
      for (int i = 0; i < length; ++i) stop.push_back("abc"[draw(3)]);
    }
    std::string text;
    const int length = draw(40);
    for (int i = 0; i < length; ++i) text.push_back("abcd"[draw(4)]);
    std::vector<std::string> pieces;
    for (size_t at = 0; at < text.size();) {
      const size_t size = draw(6);
      pieces.push_back(text.substr(at, size));
      at += pieces.back().size();
    }
    EXPECT_EQ(Search(stops, pieces), Reference(stops, text)) << text;
  }
}

}  // namespace
}  // namespace blockserve
