#include "common/trace_context.h"

#include <gtest/gtest.h>

#include <set>

namespace blockserve {
namespace {

constexpr absl::string_view kHeader = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

TEST(TraceContext, ReadsAndWritesTheHeader) {
  const std::optional<TraceContext> context = ParseTraceparent(kHeader);
  ASSERT_TRUE(context.has_value());
  EXPECT_EQ(context->trace_id, "0af7651916cd43dd8448eb211c80319c");
  EXPECT_EQ(context->span_id, "b7ad6b7169203331");
  EXPECT_TRUE(context->sampled);
  EXPECT_EQ(FormatTraceparent(*context), kHeader);
  EXPECT_FALSE(
      ParseTraceparent("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-00")->sampled);
  EXPECT_TRUE(
      ParseTraceparent("01-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-03-more")->sampled);
}

TEST(TraceContext, PassesOverWhatIsMalformed) {
  for (const absl::string_view bad :
       {"", "00", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-0",
        "ff-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
        "00-0AF7651916CD43DD8448EB211C80319C-b7ad6b7169203331-01",
        "00-00000000000000000000000000000000-b7ad6b7169203331-01",
        "00-0af7651916cd43dd8448eb211c80319c-0000000000000000-01",
        "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01-more",
        "00_0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"}) {
    EXPECT_FALSE(ParseTraceparent(bad).has_value()) << bad;
  }
}

TEST(TraceContext, DrawsIdsOfTheRightFormThatDiffer) {
  TraceIds ids(7);
  std::set<std::string> drawn;
  for (int i = 0; i < 1000; ++i) {
    const TraceContext context = {ids.NewTraceId(), ids.NewSpanId(), true};
    EXPECT_TRUE(ParseTraceparent(FormatTraceparent(context)).has_value());
    drawn.insert(context.span_id);
  }
  EXPECT_EQ(drawn.size(), 1000u);
  int sampled = 0;
  for (int i = 0; i < 10000; ++i) sampled += ids.Sample(0.25) ? 1 : 0;
  EXPECT_NEAR(sampled, 2500, 300);
  EXPECT_FALSE(ids.Sample(0));
  EXPECT_TRUE(ids.Sample(1));
}

}  // namespace
}  // namespace blockserve
