#include "rpc/http/tls.h"

#include <utility>

#include "absl/strings/str_cat.h"
#include "common/clock.h"
#include "common/logging.h"
#include "common/read_file.h"

namespace blockserve {
namespace {

namespace ssl = boost::asio::ssl;

absl::StatusOr<std::shared_ptr<ssl::context>> MakeContext(const ServerTlsFiles& files) {
  if (absl::Status status = CheckTlsFiles(files); !status.ok()) return status;
  auto context = std::make_shared<ssl::context>(ssl::context::tls_server);
  boost::system::error_code error;
  context->set_options(ssl::context::default_workarounds | ssl::context::no_sslv2 |
                           ssl::context::no_sslv3 | ssl::context::no_tlsv1 |
                           ssl::context::no_tlsv1_1,
                       error);
  if (!error) context->use_certificate_chain_file(files.certificate, error);
  if (!error) context->use_private_key_file(files.key, ssl::context::pem, error);
  if (!error && !files.client_ca.empty()) {
    context->load_verify_file(files.client_ca, error);
    if (!error) {
      context->set_verify_mode(ssl::verify_peer | ssl::verify_fail_if_no_peer_cert, error);
    }
    // Without it OpenSSL refuses clients that take up a session whose certificate it has seen.
    constexpr unsigned char kSessions[] = "blockserve";
    SSL_CTX_set_session_id_context(context->native_handle(), kSessions, sizeof(kSessions) - 1);
  }
  if (error) {
    return absl::InvalidArgumentError(
        absl::StrCat(files.flags, "-cert: TLS over HTTP: ", error.message()));
  }
  return context;
}

}  // namespace

// Not the times of their last change: those of a file that was put in place of another may be the
// same.
std::vector<std::string> HttpTls::Contents() const {
  std::vector<std::string> contents;
  for (const std::string& path : {files_.certificate, files_.key, files_.client_ca}) {
    contents.push_back(ReadFile(path).value_or(""));
  }
  return contents;
}

absl::StatusOr<std::shared_ptr<HttpTls>> HttpTls::Load(const ServerTlsFiles& files) {
  std::shared_ptr<HttpTls> tls(new HttpTls(files));
  MutexLock lock(&tls->mutex_);
  tls->contents_ = tls->Contents();
  tls->looked_at_ = SteadyClock().Now();
  absl::StatusOr<std::shared_ptr<ssl::context>> context = MakeContext(files);
  if (!context.ok()) return context.status();
  tls->context_ = *std::move(context);
  return tls;
}

std::shared_ptr<ssl::context> HttpTls::Current() {
  MutexLock lock(&mutex_);
  const absl::Time now = SteadyClock().Now();
  if (now - looked_at_ < absl::Seconds(kTlsReloadSeconds)) return context_;
  looked_at_ = now;
  std::vector<std::string> contents = Contents();
  if (contents == contents_) return context_;
  contents_ = std::move(contents);
  absl::StatusOr<std::shared_ptr<ssl::context>> context = MakeContext(files_);
  if (context.ok()) {
    context_ = *std::move(context);
  } else {
    LogWarning(absl::StrCat("the TLS files have changed and cannot be used: ",
                            context.status().message()));
  }
  return context_;
}

}  // namespace blockserve
