// What the token service costs beside decoding: CPU time of a worker whose engine does nothing, and
// of the gateway's side of its stream, over TCP on this machine. Not a test: it prints two lines.
//
//   token_service_cost [ROWS IN FLIGHT] [CONTEXT WIDTH] [SECONDS]
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <memory>
#include <string>
#include <vector>

#include "common/logging.h"
#include "rpc/server.h"
#include "rpc/signals.h"
#include "token_service/token_client_for_test.h"
#include "token_service/token_service.h"

namespace blockserve {
namespace {

constexpr int32_t kBlockLength = 4;

class NoEngine final : public TokenEngine {
 public:
  explicit NoEngine(int32_t width) {
    config_.block_length = kBlockLength;
    config_.vocab_size = 50304;
    config_.block.hidden_size = width;
  }
  const ModelConfig& config() const override { return config_; }
  Arithmetic arithmetic() const override { return Arithmetic::kF32; }
  int32_t max_rows() const override { return 64; }
  void Decode(absl::Span<const TokenRow> rows, absl::Span<TokenRowResult> results) override {
    for (size_t i = 0; i < rows.size(); ++i) {
      results[i].tokens.assign(kBlockLength, static_cast<int32_t>(i));
      results[i].logprobs.assign(kBlockLength, -1.0f);
    }
  }

 private:
  ModelConfig config_;
};

double CpuSeconds(const rusage& usage) {
  const auto seconds = [](const timeval& time) {
    return static_cast<double>(time.tv_sec) + 1e-6 * static_cast<double>(time.tv_usec);
  };
  return seconds(usage.ru_utime) + seconds(usage.ru_stime);
}

// The worker, in a process of its own; its address goes to `address_pipe`.
int ServeUntilTerminated(int32_t width, int address_pipe) {
  TerminationWaiter termination;
  TokenServiceIdentity identity;
  identity.part_hash = [] { return std::string("part"); };
  TokenServiceConfig config;
  config.max_queued_rows = 100'000;
  auto service =
      TokenService::CreateOnEngine(config, std::make_unique<NoEngine>(width), std::move(identity));
  if (!service.ok()) return 1;
  ServerOptions options;
  options.listen_address = "127.0.0.1:0";
  auto server = RpcServer::Start(options, {(*service)->service()});
  if (!server.ok()) return 1;
  const std::string& address = (*server)->address();
  if (write(address_pipe, address.data(), address.size()) < 0) return 1;
  close(address_pipe);
  termination.Wait();
  (*service)->Stop();
  (*server)->Shutdown(absl::ZeroDuration());
  return 0;
}

int Measure(int rows, int32_t width, double seconds) {
  int pipe_ends[2];
  if (pipe(pipe_ends) != 0) return 1;
  const pid_t child = fork();  // before gRPC is used
  if (child < 0) return 1;
  if (child == 0) _exit(ServeUntilTerminated(width, pipe_ends[1]));
  close(pipe_ends[1]);
  char address[64] = {};
  if (read(pipe_ends[0], address, sizeof(address) - 1) <= 0) return 1;

  int64_t blocks = 0;
  {
    const std::shared_ptr<grpc::Channel> channel = MakeTierChannel(address);
    TokenClient client(channel);
    if (!client.Hello().has_value()) return 1;
    const std::vector<float> context(width, 0.25f);
    const absl::Time end = absl::Now() + absl::Seconds(seconds);
    while (absl::Now() < end) {
      v1::TokenRequestBatch batch;
      batch.set_context_type(v1::CONTEXT_TYPE_BFLOAT16);
      for (int i = 0; i < rows; ++i) {
        v1::TokenRowRequest& row = *batch.add_rows();
        row.set_id(blocks + i);
        row.set_limit(kBlockLength);
        row.mutable_header()->set_remaining_ms(60'000);
        row.mutable_header()->set_request_key("request-0123456789");
        row.mutable_sampling()->set_temperature(0.8f);
        row.add_stop_ids(0);
        AppendContexts(context, v1::CONTEXT_TYPE_BFLOAT16, *batch.mutable_contexts());
      }
      client.Forget();
      client.Send(std::move(batch));
      if (client.WaitForRows(rows).size() != static_cast<size_t>(rows)) return 1;
      blocks += rows;
    }
  }
  kill(child, SIGTERM);
  rusage worker = {}, gateway = {};
  int status = 0;
  if (wait4(child, &status, 0, &worker) != child || status != 0) return 1;
  getrusage(RUSAGE_SELF, &gateway);
  const double million_tokens = static_cast<double>(blocks) * kBlockLength / 1e6;
  std::printf(
      "%d rows in flight, context width %d (bfloat16), %lld blocks of %d tokens in %.0f s\n", rows,
      width, static_cast<long long>(blocks), kBlockLength, seconds);
  std::printf("CPU seconds per million tokens: worker %.2f, gateway side %.2f\n",
              CpuSeconds(worker) / million_tokens, CpuSeconds(gateway) / million_tokens);
  return 0;
}

int Main(int argc, char** argv) {
  const int rows = argc > 1 ? std::atoi(argv[1]) : 64;
  const int width = argc > 2 ? std::atoi(argv[2]) : 768;
  const double seconds = argc > 3 ? std::atof(argv[3]) : 5;
  if (rows < 1 || width < 1 || !(seconds > 0)) {
    std::fprintf(stderr, "token_service_cost: [ROWS IN FLIGHT] [CONTEXT WIDTH] [SECONDS]\n");
    return 2;
  }
  if (!ConfigureLogging({.program = "", .level = "error"}).ok()) return 1;
  return Measure(rows, width, seconds);
}

}  // namespace
}  // namespace blockserve

int main(int argc, char** argv) { return blockserve::Main(argc, argv); }
