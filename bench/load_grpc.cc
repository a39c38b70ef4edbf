#include "bench/load_grpc.h"

#include <grpcpp/alarm.h>
#include <grpcpp/client_context.h>
#include <grpcpp/completion_queue.h>
#include <grpcpp/create_channel.h>
#include <grpcpp/security/credentials.h>
#include <grpcpp/support/async_stream.h>

#include <chrono>
#include <unordered_set>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/time/time.h"
#include "blockserve/v1/generation.grpc.pb.h"
#include "rpc/deadline.h"
#include "rpc/status.h"

namespace blockserve {
namespace {

// Events handled in one Poll, so that due requests are sent under any load.
constexpr int kEventsOfPoll = 256;
constexpr absl::Duration kCauseTimeout = absl::Seconds(2);

std::shared_ptr<grpc::Channel> Connect(const GrpcTargetOptions& options,
                                       const std::string& address) {
  grpc::ChannelArguments arguments;
  // A connection of its own for every channel.
  arguments.SetInt(GRPC_ARG_USE_LOCAL_SUBCHANNEL_POOL, 1);
  arguments.SetInt(GRPC_ARG_ENABLE_RETRIES, 0);
  arguments.SetMaxReceiveMessageSize(64 << 20);
  // A server that comes back is found soon.
  arguments.SetInt(GRPC_ARG_MAX_RECONNECT_BACKOFF_MS, 1000);
  if (!options.server_name.empty()) {
    arguments.SetSslTargetNameOverride(options.server_name);
  }
  return grpc::CreateCustomChannel(address, options.credentials, arguments);
}

void AddCommon(const GrpcTargetOptions& options, grpc::ClientContext& context) {
  if (!options.api_key.empty()) {
    context.AddMetadata("authorization", absl::StrCat("Bearer ", options.api_key));
  }
}

v1::GenerateRequest ToRequest(const RequestSpec& spec, const GrpcTargetOptions& options) {
  v1::GenerateRequest request;
  request.set_model(options.model);
  if (options.stream_interval > 0) request.set_stream_interval(options.stream_interval);
  if (!options.cache_salt.empty()) request.set_cache_salt(options.cache_salt);
  if (spec.text.empty()) {
    request.mutable_tokens()->mutable_ids()->Add(spec.tokens.begin(), spec.tokens.end());
  } else {
    request.set_text(spec.text);
  }
  request.mutable_sampling()->set_temperature(spec.temperature);
  request.mutable_stop()->set_max_tokens(spec.max_tokens);
  request.mutable_stop()->set_ignore_eos(spec.ignore_eos);
  if (spec.n != 1) request.set_n(spec.n);
  request.set_seed(spec.seed);
  return request;
}

std::chrono::system_clock::time_point ToSystemTime(int64_t steady_micros) {
  return std::chrono::system_clock::now() +
         std::chrono::microseconds(steady_micros - SteadyMicros());
}

class GrpcTransport final : public LoadTransport {
 public:
  explicit GrpcTransport(const GrpcTargetOptions& options) : options_(options) {
    for (int i = 0; i < options_.connections; ++i) {
      for (const std::string& address : options_.addresses) {
        stubs_.push_back(v1::Generation::NewStub(Connect(options_, address)));
      }
    }
  }

  ~GrpcTransport() override {
    CancelAll();
    queue_.Shutdown();
    void* tag = nullptr;
    bool ok = false;
    while (queue_.Next(&tag, &ok)) Handle(static_cast<Call*>(tag), ok, SteadyMicros());
  }

  void Start(const RequestSpec& spec, int64_t deadline, RequestObserver* observer) override {
    auto* call = new Call;
    calls_.insert(call);
    call->observer = observer;
    AddCommon(options_, call->context);
    call->context.set_deadline(ToSystemTime(deadline));
    v1::Generation::Stub& stub = *stubs_[next_stub_++ % stubs_.size()];
    call->reader = stub.PrepareAsyncGenerate(&call->context, ToRequest(spec, options_), &queue_);
    call->reader->StartCall(call);
  }

  void Poll(int64_t until) override {
    auto deadline = ToSystemTime(until);
    for (int i = 0; i < kEventsOfPoll; ++i) {
      void* tag = nullptr;
      bool ok = false;
      if (queue_.AsyncNext(&tag, &ok, deadline) != grpc::CompletionQueue::GOT_EVENT) return;
      Handle(static_cast<Call*>(tag), ok, SteadyMicros());
      deadline = std::chrono::system_clock::time_point();  // only what is there already
    }
  }

  void CancelAll() override {
    for (Call* call : calls_) call->context.TryCancel();
  }

 private:
  // One operation at a time is under way, whose tag is the call.
  struct Call {
    grpc::ClientContext context;
    std::unique_ptr<grpc::ClientAsyncReader<v1::GenerateResponse>> reader;
    v1::GenerateResponse event;
    grpc::Status status;
    RequestObserver* observer = nullptr;
    enum class Stage { kStarting, kReading, kFinishing } stage = Stage::kStarting;
  };

  void Handle(Call* call, bool ok, int64_t now) {
    switch (call->stage) {
      case Call::Stage::kReading:
        if (ok) Take(*call, now);
        [[fallthrough]];
      case Call::Stage::kStarting:
        if (ok) {
          call->stage = Call::Stage::kReading;
          call->reader->Read(&call->event, call);
        } else {
          call->stage = Call::Stage::kFinishing;
          call->reader->Finish(&call->status, call);
        }
        return;
      case Call::Stage::kFinishing: {
        const absl::Status status = FromGrpcStatus(call->status);
        RequestObserver* const observer = call->observer;
        calls_.erase(call);
        delete call;
        observer->OnEnd(now, status.ok() ? "" : absl::StatusCodeToString(status.code()),
                        std::string(status.message()));
        return;
      }
    }
  }

  static void Take(Call& call, int64_t now) {
    const v1::GenerateResponse& event = call.event;
    if (event.has_output()) {
      const v1::Output& output = event.output();
      call.observer->OnTokens(output.choice(), output.tokens_size(), output.tokens());
      call.observer->OnMessageEnd(now);
    } else if (event.has_finished()) {
      call.observer->OnFinished(event.finished().choice());
    } else if (event.has_usage()) {
      const v1::Usage& usage = event.usage();
      call.observer->OnUsage(
          {usage.prompt_tokens(), usage.completion_tokens(), usage.cached_prompt_tokens()});
    }
  }

  const GrpcTargetOptions options_;
  grpc::CompletionQueue queue_;
  std::vector<std::unique_ptr<v1::Generation::Stub>> stubs_;
  size_t next_stub_ = 0;
  std::unordered_set<Call*> calls_;  // owned; each until its last event
};

absl::StatusOr<v1::GetModelResponse> AskModelOf(const GrpcTargetOptions& options,
                                                const std::string& address,
                                                absl::Duration timeout) {
  const auto stub = v1::Generation::NewStub(Connect(options, address));
  v1::GetModelRequest request;
  request.set_model(options.model);
  v1::GetModelResponse response;
  const auto ask = [&](bool wait, absl::Duration limit) {
    grpc::ClientContext context;
    AddCommon(options, context);
    context.set_wait_for_ready(wait);
    context.set_deadline(GrpcDeadlineIn(limit));
    return FromGrpcStatus(stub->GetModel(&context, request, &response));
  };
  absl::Status status = ask(/*wait=*/true, timeout);
  if (absl::IsDeadlineExceeded(status)) {
    // Who waits is not told why nobody could be reached; who does not is, at once.
    status = ask(/*wait=*/false, kCauseTimeout);
    if (!status.ok()) {
      return absl::UnavailableError(
          absl::StrCat(address, " does not answer within ", absl::FormatDuration(timeout),
                       absl::IsUnavailable(status) ? absl::StrCat(": ", status.message()) : ""));
    }
  }
  if (!status.ok()) {
    return absl::Status(status.code(), absl::StrCat(address, ": ", status.message()));
  }
  return response;
}

}  // namespace

absl::StatusOr<v1::GetModelResponse> AskModel(const GrpcTargetOptions& options,
                                              absl::Duration timeout) {
  absl::StatusOr<v1::GetModelResponse> first =
      AskModelOf(options, options.addresses.front(), timeout);
  for (size_t i = 1; i < options.addresses.size() && first.ok(); ++i) {
    const absl::StatusOr<v1::GetModelResponse> other =
        AskModelOf(options, options.addresses[i], timeout);
    if (!other.ok()) return other.status();
    if (other->name() != first->name()) {
      return absl::FailedPreconditionError(absl::StrCat(options.addresses.front(), " serves '",
                                                        first->name(), "', ", options.addresses[i],
                                                        " '", other->name(), "'"));
    }
  }
  return first;
}

std::unique_ptr<LoadTransport> MakeGrpcTransport(const GrpcTargetOptions& options) {
  return std::make_unique<GrpcTransport>(options);
}

}  // namespace blockserve
