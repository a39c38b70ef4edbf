// Discovery's resolver on asio: A records, or AAAA where a name has no A.
#ifndef BLOCKSERVE_GATEWAY_DNS_RESOLVER_H_
#define BLOCKSERVE_GATEWAY_DNS_RESOLVER_H_

#include <memory>

#include "gateway/discovery.h"
#include "rpc/asio_loop.h"

namespace blockserve {

// `loop` must outlive what is returned.
Discovery::Resolver MakeDnsResolver(AsioLoop& loop);

}  // namespace blockserve

#endif  // BLOCKSERVE_GATEWAY_DNS_RESOLVER_H_
