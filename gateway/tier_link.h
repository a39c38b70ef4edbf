// A connection to one worker, as the gateway's tiers see it: a stream that says hello, breaks and
// comes back by itself. The real one is TierClient (gateway/tier_client.h); tests have their own.
#ifndef BLOCKSERVE_GATEWAY_TIER_LINK_H_
#define BLOCKSERVE_GATEWAY_TIER_LINK_H_

#include <cstdint>
#include <functional>

#include "absl/status/status.h"

namespace blockserve {

template <class Request, class Reply>
class TierLink {
 public:
  // Called on the loop.
  class Observer {
   public:
    virtual ~Observer() = default;
    // Connected; `first` holds the service's hello.
    virtual void OnReady(Reply first) = 0;
    virtual void OnMessage(Reply message) = 0;
    // The stream broke, or could not be made; the link tries again. OK: the service ended it.
    virtual void OnLost(absl::Status status) = 0;
  };

  // Stops; the observer hears nothing more. Not from one of its own callbacks.
  virtual ~TierLink() = default;
  virtual void Start(Observer* observer) = 0;
  // Between OnReady and OnLost; dropped otherwise.
  virtual void Send(Request request) = 0;
  // Of what was sent, what waits to be written: bounded (rpc/outgoing_queue.h), and the connection
  // is given up where that is not kept.
  virtual int64_t queued_bytes() const = 0;
  // What was sent is written out, then the stream ends; `over` is called on the loop when it has,
  // unless the link is destroyed before. The observer hears nothing more, and nothing may be sent.
  virtual void Finish(std::function<void()> over) = 0;
};

}  // namespace blockserve

#endif  // BLOCKSERVE_GATEWAY_TIER_LINK_H_
