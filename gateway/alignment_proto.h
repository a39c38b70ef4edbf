// An alignment as the public interface calls it.
#ifndef BLOCKSERVE_GATEWAY_ALIGNMENT_PROTO_H_
#define BLOCKSERVE_GATEWAY_ALIGNMENT_PROTO_H_

#include "blockserve/v1/generation.pb.h"
#include "model/config.h"

namespace blockserve {

inline v1::Alignment ToProto(Alignment alignment) {
  switch (alignment) {
    case Alignment::kEnd:
      return v1::ALIGNMENT_END;
    case Alignment::kStart:
      return v1::ALIGNMENT_START;
    case Alignment::kNone:
      return v1::ALIGNMENT_NONE;
  }
  return v1::ALIGNMENT_UNSPECIFIED;
}

}  // namespace blockserve

#endif  // BLOCKSERVE_GATEWAY_ALIGNMENT_PROTO_H_
