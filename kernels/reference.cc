#include "kernels/reference.h"

#include <algorithm>
#include <cmath>

namespace blockserve::reference {

std::vector<double> Matmul(absl::Span<const float> x, absl::Span<const float> w,
                           absl::Span<const float> bias, int64_t rows, int64_t n, int64_t k) {
  std::vector<double> y(rows * n);
  for (int64_t r = 0; r < rows; ++r) {
    for (int64_t o = 0; o < n; ++o) {
      double sum = bias.empty() ? 0.0 : static_cast<double>(bias[o]);
      for (int64_t i = 0; i < k; ++i) sum += static_cast<double>(x[r * k + i]) * w[o * k + i];
      y[r * n + o] = sum;
    }
  }
  return y;
}

std::vector<double> MatmulErrorBound(absl::Span<const float> x, absl::Span<const float> w,
                                     absl::Span<const float> bias, int64_t rows, int64_t n,
                                     int64_t k) {
  std::vector<double> bound(rows * n);
  for (int64_t r = 0; r < rows; ++r) {
    for (int64_t o = 0; o < n; ++o) {
      double sum = bias.empty() ? 0.0 : std::abs(static_cast<double>(bias[o]));
      for (int64_t i = 0; i < k; ++i) {
        sum += std::abs(static_cast<double>(x[r * k + i]) * w[o * k + i]);
      }
      bound[r * n + o] = 0x1p-24 * static_cast<double>(k + 2) * sum;
    }
  }
  return bound;
}

std::vector<double> Int8Matmul(absl::Span<const float> x, absl::Span<const float> w,
                               absl::Span<const float> bias, int64_t rows, int64_t n, int64_t k) {
  const auto quantize = [k](absl::Span<const float> vector, std::vector<int32_t>& integers) {
    float largest = 0;
    for (const float value : vector) largest = std::max(largest, std::abs(value));
    const float inverse = largest > 0 ? 127.0f / largest : 0.0f;
    for (int64_t i = 0; i < k; ++i) {
      integers[i] = static_cast<int32_t>(std::nearbyint(vector[i] * inverse));
    }
    return static_cast<double>(largest) / 127.0;
  };
  std::vector<double> y(rows * n);
  std::vector<int32_t> a(k);
  std::vector<int32_t> b(k);
  for (int64_t o = 0; o < n; ++o) {
    const double w_scale = quantize(w.subspan(o * k, k), b);
    for (int64_t r = 0; r < rows; ++r) {
      const double x_scale = quantize(x.subspan(r * k, k), a);
      int64_t sum = 0;
      for (int64_t i = 0; i < k; ++i) sum += int64_t{a[i]} * b[i];
      y[r * n + o] = static_cast<double>(sum) * x_scale * w_scale + bias[o];
    }
  }
  return y;
}

double Gelu(double x) { return 0.5 * x * (1.0 + std::erf(x / std::sqrt(2.0))); }

std::vector<double> LayerNorm(absl::Span<const float> x, absl::Span<const float> weight,
                              absl::Span<const float> bias, double epsilon) {
  const double width = static_cast<double>(x.size());
  double mean = 0;
  for (const float value : x) mean += value / width;
  double variance = 0;
  for (const float value : x) variance += (value - mean) * (value - mean) / width;
  std::vector<double> y(x.size());
  for (size_t i = 0; i < x.size(); ++i) {
    y[i] = (x[i] - mean) / std::sqrt(variance + epsilon) * weight[i] + bias[i];
  }
  return y;
}

std::vector<double> Rotate(absl::Span<const float> x, int64_t position, double base) {
  const size_t half = x.size() / 2;
  std::vector<double> y(x.size());
  for (size_t i = 0; i < half; ++i) {
    const double angle =
        static_cast<double>(position) *
        std::pow(base, -2.0 * static_cast<double>(i) / static_cast<double>(x.size()));
    y[i] = x[i] * std::cos(angle) - x[i + half] * std::sin(angle);
    y[i + half] = x[i + half] * std::cos(angle) + x[i] * std::sin(angle);
  }
  return y;
}

std::vector<double> Attention(absl::Span<const double> q, absl::Span<const double> keys,
                              absl::Span<const double> values) {
  const size_t d = q.size();
  const size_t positions = keys.size() / d;
  std::vector<double> scores(positions);
  for (size_t p = 0; p < positions; ++p) {
    for (size_t i = 0; i < d; ++i) scores[p] += q[i] * keys[p * d + i];
    scores[p] /= std::sqrt(static_cast<double>(d));
  }
  const double max = *std::max_element(scores.begin(), scores.end());
  double sum = 0;
  for (double& score : scores) sum += score = std::exp(score - max);
  std::vector<double> out(d);
  for (size_t p = 0; p < positions; ++p) {
    for (size_t i = 0; i < d; ++i) out[i] += scores[p] / sum * values[p * d + i];
  }
  return out;
}

double LogSumExp(absl::Span<const float> logits) {
  const double max = *std::max_element(logits.begin(), logits.end());
  double sum = 0;
  for (const float logit : logits) sum += std::exp(logit - max);
  return max + std::log(sum);
}

}  // namespace blockserve::reference
