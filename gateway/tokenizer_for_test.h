// Tests: the tokenizer of the released models, loaded once for a program.
#ifndef BLOCKSERVE_GATEWAY_TOKENIZER_FOR_TEST_H_
#define BLOCKSERVE_GATEWAY_TOKENIZER_FOR_TEST_H_

#include <memory>

#include "model/tokenizer.h"

namespace blockserve {

inline const Tokenizer* TokenizerForTest() {
  static const std::unique_ptr<const Tokenizer> tokenizer =
      Tokenizer::Load("tests/data/gpt_neox_20b.json").value();
  return tokenizer.get();
}

}  // namespace blockserve

#endif  // BLOCKSERVE_GATEWAY_TOKENIZER_FOR_TEST_H_
