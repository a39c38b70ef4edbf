// The gRPC transport: many streams on one completion queue, and what the server says of its model.
#ifndef BLOCKSERVE_BENCH_LOAD_GRPC_H_
#define BLOCKSERVE_BENCH_LOAD_GRPC_H_

#include <grpcpp/channel.h>
#include <grpcpp/security/credentials.h>

#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "bench/load_transport.h"
#include "blockserve/v1/generation.pb.h"

namespace blockserve {

struct GrpcTargetOptions {
  std::vector<std::string> addresses;  // host:port, at least one; requests take turns
  std::string model;                   // of the requests; empty: whatever is served
  std::string api_key;                 // sent as "authorization: Bearer KEY"; empty: none
  std::shared_ptr<grpc::ChannelCredentials> credentials;  // never null
  std::string server_name;      // in the server's certificate; empty: the host of its address
  int connections = 1;          // of one transport to each address; streams take turns
  int32_t stream_interval = 0;  // asked for; 0: not
  std::string cache_salt;       // of the requests; empty: none
};

// Waits until every server answers, and tells what the first one serves. UNAVAILABLE and others:
// what one of them says instead. FAILED_PRECONDITION: they serve different models.
absl::StatusOr<v1::GetModelResponse> AskModel(const GrpcTargetOptions& options,
                                              absl::Duration timeout);

std::unique_ptr<LoadTransport> MakeGrpcTransport(const GrpcTargetOptions& options);

}  // namespace blockserve

#endif  // BLOCKSERVE_BENCH_LOAD_GRPC_H_
