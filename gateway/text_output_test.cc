#include "gateway/text_output.h"

#include <random>
#include <string>
#include <vector>

#include "gateway/tokenizer_for_test.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "model/tokenizer.h"

namespace blockserve {
namespace {

constexpr int32_t kEndOfText = 0;

class TextOutputTest : public ::testing::Test {
 protected:
  static std::vector<int32_t> Encode(absl::string_view text) {
    auto ids = TokenizerForTest()->Encode(text);
    EXPECT_TRUE(ids.ok()) << ids.status();
    return *ids;
  }

  struct Outcome {
    std::string text;
    int32_t tokens = 0;
    std::optional<std::string> stop;
    bool operator==(const Outcome&) const = default;
  };
  // Appends `tokens` cut into runs of the given lengths (the rest as one run).
  static Outcome Decode(std::vector<std::string> stops, int32_t min_tokens,
                        absl::Span<const int32_t> tokens, bool ends_with_stop_token,
                        absl::Span<const size_t> cuts = {}) {
    TextOutput output(TokenizerForTest(), std::move(stops), min_tokens);
    Outcome outcome;
    size_t at = 0;
    for (size_t i = 0; at < tokens.size(); ++i) {
      const size_t size =
          i < cuts.size() ? std::min(cuts[i], tokens.size() - at) : tokens.size() - at;
      const bool last = at + size == tokens.size() && size > 0;
      TextOutput::Result result =
          output.Append(tokens.subspan(at, size), last && ends_with_stop_token);
      outcome.text += result.text;
      outcome.tokens += result.tokens_kept;
      outcome.stop = result.stop_string;
      if (outcome.stop.has_value()) break;
      at += size;
    }
    outcome.text += output.Flush();
    return outcome;
  }
};

TEST_F(TextOutputTest, JoinsTokensToTheirText) {
  const std::string text = "Once upon a time, 3.14 naïve 日本語 🙂\n\n  end";
  const std::vector<int32_t> ids = Encode(text);
  EXPECT_EQ(Decode({}, 0, ids, false), (Outcome{text, static_cast<int32_t>(ids.size()), {}}));
}

TEST_F(TextOutputTest, TellsWhereTheTextOfEachTokenEndsSearchedOrNot) {
  const std::vector<int32_t> ids = Encode("one two three");
  ASSERT_EQ(ids.size(), 3u);
  for (const int32_t min_tokens : {0, 2, 3}) {
    TextOutput output(TokenizerForTest(), {"x"}, min_tokens);
    EXPECT_EQ(output.Append(ids, false).ends, (std::vector<int32_t>{3, 7, 13})) << min_tokens;
  }
}

TEST_F(TextOutputTest, HoldsBackHalfACharacterUntilItIsWhole) {
  const std::vector<int32_t> ids = Encode("🙂");
  ASSERT_GT(ids.size(), 1u);
  TextOutput output(TokenizerForTest(), {}, 0);
  EXPECT_EQ(output.Append(absl::MakeSpan(ids).first(1), false).text, "");
  EXPECT_EQ(output.Append(absl::MakeSpan(ids).subspan(1), false).text, "🙂");
}

TEST_F(TextOutputTest, GoesOnFromACharacterThatWasBegunBefore) {
  const std::vector<int32_t> ids = Encode("🙂");
  const StreamDecoder prompt(*TokenizerForTest(), false, absl::MakeSpan(ids).first(1));
  TextOutput output(TokenizerForTest(), {}, 0, prompt.held_back());
  EXPECT_EQ(output.Append(absl::MakeSpan(ids).subspan(1), false).text, "🙂");
  TextOutput stopped(TokenizerForTest(), {"🙂"}, 0, prompt.held_back());
  EXPECT_EQ(stopped.Append(absl::MakeSpan(ids).subspan(1), false).stop_string, "🙂");
  TextOutput other(TokenizerForTest(), {}, 0, prompt.held_back());
  EXPECT_EQ(other.Append(Encode("a"), false).text,
            "\xEF\xBF\xBD"
            "a");
}

TEST_F(TextOutputTest, FlushShowsAnIncompleteCharacterAsReplacement) {
  const std::vector<int32_t> ids = Encode("🙂");
  TextOutput output(TokenizerForTest(), {}, 0);
  EXPECT_EQ(output.Append(absl::MakeSpan(ids).first(1), false).text, "");
  EXPECT_EQ(output.Flush(), "\xEF\xBF\xBD");
}

TEST_F(TextOutputTest, KeepsTokensThroughTheOneThatCompletesAStopString) {
  const std::vector<int32_t> before = Encode("one two");
  std::vector<int32_t> ids = before;
  for (int32_t id : Encode(" three four")) ids.push_back(id);
  const Outcome outcome = Decode({" thr"}, 0, ids, false);
  EXPECT_EQ(outcome.text, "one two");
  EXPECT_EQ(outcome.tokens, static_cast<int32_t>(before.size()) + 1);
  EXPECT_EQ(outcome.stop, " thr");
}

TEST_F(TextOutputTest, LeavesTheStopTokenOutOfTheTextAndKeepsIt) {
  std::vector<int32_t> ids = Encode("done");
  ids.push_back(Encode(" word")[0]);
  EXPECT_EQ(Decode({}, 0, ids, true), (Outcome{"done", static_cast<int32_t>(ids.size()), {}}));
}

TEST_F(TextOutputTest, LeavesSpecialTokensOutOfTheText) {
  std::vector<int32_t> ids = Encode("a");
  ids.push_back(kEndOfText);
  for (int32_t id : Encode("b")) ids.push_back(id);
  EXPECT_EQ(Decode({}, 0, ids, false).text, "ab");
}

TEST_F(TextOutputTest, DeliversTextHeldForAStopStringWhenTheOutputEnds) {
  TextOutput output(TokenizerForTest(), {"END OF LINE"}, 0);
  std::string text = output.Append(Encode("the END OF"), false).text;
  EXPECT_EQ(text, "the ");
  EXPECT_EQ(output.Flush(), "END OF");
}

TEST_F(TextOutputTest, DoesNotSearchTheFirstMinTokens) {
  const std::vector<int32_t> ids = Encode("stop and stop again");
  const int32_t first = static_cast<int32_t>(Encode("stop").size());
  EXPECT_EQ(Decode({"stop"}, 0, ids, false).text, "");
  const Outcome outcome = Decode({"stop"}, first, ids, false);
  EXPECT_EQ(outcome.text, "stop and ");
  EXPECT_EQ(outcome.stop, "stop");
}

TEST_F(TextOutputTest, WithoutATokenizerKeepsAllTokensAndHasNoText) {
  TextOutput output(nullptr, {}, 0);
  const std::vector<int32_t> ids = {5, 6, 7};
  const TextOutput::Result result = output.Append(ids, false);
  EXPECT_EQ(result.text, "");
  EXPECT_EQ(result.tokens_kept, 3);
  EXPECT_EQ(output.Flush(), "");
}

TEST_F(TextOutputTest, DoesNotDependOnHowTheTokensAreCut) {
  std::mt19937 random(77);
  auto draw = [&](size_t below) { return static_cast<size_t>(random() % below); };
  const std::vector<int32_t> words =
      Encode("the cat 🙂 sat on a mat, naïve 日本語 text\n\nHuman: the the cat");
  int stopped = 0;
  for (int round = 0; round < 300; ++round) {
    std::vector<int32_t> ids(1 + draw(24));
    for (int32_t& id : ids) id = words[draw(words.size())];
    const std::vector<std::string> stops = {"the cat", " 🙂", "\n\nHu", "aïv", "t the"};
    const int32_t min_tokens = static_cast<int32_t>(draw(4));
    const bool stop_token = draw(4) == 0;
    std::vector<size_t> cuts(draw(12));
    for (size_t& cut : cuts) cut = draw(6);
    const Outcome whole = Decode(stops, min_tokens, ids, stop_token);
    EXPECT_EQ(Decode(stops, min_tokens, ids, stop_token, cuts), whole);
    const std::vector<size_t> ones(ids.size(), 1);
    EXPECT_EQ(Decode(stops, min_tokens, ids, stop_token, ones), whole);
    stopped += whole.stop.has_value();
  }
  EXPECT_GT(stopped, 20);
}

}  // namespace
}  // namespace blockserve
