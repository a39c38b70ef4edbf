// Where a program shows its metrics: the same flags, with the same words, in all of them.
#ifndef BLOCKSERVE_RPC_METRICS_FLAGS_H_
#define BLOCKSERVE_RPC_METRICS_FLAGS_H_

#include <string>

#include "common/flag_table.h"

namespace blockserve {

inline constexpr char kMetricsListenFlag[] = "--metrics-listen";

struct MetricsFlags {
  std::string listen_address;  // empty: nowhere
  bool plaintext = false;      // although the program's own port has TLS

  // This must outlive the table.
  void Add(FlagTable& flags) {
    flags.Add("metrics_listen", "host:port that shows metrics over HTTP; empty: none",
              &listen_address);
    flags.Add("metrics_plaintext", "without the TLS that this server's own port has", &plaintext);
    flags.Needs("metrics_plaintext", "metrics_listen");
  }
};

}  // namespace blockserve

#endif  // BLOCKSERVE_RPC_METRICS_FLAGS_H_
