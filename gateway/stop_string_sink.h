// For clients that want the text to end with the stop string that ended it
// (StopConditions.include_string).
#ifndef BLOCKSERVE_GATEWAY_STOP_STRING_SINK_H_
#define BLOCKSERVE_GATEWAY_STOP_STRING_SINK_H_

#include <memory>

#include "gateway/generation.h"

namespace blockserve {

// A sink before `sink`, which is told the stop string as the end of a choice's last text. The core
// holds the whole of it back until it is complete, so that nothing of it has been told before.
// `sink` itself unless `request` wants that.
std::shared_ptr<GenerationSink> WithStopStrings(std::shared_ptr<GenerationSink> sink,
                                                const GenerationRequest& request);

}  // namespace blockserve

#endif  // BLOCKSERVE_GATEWAY_STOP_STRING_SINK_H_
