#include "rpc/tls.h"

#include <grpcpp/security/tls_certificate_provider.h>
#include <grpcpp/security/tls_credentials_options.h>
#include <openssl/asn1.h>
#include <openssl/bio.h>
#include <openssl/err.h>
#include <openssl/pem.h>
#include <openssl/ssl.h>
#include <openssl/x509.h>

#include <cerrno>
#include <cstring>
#include <ctime>
#include <fstream>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/time/time.h"
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

// Why a certificate that can be used is refused by whoever looks at its times, who says no more
// than that it cannot be verified; empty: it is not. `path`: of its copy.
std::string TimesRemark(absl::string_view flag, absl::string_view file, const std::string& path) {
  const std::unique_ptr<BIO, decltype(&BIO_free)> bio(BIO_new_file(path.c_str(), "r"), &BIO_free);
  const std::unique_ptr<X509, decltype(&X509_free)> certificate(
      bio == nullptr ? nullptr : PEM_read_bio_X509(bio.get(), nullptr, nullptr, nullptr),
      &X509_free);
  ERR_clear_error();
  if (certificate == nullptr) return "";
  const ASN1_TIME* begin = X509_get0_notBefore(certificate.get());
  const ASN1_TIME* end = X509_get0_notAfter(certificate.get());
  const bool early = X509_cmp_current_time(begin) > 0;
  tm time = {};
  if (!early && X509_cmp_current_time(end) > 0) return "";
  if (ASN1_TIME_to_tm(early ? begin : end, &time) != 1) return "";
  return absl::StrCat(
      flag, " ", file, ": ", early ? "is not valid before " : "has expired on ",
      absl::FormatTime("%Y-%m-%d %H:%M:%S UTC", absl::FromTM(time, absl::UTCTimeZone()),
                       absl::UTCTimeZone()));
}

// What reads the files of credentials anew lives as long as they do. `at`: of the certificate, in
// the copies.
template <class Credentials>
std::shared_ptr<Credentials> With(std::unique_ptr<TlsFileCopies> copies,
                                  std::shared_ptr<Credentials> credentials, std::string flags,
                                  std::string certificate, size_t at) {
  copies->LookEvery(absl::Seconds(kTlsReloadSeconds),
                    [flag = absl::StrCat(flags, "-cert"), certificate = std::move(certificate),
                     at](const std::vector<std::string>& paths) {
                      return certificate.empty() ? "" : TimesRemark(flag, certificate, paths[at]);
                    });
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
  return With(*std::move(copies), grpc::experimental::TlsServerCredentials(options), files.flags,
              files.certificate, 0);
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
  return With(*std::move(copies), grpc::experimental::TlsCredentials(options), files.flags,
              files.certificate, 1);
}

}  // namespace blockserve
