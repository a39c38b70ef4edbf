#include "app/source.h"

#include <algorithm>
#include <utility>
#include <vector>

#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "app/command.h"
#include "model/device.h"
#include "rpc/connection_advice.h"

namespace blockserve {
namespace {

std::vector<std::string> SplitList(const std::string& list) {
  return absl::StrSplit(list, ',', absl::SkipWhitespace());
}

// gRPC would take a port modulo 65536, look for a name without one at port 443, and ask DNS for a
// URL as a whole.
bool IsHostAndPort(absl::string_view address) {
  if (absl::StartsWith(address, "unix:")) return true;
  if (absl::StartsWith(address, "http://") || absl::StartsWith(address, "https://")) return false;
  const size_t colon = address.rfind(':');
  int port = 0;
  return colon != absl::string_view::npos && colon > 0 &&
         absl::SimpleAtoi(address.substr(colon + 1), &port) && port >= 1 && port <= 65535;
}

}  // namespace

void ServerFlags::AddFlags(FlagTable& flags) {
  flags.Add("server", "or HOST:PORT of a running server; several by commas", &addresses);
  flags.Add("tls_ca", "with --server: PEM file of its CA, or \"system\"; empty: plaintext",
            &tls.ca);
  flags.Add("tls_cert", "with --server: PEM file of a certificate to show", &tls.certificate);
  flags.Add("tls_key", "with --server: PEM file of its key", &tls.key);
  flags.Add("tls_name", "with --server: name in its certificate", &tls.server_name);
  flags.Add("api_key_file", "with --server: file that holds the API key", &api_key_file);
  for (const absl::string_view flag :
       {"tls_ca", "tls_cert", "tls_key", "tls_name", "api_key_file"}) {
    flags.Needs(flag, "server");
  }
}

absl::Status ServerFlags::Validate() const {
  if (!addresses.has_value()) return absl::OkStatus();
  const std::vector<std::string> list = SplitList(*addresses);
  if (list.empty()) {
    return absl::InvalidArgumentError("--server is empty; it must be host:port");
  }
  for (const std::string& address : list) {
    if (IsHostAndPort(address)) continue;
    return absl::InvalidArgumentError(
        absl::StrCat("--server is \"", address, "\"; it must be host:port"));
  }
  return CheckTlsFiles(tls);
}

absl::StatusOr<std::unique_ptr<Client>> ServerFlags::Connect() const {
  ClientOptions client;
  client.addresses = SplitList(*addresses);
  client.tls = tls.enabled();
  client.server_name = tls.server_name;
  struct File {
    const char* flag;
    std::string path;
    std::string* contents;
  };
  for (const File& file : {File{"--tls-ca", tls.ca, &client.ca_pem},
                           File{"--tls-cert", tls.certificate, &client.certificate_pem},
                           File{"--tls-key", tls.key, &client.key_pem},
                           File{"--api-key-file", api_key_file, &client.api_key}}) {
    if (file.path.empty() || (file.contents == &client.ca_pem && file.path == "system")) continue;
    absl::StatusOr<std::string> contents = ReadInput(file.flag, file.path);
    if (!contents.ok()) return contents.status();
    *file.contents = *std::move(contents);
  }
  client.api_key = std::string(absl::StripAsciiWhitespace(client.api_key));
  if (!api_key_file.empty() &&
      (client.api_key.empty() ||
       !std::all_of(client.api_key.begin(), client.api_key.end(), absl::ascii_isgraph))) {
    return absl::InvalidArgumentError(
        absl::StrCat("--api-key-file ", api_key_file, " holds no API key"));
  }
  return Client::Create(client);
}

absl::Status ServerFlags::Explain(const absl::Status& status) const {
  if (status.ok() || !addresses.has_value()) return status;
  std::string message(status.message());
  if (absl::IsUnauthenticated(status)) {
    message = api_key_file.empty() ? "an API key is needed (--api-key-file)"
                                   : absl::StrCat("--api-key-file ", api_key_file, ": ", message);
  } else if (absl::IsUnavailable(status)) {
    absl::StrAppend(&message, ConnectionAdvice(message, tls));
  }
  return absl::Status(status.code(), absl::StrCat(*addresses, ": ", message));
}

absl::Status Source::Explain(const absl::Status& status) const {
  if (!absl::IsDeadlineExceeded(status)) return server_.Explain(status);
  return server_.Explain(absl::DeadlineExceededError(
      absl::StrCat("not done within --timeout ", absl::FormatDuration(timeout_))));
}

void SourceOptions::AddFlags(FlagTable& flags) {
  flags.Add("model", "folder of a model, to be run in this process", &model);
  server.AddFlags(flags);
  flags.Add("device", absl::StrCat("with --model: ", kDeviceFlagHelp), &device);
  flags.Add("arithmetic", absl::StrCat("with --model: ", ArithmeticFlagHelp()), &arithmetic);
  flags.Add("threads", "with --model: compute threads; 0: one per core", &threads);
  for (const absl::string_view flag : {"device", "arithmetic", "threads"}) {
    flags.Needs(flag, "model");
  }
  flags.Add("timeout", "limit of the whole call", &timeout);
}

absl::Status SourceOptions::Validate() const {
  if (model.has_value() == server.addresses.has_value()) {
    return absl::InvalidArgumentError(model.has_value() ? "--model and --server exclude each other"
                                                        : "--model or --server is missing");
  }
  if (absl::Status status = server.Validate(); !status.ok()) return status;
  if (timeout == absl::ZeroDuration()) {
    return absl::InvalidArgumentError("--timeout must be more than 0");
  }
  if (!model.has_value()) return absl::OkStatus();
  EmbeddedOptions embedded;
  embedded.model_directory = *model;
  embedded.device = device;
  embedded.arithmetic = arithmetic;
  embedded.threads = threads;
  return embedded.Validate();
}

absl::StatusOr<std::unique_ptr<Source>> Source::Open(const SourceOptions& options) {
  std::unique_ptr<Source> source(new Source);
  source->timeout_ = options.timeout;
  source->server_ = options.server;
  if (options.server.addresses.has_value()) {
    absl::StatusOr<std::unique_ptr<Client>> client = options.server.Connect();
    if (!client.ok()) return client.status();
    source->client_ = *std::move(client);
    return source;
  }
  EmbeddedOptions embedded;
  embedded.model_directory = *options.model;
  embedded.device = options.device;
  embedded.arithmetic = options.arithmetic;
  embedded.threads = options.threads;
  absl::StatusOr<std::unique_ptr<Embedded>> started = Embedded::Start(embedded);
  if (!started.ok()) return started.status();
  source->embedded_ = *std::move(started);
  source->client_ = std::make_unique<Client>(source->embedded_->channel());
  return source;
}

}  // namespace blockserve
