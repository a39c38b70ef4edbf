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
  std::string address;  // host:port
  std::string model;    // of the requests; empty: whatever is served
  std::string api_key;  // sent as "authorization: Bearer KEY"; empty: none
  std::shared_ptr<grpc::ChannelCredentials> credentials;  // never null
  std::string server_name;  // in the server's certificate; empty: the host of `address`
  int connections = 1;      // of one transport; streams take turns
};

// Waits until the server answers. UNAVAILABLE and others: what it says instead.
absl::StatusOr<v1::GetModelResponse> AskModel(const GrpcTargetOptions& options,
                                              absl::Duration timeout);

std::unique_ptr<LoadTransport> MakeGrpcTransport(const GrpcTargetOptions& options);

}  // namespace blockserve

#endif  // BLOCKSERVE_BENCH_LOAD_GRPC_H_
