#include "gateway/later.h"

#include <gtest/gtest.h>

#include <memory>
#include <string>

#include "gateway/manual_loop.h"

namespace blockserve {
namespace {

TEST(Later, RunsInOrderAfterWhatWasPostedBefore) {
  ManualLoop loop;
  Later later(loop);
  std::string order;
  const auto note = [&order](char what) { return [&order, what] { order += what; }; };
  loop.Post(note('a'));
  later.Add(note('b'));
  loop.Post(note('d'));
  later.Add(note('c'));
  EXPECT_EQ(order, "");
  loop.RunReady();
  EXPECT_EQ(order, "abcd");
}

TEST(Later, WhatATaskAddsRunsAfterWhatThatTaskPosts) {
  ManualLoop loop;
  Later later(loop);
  std::string order;
  later.Add([&] {
    order += 'a';
    loop.Post([&] { order += 'c'; });
    later.Add([&] { order += 'd'; });
  });
  later.Add([&] { order += 'b'; });
  loop.RunReady();
  EXPECT_EQ(order, "abcd");
}

TEST(Later, DropsWhatHasNotRun) {
  ManualLoop loop;
  auto later = std::make_unique<Later>(loop);
  const auto kept = std::make_shared<int>();
  later->Add([kept] { FAIL(); });
  later.reset();
  EXPECT_EQ(kept.use_count(), 1);
  loop.RunReady();
}

}  // namespace
}  // namespace blockserve
