// Items between the messages of block_decoder.proto and what the engine loop takes.
#ifndef BLOCKSERVE_BLOCK_SERVICE_ITEM_CODEC_H_
#define BLOCKSERVE_BLOCK_SERVICE_ITEM_CODEC_H_

#include <cstdint>

#include "absl/time/time.h"
#include "block_service/block_item.h"
#include "blockserve/v1/block_decoder.pb.h"

namespace blockserve {

// Takes what is large out of `request`. Checks nothing: the scheduler refuses what does not fit.
BlockWorkItem ToItem(v1::BlockRequest& request, StreamId stream, uint64_t incarnation,
                     absl::Time now);

}  // namespace blockserve

#endif  // BLOCKSERVE_BLOCK_SERVICE_ITEM_CODEC_H_
