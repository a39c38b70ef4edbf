// Arrivals, lengths, histogram and workload: the parts of the load generator that know no network.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <fstream>
#include <set>
#include <tuple>

#include "absl/strings/str_cat.h"
#include "bench/load_arrivals.h"
#include "bench/load_histogram.h"
#include "bench/load_lengths.h"
#include "bench/load_workload.h"

namespace blockserve {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

std::string TempFile(const std::string& name, const std::string& content) {
  const std::string path = ::testing::TempDir() + "load_policy_test_" + name;
  std::ofstream(path) << content;
  return path;
}

LengthDistribution Lengths(const std::string& text) { return *LengthDistribution::Parse(text); }

TEST(LoadHistogram, PercentilesAreAtMostOnePartIn128TooHigh) {
  LoadHistogram histogram;
  for (int64_t value = 1; value <= 1'000'000; value += 7) histogram.Add(value);
  for (const double percent : {0.1, 1.0, 50.0, 90.0, 99.0, 99.9}) {
    const double exact = percent / 100 * 1e6;
    EXPECT_GE(histogram.Percentile(percent), exact - 8);
    EXPECT_LE(histogram.Percentile(percent), exact * (1 + 1.0 / 128) + 8);
  }
  EXPECT_EQ(histogram.min(), 1);
  EXPECT_EQ(histogram.Percentile(100), histogram.max());
  EXPECT_NEAR(histogram.mean(), 5e5, 5);
}

TEST(LoadHistogram, EveryValueIsInABucketThatEndsAtOrAboveIt) {
  int32_t index = 0;
  for (int64_t value = 0; value < 100'000; ++value) {
    if (value > LoadHistogram::BucketEnd(index)) ++index;
    LoadHistogram histogram;
    histogram.Add(value);
    ASSERT_EQ(histogram.Buckets().front().first, index) << value;
  }
}

TEST(LoadHistogram, MergingIsAddingAndBucketsRestoreIt) {
  LoadHistogram one, two, both;
  for (int64_t value = 0; value < 5000; ++value) {
    (value % 3 == 0 ? one : two).Add(value * value);
    both.Add(value * value);
  }
  one.Merge(two);
  EXPECT_EQ(one.Buckets(), both.Buckets());
  LoadHistogram restored;
  ASSERT_TRUE(
      LoadHistogram::Restore(both.Buckets(), both.min(), both.max(), both.mean(), &restored).ok());
  EXPECT_EQ(restored.Percentile(99), both.Percentile(99));
  EXPECT_EQ(restored.max(), both.max());
  EXPECT_FALSE(LoadHistogram::Restore(both.Buckets(), 0, 1, 0.5, &restored).ok());
}

TEST(Arrivals, PoissonHasItsRateAndTheSpreadOfPoisson) {
  const auto arrivals = *MakeArrivals("poisson", 100, 7);
  const int count = 200'000;
  double sum = 0, squares = 0;
  int64_t last = 0;
  for (int i = 0; i < count; ++i) {
    const int64_t now = *arrivals->Next();
    const double gap = static_cast<double>(now - last) / 1e6;
    ASSERT_GE(now, last);
    last = now;
    sum += gap;
    squares += gap * gap;
  }
  const double mean = sum / count;
  EXPECT_NEAR(mean, 0.01, 0.0001);
  // An exponential distribution deviates by its mean.
  EXPECT_NEAR(std::sqrt(squares / count - mean * mean) / mean, 1, 0.02);
}

TEST(Arrivals, TheSameSeedGivesTheSameArrivals) {
  const auto a = *MakeArrivals("poisson", 5, 1), b = *MakeArrivals("poisson", 5, 1),
             c = *MakeArrivals("poisson", 5, 2);
  EXPECT_EQ(*a->Next(), *b->Next());
  EXPECT_NE(*a->Next(), *c->Next());
}

TEST(Arrivals, ConstantAndBurstsAreEvenlySpaced) {
  const auto constant = *MakeArrivals("constant", 4, 1);
  std::vector<int64_t> times;
  for (int i = 0; i < 3; ++i) times.push_back(*constant->Next());
  EXPECT_THAT(times, ElementsAre(0, 250'000, 500'000));
  const auto burst = *MakeArrivals("burst:3", 6, 1);
  times.clear();
  for (int i = 0; i < 7; ++i) times.push_back(*burst->Next());
  EXPECT_THAT(times, ElementsAre(0, 0, 0, 500'000, 500'000, 500'000, 1'000'000));
}

TEST(Arrivals, BadKindsAndRatesAreRefused) {
  EXPECT_FALSE(MakeArrivals("poisson", 0, 1).ok());
  EXPECT_FALSE(MakeArrivals("burst:0", 1, 1).ok());
  EXPECT_FALSE(MakeArrivals("burst:x", 1, 1).ok());
  EXPECT_FALSE(MakeArrivals("pareto", 1, 1).ok());
}

TEST(Trace, IsReadWithAndWithoutLengthsAndBeginsAtZero) {
  const auto rows =
      ReadTrace(TempFile("trace", "# a comment\narrival,prompt,output\n10.5,100,20\n11,,7\n12\n"));
  ASSERT_TRUE(rows.ok()) << rows.status();
  ASSERT_EQ(rows->size(), 3u);
  EXPECT_EQ((*rows)[0].arrival_s, 0);
  EXPECT_EQ((*rows)[1].arrival_s, 0.5);
  EXPECT_EQ((*rows)[0].prompt_tokens, 100);
  EXPECT_EQ((*rows)[1].prompt_tokens, 0);
  EXPECT_EQ((*rows)[1].output_tokens, 7);
}

TEST(Trace, FaultsNameFileAndLine) {
  EXPECT_THAT(ReadTrace(TempFile("back", "1\n2\n1.5\n")).status().message(),
              HasSubstr("back:3: goes back in time"));
  EXPECT_THAT(ReadTrace(TempFile("bad", "1,5,5\n2,0,5\n")).status().message(), HasSubstr("bad:2"));
  EXPECT_THAT(ReadTrace(TempFile("huge", "1,1000000000000\n")).status().message(),
              HasSubstr("huge:1"));
  EXPECT_THAT(ReadTrace(TempFile("many", "1,5,5,5\n")).status().message(), HasSubstr("many:1"));
  EXPECT_THAT(ReadTrace(TempFile("empty", "a,b\n")).status().message(), HasSubstr("no arrivals"));
  EXPECT_EQ(ReadTrace("/no/such/file").status().code(), absl::StatusCode::kNotFound);
}

TEST(Lengths, DistributionsHaveTheirMeans) {
  struct Case {
    std::string text;
    double mean;
  };
  for (const Case& one :
       {Case{"128", 128}, Case{"uniform:10:20", 15}, Case{"normal:100:10", 100},
        Case{"exponential:50", 50}, Case{"lognormal:100:0.5", 100 * std::exp(0.125)}}) {
    const LengthDistribution lengths = Lengths(one.text);
    LoadRandom random(3);
    double sum = 0;
    for (int i = 0; i < 100'000; ++i) {
      const int64_t length = lengths.Draw(random);
      ASSERT_GE(length, 1);
      sum += static_cast<double>(length);
    }
    EXPECT_NEAR(sum / 1e5, one.mean, one.mean * 0.02) << one.text;
  }
}

TEST(Lengths, AFileIsDrawnFrom) {
  const LengthDistribution lengths = Lengths("file:" + TempFile("lengths", "5\n# no\n7\n"));
  LoadRandom random(1);
  std::set<int64_t> seen;
  for (int i = 0; i < 100; ++i) seen.insert(lengths.Draw(random));
  EXPECT_THAT(seen, ElementsAre(5, 7));
}

TEST(Lengths, WhatIsNoDistributionIsRefused) {
  for (const char* text : {"", "0", "1.5", "-3", "uniform:5", "uniform:9:5", "normal:1:2:3",
                           "gauss:1:2", "uniform:a:b", "exponential:nan", "file:/no/such/file"}) {
    EXPECT_FALSE(LengthDistribution::Parse(text).ok()) << text;
  }
}

WorkloadOptions SmallWorkload() {
  WorkloadOptions options;
  options.prompt_tokens = Lengths("uniform:4:40");
  options.output_tokens = Lengths("exponential:10");
  options.vocab_size = 50;
  options.excluded_tokens = {0, 7};
  return options;
}

TEST(Workload, ARequestDependsOnItsNumberAlone) {
  const Workload one(SmallWorkload()), two(SmallWorkload());
  const RequestSpec later = one.Make(1000, 1000);
  for (int64_t k = 0; k < 20; ++k) (void)two.Make(k, k);
  const RequestSpec again = two.Make(1000, 1000);
  EXPECT_EQ(later.tokens, again.tokens);
  EXPECT_EQ(later.max_tokens, again.max_tokens);
  EXPECT_EQ(later.seed, again.seed);
  EXPECT_NE(one.Make(1001, 1001).tokens, later.tokens);
}

TEST(Workload, TokensAreOfTheVocabularyWithoutTheExcludedOnes) {
  const Workload workload(SmallWorkload());
  for (int64_t k = 0; k < 200; ++k) {
    for (const int32_t token : workload.Make(k, k).tokens) {
      ASSERT_TRUE(token > 0 && token < 50 && token != 7) << token;
    }
  }
}

TEST(Workload, SharedPrefixesAreSharedAndLengthsStayWhole) {
  WorkloadOptions options = SmallWorkload();
  options.prompt_tokens = Lengths("20");
  options.shared_prefix_tokens = 16;
  options.shared_prefixes = 3;
  const Workload workload(options);
  std::set<std::vector<int32_t>> beginnings, whole;
  for (int64_t k = 0; k < 60; ++k) {
    const std::vector<int32_t> tokens = workload.Make(k, k).tokens;
    ASSERT_EQ(tokens.size(), 20u);
    beginnings.insert({tokens.begin(), tokens.begin() + 16});
    whole.insert(tokens);
  }
  EXPECT_EQ(beginnings.size(), 3u);
  EXPECT_GT(whole.size(), 50u);
}

TEST(Workload, LengthsAreCutToTheModelsLimit) {
  WorkloadOptions options = SmallWorkload();
  options.prompt_tokens = Lengths("uniform:50:200");
  options.output_tokens = Lengths("uniform:50:200");
  const Workload uncut(options);
  options.max_total_tokens = 100;
  const Workload workload(options);
  for (int64_t k = 0; k < 100; ++k) {
    const RequestSpec spec = workload.Make(k, k), asked = uncut.Make(k, k);
    EXPECT_GE(spec.max_tokens, 1);
    EXPECT_LE(std::ssize(spec.tokens) + spec.max_tokens, 100);
    EXPECT_EQ(spec.shortened, std::ssize(asked.tokens) + asked.max_tokens > 100);
    EXPECT_FALSE(asked.shortened);
  }
}

TEST(Workload, LengthsOfWhichNoneFitsAreRefused) {
  WorkloadOptions options = SmallWorkload();
  options.max_total_tokens = 100;
  for (const auto& [prompt, output, fits] : {std::tuple("90", "10", true),
                                             {"90", "11", false},
                                             {"100", "1", false},
                                             {"uniform:90:200", "10", true},
                                             {"uniform:95:200", "uniform:6:9", false},
                                             {"normal:500:1", "99", true}}) {
    options.prompt_tokens = Lengths(prompt);
    options.output_tokens = Lengths(output);
    EXPECT_EQ(options.CheckLengths().ok(), fits) << prompt << " " << output;
  }
  // A trace has lengths of its own.
  options.trace = {TraceRow{}};
  options.prompt_tokens = Lengths("200");
  EXPECT_TRUE(options.CheckLengths().ok());
}

TEST(Prompts, LinesAreTextOrObjects) {
  const auto prompts = ReadPrompts(TempFile(
      "prompts", "Once upon\n{\"prompt\": \"a\", \"output_tokens\": 3}\n{\"tokens\": [1, 2]}\n"));
  ASSERT_TRUE(prompts.ok()) << prompts.status();
  WorkloadOptions options = SmallWorkload();
  options.prompts = *prompts;
  const Workload workload(options);
  EXPECT_EQ(workload.Make(0, 0).text, "Once upon");
  EXPECT_EQ(workload.Make(1, 1).max_tokens, 3);
  EXPECT_THAT(workload.Make(5, 5).tokens, ElementsAre(1, 2));
  for (const char* line : {"w\xe4rld", "{\"tokens\": [99999999999]}",
                           "{\"prompt\": \"a\", \"output_tokens\": 5000000000}"}) {
    EXPECT_THAT(
        ReadPrompts(TempFile("strange", absl::StrCat("a\n", line, "\n"))).status().message(),
        HasSubstr("strange:2"))
        << line;
  }
  EXPECT_THAT(ReadPrompts(TempFile("bad_prompts", "a\n{\"tokens\": []}\n")).status().message(),
              HasSubstr("bad_prompts:2"));
}

}  // namespace
}  // namespace blockserve
