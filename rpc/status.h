// Conversions between the status types of Abseil, gRPC and the internal protocols. The codes have
// the same numbers everywhere (common/status_catalogue.h).
#ifndef BLOCKSERVE_RPC_STATUS_H_
#define BLOCKSERVE_RPC_STATUS_H_

#include <grpcpp/support/status.h>

#include <string>

#include "absl/status/status.h"
#include "blockserve/v1/tier.pb.h"
#include "common/status_catalogue.h"

namespace blockserve {

inline grpc::Status ToGrpcStatus(const absl::Status& status) {
  if (status.ok()) return grpc::Status::OK;
  return grpc::Status(static_cast<grpc::StatusCode>(StatusCodeToWire(status.code())),
                      std::string(status.message()));
}

inline absl::Status FromGrpcStatus(const grpc::Status& status) {
  if (status.ok()) return absl::OkStatus();
  return absl::Status(StatusCodeFromWire(status.error_code()), status.error_message());
}

// An absent ItemStatus means OK: do not write one for OK where the message is repeated often.
inline v1::ItemStatus ToItemStatus(const absl::Status& status) {
  v1::ItemStatus item;
  if (!status.ok()) {
    item.set_code(StatusCodeToWire(status.code()));
    item.set_message(std::string(status.message()));
  }
  return item;
}

}  // namespace blockserve

#endif  // BLOCKSERVE_RPC_STATUS_H_
