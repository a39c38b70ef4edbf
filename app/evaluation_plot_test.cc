#include "app/evaluation_plot.h"

#include <string>
#include <vector>

#include "app/evaluation.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace blockserve {
namespace {

using nlohmann::ordered_json;
using ::testing::HasSubstr;

ordered_json Evaluated(int32_t block_length, const std::string& model) {
  Evaluation evaluation(block_length);
  evaluation.Add({0, 6, 0}, std::vector<std::optional<float>>{std::nullopt, -1, -2, -3, -4, -5}, 0);
  ordered_json json = {{"model", model}, {"arithmetic", "f32"}};
  json.update(evaluation.Json(20));
  return json;
}

int Count(const std::string& text, const std::string& what) {
  int count = 0;
  for (size_t at = text.find(what); at != std::string::npos; at = text.find(what, at + 1)) ++count;
  return count;
}

TEST(EvaluationPlot, DrawsABarForEachPositionAndAPointForEachLength) {
  const std::string svg = EvaluationPlot({Evaluated(4, "a block model")});
  EXPECT_EQ(Count(svg, "position "), 4 + 1);  // the title too
  EXPECT_EQ(Count(svg, "<circle"), 3);        // 1, 2 and 4 tokens before
  EXPECT_THAT(svg, HasSubstr("a block model, f32: perplexity"));
  EXPECT_THAT(svg, HasSubstr("from 4 tokens: loss 4.5000 over 2 tokens"));
}

TEST(EvaluationPlot, ComparesABlockModelWithAPlainOneByALine) {
  const std::string svg = EvaluationPlot({Evaluated(4, "block"), Evaluated(1, "plain")});
  EXPECT_EQ(Count(svg, "stroke-dasharray"), 1);
  EXPECT_EQ(Count(svg, "<polyline"), 2);
}

TEST(EvaluationPlot, KeepsNamesFromBeingMarkup) {
  EXPECT_THAT(EvaluationPlot({Evaluated(2, "<b>&")}), HasSubstr("&lt;b&gt;&amp;"));
}

TEST(CheckEvaluation, NamesWhatIsMissing) {
  ordered_json json = Evaluated(4, "m");
  EXPECT_TRUE(CheckEvaluation(json).ok());
  json["by_context_length"][0].erase("loss");
  EXPECT_THAT(CheckEvaluation(json).message(), HasSubstr("by_context_length.loss"));
  json.erase("perplexity");
  EXPECT_THAT(CheckEvaluation(json).message(), HasSubstr("perplexity"));
  EXPECT_FALSE(CheckEvaluation(ordered_json::parse("]", nullptr, false)).ok());
}

}  // namespace
}  // namespace blockserve
