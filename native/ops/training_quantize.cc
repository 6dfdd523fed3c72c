// The plain bodies of TrainingOps' fake quantisation, by the int8 rule of int8.h.
#include <algorithm>
#include <cmath>

#include "base/error.h"
#include "ops/int8.h"
#include "ops/training.h"

namespace lapidary {

namespace {

// The scales' domains, each a range of rows.
template <typename Fn>
void each_domain(const FakeQuant& quant, int64_t rows, std::span<const SequenceRows> sequences, const Fn& fn) {
  if (quant.scope == QuantScope::sequence) {
    for (const SequenceRows& s : sequences) fn(s.first_row, s.rows);
  } else {
    for (int64_t r = 0; r < rows; ++r) fn(r, int64_t{1});
  }
}

float quantised(float x, float scale) { return static_cast<float>(to_int8(x * (1.0f / scale))) * scale; }

double squared_error(const float* x, int64_t n, float scale) {
  double sum = 0;
  for (int64_t i = 0; i < n; ++i) {
    const double difference = static_cast<double>(x[i]) - quantised(x[i], scale);
    sum += difference * difference;
  }
  return sum;
}

}  // namespace

double TrainingOps::fake_quantize(const Tensor& x, const FakeQuant& quant, std::span<const SequenceRows> sequences, const Tensor& out,
                                  const Tensor& scales) {
  expect(quant.scope != QuantScope::none && (quant.scope != QuantScope::fixed || quant.scale > 0), ErrorCode::internal,
         "fake_quantize: no scheme, or a scale of ", quant.scale);
  const int64_t dim = x.row_elements();
  double error = 0;
  each_domain(quant, x.shape[0], sequences, [&](int64_t row, int64_t rows) {
    const float* in = x.as<float>() + row * dim;
    const float scale = quant.scope == QuantScope::fixed ? quant.scale : int8_scale(absolute_max(in, rows * dim));
    std::fill_n(scales.as<float>() + row, rows, scale);
    for (int64_t i = 0; i < rows; ++i) error += squared_error(in + i * dim, dim, scale);
    for (int64_t i = 0; i < rows * dim; ++i) out.as<float>()[row * dim + i] = quantised(in[i], scale);
  });
  return error;
}

void TrainingOps::fake_quantize_backward(const Tensor& x, const FakeQuant& quant, std::span<const SequenceRows> sequences,
                                         const Tensor& scales, float error_weight, QuantErrorGradient kind, const Tensor& g) {
  const int64_t dim = x.row_elements();
  each_domain(quant, x.shape[0], sequences, [&](int64_t row, int64_t rows) {
    if (rows == 0) return;
    const float* in = x.as<float>() + row * dim;
    float* out = g.as<float>() + row * dim;
    const float scale = scales.as<float>()[row], range = 127 * scale;
    const bool clips = quant.scope == QuantScope::fixed;
    for (int64_t i = 0; i < rows * dim; ++i) {
      const bool outside = clips && !(std::fabs(in[i]) <= range);
      float pull = 0;
      if (kind == QuantErrorGradient::literal) {
        pull = 2 * (in[i] - quantised(in[i], scale));
      } else if (outside) {
        pull = 2 * (in[i] - std::copysign(range, in[i]));
      }
      out[i] = (outside ? 0 : out[i]) + error_weight * pull;
    }
    if (kind != QuantErrorGradient::through_scale || clips) return;
    // dL/ds = Σ 2 (q - x) (round(x / s) - x / s) = 2 L / s, and ds/dx = ±1 / 127 at the largest element; a domain of zeros has a fixed s.
    const float largest = absolute_max(in, rows * dim);
    if (!(largest > 1e-8f)) return;
    double error = 0;
    for (int64_t i = 0; i < rows; ++i) error += squared_error(in + i * dim, dim, scale);
    int64_t first = 0;
    while (std::fabs(in[first]) != largest) ++first;
    out[first] += error_weight * std::copysign(static_cast<float>(2 * error / scale / 127), in[first]);
  });
}

}  // namespace lapidary
