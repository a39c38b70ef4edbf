// Server-sent events of a completions stream, in whatever pieces they arrive.
#ifndef BLOCKSERVE_BENCH_LOAD_SSE_H_
#define BLOCKSERVE_BENCH_LOAD_SSE_H_

#include <cstdint>
#include <string>

#include "absl/strings/string_view.h"
#include "bench/load_transport.h"

namespace blockserve {

// Feeds what the events of one stream say to an observer (all but OnMessageEnd and OnEnd).
class CompletionEvents {
 public:
  explicit CompletionEvents(RequestObserver* observer) : observer_(observer) {}

  void Take(absl::string_view piece);

  bool done() const { return done_; }  // "[DONE]" has come
  // An error event's text, or what is wrong with an event; empty: nothing.
  const std::string& fault() const { return fault_; }

 private:
  void TakeData(absl::string_view data);

  RequestObserver* const observer_;
  std::string rest_;  // of a line that has not ended
  bool done_ = false;
  std::string fault_;
};

}  // namespace blockserve

#endif  // BLOCKSERVE_BENCH_LOAD_SSE_H_
