// One request and its answer, as whoever answers it sees them.
#ifndef BLOCKSERVE_RPC_HTTP_EXCHANGE_H_
#define BLOCKSERVE_RPC_HTTP_EXCHANGE_H_

#include <functional>
#include <memory>
#include <string>

#include "rpc/http/message.h"

namespace blockserve {

enum class HttpLoss {
  kClientGone,   // it closed the connection
  kClientSlow,   // it did not read for too long
  kServerStops,  // the process ends, and its grace is over
};

// Belongs to its connection's thread, which everything but Post must be called on. Ends with one
// Respond, or with StartStream and EndStream; what is called after the client was lost does
// nothing.
class HttpExchange {
 public:
  virtual ~HttpExchange() = default;

  virtual HttpRequest& request() = 0;
  // From any thread: runs `task` on the connection's thread. Dropped when the server has ended.
  virtual void Post(std::function<void()> task) = 0;

  virtual void Respond(HttpResponse response) = 0;

  // The status line and headers of `head` go out with the first Write.
  virtual void StartStream(HttpResponse head) = 0;
  // What has not left yet waits in memory: the caller bounds it by `on_drained`.
  virtual void Write(std::string bytes) = 0;
  virtual void EndStream() = 0;

  // Called each time when everything written has been taken by the network.
  virtual void set_on_drained(std::function<void()> on_drained) = 0;
  // Called once, when the client is lost before the answer has left. Nothing more is called then.
  virtual void set_on_lost(std::function<void(HttpLoss)> on_lost) = 0;
};

// Answers requests. Called on the connection's thread.
using HttpHandler = std::function<void(std::shared_ptr<HttpExchange> exchange)>;

}  // namespace blockserve

#endif  // BLOCKSERVE_RPC_HTTP_EXCHANGE_H_
