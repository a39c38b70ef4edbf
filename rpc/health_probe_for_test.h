// grpc.health.v1 as tests ask it.
#ifndef BLOCKSERVE_RPC_HEALTH_PROBE_FOR_TEST_H_
#define BLOCKSERVE_RPC_HEALTH_PROBE_FOR_TEST_H_

#include <grpcpp/create_channel.h>
#include <grpcpp/generic/generic_stub.h>

#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/synchronization/notification.h"

namespace blockserve {

inline grpc::ByteBuffer ToBuffer(const std::string& bytes) {
  grpc::Slice slice(bytes);
  return grpc::ByteBuffer(&slice, 1);
}

inline std::string ToString(const grpc::ByteBuffer& buffer) {
  std::vector<grpc::Slice> slices;
  buffer.Dump(&slices);
  std::string bytes;
  for (const grpc::Slice& slice : slices) {
    bytes.append(reinterpret_cast<const char*>(slice.begin()), slice.size());
  }
  return bytes;
}

// A unary call without generated code (grpc.health's is not installed).
inline grpc::Status Call(const std::shared_ptr<grpc::Channel>& channel, const std::string& method,
                         const std::string& request, std::string& response) {
  grpc::GenericStub stub(channel);
  grpc::ClientContext context;
  context.set_wait_for_ready(true);
  context.set_deadline(std::chrono::system_clock::now() + std::chrono::seconds(60));
  const grpc::ByteBuffer in = ToBuffer(request);
  grpc::ByteBuffer out;
  grpc::Status status;
  absl::Notification done;
  stub.UnaryCall(&context, method, grpc::StubOptions(), &in, &out, [&](grpc::Status result) {
    status = std::move(result);
    done.Notify();
  });
  done.WaitForNotification();
  if (status.ok()) response = ToString(out);
  return status;
}

enum class Health { kUnknown, kServing, kNotServing, kNoAnswer };

// What grpc.health.v1 says of a service; kNoAnswer: an error, as for a name that nobody knows.
inline Health Check(const std::shared_ptr<grpc::Channel>& channel, const std::string& scope = "") {
  std::string request;
  if (!scope.empty()) request = absl::StrCat("\x0a", std::string(1, char(scope.size())), scope);
  std::string response;
  if (!Call(channel, "/grpc.health.v1.Health/Check", request, response).ok()) {
    return Health::kNoAnswer;
  }
  if (response == std::string("\x08\x01")) return Health::kServing;
  if (response == std::string("\x08\x02")) return Health::kNotServing;
  return Health::kUnknown;
}

inline std::shared_ptr<grpc::Channel> Dial(const std::string& address) {
  return grpc::CreateChannel(address, grpc::InsecureChannelCredentials());
}

}  // namespace blockserve

#endif  // BLOCKSERVE_RPC_HEALTH_PROBE_FOR_TEST_H_
