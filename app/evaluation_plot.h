// Pictures of evaluations: loss by position in the block and by length of context.
#ifndef BLOCKSERVE_APP_EVALUATION_PLOT_H_
#define BLOCKSERVE_APP_EVALUATION_PLOT_H_

#include <nlohmann/json.hpp>
#include <string>

#include "absl/status/status.h"
#include "absl/types/span.h"

namespace blockserve {

// INVALID_ARGUMENT naming the key where `json` is not what `blockserve evaluate --format json`
// writes.
absl::Status CheckEvaluation(const nlohmann::ordered_json& json);

// A self-contained SVG of one or more evaluations, each as above, side by side for comparison.
std::string EvaluationPlot(absl::Span<const nlohmann::ordered_json> evaluations);

}  // namespace blockserve

#endif  // BLOCKSERVE_APP_EVALUATION_PLOT_H_
