// The derivatives of norms and activations, losses, fake quantisation and optimiser steps over V. Part of kernels/impl.h. Elementwise loops
// without a function of their own in V are written plainly: the compiler may vectorise but not reorder them.
#pragma once

#include "cpu/kernels/gemm_f32.h"

namespace lapidary::cpu {
namespace {

// Elements after which a running sum in lanes is added to one in double.
constexpr int64_t kSumPiece = 4096;

float dot_rows(const float* x, const float* y, int64_t n) {
  V sum = zero();
  for (int64_t i = 0; i < n; i += 16) {
    const int64_t left = lanes_left(i, n);
    sum = fma(load_lanes(x + i, left), load_lanes(y + i, left), sum);
  }
  return reduce_add(sum);
}

double sum_of_squares(const float* x, int64_t n) {
  double sum = 0;
  for (int64_t i = 0; i < n; i += kSumPiece) sum += dot_rows(x + i, x + i, n - i < kSumPiece ? n - i : kSumPiece);
  return sum;
}

void rms_norm_backward(const float* x, const float* weight, float offset, float eps, const float* gy, int64_t dim, float* gx,
                       bool add_to_gx, float* gw) {
  V squares = zero(), along = zero();
  for (int64_t i = 0; i < dim; i += 16) {
    const int64_t n = lanes_left(i, dim);
    const V a = load_lanes(x + i, n), u = mul(load_lanes(gy + i, n), add(set1(offset), load_lanes(weight + i, n)));
    squares = fma(a, a, squares);
    along = fma(a, u, along);
  }
  const float inverse = 1.0f / __builtin_sqrtf(reduce_add(squares) / static_cast<float>(dim) + eps);
  const float pull = inverse * inverse * inverse * (reduce_add(along) / static_cast<float>(dim));
  for (int64_t i = 0; i < dim; i += 16) {
    const int64_t n = lanes_left(i, dim);
    const V a = load_lanes(x + i, n), g = load_lanes(gy + i, n), u = mul(g, add(set1(offset), load_lanes(weight + i, n)));
    const V result = sub(mul(u, set1(inverse)), mul(a, set1(pull)));
    store_lanes(gx + i, add_to_gx ? add(load_lanes(gx + i, n), result) : result, n);
    if (gw) store_lanes(gw + i, add(load_lanes(gw + i, n), mul(g, mul(a, set1(inverse)))), n);
  }
}

void rope_backward(float* g, const float* cos, const float* sin, int64_t heads, int64_t half) {
  for (int64_t h = 0; h < heads; ++h, g += 2 * half) {
    for (int64_t j = 0; j < half; j += 16) {
      const int64_t n = lanes_left(j, half);
      const V a = load_lanes(g + j, n), b = load_lanes(g + half + j, n);
      const V c = load_lanes(cos + j, n), s = load_lanes(sin + j, n);
      store_lanes(g + j, add(mul(a, c), mul(b, s)), n);
      store_lanes(g + half + j, sub(mul(b, c), mul(a, s)), n);
    }
  }
}

// With u = sqrt(2 / pi) (a + 0.044715 a³): gelu = a h, h = 1 / (1 + e^(-2u)) = (1 + tanh u) / 2; its slope is h + a h (1 - h) 2 u'.
void geglu_backward(const float* gate, const float* up, const float* gout, int64_t n, float* ggate, float* gup) {
  const V one = set1(1), cubic = set1(0.044715f), factor = set1(-1.5957691216057308f);
  const V first_order = set1(1.5957691216057308f), third_order = set1(1.5957691216057308f * 3 * 0.044715f);
  for (int64_t i = 0; i < n; i += 16) {
    const int64_t left = lanes_left(i, n);
    const V a = load_lanes(gate + i, left), b = load_lanes(up + i, left), g = load_lanes(gout + i, left);
    // Beyond these h is 0 or 1 to the last bit, and a² in the slope stays finite.
    const V bounded = max(set1(-30), min(set1(30), a));
    const V square = mul(bounded, bounded);
    const V h = div(one, add(one, exp(mul(factor, fma(mul(square, cubic), bounded, bounded)))));
    const V slope = fma(mul(mul(bounded, h), sub(one, h)), fma(third_order, square, first_order), h);
    store_lanes(ggate + i, mul(mul(g, b), slope), left);
    store_lanes(gup + i, mul(g, mul(a, h)), left);
  }
}

LAPIDARY_INLINE V cap_slope(V capped, V cap) {
  const V ratio = div(capped, cap);
  return sub(set1(1), mul(ratio, ratio));
}

void soft_cap_backward(const float* y, float cap, float* g, int64_t n) {
  for (int64_t i = 0; i < n; i += 16) {
    const int64_t left = lanes_left(i, n);
    store_lanes(g + i, mul(load_lanes(g + i, left), cap_slope(load_lanes(y + i, left), set1(cap))), left);
  }
}

void add_scaled(float* x, float factor, const float* y, int64_t n) {
  for (int64_t i = 0; i < n; ++i) x[i] = x[i] + factor * y[i];
}

void multiply_rows(float* x, const float* y, int64_t n) {
  for (int64_t i = 0; i < n; ++i) x[i] = x[i] * y[i];
}

// --- losses ---------------------------------------------------------------------------------------------------------

double soften_logits(const LogitsRow& row) {
  V highest = set1(-__builtin_inff());
  for (int64_t i = 0; i < row.vocab; i += 16) {
    const int64_t n = lanes_left(i, row.vocab);
    V l = load_lanes(row.logits + i, n);
    if (row.softcap != 0) l = capped(l, set1(row.softcap));
    if (row.temperature != 1) l = div(l, set1(row.temperature));
    store_lanes(row.logits + i, l, n);
    highest = max(n == 16 ? l : keep_range(l, 0, static_cast<int>(n), highest), highest);
  }
  const float most = reduce_max(highest);
  double sum = 0;
  for (int64_t piece = 0; piece < row.vocab; piece += kSumPiece) {
    const int64_t end = row.vocab - piece < kSumPiece ? row.vocab : piece + kSumPiece;
    V part = zero();
    for (int64_t i = piece; i < end; i += 16) {
      const int64_t n = lanes_left(i, end);
      const V e = exp(sub(load_lanes(row.logits + i, n), set1(most)));
      part = add(part, n == 16 ? e : keep_range(e, 0, static_cast<int>(n), zero()));
    }
    sum += reduce_add(part);
  }
  return most + __builtin_log(sum);
}

LAPIDARY_INLINE V logits_slope(const LogitsRow& row, V l) { return cap_slope(mul(l, set1(row.temperature)), set1(row.softcap)); }

void logits_backward(const LogitsRow& row, float log_sum, float factor) {
  for (int64_t i = 0; i < row.vocab; i += 16) {
    const int64_t n = lanes_left(i, row.vocab);
    const V l = load_lanes(row.logits + i, n);
    V g = mul(set1(factor), exp(sub(l, set1(log_sum))));
    if (row.softcap != 0) g = mul(g, logits_slope(row, l));
    store_lanes(row.logits + i, g, n);
  }
}

double distillation_backward(const LogitsRow& row, float log_sum, const float* teacher, float teacher_sum, float factor) {
  double divergence = 0;
  for (int64_t piece = 0; piece < row.vocab; piece += kSumPiece) {
    const int64_t end = row.vocab - piece < kSumPiece ? row.vocab : piece + kSumPiece;
    V part = zero();
    for (int64_t i = piece; i < end; i += 16) {
      const int64_t n = lanes_left(i, end);
      const V l = load_lanes(row.logits + i, n), s = sub(l, set1(log_sum)), t = sub(load_lanes(teacher + i, n), set1(teacher_sum));
      const V p = exp(s), q = exp(t);
      // A term is 0 where its probability is, whatever the logarithms are: -103 is where exp has become 0.
      const V term = mul(q, sub(max(t, set1(-110)), max(s, set1(-3e38f))));
      part = add(part, n == 16 ? term : keep_range(term, 0, static_cast<int>(n), zero()));
      V g = mul(set1(factor), sub(p, q));
      if (row.softcap != 0) g = mul(g, logits_slope(row, l));
      store_lanes(row.logits + i, g, n);
    }
    divergence += reduce_add(part);
  }
  return divergence;
}

// --- fake quantisation ----------------------------------------------------------------------------------------------

// The n <= 16 numbers at x as the integers they are quantised to, times the scale.
LAPIDARY_INLINE V quantised(V x, float scale, float inverse) {
  int8_t lanes[16];
  store_int8(lanes, mul(x, set1(inverse)));
  return mul(load_i8(lanes), set1(scale));
}

double fake_quantize(const float* x, int64_t n, float scale, float* out) {
  const float inverse = 1.0f / scale;
  double error = 0;
  for (int64_t piece = 0; piece < n; piece += kSumPiece) {
    const int64_t end = n - piece < kSumPiece ? n : piece + kSumPiece;
    V part = zero();
    for (int64_t i = piece; i < end; i += 16) {
      const int64_t left = lanes_left(i, end);
      const V a = load_lanes(x + i, left), q = quantised(a, scale, inverse), difference = sub(a, q);
      part = fma(difference, difference, part);
      store_lanes(out + i, q, left);
    }
    error += reduce_add(part);
  }
  return error;
}

void fake_quantize_backward(const float* x, int64_t n, float scale, bool clips, bool literal, float error_weight, float* g) {
  const float range = clips ? 127 * scale : __builtin_inff(), inverse = 1.0f / scale, twice = 2 * error_weight;
  for (int64_t i = 0; i < n; i += 16) {
    const int64_t left = lanes_left(i, n);
    float nearest[16];
    if (literal) store(nearest, quantised(load_lanes(x + i, left), scale, inverse));
    for (int64_t j = 0; j < left; ++j) {
      const float a = x[i + j];
      const bool outside = !(__builtin_fabsf(a) <= range) && clips;
      const float target = literal ? nearest[j] : outside ? __builtin_copysignf(range, a) : a;
      g[i + j] = (outside ? 0 : g[i + j]) + twice * (a - target);
    }
  }
}

// --- optimisers -----------------------------------------------------------------------------------------------------

void adamw(float* p, const float* g, float* m, float* v, int64_t n, const AdamConstants& c) {
  for (int64_t i = 0; i < n; ++i) {
    const float gradient = g[i] * c.gradient_scale;
    m[i] = c.beta1 * m[i] + c.rest1 * gradient;
    v[i] = c.beta2 * v[i] + c.rest2 * (gradient * gradient);
    p[i] = p[i] * c.kept - c.step_size * (m[i] / (__builtin_sqrtf(v[i]) / c.root_correction + c.eps));
  }
}

void sgd(float* p, const float* g, float* momentum, int64_t n, const SgdConstants& c) {
  if (!c.has_momentum) {
    for (int64_t i = 0; i < n; ++i) p[i] = p[i] - c.learning_rate * (g[i] * c.gradient_scale + c.weight_decay * p[i]);
    return;
  }
  for (int64_t i = 0; i < n; ++i) {
    const float move = g[i] * c.gradient_scale + c.weight_decay * p[i];
    momentum[i] = c.first ? move : c.momentum * momentum[i] + move;
    p[i] = p[i] - c.learning_rate * momentum[i];
  }
}

}  // namespace
}  // namespace lapidary::cpu
