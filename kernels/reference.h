// What the kernels compute, in double and without any thought of speed: tests compare with it.
#ifndef BLOCKSERVE_KERNELS_REFERENCE_H_
#define BLOCKSERVE_KERNELS_REFERENCE_H_

#include <cstdint>
#include <vector>

#include "absl/types/span.h"

namespace blockserve::reference {

// x [rows, k] times w [n, k] transposed, plus bias [n]: [rows, n].
std::vector<double> Matmul(absl::Span<const float> x, absl::Span<const float> w,
                           absl::Span<const float> bias, int64_t rows, int64_t n, int64_t k);
// Bound of the error of a float32 sum of products against Matmul: eps * (k + 2) * |x| |w| + |bias|,
// for every output.
std::vector<double> MatmulErrorBound(absl::Span<const float> x, absl::Span<const float> w,
                                     absl::Span<const float> bias, int64_t rows, int64_t n,
                                     int64_t k);
// The product of int8 arithmetic: outputs and rows symmetrically quantised with their largest
// magnitude at 127, bias added to the scaled sum of integers.
std::vector<double> Int8Matmul(absl::Span<const float> x, absl::Span<const float> w,
                               absl::Span<const float> bias, int64_t rows, int64_t n, int64_t k);
double Gelu(double x);
std::vector<double> LayerNorm(absl::Span<const float> x, absl::Span<const float> weight,
                              absl::Span<const float> bias, double epsilon);
// x [dims] rotated by `position`, half-split pairing.
std::vector<double> Rotate(absl::Span<const float> x, int64_t position, double base);
// One query [d] over keys and values [positions, d].
std::vector<double> Attention(absl::Span<const double> q, absl::Span<const double> keys,
                              absl::Span<const double> values);
// log(sum(exp(logits))).
double LogSumExp(absl::Span<const float> logits);

}  // namespace blockserve::reference

#endif  // BLOCKSERVE_KERNELS_REFERENCE_H_
