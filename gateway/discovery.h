// The addresses of a tier's workers, from a fixed list or from DNS names that are resolved again
// and again (a Kubernetes headless service names every pod).
#ifndef BLOCKSERVE_GATEWAY_DISCOVERY_H_
#define BLOCKSERVE_GATEWAY_DISCOVERY_H_

#include <functional>
#include <memory>
#include <set>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "rpc/loop.h"

namespace blockserve {

struct DiscoveryTarget {
  std::string host;  // DNS name; empty when `address` is to be taken as it is
  std::string port;
  std::string address;
};

// Parses a comma list of "host:port", "[v6]:port", "inproc:NAME" and "unix:PATH". INVALID_ARGUMENT
// naming `flag` and the entry.
absl::StatusOr<std::vector<DiscoveryTarget>> ParseTargets(absl::string_view list,
                                                          absl::string_view flag);

class Discovery {
 public:
  // Looks a host up; `done` is called on the loop, at any time, with its addresses (without port,
  // IPv6 in brackets).
  using Resolver = std::function<void(
      const std::string& host, std::function<void(absl::StatusOr<std::vector<std::string>>)> done)>;
  struct Listener {
    std::function<void(const std::string& address)> on_added;
    std::function<void(const std::string& address)> on_removed;
  };

  // `loop` must outlive this.
  Discovery(Loop& loop, std::string what, std::vector<DiscoveryTarget> targets,
            absl::Duration interval, Resolver resolver, Listener listener);
  ~Discovery();

  // Begins, on the loop. A name that cannot be resolved keeps the addresses it had: connections
  // tell better than a name server who is alive.
  void Start();

 private:
  struct State;
  std::shared_ptr<State> state_;
};

}  // namespace blockserve

#endif  // BLOCKSERVE_GATEWAY_DISCOVERY_H_
