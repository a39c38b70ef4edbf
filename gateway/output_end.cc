#include "gateway/output_end.h"

#include <algorithm>
#include <string>

#include "absl/strings/str_cat.h"

namespace blockserve {
namespace {

template <class... Parts>
absl::Status DoesNotFit(const Parts&... parts) {
  return absl::InvalidArgumentError(absl::StrCat(parts...));
}

}  // namespace

absl::StatusOr<std::optional<v1::Finished>> ReplayOutput(const GenerationRequest& request,
                                                         absl::Span<const int32_t> tokens,
                                                         TextOutput& text) {
  const int64_t size = static_cast<int64_t>(tokens.size());
  if (size > request.max_tokens) {
    return DoesNotFit(size, " tokens, and stop.max_tokens is ", request.max_tokens);
  }
  bool stopped = false;
  for (int64_t i = 0; i < size; ++i) {
    const int32_t token = tokens[static_cast<size_t>(i)];
    if (std::count(request.stop_ids.begin(), request.stop_ids.end(), token) == 0) continue;
    if (i < request.min_tokens) {
      return DoesNotFit("the stop token ", token, " at [", i, "] lies before stop.min_tokens, ",
                        request.min_tokens);
    }
    if (i + 1 < size) {
      return DoesNotFit("tokens follow the stop token ", token, " at [", i,
                        "], which ended the choice");
    }
    stopped = true;
  }
  const TextOutput::Result result = text.Append(tokens, stopped);
  if (result.tokens_kept < size) {
    return DoesNotFit("tokens follow [", result.tokens_kept - 1,
                      "], which completed a stop string and ended the choice");
  }
  // The order of GenerationRun::OnBlock.
  v1::Finished finished;
  if (result.stop_string.has_value()) {
    finished.set_reason(v1::FINISH_REASON_STOP);
    finished.set_stop_string(*result.stop_string);
  } else if (stopped) {
    finished.set_reason(v1::FINISH_REASON_STOP);
    finished.set_stop_token(tokens.back());
  } else if (size == request.max_tokens) {
    finished.set_reason(v1::FINISH_REASON_LENGTH);
  } else {
    return std::nullopt;
  }
  finished.set_text(text.Flush());
  return finished;
}

}  // namespace blockserve
