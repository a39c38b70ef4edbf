#include "gateway/generation_service.h"

#include <grpcpp/impl/codegen/proto_utils.h>

#include <memory>
#include <utility>

#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "common/mutex.h"
#include "gateway/call_metadata.h"
#include "gateway/generate_call.h"
#include "rpc/status.h"

namespace blockserve {
namespace {

template <class Message>
absl::StatusOr<Message> Parse(const grpc::ByteBuffer& bytes) {
  Message message;
  grpc::ByteBuffer copy(bytes);  // of the references: reading consumes it
  if (!grpc::SerializationTraits<Message>::Deserialize(&copy, &message).ok()) {
    return absl::InvalidArgumentError(
        absl::StrCat("the request is no ", Message::descriptor()->full_name(),
                     ": malformed, or a string in it is not valid UTF-8"));
  }
  return message;
}

// As much of a request's id as may have been one: it goes into the log.
std::string Shortened(const std::string& request_id) {
  return request_id.substr(0, kMaxRequestIdBytes);
}

template <class Message>
grpc::Status Serialize(const absl::StatusOr<Message>& message, grpc::ByteBuffer* bytes) {
  if (!message.ok()) return ToGrpcStatus(message.status());
  bool own_buffer = false;
  return grpc::SerializationTraits<Message>::Serialize(*message, bytes, &own_buffer);
}

// One Score call. Owns itself until gRPC's OnDone; the core shares the ownership.
class ScoreCall final : public grpc::ServerUnaryReactor,
                        public ScoringSink,
                        public std::enable_shared_from_this<ScoreCall> {
 public:
  static grpc::ServerUnaryReactor* Start(GenerationCore* core, grpc::CallbackServerContext* context,
                                         grpc::ByteBuffer* response,
                                         absl::StatusOr<ScoringRequest> request) {
    std::shared_ptr<ScoreCall> call(new ScoreCall(core, context, response));
    call->self_ = call;
    if (!request.ok()) {
      call->OnDone(request.status());
      return call.get();
    }
    const GenerationId id = core->Score(*std::move(request), call);
    bool gone = false;
    {
      MutexLock lock(&call->mutex_);
      call->id_ = id;
      gone = call->gone_;
    }
    if (gone) core->Cancel(id, ClientHasGone());
    return call.get();
  }

  void OnDone(absl::StatusOr<v1::ScoreResponse> response) override {
    {
      MutexLock lock(&mutex_);
      if (std::exchange(finished_, true)) return;
    }
    Finish(response.ok() ? Serialize(response, response_)
                         : FinalStatus(response.status(), *context_));
  }

  void OnCancel() override {
    std::optional<GenerationId> cancel;
    bool finish = false;
    {
      MutexLock lock(&mutex_);
      gone_ = true;
      cancel = id_;
      finish = !std::exchange(finished_, true);
    }
    if (cancel.has_value()) core_->Cancel(*cancel, ClientHasGone());
    if (finish) Finish(grpc::Status::CANCELLED);
  }

  void OnDone() override { std::exchange(self_, nullptr).reset(); }

 private:
  ScoreCall(GenerationCore* core, grpc::CallbackServerContext* context, grpc::ByteBuffer* response)
      : core_(core), context_(context), response_(response) {}

  GenerationCore* const core_;
  grpc::CallbackServerContext* const context_;  // gRPC's, until OnDone
  grpc::ByteBuffer* const response_;            // gRPC's, until OnDone
  Mutex mutex_;
  std::optional<GenerationId> id_ ABSL_GUARDED_BY(mutex_);
  bool gone_ ABSL_GUARDED_BY(mutex_) = false;      // the client has left
  bool finished_ ABSL_GUARDED_BY(mutex_) = false;  // Finish is called, by whoever set this
  std::shared_ptr<ScoreCall> self_;
};

}  // namespace

absl::StatusOr<std::string> GenerationService::Authenticate(
    const grpc::CallbackServerContext& context) const {
  if (keys_ == nullptr) return std::string();
  const auto found = context.client_metadata().find("authorization");
  if (found == context.client_metadata().end()) return keys_->AuthenticateHeader("");
  return keys_->AuthenticateHeader({found->second.data(), found->second.size()});
}

// Answers a call at once: parse, `answer`, serialize.
template <class Request, class Answer>
grpc::ServerUnaryReactor* GenerationService::AnswerNow(grpc::CallbackServerContext* context,
                                                       const grpc::ByteBuffer& request,
                                                       grpc::ByteBuffer* response,
                                                       std::optional<RequestMethod> counted,
                                                       Answer answer) {
  grpc::ServerUnaryReactor* reactor = context->DefaultReactor();
  const absl::Time arrived = core_->Now();
  const auto answered = [&]() -> decltype(answer(Request())) {
    absl::StatusOr<std::string> key = Authenticate(*context);
    if (!key.ok()) return key.status();
    if (counted.has_value()) {
      if (absl::Status status = core_->TakeFromRate(*key); !status.ok()) return status;
    }
    absl::StatusOr<Request> parsed = Parse<Request>(request);
    if (!parsed.ok()) return parsed.status();
    return answer(*parsed);
  };
  const auto made = answered();
  if (counted.has_value()) core_->OnAnswered(*counted, made.status(), core_->Now() - arrived);
  reactor->Finish(made.ok() ? Serialize(made, response) : FinalStatus(made.status(), *context));
  return reactor;
}

v1::GetModelResponse GenerationService::DescribeModel() const {
  v1::GetModelResponse response;
  validator_->FillModel(response);
  core_->FillModelStatus(response);
  return response;
}

grpc::ServerWriteReactor<grpc::ByteBuffer>* GenerationService::Generate(
    grpc::CallbackServerContext* context, const grpc::ByteBuffer* request) {
  RefusedRequest refused;
  const auto validated = [&]() -> absl::StatusOr<GenerationRequest> {
    absl::StatusOr<std::string> key = Authenticate(*context);
    if (!key.ok()) return key.status();
    refused.key = *key;
    if (absl::Status status = core_->CheckRate(*key); !status.ok()) return status;
    absl::StatusOr<v1::GenerateRequest> parsed = Parse<v1::GenerateRequest>(*request);
    if (!parsed.ok()) return parsed.status();
    refused.request_id = Shortened(parsed->request_id());
    SetDefaultPriority(*key, *parsed);
    absl::StatusOr<GenerationRequest> made =
        validator_->Generation(*parsed, DescribeModel().model_id(),
                               RequestDeadline(context->deadline(), absl::Now(), core_->Now()));
    if (!made.ok()) return made;
    if (keys_ != nullptr) {
      if (absl::Status status = keys_->CheckPriority(*key, made->priority); !status.ok()) {
        return status;
      }
    }
    made->key = *std::move(key);
    made->origin.trace = CallerTrace(*context);
    return made;
  };
  absl::StatusOr<GenerationRequest> made = validated();
  if (!made.ok()) {
    refused.status = made.status();
    core_->OnRefused(refused);
  }
  return GenerateCall::Start(core_, context, std::move(made));
}

grpc::ServerUnaryReactor* GenerationService::Score(grpc::CallbackServerContext* context,
                                                   const grpc::ByteBuffer* request,
                                                   grpc::ByteBuffer* response) {
  RefusedRequest refused{.method = RequestMethod::kScore};
  const auto validated = [&]() -> absl::StatusOr<ScoringRequest> {
    absl::StatusOr<std::string> key = Authenticate(*context);
    if (!key.ok()) return key.status();
    refused.key = *key;
    if (absl::Status status = core_->CheckRate(*key); !status.ok()) return status;
    absl::StatusOr<v1::ScoreRequest> parsed = Parse<v1::ScoreRequest>(*request);
    if (!parsed.ok()) return parsed.status();
    refused.request_id = Shortened(parsed->request_id());
    SetDefaultPriority(*key, *parsed);
    absl::StatusOr<ScoringRequest> made =
        validator_->Scoring(*parsed, DescribeModel().model_id(),
                            RequestDeadline(context->deadline(), absl::Now(), core_->Now()));
    if (!made.ok()) return made;
    if (keys_ != nullptr) {
      if (absl::Status status = keys_->CheckPriority(*key, made->priority); !status.ok()) {
        return status;
      }
    }
    made->key = *std::move(key);
    made->origin.trace = CallerTrace(*context);
    return made;
  };
  absl::StatusOr<ScoringRequest> made = validated();
  if (!made.ok()) {
    refused.status = made.status();
    core_->OnRefused(refused);
  }
  return ScoreCall::Start(core_, context, response, std::move(made));
}

grpc::ServerUnaryReactor* GenerationService::Tokenize(grpc::CallbackServerContext* context,
                                                      const grpc::ByteBuffer* request,
                                                      grpc::ByteBuffer* response) {
  return AnswerNow<v1::TokenizeRequest>(
      context, *request, response, RequestMethod::kTokenize,
      [&](const auto& parsed) { return validator_->Tokenize(parsed, DescribeModel().model_id()); });
}

grpc::ServerUnaryReactor* GenerationService::Detokenize(grpc::CallbackServerContext* context,
                                                        const grpc::ByteBuffer* request,
                                                        grpc::ByteBuffer* response) {
  return AnswerNow<v1::DetokenizeRequest>(
      context, *request, response, RequestMethod::kDetokenize, [&](const auto& parsed) {
        return validator_->Detokenize(parsed, DescribeModel().model_id());
      });
}

grpc::ServerUnaryReactor* GenerationService::GetModel(grpc::CallbackServerContext* context,
                                                      const grpc::ByteBuffer* request,
                                                      grpc::ByteBuffer* response) {
  return AnswerNow<v1::GetModelRequest>(
      context, *request, response, /*counted=*/std::nullopt,
      [&](const auto& parsed) -> absl::StatusOr<v1::GetModelResponse> {
        v1::GetModelResponse description = DescribeModel();
        if (absl::Status status = validator_->Model(parsed.model(), description.model_id());
            !status.ok()) {
          return status;
        }
        return description;
      });
}

}  // namespace blockserve
