#include "rpc/tier_program.h"

#include <algorithm>
#include <thread>

#include "absl/strings/str_cat.h"
#include "rpc/tls.h"

namespace blockserve {
void TierProgramOptions::AddFlags(FlagTable& flags) {
  flags.Add("model", "folder of the model: config.json and safetensors", &model);
  flags.Add("listen", "address to serve gateways on; port 0: any", &server.listen_address);
  flags.Add("health_listen", "plaintext address that serves grpc.health alone", &health_listen);
  flags.Add("threads", "compute threads; 0: one per core", &threads);
  flags.Add("stall_bound", "with work in hand and none done for so long, liveness fails",
            &stall_bound);
}

void TierProgramOptions::AddServingFlags(FlagTable& flags) {
  flags.Subject("Security");
  flags.Add("tls_cert", "PEM file: certificate of this server; empty: plaintext",
            &server.tls.certificate);
  flags.Add("tls_key", "PEM file: its key", &server.tls.key);
  flags.Add("tls_client_ca", "PEM file: callers must show a certificate of this CA",
            &server.tls.client_ca);
  flags.Subject("Observability");
  metrics.Add(flags);
  flags.Add("log_level", "debug, info, warning, error or off", &logging.level);
  flags.Add("log_format", "text, or json: an object a line", &logging.format);
}

absl::Status TierProgramOptions::Validate() const {
  if (model.empty()) return absl::InvalidArgumentError("--model is missing");
  // Without an address a server has no socket: nobody could reach this one.
  if (server.listen_address.empty()) {
    return absl::InvalidArgumentError("--listen is empty; it must be host:port");
  }
  if (threads < 0 || threads > kMaxThreads) {
    return absl::InvalidArgumentError(
        absl::StrCat("--threads is ", threads, "; it must be 0 to ", kMaxThreads));
  }
  if (stall_bound <= absl::ZeroDuration()) {
    return absl::InvalidArgumentError("--stall-bound must be above zero");
  }
  return CheckTlsFiles(server.tls);
}

int TierProgramOptions::num_threads() const {
  if (threads > 0) return threads;
  return static_cast<int>(std::max(1u, std::thread::hardware_concurrency()));
}

}  // namespace blockserve
