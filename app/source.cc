#include "app/source.h"

#include "absl/strings/str_cat.h"

namespace blockserve {

void SourceOptions::AddFlags(FlagTable& flags) {
  flags.Add("model", "folder of a model, to be run in this process", &model);
  flags.Add("server", "or HOST:PORT of a running server", &server);
  flags.Add("arithmetic", "with --model: auto, f32, bf16, bf16dot or int8", &arithmetic);
  flags.Add("threads", "with --model: compute threads; 0: one per core", &threads);
  flags.Add("timeout", "limit of the whole call", &timeout);
}

absl::Status SourceOptions::Validate() const {
  if (model.has_value() == server.has_value()) {
    return absl::InvalidArgumentError(model.has_value() ? "--model and --server exclude each other"
                                                        : "--model or --server is missing");
  }
  if (server.has_value() && server->empty()) {
    return absl::InvalidArgumentError("--server is empty; it must be host:port");
  }
  if (timeout == absl::ZeroDuration()) {
    return absl::InvalidArgumentError("--timeout must be more than 0");
  }
  if (!model.has_value()) return absl::OkStatus();
  EmbeddedOptions embedded;
  embedded.model_directory = *model;
  embedded.arithmetic = arithmetic;
  embedded.threads = threads;
  return embedded.Validate();
}

absl::StatusOr<std::unique_ptr<Source>> Source::Open(const SourceOptions& options) {
  std::unique_ptr<Source> source(new Source);
  source->timeout_ = options.timeout;
  if (options.server.has_value()) {
    source->server_ = *options.server;
    source->client_ = std::make_unique<Client>(*options.server);
    return source;
  }
  EmbeddedOptions embedded;
  embedded.model_directory = *options.model;
  embedded.arithmetic = options.arithmetic;
  embedded.threads = options.threads;
  absl::StatusOr<std::unique_ptr<Embedded>> started = Embedded::Start(embedded);
  if (!started.ok()) return started.status();
  source->embedded_ = *std::move(started);
  source->client_ = std::make_unique<Client>(source->embedded_->channel());
  return source;
}

absl::Status Source::Explain(const absl::Status& status) const {
  if (status.ok() || server_.empty()) return status;
  return absl::Status(status.code(), absl::StrCat(server_, ": ", status.message()));
}

}  // namespace blockserve
