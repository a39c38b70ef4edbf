#include "rpc/tls.h"

#include <grpcpp/security/tls_certificate_provider.h>
#include <grpcpp/security/tls_credentials_options.h>
#include <openssl/err.h>
#include <openssl/ssl.h>

#include <cerrno>
#include <cstring>
#include <fstream>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "rpc/tls_file_copies.h"

namespace blockserve {
namespace {

using grpc::experimental::FileWatcherCertificateProvider;
using grpc::experimental::TlsChannelCredentialsOptions;
using grpc::experimental::TlsServerCredentialsOptions;

constexpr absl::string_view kSystem = "system";

absl::Status Invalid(absl::string_view flag, absl::string_view file, absl::string_view why) {
  return absl::InvalidArgumentError(absl::StrCat(flag, " ", file, ": ", why));
}

// OpenSSL's own words, and its queue is empty again.
std::string TakeSslError() {
  const unsigned long code = ERR_peek_last_error();
  ERR_clear_error();
  const char* reason = ERR_reason_error_string(code);
  return reason == nullptr ? "OpenSSL refuses it" : reason;
}

absl::Status CheckReadable(absl::string_view flag, const std::string& path) {
  std::ifstream file(path);
  if (file.peek() != std::ifstream::traits_type::eof()) return absl::OkStatus();
  return Invalid(flag, path, file.is_open() ? "is empty or cannot be read" : std::strerror(errno));
}

using SslContext = std::unique_ptr<SSL_CTX, decltype(&SSL_CTX_free)>;

absl::Status CheckPair(SSL_CTX* context, absl::string_view flags, const std::string& certificate,
                       const std::string& key) {
  const std::string cert_flag = absl::StrCat(flags, "-cert");
  const std::string key_flag = absl::StrCat(flags, "-key");
  if (absl::Status status = CheckReadable(cert_flag, certificate); !status.ok()) return status;
  if (absl::Status status = CheckReadable(key_flag, key); !status.ok()) return status;
  if (SSL_CTX_use_certificate_chain_file(context, certificate.c_str()) != 1) {
    return Invalid(cert_flag, certificate, absl::StrCat("is no certificate: ", TakeSslError()));
  }
  if (SSL_CTX_use_PrivateKey_file(context, key.c_str(), SSL_FILETYPE_PEM) != 1 ||
      SSL_CTX_check_private_key(context) != 1) {
    return Invalid(key_flag, key,
                   absl::StrCat("is not the key of ", certificate, ": ", TakeSslError()));
  }
  return absl::OkStatus();
}

absl::Status CheckCa(SSL_CTX* context, absl::string_view flag, const std::string& path) {
  if (absl::Status status = CheckReadable(flag, path); !status.ok()) return status;
  if (SSL_CTX_load_verify_file(context, path.c_str()) != 1) {
    return Invalid(flag, path, absl::StrCat("holds no CA certificate: ", TakeSslError()));
  }
  return absl::OkStatus();
}

absl::Status Together(absl::string_view flags, bool has_certificate, bool has_key) {
  if (has_certificate == has_key) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat(flags, has_key ? "-key needs " : "-cert needs ",
                                                 flags, has_key ? "-cert" : "-key"));
}

}  // namespace

absl::Status ServerTlsFiles::Validate() const {
  if (absl::Status status = Together(flags, !certificate.empty(), !key.empty()); !status.ok()) {
    return status;
  }
  if (!client_ca.empty() && !enabled()) {
    return absl::InvalidArgumentError(absl::StrCat(flags, "-client-ca needs ", flags, "-cert"));
  }
  return absl::OkStatus();
}

absl::Status ClientTlsFiles::Validate() const {
  if (absl::Status status = Together(flags, !certificate.empty(), !key.empty()); !status.ok()) {
    return status;
  }
  if (enabled()) return absl::OkStatus();
  if (!certificate.empty()) {
    return absl::InvalidArgumentError(absl::StrCat(flags, "-cert needs ", flags, "-ca"));
  }
  if (!server_name.empty()) {
    return absl::InvalidArgumentError(absl::StrCat(flags, "-name needs ", flags, "-ca"));
  }
  return absl::OkStatus();
}

absl::Status CheckTlsFiles(const ServerTlsFiles& files) {
  if (absl::Status status = files.Validate(); !status.ok() || !files.enabled()) return status;
  const SslContext context(SSL_CTX_new(TLS_server_method()), &SSL_CTX_free);
  if (absl::Status status = CheckPair(context.get(), files.flags, files.certificate, files.key);
      !status.ok()) {
    return status;
  }
  if (files.client_ca.empty()) return absl::OkStatus();
  return CheckCa(context.get(), absl::StrCat(files.flags, "-client-ca"), files.client_ca);
}

absl::Status CheckTlsFiles(const ClientTlsFiles& files) {
  if (absl::Status status = files.Validate(); !status.ok() || !files.enabled()) return status;
  const SslContext context(SSL_CTX_new(TLS_client_method()), &SSL_CTX_free);
  if (!files.certificate.empty()) {
    if (absl::Status status = CheckPair(context.get(), files.flags, files.certificate, files.key);
        !status.ok()) {
      return status;
    }
  }
  if (files.ca == kSystem) return absl::OkStatus();
  return CheckCa(context.get(), absl::StrCat(files.flags, "-ca"), files.ca);
}

namespace {

// What reads the files of credentials anew lives as long as they do.
template <class Credentials>
std::shared_ptr<Credentials> With(std::unique_ptr<TlsFileCopies> copies,
                                  std::shared_ptr<Credentials> credentials) {
  copies->LookEvery(absl::Seconds(kTlsReloadSeconds));
  struct Both {
    std::unique_ptr<TlsFileCopies> copies;
    std::shared_ptr<Credentials> credentials;
  };
  auto both = std::make_shared<Both>(Both{std::move(copies), std::move(credentials)});
  return std::shared_ptr<Credentials>(both, both->credentials.get());
}

}  // namespace

absl::StatusOr<std::shared_ptr<grpc::ServerCredentials>> MakeServerCredentials(
    const ServerTlsFiles& files) {
  if (absl::Status status = files.Validate(); !status.ok()) return status;
  if (!files.enabled()) return grpc::InsecureServerCredentials();
  absl::StatusOr<std::unique_ptr<TlsFileCopies>> copies = TlsFileCopies::Make(
      {files.certificate, files.key, files.client_ca},
      [flags = files.flags](const std::vector<std::string>& paths) {
        return CheckTlsFiles(ServerTlsFiles{paths[0], paths[1], paths[2], flags});
      });
  if (!copies.ok()) return copies.status();
  const std::vector<std::string>& paths = (*copies)->paths();
  TlsServerCredentialsOptions options(std::make_shared<FileWatcherCertificateProvider>(
      paths[1], paths[0], paths[2], kTlsReloadSeconds));
  options.watch_identity_key_cert_pairs();
  if (files.client_ca.empty()) {
    options.set_cert_request_type(GRPC_SSL_DONT_REQUEST_CLIENT_CERTIFICATE);
  } else {
    options.watch_root_certs();
    options.set_cert_request_type(GRPC_SSL_REQUEST_AND_REQUIRE_CLIENT_CERTIFICATE_AND_VERIFY);
  }
  return With(*std::move(copies), grpc::experimental::TlsServerCredentials(options));
}

absl::StatusOr<std::shared_ptr<grpc::ChannelCredentials>> MakeChannelCredentials(
    const ClientTlsFiles& files) {
  if (absl::Status status = files.Validate(); !status.ok()) return status;
  if (!files.enabled()) return grpc::InsecureChannelCredentials();
  const bool own_ca = files.ca != kSystem;
  absl::StatusOr<std::unique_ptr<TlsFileCopies>> copies = TlsFileCopies::Make(
      {own_ca ? files.ca : "", files.certificate, files.key},
      [files, own_ca](const std::vector<std::string>& paths) {
        return CheckTlsFiles(ClientTlsFiles{own_ca ? paths[0] : files.ca, paths[1], paths[2],
                                            files.server_name, files.flags});
      });
  if (!copies.ok()) return copies.status();
  const std::vector<std::string>& paths = (*copies)->paths();
  TlsChannelCredentialsOptions options;
  if (own_ca || !files.certificate.empty()) {
    options.set_certificate_provider(std::make_shared<FileWatcherCertificateProvider>(
        paths[2], paths[1], paths[0], kTlsReloadSeconds));
    if (own_ca) options.watch_root_certs();
    if (!files.certificate.empty()) options.watch_identity_key_cert_pairs();
  }
  return With(*std::move(copies), grpc::experimental::TlsCredentials(options));
}

}  // namespace blockserve
