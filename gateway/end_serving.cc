#include "gateway/end_serving.h"

namespace blockserve {
namespace {

// For clients to take what they are told at the end of the drain time.
constexpr absl::Duration kLastWords = absl::Seconds(2);

}  // namespace

void EndServing(RpcServer& grpc, HttpFront* http, Gateway& gateway, absl::Duration drain_time) {
  grpc.SetServing(false);
  gateway.StartDraining(drain_time);
  const absl::Time limit = gateway.core().Now() + drain_time + kLastWords;
  if (http != nullptr) http->StartDraining();
  grpc.Shutdown(drain_time + kLastWords);
  if (http != nullptr) http->Shutdown(limit - gateway.core().Now());
  gateway.Stop();
}

}  // namespace blockserve
