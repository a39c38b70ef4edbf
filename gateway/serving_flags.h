// Flags of whoever serves clients: the same, with the same words, in blockserve-gateway and
// `blockserve serve`.
#ifndef BLOCKSERVE_GATEWAY_SERVING_FLAGS_H_
#define BLOCKSERVE_GATEWAY_SERVING_FLAGS_H_

#include "absl/strings/string_view.h"
#include "common/flag_table.h"
#include "common/logging.h"
#include "gateway/gateway.h"
#include "gateway/http/front.h"
#include "rpc/metrics_flags.h"
#include "rpc/tls.h"

namespace blockserve {

inline constexpr char kSharePortFlagHelp[] =
    "gateways of this machine that have this flag may listen on the same ports";

// Each begins a subject of its own. What is given must outlive the table.
void AddAdmissionFlags(FlagTable& flags, GatewayConfig& gateway);
void AddStreamFlags(FlagTable& flags, GatewayConfig& gateway);
// Everything but the address, whose flag (`address_flag`, "http_listen") the others need.
void AddHttpFlags(FlagTable& flags, HttpFrontOptions& http, absl::string_view address_flag);
void AddSecurityFlags(FlagTable& flags, ServerTlsFiles& tls, GatewayConfig& gateway);
void AddObservabilityFlags(FlagTable& flags, GatewayConfig& gateway, LoggingOptions& logging,
                           MetricsFlags& metrics);

}  // namespace blockserve

#endif  // BLOCKSERVE_GATEWAY_SERVING_FLAGS_H_
