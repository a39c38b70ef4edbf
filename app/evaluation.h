// Perplexity of a text, from the scores of windows of it.
#ifndef BLOCKSERVE_APP_EVALUATION_H_
#define BLOCKSERVE_APP_EVALUATION_H_

#include <cstdint>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <vector>

#include "absl/types/span.h"

namespace blockserve {

// Tokens [begin, end) of the text are scored together; those from `first_counted` on are counted:
// each token once, in the window that gives it the longest context.
struct Window {
  int64_t begin = 0;
  int64_t end = 0;
  int64_t first_counted = 0;
};

// Windows of `window` tokens, each `stride` after the one before, that cover `num_tokens`.
// 0 < stride <= window.
std::vector<Window> LayWindows(int64_t num_tokens, int64_t window, int64_t stride);

class Evaluation {
 public:
  explicit Evaluation(int32_t block_length)
      : by_block_position_(static_cast<size_t>(block_length)) {}

  // `logprobs` [window.end - window.begin], natural, none where a token has no score; `pads` are in
  // front of the window's first token.
  void Add(const Window& window, absl::Span<const std::optional<float>> logprobs, int64_t pads);

  // Natural, of the tokens so far; 0 without any.
  double MeanLoss() const {
    return all_.tokens > 0 ? all_.loss / static_cast<double>(all_.tokens) : 0;
  }
  // Positions in the text of the tokens that are counted and have no score: the first of it, or its
  // first block, and those of every window where windows do not overlap.
  const std::vector<int64_t>& unscored() const { return unscored_; }
  int64_t num_scored() const { return all_.tokens; }
  // `bytes`: of the text of the scored tokens.
  nlohmann::ordered_json Json(int64_t bytes) const;
  static std::string Table(const nlohmann::ordered_json& json);

 private:
  struct Sum {
    double loss = 0;  // of natural negative log-probabilities
    int64_t tokens = 0;
  };
  static nlohmann::ordered_json SumJson(const Sum& sum);

  std::vector<int64_t> unscored_;
  Sum all_;
  std::vector<Sum> by_block_position_;  // [block length]
  std::vector<Sum> by_context_;         // [i]: 2^i to 2^(i+1) - 1 tokens before
};

}  // namespace blockserve

#endif  // BLOCKSERVE_APP_EVALUATION_H_
