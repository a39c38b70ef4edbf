#include "gateway/tls_context.h"

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "common/logging.h"

namespace blockserve {

namespace ssl = boost::asio::ssl;

absl::StatusOr<std::unique_ptr<TlsContext>> TlsContext::Create(const ServerTlsFiles& files) {
  std::unique_ptr<TlsContext> made(new TlsContext(files));
  MutexLock lock(&made->mutex_);
  made->changed_ = made->ChangeTimes();
  absl::StatusOr<Ptr> context = made->Read();
  if (!context.ok()) return context.status();
  made->context_ = *std::move(context);
  made->looked_at_ = absl::Now();
  return made;
}

TlsContext::Times TlsContext::ChangeTimes() const {
  Times times;
  size_t i = 0;
  for (const std::string* file : {&files_.certificate, &files_.key, &files_.client_ca}) {
    std::error_code missing;
    times[i++] = std::filesystem::last_write_time(*file, missing);
  }
  return times;
}

absl::StatusOr<TlsContext::Ptr> TlsContext::Read() const {
  if (absl::Status status = CheckTlsFiles(files_); !status.ok()) return status;
  const Ptr context = std::make_shared<ssl::context>(ssl::context::tls_server);
  // The files have just been read; they may change again before the next moment.
  boost::system::error_code error;
  const auto failed = [&](const std::string& file) {
    return absl::InvalidArgumentError(absl::StrCat(file, ": ", error.message()));
  };
  context->set_options(
      ssl::context::default_workarounds | ssl::context::no_tlsv1 | ssl::context::no_tlsv1_1, error);
  context->use_certificate_chain_file(files_.certificate, error);
  if (error) return failed(files_.certificate);
  context->use_private_key_file(files_.key, ssl::context::pem, error);
  if (error) return failed(files_.key);
  if (files_.client_ca.empty()) return context;
  context->load_verify_file(files_.client_ca, error);
  if (error) return failed(files_.client_ca);
  context->set_verify_mode(ssl::verify_peer | ssl::verify_fail_if_no_peer_cert, error);
  if (error) return failed(files_.client_ca);
  return context;
}

TlsContext::Ptr TlsContext::Current() {
  MutexLock lock(&mutex_);
  const absl::Time now = absl::Now();
  if (now - looked_at_ < absl::Seconds(kTlsReloadSeconds) && now >= looked_at_) return context_;
  looked_at_ = now;
  const Times changed = ChangeTimes();
  if (changed == changed_) return context_;
  changed_ = changed;
  absl::StatusOr<Ptr> context = Read();
  if (context.ok()) {
    context_ = *std::move(context);
  } else {
    LogError(absl::StrCat("the certificate stays as it was: ", context.status().message()));
  }
  return context_;
}

}  // namespace blockserve
