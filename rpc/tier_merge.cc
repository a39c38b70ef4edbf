#include "rpc/tier_merge.h"

#include <utility>

namespace blockserve {
namespace {

template <class Message>
bool HasHello(const Message& into, const Message& from) {
  return into.has_hello() || from.has_hello();
}

template <class Items>
void MoveItems(Items& into, Items& from) {
  into.Reserve(into.size() + from.size());
  for (auto& item : from) into.Add(std::move(item));
  from.Clear();
}

template <class Batch>
void MergeLoad(Batch& into, Batch& from) {
  if (from.has_load()) *into.mutable_load() = std::move(*from.mutable_load());
  if (from.draining()) into.set_draining(true);
  if (from.pong() != 0) into.set_pong(from.pong());
}

}  // namespace

bool MergeTokenRequests(v1::TokenRequestBatch& into, v1::TokenRequestBatch& from) {
  if (HasHello(into, from)) return false;
  if (into.rows_size() > 0 && from.rows_size() > 0 && into.context_type() != from.context_type()) {
    return false;
  }
  if (into.rows_size() == 0) {
    into.set_context_type(from.context_type());
    into.mutable_contexts()->swap(*from.mutable_contexts());
  } else if (from.rows_size() > 0) {
    into.mutable_contexts()->append(from.contexts());
  }
  MoveItems(*into.mutable_rows(), *from.mutable_rows());
  into.mutable_cancel()->MergeFrom(from.cancel());
  if (from.ping() != 0) into.set_ping(from.ping());
  return true;
}

bool MergeTokenReplies(v1::TokenReplyBatch& into, v1::TokenReplyBatch& from) {
  if (HasHello(into, from)) return false;
  MoveItems(*into.mutable_rows(), *from.mutable_rows());
  MergeLoad(into, from);
  return true;
}

bool MergeBlockRequests(v1::BlockRequestBatch& into, v1::BlockRequestBatch& from) {
  if (HasHello(into, from)) return false;
  MoveItems(*into.mutable_items(), *from.mutable_items());
  if (from.ping() != 0) into.set_ping(from.ping());
  return true;
}

bool MergeBlockReplies(v1::BlockReplyBatch& into, v1::BlockReplyBatch& from) {
  if (HasHello(into, from)) return false;
  MoveItems(*into.mutable_items(), *from.mutable_items());
  into.mutable_contexts()->append(from.contexts());
  MergeLoad(into, from);
  return true;
}

}  // namespace blockserve
