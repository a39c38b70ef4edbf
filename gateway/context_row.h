// A context embedding on its way from the block tier to the token tier.
#ifndef BLOCKSERVE_GATEWAY_CONTEXT_ROW_H_
#define BLOCKSERVE_GATEWAY_CONTEXT_ROW_H_

#include <cstdint>
#include <memory>
#include <string>

#include "blockserve/v1/tier.pb.h"

namespace blockserve {

// The gateway does not look into it. Shared by the choices of a request and kept until the row that
// it is for has been answered, so that the row can be sent again.
struct ContextRow {
  v1::ContextType type = v1::CONTEXT_TYPE_FLOAT32;
  std::string bytes;  // [D] of `type`
};
using ContextRowPtr = std::shared_ptr<const ContextRow>;

}  // namespace blockserve

#endif  // BLOCKSERVE_GATEWAY_CONTEXT_ROW_H_
