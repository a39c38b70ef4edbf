// The orderly end of a gateway and its fronts.
#ifndef BLOCKSERVE_GATEWAY_END_SERVING_H_
#define BLOCKSERVE_GATEWAY_END_SERVING_H_

#include "absl/time/time.h"
#include "gateway/gateway.h"
#include "gateway/http/front.h"
#include "rpc/server.h"

namespace blockserve {

// Not ready, and nothing new is taken; requests that run may take `drain_time` to end. What runs
// longer is told UNAVAILABLE, after all of its tokens so far, so that clients go on with it
// elsewhere; only clients that do not read even that within a moment are cut off. Returns when the
// fronts and the gateway have stopped. `http` may be null.
void EndServing(RpcServer& grpc, HttpFront* http, Gateway& gateway, absl::Duration drain_time);

}  // namespace blockserve

#endif  // BLOCKSERVE_GATEWAY_END_SERVING_H_
