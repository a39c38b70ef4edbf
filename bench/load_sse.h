// Server-sent events of a completions stream, in whatever pieces they arrive.
#ifndef BLOCKSERVE_BENCH_LOAD_SSE_H_
#define BLOCKSERVE_BENCH_LOAD_SSE_H_

#include <cstdint>
#include <string>
#include <vector>

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
  void TellTokens(uint32_t choice, const std::vector<int32_t>& ids);

  RequestObserver* const observer_;
  std::string rest_;    // of a line that has not ended
  int64_t tokens_ = 0;  // that the observer knows of
  // Ends of choices with neither text nor ids: a token that shows nothing (vLLM's end-of-text), or
  // none at all (llama.cpp's last event). Usage decides.
  std::vector<uint32_t> bare_ends_;
  bool done_ = false;
  std::string fault_;
};

}  // namespace blockserve

#endif  // BLOCKSERVE_BENCH_LOAD_SSE_H_
