#include "rpc/tier_merge.h"

#include <google/protobuf/util/message_differencer.h>
#include <gtest/gtest.h>

namespace blockserve {
namespace {

using google::protobuf::util::MessageDifferencer;

v1::TokenRequestBatch Rows(v1::ContextType type, std::initializer_list<int> ids) {
  v1::TokenRequestBatch batch;
  batch.set_context_type(type);
  for (const int id : ids) {
    batch.add_rows()->set_id(id);
    batch.mutable_contexts()->append(4, static_cast<char>('0' + id));
  }
  return batch;
}

TEST(TierMerge, LaysTokenRowsAndTheirContextsEndToEnd) {
  v1::TokenRequestBatch into = Rows(v1::CONTEXT_TYPE_FLOAT32, {1, 2});
  v1::TokenRequestBatch from = Rows(v1::CONTEXT_TYPE_FLOAT32, {3});
  from.add_cancel(1);
  ASSERT_TRUE(MergeTokenRequests(into, from));
  v1::TokenRequestBatch expected = Rows(v1::CONTEXT_TYPE_FLOAT32, {1, 2, 3});
  expected.add_cancel(1);
  EXPECT_TRUE(MessageDifferencer::Equals(into, expected)) << into.DebugString();
}

TEST(TierMerge, TakesTheContextTypeOfTheFirstRows) {
  v1::TokenRequestBatch into;
  into.add_cancel(7);
  v1::TokenRequestBatch from = Rows(v1::CONTEXT_TYPE_BFLOAT16, {3});
  ASSERT_TRUE(MergeTokenRequests(into, from));
  v1::TokenRequestBatch expected = Rows(v1::CONTEXT_TYPE_BFLOAT16, {3});
  expected.add_cancel(7);
  EXPECT_TRUE(MessageDifferencer::Equals(into, expected)) << into.DebugString();

  v1::TokenRequestBatch cancel;
  cancel.add_cancel(3);
  ASSERT_TRUE(MergeTokenRequests(into, cancel));
  EXPECT_EQ(into.context_type(), v1::CONTEXT_TYPE_BFLOAT16);
  EXPECT_EQ(into.contexts(), "3333");
  EXPECT_EQ(into.cancel_size(), 2);
}

TEST(TierMerge, KeepsContextsOfDifferentTypesApart) {
  v1::TokenRequestBatch into = Rows(v1::CONTEXT_TYPE_FLOAT32, {1});
  v1::TokenRequestBatch from = Rows(v1::CONTEXT_TYPE_BFLOAT16, {2});
  const v1::TokenRequestBatch into_before = into, from_before = from;
  EXPECT_FALSE(MergeTokenRequests(into, from));
  EXPECT_TRUE(MessageDifferencer::Equals(into, into_before));
  EXPECT_TRUE(MessageDifferencer::Equals(from, from_before));
}

TEST(TierMerge, LeavesHellosAlone) {
  v1::TokenRequestBatch hello, rows = Rows(v1::CONTEXT_TYPE_FLOAT32, {1});
  hello.mutable_hello()->set_protocol_version(1);
  EXPECT_FALSE(MergeTokenRequests(hello, rows));
  EXPECT_FALSE(MergeTokenRequests(rows, hello));
  v1::BlockReplyBatch block_hello, block_reply;
  block_hello.mutable_hello();
  EXPECT_FALSE(MergeBlockReplies(block_hello, block_reply));
  v1::BlockRequestBatch request_hello, request;
  request_hello.mutable_hello();
  EXPECT_FALSE(MergeBlockRequests(request_hello, request));
  v1::TokenReplyBatch reply_hello, reply;
  reply_hello.mutable_hello();
  EXPECT_FALSE(MergeTokenReplies(reply_hello, reply));
}

TEST(TierMerge, KeepsTheLaterLoadAndOnceToldDraining) {
  v1::TokenReplyBatch into, from;
  into.add_rows()->set_id(1);
  into.mutable_load()->set_steps(5);
  into.set_draining(true);
  from.add_rows()->set_id(2);
  from.mutable_load()->set_steps(6);
  ASSERT_TRUE(MergeTokenReplies(into, from));
  EXPECT_EQ(into.rows_size(), 2);
  EXPECT_EQ(into.rows(1).id(), 2u);
  EXPECT_EQ(into.load().steps(), 6u);
  EXPECT_TRUE(into.draining());
  v1::TokenReplyBatch drains, goes_on;
  drains.set_draining(true);
  ASSERT_TRUE(MergeTokenReplies(goes_on, drains));
  EXPECT_TRUE(goes_on.draining());
  v1::TokenReplyBatch without_load;
  ASSERT_TRUE(MergeTokenReplies(into, without_load));
  EXPECT_EQ(into.load().steps(), 6u);
}

TEST(TierMerge, LaysBlockItemsAndTheirContextsEndToEnd) {
  v1::BlockReplyBatch into, from;
  into.add_items()->set_id(1);
  into.set_contexts("aa");
  from.add_items()->set_id(2);
  from.add_items()->set_id(3);
  from.set_contexts("bbcc");
  from.mutable_load()->set_steps(2);
  ASSERT_TRUE(MergeBlockReplies(into, from));
  ASSERT_EQ(into.items_size(), 3);
  EXPECT_EQ(into.items(2).id(), 3u);
  EXPECT_EQ(into.contexts(), "aabbcc");
  EXPECT_EQ(into.load().steps(), 2u);

  v1::BlockRequestBatch requests, more;
  requests.add_items()->set_id(1);
  more.add_items()->mutable_append()->add_tokens(9);
  ASSERT_TRUE(MergeBlockRequests(requests, more));
  EXPECT_EQ(requests.items(1).append().tokens(0), 9);
}

TEST(TierMerge, KeepsTheLatestPingAndPong) {
  v1::TokenRequestBatch rows = Rows(v1::CONTEXT_TYPE_FLOAT32, {1}), ping;
  ping.set_ping(4);
  ASSERT_TRUE(MergeTokenRequests(rows, ping));
  v1::TokenRequestBatch more = Rows(v1::CONTEXT_TYPE_FLOAT32, {2});
  ASSERT_TRUE(MergeTokenRequests(rows, more));
  EXPECT_EQ(rows.ping(), 4u);
  v1::BlockRequestBatch items, block_ping;
  items.add_items()->set_id(1);
  block_ping.set_ping(5);
  ASSERT_TRUE(MergeBlockRequests(items, block_ping));
  v1::BlockRequestBatch more_items;
  more_items.add_items()->set_id(2);
  ASSERT_TRUE(MergeBlockRequests(items, more_items));
  EXPECT_EQ(items.ping(), 5u);
  v1::BlockReplyBatch pong, reply;
  pong.set_pong(7);
  reply.add_items()->set_id(1);
  ASSERT_TRUE(MergeBlockReplies(pong, reply));
  EXPECT_EQ(pong.pong(), 7u);
  v1::BlockReplyBatch next;
  next.set_pong(8);
  ASSERT_TRUE(MergeBlockReplies(pong, next));
  EXPECT_EQ(pong.pong(), 8u);
  EXPECT_EQ(pong.items_size(), 1);
}

}  // namespace
}  // namespace blockserve
