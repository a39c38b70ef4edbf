// Discovery's resolver on the system's own (getaddrinfo): A records, or AAAA where a name has no A.
#ifndef BLOCKSERVE_GATEWAY_DNS_RESOLVER_H_
#define BLOCKSERVE_GATEWAY_DNS_RESOLVER_H_

#include <functional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "gateway/discovery.h"
#include "rpc/loop.h"

namespace blockserve {

// A host's addresses of one family (AF_INET or AF_INET6). NOT_FOUND: it has none. Blocks for as
// long as its name server says nothing: tens of seconds.
using HostLookup =
    std::function<absl::StatusOr<std::vector<std::string>>(const std::string& host, int family)>;
absl::StatusOr<std::vector<std::string>> LookUpHost(const std::string& host, int family);

// `loop` must outlive what is returned. Each look-up has a thread of its own, which nobody waits
// for: a name server that is silent keeps neither other names nor the end of the program waiting.
Discovery::Resolver MakeDnsResolver(Loop& loop, HostLookup lookup = LookUpHost);

}  // namespace blockserve

#endif  // BLOCKSERVE_GATEWAY_DNS_RESOLVER_H_
