// How the algorithm of MatmulMode::kPinned is chosen among those of a library.
#ifndef BLOCKSERVE_KERNELS_CUDA_MATMUL_PINNING_H_
#define BLOCKSERVE_KERNELS_CUDA_MATMUL_PINNING_H_

#include <cstdint>
#include <optional>
#include <vector>

#include "absl/status/statusor.h"
#include "kernels/cuda/matmul.h"

namespace blockserve::cuda {

// A pinned algorithm can run for all numbers of rows up to this; products of more rows run in
// pieces of so many.
inline constexpr int64_t kMaxPinnedRows = 16384;

// Numbers of rows that a library is asked about, one after another until it proposes an algorithm
// that runs for all of them. First what a step of decoding has. They are the same whatever a plan's
// `max_rows`: a library ranks its algorithms by the number of rows, and an engine's bits must not
// depend on its flags.
inline constexpr int64_t kPinnedProposals[] = {1024, 2048, 512, 4096, 256, kMaxPinnedRows, 64};

template <typename Algorithm>
struct PinnedChoice {
  std::optional<Algorithm> algorithm;  // none where none runs for all numbers of rows
  int64_t proposals = 0;               // that were looked at
  int64_t refused_rows = 0;            // for which the first of them does not run; 0: it does
};

// propose(rows) -> StatusOr<std::vector<Algorithm>>, best first, of those that take each sum in one
// piece; runs(algorithm, rows) -> bool.
template <typename Algorithm, typename Propose, typename Runs>
absl::StatusOr<PinnedChoice<Algorithm>> ChoosePinned(const Propose& propose, const Runs& runs) {
  PinnedChoice<Algorithm> choice;
  const auto runs_for_all = [&](const Algorithm& algorithm) {
    for (int64_t rows = kMatmulRowTile; rows <= kMaxPinnedRows; rows += kMatmulRowTile) {
      if (runs(algorithm, rows)) continue;
      if (choice.proposals == 1) choice.refused_rows = rows;
      return false;
    }
    return true;
  };
  for (const int64_t rows : kPinnedProposals) {
    const absl::StatusOr<std::vector<Algorithm>> candidates = propose(rows);
    if (!candidates.ok()) return candidates.status();
    for (const Algorithm& candidate : *candidates) {
      ++choice.proposals;
      if (!runs_for_all(candidate)) continue;
      choice.algorithm = candidate;
      return choice;
    }
  }
  return choice;
}

}  // namespace blockserve::cuda

#endif  // BLOCKSERVE_KERNELS_CUDA_MATMUL_PINNING_H_
