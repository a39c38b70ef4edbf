// Requests of clients that are newer than this gateway.
#ifndef BLOCKSERVE_GATEWAY_KNOWN_FIELDS_H_
#define BLOCKSERVE_GATEWAY_KNOWN_FIELDS_H_

#include <google/protobuf/message.h>

#include "absl/status/status.h"

namespace blockserve {

// INVALID_ARGUMENT naming a field, of the request or of a message in it, that this build does not
// know: passed over, it would silently get another answer than was asked for. What a client sends
// back as received (Started) may be of a newer gateway, and is not looked into.
absl::Status CheckFieldsAreKnown(const google::protobuf::Message& request);

}  // namespace blockserve

#endif  // BLOCKSERVE_GATEWAY_KNOWN_FIELDS_H_
