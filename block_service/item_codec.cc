#include "block_service/item_codec.h"

#include <utility>
#include <vector>

namespace blockserve {
namespace {

std::vector<int32_t> Tokens(const google::protobuf::RepeatedField<int32_t>& tokens) {
  return {tokens.begin(), tokens.end()};
}

}  // namespace

BlockWorkItem ToItem(v1::BlockRequest& request, StreamId stream, uint64_t incarnation,
                     absl::Time now) {
  BlockWorkItem item;
  item.stream = stream;
  item.id = request.id();
  item.sequence = {incarnation, request.sequence()};
  if (request.header().remaining_ms() > 0) {
    item.deadline = now + absl::Milliseconds(request.header().remaining_ms());
  }
  item.priority = request.header().priority();
  switch (request.call_case()) {
    case v1::BlockRequest::kOpen:
      item.call = OpenCall{
          Tokens(request.open().tokens()), request.open().reserve_blocks(),
          request.open().first_context(), request.open().close_after(),
          absl::MakeUint128(request.open().cache_pool_high(), request.open().cache_pool_low())};
      break;
    case v1::BlockRequest::kAppend:
      item.call = AppendCall{request.append().block_index(),
                             {request.append().tokens().begin(), request.append().tokens().end()}};
      break;
    case v1::BlockRequest::kFork:
      item.call = ForkCall{request.fork().parent(), request.fork().blocks(),
                           request.fork().reserve_blocks()};
      break;
    case v1::BlockRequest::kClose:
      item.call = CloseCall{};
      break;
    case v1::BlockRequest::kCancel:
      item.call = CancelCall{request.cancel().item()};
      break;
    case v1::BlockRequest::CALL_NOT_SET:
      break;
  }
  return item;
}

}  // namespace blockserve
