// The gRPC front of the gateway: blockserve.v1.Generation. Thin: requests are validated and handed
// to the core, its events are written to the stream.
#ifndef BLOCKSERVE_GATEWAY_GENERATION_SERVICE_H_
#define BLOCKSERVE_GATEWAY_GENERATION_SERVICE_H_

#include <grpcpp/support/server_callback.h>

#include <memory>
#include <optional>
#include <string>

#include "absl/status/statusor.h"
#include "blockserve/v1/generation.grpc.pb.h"
#include "gateway/api_keys.h"
#include "gateway/generate_call.h"
#include "gateway/generation.h"
#include "gateway/stream_writers.h"
#include "gateway/text_workers.h"
#include "gateway/validate.h"

namespace blockserve {

namespace internal {
// Requests are parsed here rather than by gRPC, which answers UNIMPLEMENTED with an empty message
// to bytes that are no message, a string that is not UTF-8 included. Clients are told what is
// wrong.
using RawGenerationService = v1::Generation::WithRawCallbackMethod_Generate<
    v1::Generation::WithRawCallbackMethod_Score<v1::Generation::WithRawCallbackMethod_Tokenize<
        v1::Generation::WithRawCallbackMethod_Detokenize<
            v1::Generation::WithRawCallbackMethod_GetModel<v1::Generation::Service>>>>>;
}  // namespace internal

class GenerationService final : public internal::RawGenerationService {
 public:
  // All must outlive the service. `keys`: null where everybody may call. `writers`: as of
  // GenerateCall. `unread_for`: of UnreadLimit.
  GenerationService(GenerationCore* core, const RequestValidator* validator,
                    ApiKeys* keys = nullptr, StreamWriters* writers = nullptr,
                    absl::Duration unread_for = UnreadLimit::kTime)
      : core_(core),
        validator_(validator),
        keys_(keys),
        writers_(writers),
        unread_for_(unread_for) {}

  grpc::ServerWriteReactor<grpc::ByteBuffer>* Generate(grpc::CallbackServerContext* context,
                                                       const grpc::ByteBuffer* request) override;
  grpc::ServerUnaryReactor* Score(grpc::CallbackServerContext* context,
                                  const grpc::ByteBuffer* request,
                                  grpc::ByteBuffer* response) override;
  grpc::ServerUnaryReactor* Tokenize(grpc::CallbackServerContext* context,
                                     const grpc::ByteBuffer* request,
                                     grpc::ByteBuffer* response) override;
  grpc::ServerUnaryReactor* Detokenize(grpc::CallbackServerContext* context,
                                       const grpc::ByteBuffer* request,
                                       grpc::ByteBuffer* response) override;
  grpc::ServerUnaryReactor* GetModel(grpc::CallbackServerContext* context,
                                     const grpc::ByteBuffer* request,
                                     grpc::ByteBuffer* response) override;

 private:
  v1::GetModelResponse DescribeModel() const;
  // The name of the caller's key, empty where none is needed; UNAUTHENTICATED.
  absl::StatusOr<std::string> Authenticate(const grpc::CallbackServerContext& context) const;
  // Where the request names none.
  template <typename Request>
  void SetDefaultPriority(const std::string& key, Request& request) const {
    if (keys_ == nullptr || request.priority() != v1::PRIORITY_UNSPECIFIED) return;
    request.set_priority(static_cast<v1::Priority>(keys_->DefaultPriority(key)));
  }
  template <class Read>
  void ReadRequest(const std::string& key, const grpc::ByteBuffer& bytes, Read read);
  // `counted`: as what the call is counted, and that it takes one request of its key's rate.
  template <class Request, class Answer>
  grpc::ServerUnaryReactor* AnswerUnary(grpc::CallbackServerContext* context,
                                        const grpc::ByteBuffer& bytes, grpc::ByteBuffer* response,
                                        std::optional<RequestMethod> counted, Answer answer);
  template <class Message, class Call, class Validate>
  void BeginCall(const std::shared_ptr<Call>& call, const grpc::CallbackServerContext& context,
                 const grpc::ByteBuffer& bytes, RequestMethod method, Validate validate);

  GenerationCore* const core_;
  const RequestValidator* const validator_;
  ApiKeys* const keys_;
  StreamWriters* const writers_;
  const absl::Duration unread_for_;
  // gRPC has few threads, and writes all streams with them.
  TextWorkers text_workers_{"grpc-text", /*threads=*/1, kMostWaitingTextBytes};
};

}  // namespace blockserve

#endif  // BLOCKSERVE_GATEWAY_GENERATION_SERVICE_H_
