// How queued messages of the two tier protocols become one (the `merge` of OutgoingQueue): items
// are laid end to end, and so are their context rows. A message with a hello stays by itself.
#ifndef BLOCKSERVE_RPC_TIER_MERGE_H_
#define BLOCKSERVE_RPC_TIER_MERGE_H_

#include "blockserve/v1/block_decoder.pb.h"
#include "blockserve/v1/token_decoder.pb.h"

namespace blockserve {

// False, with both unchanged, where they differ in the type of their contexts.
bool MergeTokenRequests(v1::TokenRequestBatch& into, v1::TokenRequestBatch& from);
// The later load counts; draining stays once told.
bool MergeTokenReplies(v1::TokenReplyBatch& into, v1::TokenReplyBatch& from);
bool MergeBlockRequests(v1::BlockRequestBatch& into, v1::BlockRequestBatch& from);
// As MergeTokenReplies. One stream's context rows are all of its hello's type.
bool MergeBlockReplies(v1::BlockReplyBatch& into, v1::BlockReplyBatch& from);

}  // namespace blockserve

#endif  // BLOCKSERVE_RPC_TIER_MERGE_H_
