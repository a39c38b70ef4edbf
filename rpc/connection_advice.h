// The flag that may mend a connection that failed.
#ifndef BLOCKSERVE_RPC_CONNECTION_ADVICE_H_
#define BLOCKSERVE_RPC_CONNECTION_ADVICE_H_

#include <string>

#include "absl/strings/string_view.h"
#include "rpc/tls.h"

namespace blockserve {

// By what gRPC says of it, since it tells such things in words alone: " (a server with TLS needs
// --tls-ca)", to be put behind them, with the names of `tls`; empty where they tell nothing.
std::string ConnectionAdvice(absl::string_view message, const ClientTlsFiles& tls);

}  // namespace blockserve

#endif  // BLOCKSERVE_RPC_CONNECTION_ADVICE_H_
