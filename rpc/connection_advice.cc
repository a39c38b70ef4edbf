#include "rpc/connection_advice.h"

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"

namespace blockserve {

std::string ConnectionAdvice(absl::string_view message, const ClientTlsFiles& tls) {
  const auto says = [&](absl::string_view words) { return absl::StrContains(message, words); };
  if (says("http1.x server") || says("missing selected ALPN")) {
    return " (a gRPC port is needed, not that of HTTP)";
  }
  if (!tls.enabled()) {
    return says("Socket closed") ? absl::StrCat(" (a server with TLS needs ", tls.flags, "-ca)")
                                 : "";
  }
  if (says("Socket closed") && tls.certificate.empty()) {
    return absl::StrCat(" (a server that asks for a certificate needs ", tls.flags, "-cert and ",
                        tls.flags, "-key)");
  }
  if (says("wrong version number")) {
    return absl::StrCat(" (a server without TLS needs no ", tls.flags, "-ca)");
  }
  if (says("certificate verify failed")) {
    return absl::StrCat(" (its certificate is not of a CA of ", tls.flags, "-ca)");
  }
  // The words of credentials made of PEM texts, and of those that read their files anew.
  if (says("not in peer certificate") || says("Hostname Verification Check failed")) {
    return absl::StrCat(" (the name in its certificate is needed as ", tls.flags, "-name)");
  }
  return "";
}

}  // namespace blockserve
