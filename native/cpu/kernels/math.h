// Elementwise kernels, rms_norm, exp and tanh over V. Part of kernels/impl.h.
#pragma once

#include LAPIDARY_SIMD_HEADER

#include "cpu/kernels.h"

namespace lapidary::cpu {
namespace {

// The last n < 16 elements of a row, zeros behind them.
LAPIDARY_INLINE V load_part(const void* p, int64_t n) {
  float lanes[16] = {};
  std::memcpy(lanes, p, static_cast<size_t>(n) * 4);
  return load(lanes);
}

LAPIDARY_INLINE void store_part(float* p, V a, int64_t n) {
  float lanes[16];
  store(lanes, a);
  std::memcpy(p, lanes, static_cast<size_t>(n) * 4);
}

// Element i of a row of f32 or bf16 and the n <= 16 from there.
LAPIDARY_INLINE void store_act(void* row, bool bf16, int64_t i, V a, int64_t n) {
  if (!bf16) {
    float* p = static_cast<float*>(row) + i;
    if (n == 16) return store(p, a);
    return store_part(p, a, n);
  }
  char* p = static_cast<char*>(row) + i * 2;
  if (n == 16) return store_bf16(p, a);
  uint16_t lanes[16];
  store_bf16(lanes, a);
  std::memcpy(p, lanes, static_cast<size_t>(n) * 2);
}

LAPIDARY_INLINE int64_t lanes_left(int64_t i, int64_t n) { return n - i < 16 ? n - i : 16; }
LAPIDARY_INLINE V load_lanes(const float* p, int64_t n) { return n == 16 ? load(p) : load_part(p, n); }
LAPIDARY_INLINE void store_lanes(float* p, V a, int64_t n) { return n == 16 ? store(p, a) : store_part(p, a, n); }

// e^r = 1 + expm1 for |r| <= ln 2 / 2, error 5e-10 (the polynomial of (e^r - 1 - r) / r^2 through Chebyshev nodes).
LAPIDARY_INLINE V expm1_reduced(V r) {
  V p = set1(0x1.a12a42p-13f);
  p = fma(p, r, set1(0x1.6d4920p-10f));
  p = fma(p, r, set1(0x1.1110e0p-7f));
  p = fma(p, r, set1(0x1.5554e4p-5f));
  p = fma(p, r, set1(0x1.555556p-3f));
  p = fma(p, r, set1(0.5f));
  return fma(mul(r, r), p, r);
}

// x = n ln 2 + r; t = kRoundingMagic + n. ln 2 in two parts, the first of 14 bits so that n times it is exact.
LAPIDARY_INLINE V reduce_by_ln2(V x, V& t) {
  t = fma(x, set1(0x1.715476p+0f), set1(kRoundingMagic));
  const V n = sub(t, set1(kRoundingMagic));
  return fma(n, set1(-0x1.7f7d1cp-20f), fma(n, set1(-0x1.62e4p-1f), x));
}

// NaN stays NaN, overflow is inf, underflow is gradual.
LAPIDARY_INLINE V exp(V x) {
  x = min(set1(89.0f), max(set1(-104.0f), x));  // beyond these the result is inf or 0
  V t, a, b;
  const V q = expm1_reduced(reduce_by_ln2(x, t));
  pow2_halves(t, a, b);
  return mul(fma(q, a, a), b);
}

LAPIDARY_INLINE float exp1(float x) { return first(exp(set1(x))); }

// (e^2a - 1) / (e^2a - 1 + 2) for a = |x|: no cancellation anywhere.
LAPIDARY_INLINE V tanh(V x) {
  const V magnitude = abs(x);
  const V y = min(set1(20.0f), add(magnitude, magnitude));  // from 18 on the result is 1
  V t, a, b;
  const V q = expm1_reduced(reduce_by_ln2(y, t));
  pow2_halves(t, a, b);
  const V power = mul(a, b);
  const V e = fma(q, power, sub(power, set1(1)));
  return copysign(div(e, add(e, set1(2))), x);
}

void rms_norm(const float* x, const float* weight, float offset, float eps, int64_t dim, void* out, bool out_bf16) {
  V squares = zero();
  for (int64_t i = 0; i < dim; i += 16) {
    const V a = load_lanes(x + i, lanes_left(i, dim));
    squares = fma(a, a, squares);
  }
  const V inverse = set1(1.0f / __builtin_sqrtf(reduce_add(squares) / static_cast<float>(dim) + eps));
  for (int64_t i = 0; i < dim; i += 16) {
    const int64_t n = lanes_left(i, dim);
    const V normed = mul(load_lanes(x + i, n), inverse);
    store_act(out, out_bf16, i, mul(normed, add(set1(offset), load_lanes(weight + i, n))), n);
  }
}

void scale(float* x, float factor, int64_t n) {
  for (int64_t i = 0; i < n; i += 16) {
    const int64_t left = lanes_left(i, n);
    store_lanes(x + i, mul(load_lanes(x + i, left), set1(factor)), left);
  }
}

void add_rows(float* x, const float* y, int64_t n) {
  for (int64_t i = 0; i < n; i += 16) {
    const int64_t left = lanes_left(i, n);
    store_lanes(x + i, add(load_lanes(x + i, left), load_lanes(y + i, left)), left);
  }
}

// max gives its second argument where either is NaN.
float absolute_max(const float* x, int64_t n) {
  V most = zero();
  for (int64_t i = 0; i < n; i += 16) most = max(abs(load_lanes(x + i, lanes_left(i, n))), most);
  return reduce_max(most);
}

void quantize_int8(const float* x, int64_t n, float inverse, int8_t* q) {
  int64_t i = 0;
  for (; i + 16 <= n; i += 16) store_int8(q + i, mul(load(x + i), set1(inverse)));
  if (i == n) return;
  int8_t lanes[16];
  store_int8(lanes, mul(load_part(x + i, n - i), set1(inverse)));
  std::memcpy(q + i, lanes, static_cast<size_t>(n - i));
}

void round_to_bf16(const float* src, int64_t n, void* dst) {
  for (int64_t i = 0; i < n; i += 16) {
    const int64_t left = lanes_left(i, n);
    store_act(dst, /*bf16=*/true, i, load_lanes(src + i, left), left);
  }
}

LAPIDARY_INLINE V capped(V x, V cap) { return mul(cap, tanh(div(x, cap))); }

void soft_cap(float* x, float cap, int64_t n) {
  for (int64_t i = 0; i < n; i += 16) {
    const int64_t left = lanes_left(i, n);
    store_lanes(x + i, capped(load_lanes(x + i, left), set1(cap)), left);
  }
}

// gelu_tanh(g) = g / (1 + e^(-2u)), u = sqrt(2 / pi) (g + 0.044715 g^3): the same function, exact in the left tail too.
void geglu(const float* gate, const float* up, int64_t n, void* out, bool out_bf16) {
  const V one = set1(1), cubic = set1(0.044715f), factor = set1(-1.5957691216057308f);
  for (int64_t i = 0; i < n; i += 16) {
    const int64_t left = lanes_left(i, n);
    const V g = load_lanes(gate + i, left);
    const V inner = fma(mul(mul(g, g), cubic), g, g);
    const V gelu = div(g, add(one, exp(mul(factor, inner))));
    store_act(out, out_bf16, i, mul(gelu, load_lanes(up + i, left)), left);
  }
}

void rope(float* x, const float* cos, const float* sin, int64_t heads, int64_t half) {
  for (int64_t h = 0; h < heads; ++h, x += 2 * half) {
    for (int64_t j = 0; j < half; j += 16) {
      const int64_t n = lanes_left(j, half);
      const V a = load_lanes(x + j, n), b = load_lanes(x + half + j, n);
      const V c = load_lanes(cos + j, n), s = load_lanes(sin + j, n);
      store_lanes(x + j, sub(mul(a, c), mul(b, s)), n);
      store_lanes(x + half + j, add(mul(b, c), mul(a, s)), n);
    }
  }
}

}  // namespace
}  // namespace lapidary::cpu
