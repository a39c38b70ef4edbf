#include "rpc/tls.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <openssl/bio.h>
#include <openssl/ec.h>
#include <openssl/err.h>
#include <openssl/evp.h>
#include <openssl/pem.h>
#include <openssl/x509.h>

#include <fstream>
#include <memory>
#include <string>

#include "absl/strings/str_cat.h"

namespace blockserve {
namespace {

using ::testing::HasSubstr;

using Bio = std::unique_ptr<BIO, decltype(&BIO_free)>;

std::string TextOf(const Bio& bio) {
  char* text = nullptr;
  const long size = BIO_get_mem_data(bio.get(), &text);
  return {text, static_cast<size_t>(size)};
}

// PEM of a key and of a certificate that it has signed itself.
struct Identity {
  Identity() {
    const std::unique_ptr<EVP_PKEY, decltype(&EVP_PKEY_free)> pair(EVP_EC_gen("P-256"),
                                                                   &EVP_PKEY_free);
    const std::unique_ptr<X509, decltype(&X509_free)> made(X509_new(), &X509_free);
    X509_gmtime_adj(X509_getm_notBefore(made.get()), -60);
    X509_gmtime_adj(X509_getm_notAfter(made.get()), 3600);
    X509_set_pubkey(made.get(), pair.get());
    X509_sign(made.get(), pair.get(), EVP_sha256());
    const Bio certificate_pem(BIO_new(BIO_s_mem()), &BIO_free);
    const Bio key_pem(BIO_new(BIO_s_mem()), &BIO_free);
    PEM_write_bio_X509(certificate_pem.get(), made.get());
    PEM_write_bio_PrivateKey(key_pem.get(), pair.get(), nullptr, nullptr, 0, nullptr, nullptr);
    certificate = TextOf(certificate_pem);
    key = TextOf(key_pem);
  }
  std::string certificate;
  std::string key;
};

class TlsFilesTest : public testing::Test {
 protected:
  TlsFilesTest() {
    const Identity identity;
    server_.certificate = client_.certificate = server_.client_ca = client_.ca =
        Write("certificate", identity.certificate);
    server_.key = client_.key = Write("key", identity.key);
  }
  static std::string Write(const std::string& name, const std::string& content) {
    const std::string path = absl::StrCat(testing::TempDir(), "tls_test.", name);
    std::ofstream(path) << content;
    return path;
  }
  template <class Files>
  static std::string Refusal(const Files& files) {
    const absl::Status status = CheckTlsFiles(files);
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
    EXPECT_EQ(ERR_peek_error(), 0u) << "OpenSSL's errors are taken";
    return std::string(status.message());
  }

  ServerTlsFiles server_;
  ClientTlsFiles client_;
};

TEST_F(TlsFilesTest, AreTakenWhereTheyFit) {
  EXPECT_TRUE(CheckTlsFiles(server_).ok()) << CheckTlsFiles(server_);
  EXPECT_TRUE(CheckTlsFiles(client_).ok()) << CheckTlsFiles(client_);
  server_.client_ca = "";
  EXPECT_TRUE(CheckTlsFiles(server_).ok());
  client_.certificate = client_.key = "";
  EXPECT_TRUE(CheckTlsFiles(client_).ok());
  client_.ca = "system";
  EXPECT_TRUE(CheckTlsFiles(client_).ok());
  EXPECT_TRUE(CheckTlsFiles(ServerTlsFiles()).ok());
  EXPECT_TRUE(CheckTlsFiles(ClientTlsFiles()).ok());
}

TEST_F(TlsFilesTest, NameTheFileThatCannotBeUsed) {
  const std::string none = "/nowhere/tls_test";
  const std::string empty = Write("empty", "");
  const std::string other = Write("other", "no PEM");
  const std::string other_key = Write("other_key", Identity().key);

  ServerTlsFiles files = server_;
  files.certificate = none;
  EXPECT_THAT(Refusal(files), HasSubstr(absl::StrCat("--tls-cert ", none, ": No such file")));
  files.certificate = empty;
  EXPECT_THAT(Refusal(files), HasSubstr(absl::StrCat("--tls-cert ", empty, ": is empty")));
  files.certificate = other;
  EXPECT_THAT(Refusal(files), HasSubstr(absl::StrCat("--tls-cert ", other, ": is no certif")));
  files = server_;
  files.key = none;
  EXPECT_THAT(Refusal(files), HasSubstr(absl::StrCat("--tls-key ", none, ": No such file")));
  files.key = other;
  EXPECT_THAT(Refusal(files), HasSubstr(absl::StrCat("--tls-key ", other, ": is not the key")));
  files.key = other_key;
  EXPECT_THAT(Refusal(files), HasSubstr(absl::StrCat("--tls-key ", other_key, ": is not the key")));
  files = server_;
  files.client_ca = none;
  EXPECT_THAT(Refusal(files), HasSubstr(absl::StrCat("--tls-client-ca ", none, ": No such")));
  files.client_ca = other;
  EXPECT_THAT(Refusal(files), HasSubstr(absl::StrCat("--tls-client-ca ", other, ": holds no CA")));

  ClientTlsFiles caller = client_;
  caller.flags = "--tier-tls";
  caller.ca = other;
  EXPECT_THAT(Refusal(caller), HasSubstr(absl::StrCat("--tier-tls-ca ", other, ": holds no CA")));
  caller.ca = "system";
  caller.key = other_key;
  EXPECT_THAT(Refusal(caller), HasSubstr(absl::StrCat("--tier-tls-key ", other_key)));
}

TEST_F(TlsFilesTest, GoTogether) {
  ServerTlsFiles files;
  files.certificate = "c";
  EXPECT_EQ(files.Validate().message(), "--tls-cert needs --tls-key");
  files = {};
  files.key = "k";
  EXPECT_EQ(files.Validate().message(), "--tls-key needs --tls-cert");
  files = {};
  files.client_ca = "a";
  EXPECT_EQ(files.Validate().message(), "--tls-client-ca needs --tls-cert");
  EXPECT_FALSE(MakeServerCredentials(files).ok()) << "not plaintext";

  ClientTlsFiles caller;
  caller.ca = "a";
  caller.certificate = "c";
  EXPECT_EQ(caller.Validate().message(), "--tls-cert needs --tls-key");
  caller.ca = "";
  caller.key = "k";
  EXPECT_EQ(caller.Validate().message(), "--tls-cert needs --tls-ca");
  caller = {};
  caller.server_name = "n";
  EXPECT_EQ(caller.Validate().message(), "--tls-name needs --tls-ca");
  EXPECT_FALSE(MakeChannelCredentials(caller).ok()) << "not plaintext";
}

}  // namespace
}  // namespace blockserve
