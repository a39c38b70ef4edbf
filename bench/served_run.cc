#include "bench/served_run.h"

#include <grpcpp/grpcpp.h>
#include <sys/resource.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstdlib>
#include <filesystem>
#include <system_error>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "bench/engine_run.h"
#include "common/clock.h"
#include "common/mutex.h"
#include "rpc/deadline.h"
#include "rpc/status.h"

namespace blockserve {
namespace {

constexpr absl::Duration kStartLimit = absl::Minutes(2);
constexpr absl::Duration kRunLimit = absl::Minutes(30);
// As many clients would have: the streams of one connection are written by one thread at a time.
constexpr int kConnectionsPerServer = 4;

double Now() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

// The end of the last stream ends the run.
class Countdown {
 public:
  explicit Countdown(int64_t count) : left_(count) {}
  void Done() {
    MutexLock lock(&mutex_);
    if (--left_ == 0) changed_.SignalAll();
  }
  void Wait() {
    MutexLock lock(&mutex_);
    while (left_ > 0) changed_.Wait(&mutex_);
  }

 private:
  Mutex mutex_;
  CondVar changed_;
  int64_t left_ ABSL_GUARDED_BY(mutex_);
};

// One generation: reads its events until the end.
class StreamReader final : public grpc::ClientReadReactor<v1::GenerateResponse> {
 public:
  StreamReader(v1::Generation::Stub& stub, const std::vector<int32_t>& prompt,
               int64_t generate_tokens, Countdown& countdown)
      : countdown_(countdown) {
    v1::GenerateRequest request;
    request.mutable_tokens()->mutable_ids()->Add(prompt.begin(), prompt.end());
    request.mutable_sampling()->set_temperature(0);
    request.mutable_stop()->set_max_tokens(static_cast<int32_t>(generate_tokens));
    request.mutable_stop()->set_ignore_eos(true);
    request.set_alignment(v1::ALIGNMENT_END);
    context_.set_deadline(GrpcDeadlineIn(kRunLimit));
    tokens.reserve(static_cast<size_t>(generate_tokens));
    stub.async()->Generate(&context_, &request, this);
    StartRead(&event_);
    StartCall();
  }

  void OnReadDone(bool ok) override {
    if (!ok) return;
    if (event_.has_output()) {
      times.push_back(Now());
      tokens.insert(tokens.end(), event_.output().tokens().begin(), event_.output().tokens().end());
    }
    StartRead(&event_);
  }
  void OnDone(const grpc::Status& done) override {
    status = done;
    countdown_.Done();
  }

  // After OnDone.
  std::vector<double> times;  // of each block
  std::vector<int32_t> tokens;
  grpc::Status status;

 private:
  Countdown& countdown_;
  grpc::ClientContext context_;
  v1::GenerateResponse event_;
};

double OwnCpuSeconds() {
  rusage usage = {};
  getrusage(RUSAGE_SELF, &usage);
  const auto seconds = [](const timeval& time) {
    return static_cast<double>(time.tv_sec) + 1e-6 * static_cast<double>(time.tv_usec);
  };
  return seconds(usage.ru_utime) + seconds(usage.ru_stime);
}

}  // namespace

absl::StatusOr<std::string> ServedModel::StartProgram(const std::string& program,
                                                      std::vector<std::string> arguments,
                                                      const std::string& address_flag) {
  absl::StatusOr<int> port = FreePort();
  if (!port.ok()) return port.status();
  const std::string address = absl::StrCat("127.0.0.1:", *port);
  arguments.push_back(absl::StrCat(address_flag, "=", address));
  absl::StatusOr<ChildProcess> child = ChildProcess::Start(
      program, arguments, absl::StrCat(log_folder_, "/", processes_.size(), ".log"));
  if (!child.ok()) return child.status();
  processes_.push_back(*std::move(child));
  return address;
}

absl::StatusOr<std::unique_ptr<ServedModel>> ServedModel::Start(const ServedOptions& options,
                                                                bool three_processes) {
  std::unique_ptr<ServedModel> served(new ServedModel);
  std::string folder = std::filesystem::temp_directory_path() / "blockserve-bench-XXXXXX";
  if (mkdtemp(folder.data()) == nullptr) {
    return absl::InternalError(absl::StrCat("cannot make the folder ", folder));
  }
  served->log_folder_ = folder;
  const std::string model = absl::StrCat("--model=", options.model);
  std::vector<std::string> compute = {model, "--log-level=warning",
                                      absl::StrCat("--device=", options.device),
                                      absl::StrCat("--arithmetic=", options.arithmetic),
                                      absl::StrCat("--threads=", options.threads)};
  if (options.early_launch) compute.push_back("--early-launch");
  std::vector<std::string> block = compute;
  block.push_back(absl::StrCat("--kv-memory-mib=", options.kv_memory_mib));
  if (options.allow_long_contexts) block.push_back("--allow-long-contexts");
  block.push_back(absl::StrCat("--max-sequences=", std::max<int64_t>(256, options.sequences)));
  block.push_back(absl::StrCat("--groups=", options.groups));
  const std::string max_rows = absl::StrCat("--max-rows=", options.token_rows);
  const std::string interval = absl::StrCat("--stream-interval=", options.stream_interval);
  std::vector<std::string> gateway = {model, "--log-level=warning", interval};
  if (options.allow_long_contexts) gateway.push_back("--allow-long-contexts");
  int gateways = options.gateways;  // that are processes of their own
  if (!three_processes) {
    block.push_back(max_rows);
    block.push_back(interval);
    block.insert(block.begin(), "serve");
    --gateways;
    if (gateways > 0) {
      absl::StatusOr<int> port = FreePort();
      if (!port.ok()) return port.status();
      const std::string tiers = absl::StrCat("127.0.0.1:", *port);
      block.push_back(absl::StrCat("--tiers-address=", tiers));
      gateway.push_back(absl::StrCat("--block-services=", tiers));
      gateway.push_back(absl::StrCat("--token-services=", tiers));
    }
    if (absl::Status status = served->StartServer("blockserve", block, "--grpc-address");
        !status.ok()) {
      return status;
    }
  } else {
    absl::StatusOr<std::string> block_address =
        served->StartProgram("blockserve-block", block, "--listen");
    if (!block_address.ok()) return block_address.status();
    std::vector<std::string> token = compute;
    token.push_back(max_rows);
    absl::StatusOr<std::string> token_address =
        served->StartProgram("blockserve-token", token, "--listen");
    if (!token_address.ok()) return token_address.status();
    gateway.push_back(absl::StrCat("--block-services=", *block_address));
    gateway.push_back(absl::StrCat("--token-services=", *token_address));
  }
  for (int i = 0; i < gateways; ++i) {
    if (absl::Status status = served->StartServer("blockserve-gateway", gateway, "--listen");
        !status.ok()) {
      return status;
    }
  }
  return served;
}

absl::Status ServedModel::StartServer(const std::string& program,
                                      std::vector<std::string> arguments,
                                      const std::string& address_flag) {
  absl::StatusOr<std::string> address = StartProgram(program, std::move(arguments), address_flag);
  return address.ok() ? Connect(*address) : address.status();
}

absl::Status ServedModel::Connect(const std::string& address) {
  for (int i = 0; i < kConnectionsPerServer; ++i) {
    grpc::ChannelArguments arguments;
    arguments.SetInt(GRPC_ARG_USE_LOCAL_SUBCHANNEL_POOL, 1);
    channels_.push_back(
        grpc::CreateCustomChannel(address, grpc::InsecureChannelCredentials(), arguments));
    if (absl::Status status = WaitUntilConnected(channels_.back()); !status.ok()) return status;
  }
  return absl::OkStatus();
}

absl::Status ServedModel::WaitUntilConnected(const std::shared_ptr<grpc::Channel>& channel) {
  Client client(channel);
  const absl::Time limit = SteadyClock().Now() + kStartLimit;
  while (true) {
    for (ChildProcess& process : processes_) {
      if (absl::Status status = process.CheckAlive(); !status.ok()) return status;
    }
    CallOptions call;
    call.timeout = absl::Seconds(2);
    absl::StatusOr<v1::GetModelResponse> model = client.GetModel(call);
    if (model.ok() && model->block_services() > 0 && model->token_workers() > 0) {
      return absl::OkStatus();
    }
    if (SteadyClock().Now() > limit) {
      return absl::DeadlineExceededError(
          absl::StrCat("the tiers are not connected after ", absl::FormatDuration(kStartLimit)));
    }
    absl::SleepFor(absl::Milliseconds(50));
  }
}

ServedModel::~ServedModel() {
  // The gateways go first: a service whose gateway is there drains longer.
  while (!processes_.empty()) processes_.pop_back();
  std::error_code ignored;
  std::filesystem::remove_all(log_folder_, ignored);
}

std::vector<std::string> ServedModel::ProcessNames() const {
  std::vector<std::string> names;
  for (const ChildProcess& process : processes_) {
    const auto same = std::count_if(names.begin(), names.end(), [&](const std::string& name) {
      return absl::StartsWith(name, process.name());
    });
    names.push_back(same == 0 ? process.name() : absl::StrCat(process.name(), "-", same + 1));
  }
  names.emplace_back("client");
  return names;
}

std::vector<double> ServedModel::CpuSeconds() const {
  std::vector<double> seconds;
  for (const ChildProcess& process : processes_) seconds.push_back(process.CpuSeconds());
  seconds.push_back(OwnCpuSeconds());
  return seconds;
}

absl::StatusOr<ServedRunResult> ServedModel::Run(const std::vector<std::vector<int32_t>>& prompts,
                                                 int64_t generate_tokens) {
  std::vector<std::unique_ptr<v1::Generation::Stub>> stubs;
  for (const std::shared_ptr<grpc::Channel>& channel : channels_) {
    stubs.push_back(v1::Generation::NewStub(channel));
  }
  ServedRunResult result;
  const std::vector<double> before = CpuSeconds();
  Countdown countdown(static_cast<int64_t>(prompts.size()));
  std::vector<std::unique_ptr<StreamReader>> readers;
  const double begin = Now();
  for (size_t i = 0; i < prompts.size(); ++i) {
    readers.push_back(std::make_unique<StreamReader>(*stubs[i % stubs.size()], prompts[i],
                                                     generate_tokens, countdown));
  }
  countdown.Wait();
  result.seconds = Now() - begin;
  result.cpu_seconds = CpuSeconds();
  for (size_t i = 0; i < before.size(); ++i) result.cpu_seconds[i] -= before[i];
  result.tokens_hash = kHashStart;
  for (const std::unique_ptr<StreamReader>& reader : readers) {
    if (!reader->status.ok()) return FromGrpcStatus(reader->status);
    if (static_cast<int64_t>(reader->tokens.size()) != generate_tokens) {
      return absl::InternalError(absl::StrCat("a stream had ", reader->tokens.size(), " tokens, ",
                                              generate_tokens, " were asked for"));
    }
    result.first_token_seconds.push_back(reader->times.front() - begin);
    for (size_t i = 1; i < reader->times.size(); ++i) {
      result.between_blocks_seconds.push_back(reader->times[i] - reader->times[i - 1]);
    }
    result.tokens_hash = HashBytes(reader->tokens.data(), reader->tokens.size() * sizeof(int32_t),
                                   result.tokens_hash);
  }
  return result;
}

}  // namespace blockserve
