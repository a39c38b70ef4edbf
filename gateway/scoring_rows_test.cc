#include "gateway/scoring_rows.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <memory>
#include <string>

namespace blockserve {
namespace {

// A text with rows to be scored, and who sends when.
class Text {
 public:
  Text(ScoringRows& rows, std::string& sent, char name, int count, uint32_t priority = 2)
      : rows_(rows), left_(count), source_(priority, [this, &sent, name] {
          sent += name;
          return --left_ > 0;
        }) {
    rows_.Add(source_);
    rows_.Offer(source_);
  }
  ~Text() { rows_.Remove(source_); }
  void Answered() { rows_.Answered(source_); }

 private:
  ScoringRows& rows_;
  int left_;
  ScoringRows::Source source_;
};

TEST(ScoringRows, ALoneTextHasAllOfThem) {
  ScoringRows rows;
  rows.SetMost(6);
  std::string sent;
  Text a(rows, sent, 'a', 8);
  EXPECT_EQ(sent, "aaaaaa");
  a.Answered();
  a.Answered();
  EXPECT_EQ(sent, "aaaaaaaa");
  for (int i = 0; i < 6; ++i) a.Answered();
  EXPECT_EQ(rows.under_way(), 0);
}

TEST(ScoringRows, SeveralTakeTurnsAndEachHasOneAtOnce) {
  ScoringRows rows;
  rows.SetMost(4);
  std::string sent;
  Text a(rows, sent, 'a', 100);
  Text b(rows, sent, 'b', 100);
  EXPECT_EQ(sent, "aaaab") << "its first need not wait";
  a.Answered();
  EXPECT_EQ(sent, "aaaab");
  for (int i = 0; i < 3; ++i) a.Answered();
  EXPECT_EQ(sent, "aaaababa");
  b.Answered();
  EXPECT_EQ(sent, "aaaababab");
}

TEST(ScoringRows, HigherPrioritiesGoFirst) {
  ScoringRows rows;
  rows.SetMost(2);
  std::string sent;
  Text batch(rows, sent, 'c', 100, 3);
  Text high(rows, sent, 'a', 3, 1);
  EXPECT_EQ(sent, "cca");
  batch.Answered();
  batch.Answered();
  EXPECT_EQ(sent, "ccac") << "one in any case";
  high.Answered();
  EXPECT_EQ(sent, "ccaca");
  high.Answered();
  EXPECT_EQ(sent, "ccacaa");
  high.Answered();
  EXPECT_EQ(sent, "ccacaac") << "it has no more to send";
}

TEST(ScoringRows, WhoEndsLeavesItsRowsToTheOthers) {
  ScoringRows rows;
  rows.SetMost(3);
  std::string sent;
  auto a = std::make_unique<Text>(rows, sent, 'a', 100);
  Text b(rows, sent, 'b', 100);
  EXPECT_EQ(sent, "aaab");
  EXPECT_EQ(rows.sources(), 2);
  a.reset();
  EXPECT_EQ(sent, "aaabbb");
  EXPECT_EQ(rows.under_way(), 3);
  EXPECT_EQ(rows.sources(), 1);
  rows.SetMost(4);
  EXPECT_EQ(sent, "aaabbbb");
  rows.SetMost(1);
  for (int i = 0; i < 3; ++i) b.Answered();
  EXPECT_EQ(rows.under_way(), 1) << "fewer, as they are answered";
}

}  // namespace
}  // namespace blockserve
