#include "gateway/generation_service.h"

#include <grpc/support/time.h>
#include <grpcpp/impl/codegen/proto_utils.h>

#include <memory>
#include <utility>

#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"
#include "absl/time/time.h"
#include "common/mutex.h"
#include "gateway/call_metadata.h"
#include "gateway/known_fields.h"
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

// Until the call's deadline. Not by deadline(), a time of the wall clock: when that has been set
// back, absl::Now() goes on from before for up to two seconds, and every call seems too late.
absl::Duration TimeLeft(const grpc::CallbackServerContext& context) {
  const gpr_timespec deadline = context.raw_deadline();
  if (gpr_time_cmp(deadline, gpr_inf_future(deadline.clock_type)) == 0) {
    return absl::InfiniteDuration();
  }
  const gpr_timespec left = gpr_time_sub(deadline, gpr_now(deadline.clock_type));
  return absl::Seconds(left.tv_sec) + absl::Nanoseconds(left.tv_nsec);
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
  static std::shared_ptr<ScoreCall> Create(GenerationCore* core,
                                           grpc::CallbackServerContext* context,
                                           grpc::ByteBuffer* response, absl::Duration unread_for) {
    std::shared_ptr<ScoreCall> call(new ScoreCall(core, context, response, unread_for));
    call->self_ = call;
    return call;
  }
  // Of GenerateCall.
  void Begin(absl::StatusOr<ScoringRequest> request) {
    if (!request.ok()) return OnDone(request.status());
    const GenerationId id = core_->Score(*std::move(request), shared_from_this());
    bool gone = false;
    {
      MutexLock lock(&mutex_);
      id_ = id;
      gone = gone_;
    }
    if (gone) core_->Cancel(id, ClientHasGone());
  }
  bool gone() const {
    MutexLock lock(&mutex_);
    return gone_;
  }

  void OnDone(absl::StatusOr<v1::ScoreResponse> response) override {
    {
      MutexLock lock(&mutex_);
      if (std::exchange(finished_, true)) return;
    }
    unread_.Start();
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
  ScoreCall(GenerationCore* core, grpc::CallbackServerContext* context, grpc::ByteBuffer* response,
            absl::Duration unread_for)
      : core_(core), context_(context), response_(response), unread_(context, unread_for) {}

  GenerationCore* const core_;
  grpc::CallbackServerContext* const context_;  // gRPC's, until OnDone
  grpc::ByteBuffer* const response_;            // gRPC's, until OnDone
  UnreadLimit unread_;
  mutable Mutex mutex_;
  std::optional<GenerationId> id_ ABSL_GUARDED_BY(mutex_);
  bool gone_ ABSL_GUARDED_BY(mutex_) = false;      // the client has left
  bool finished_ ABSL_GUARDED_BY(mutex_) = false;  // Finish is called, by whoever set this
  std::shared_ptr<ScoreCall> self_;
};

// One call that is answered without the core. gRPC's, until OnDone.
class AnswerCall final : public grpc::ServerUnaryReactor {
 public:
  AnswerCall(grpc::CallbackServerContext* context, absl::Duration unread_for)
      : unread_(context, unread_for) {}
  void Answer(const grpc::Status& status) {
    unread_.Start();
    Finish(status);
  }
  void OnDone() override { delete this; }

 private:
  UnreadLimit unread_;
};

}  // namespace

absl::StatusOr<std::string> GenerationService::Authenticate(
    const grpc::CallbackServerContext& context) const {
  if (keys_ == nullptr) return std::string();
  const auto found = context.client_metadata().find("authorization");
  if (found == context.client_metadata().end()) return keys_->AuthenticateHeader("");
  return keys_->AuthenticateHeader({found->second.data(), found->second.size()});
}

// Calls `read` with OK, on another thread for a long request, or, where there is no room for it
// there, with the error.
template <class Read>
void GenerationService::ReadRequest(const std::string& key, const grpc::ByteBuffer& bytes,
                                    Read read) {
  const size_t size = bytes.Length();
  if (size <= kLongTextBytes) return read(absl::OkStatus());
  if (!text_workers_.Run(key, size, [read]() mutable { read(absl::OkStatus()); })) {
    read(TooManyTexts());
  }
}

// Parse, `answer`, serialize.
template <class Request, class Answer>
grpc::ServerUnaryReactor* GenerationService::AnswerUnary(grpc::CallbackServerContext* context,
                                                         const grpc::ByteBuffer& bytes,
                                                         grpc::ByteBuffer* response,
                                                         std::optional<RequestMethod> counted,
                                                         Answer answer) {
  auto* const call = new AnswerCall(context, unread_for_);
  // Context and response are there until the reactor has finished, whether or not the client is.
  const auto read = [this, context, response, counted, answer, call, bytes,
                     arrived = core_->Now()](const absl::Status& status) {
    const auto answered = [&]() -> decltype(answer(Request())) {
      if (!status.ok()) return status;
      if (context->IsCancelled()) return ClientHasGone();
      absl::StatusOr<Request> parsed = Parse<Request>(bytes);
      if (!parsed.ok()) return parsed.status();
      if (absl::Status known = CheckFieldsAreKnown(*parsed); !known.ok()) return known;
      return answer(*parsed);
    };
    const auto made = answered();
    if (counted.has_value()) core_->OnAnswered(*counted, made.status(), core_->Now() - arrived);
    call->Answer(made.ok() ? Serialize(made, response) : FinalStatus(made.status(), *context));
  };
  absl::StatusOr<std::string> key = Authenticate(*context);
  absl::Status status = key.status();
  if (status.ok() && counted.has_value()) status = core_->TakeFromRate(*key);
  if (status.ok()) {
    ReadRequest(*key, bytes, read);
  } else {
    read(status);
  }
  return call;
}

// Parse, `validate`, and begin `call`.
template <class Message, class Call, class Validate>
void GenerationService::BeginCall(const std::shared_ptr<Call>& call,
                                  const grpc::CallbackServerContext& context,
                                  const grpc::ByteBuffer& bytes, RequestMethod method,
                                  Validate validate) {
  absl::StatusOr<std::string> key = Authenticate(context);
  RefusedRequest refused{.method = method, .key = key.ok() ? *key : ""};
  // The context is gRPC's, and may be gone with the client.
  auto read = [this, call, bytes, validate, refused, trace = CallerTrace(context),
               deadline = RequestDeadline(TimeLeft(context), core_->Now())](
                  const absl::Status& status) mutable {
    using Made = decltype(validate(Message(), deadline));
    const auto validated = [&]() -> Made {
      if (!status.ok()) return status;
      if (call->gone()) return ClientHasGone();
      absl::StatusOr<Message> parsed = Parse<Message>(bytes);
      if (!parsed.ok()) return parsed.status();
      refused.request_id = Shortened(parsed->request_id());
      if (absl::Status known = CheckFieldsAreKnown(*parsed); !known.ok()) return known;
      SetDefaultPriority(refused.key, *parsed);
      Made made = validate(*parsed, deadline);
      if (!made.ok()) return made;
      if (keys_ != nullptr) {
        if (absl::Status allowed = keys_->CheckPriority(refused.key, made->priority);
            !allowed.ok()) {
          return allowed;
        }
      }
      made->key = refused.key;
      made->origin.trace = trace;
      return made;
    };
    Made made = validated();
    if (!made.ok()) {
      refused.status = made.status();
      core_->OnRefused(refused);
    }
    call->Begin(std::move(made));
  };
  absl::Status status = key.status();
  if (status.ok()) status = core_->CheckRate(*key);
  if (status.ok()) {
    ReadRequest(*key, bytes, read);
  } else {
    read(status);
  }
}

v1::GetModelResponse GenerationService::DescribeModel() const {
  v1::GetModelResponse response;
  validator_->FillModel(response);
  core_->FillModelStatus(response);
  return response;
}

grpc::ServerWriteReactor<grpc::ByteBuffer>* GenerationService::Generate(
    grpc::CallbackServerContext* context, const grpc::ByteBuffer* request) {
  const std::shared_ptr<GenerateCall> call =
      GenerateCall::Create(core_, writers_, context, unread_for_);
  BeginCall<v1::GenerateRequest>(call, *context, *request, RequestMethod::kGenerate,
                                 [this](const v1::GenerateRequest& parsed, absl::Time deadline) {
                                   return validator_->Generation(parsed, DescribeModel().model_id(),
                                                                 deadline);
                                 });
  return call.get();
}

grpc::ServerUnaryReactor* GenerationService::Score(grpc::CallbackServerContext* context,
                                                   const grpc::ByteBuffer* request,
                                                   grpc::ByteBuffer* response) {
  const std::shared_ptr<ScoreCall> call = ScoreCall::Create(core_, context, response, unread_for_);
  BeginCall<v1::ScoreRequest>(call, *context, *request, RequestMethod::kScore,
                              [this](const v1::ScoreRequest& parsed, absl::Time deadline) {
                                return validator_->Scoring(parsed, DescribeModel().model_id(),
                                                           deadline);
                              });
  return call.get();
}

grpc::ServerUnaryReactor* GenerationService::Tokenize(grpc::CallbackServerContext* context,
                                                      const grpc::ByteBuffer* request,
                                                      grpc::ByteBuffer* response) {
  return AnswerUnary<v1::TokenizeRequest>(
      context, *request, response, RequestMethod::kTokenize, [this](const auto& parsed) {
        return validator_->Tokenize(parsed, DescribeModel().model_id());
      });
}

grpc::ServerUnaryReactor* GenerationService::Detokenize(grpc::CallbackServerContext* context,
                                                        const grpc::ByteBuffer* request,
                                                        grpc::ByteBuffer* response) {
  return AnswerUnary<v1::DetokenizeRequest>(
      context, *request, response, RequestMethod::kDetokenize, [this](const auto& parsed) {
        return validator_->Detokenize(parsed, DescribeModel().model_id());
      });
}

grpc::ServerUnaryReactor* GenerationService::GetModel(grpc::CallbackServerContext* context,
                                                      const grpc::ByteBuffer* request,
                                                      grpc::ByteBuffer* response) {
  return AnswerUnary<v1::GetModelRequest>(
      context, *request, response, /*counted=*/std::nullopt,
      [this](const auto& parsed) -> absl::StatusOr<v1::GetModelResponse> {
        v1::GetModelResponse description = DescribeModel();
        if (absl::Status status = validator_->Model(parsed.model(), description.model_id());
            !status.ok()) {
          return status;
        }
        return description;
      });
}

}  // namespace blockserve
