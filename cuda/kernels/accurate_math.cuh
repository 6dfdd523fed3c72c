// exp, tanh and tanh-GELU in f32 with errors of a few units of the last place, and sin and cos of large f32 angles. Made of operations that
// every compiler rounds alike (fma, products, sums, divisions): no library function, so the emulator and a GPU give the same bits. The
// polynomials are those of docs/numerics.md, operation for operation as the CPU backend has them.
#pragma once

#include "cuda/primitives/math.cuh"

namespace lapidary::cuda {

// Adding this rounds a small float to an integer, which is then in the low bits.
inline constexpr float kRoundingMagic = 0x1.8p+23f;
inline constexpr int32_t kRoundingMagicBits = 0x4b400000;

// e^r - 1 for |r| <= ln 2 / 2, error 5e-10.
LAPIDARY_DEVICE float expm1_reduced(float r) {
  float p = 0x1.a12a42p-13f;
  p = fma(p, r, 0x1.6d4920p-10f);
  p = fma(p, r, 0x1.1110e0p-7f);
  p = fma(p, r, 0x1.5554e4p-5f);
  p = fma(p, r, 0x1.555556p-3f);
  p = fma(p, r, 0.5f);
  return fma(r * r, p, r);
}

// x = n ln 2 + r for |x| <= 104. ln 2 in two parts, the first of 14 bits so that n times it is exact.
LAPIDARY_DEVICE float reduce_by_ln2(float x, int& n) {
  const float t = fma(x, 0x1.715476p+0f, kRoundingMagic);
  n = bits_as<int32_t>(t) - kRoundingMagicBits;
  const float whole = t - kRoundingMagic;
  return fma(whole, -0x1.7f7d1cp-20f, fma(whole, -0x1.62e4p-1f, x));
}

LAPIDARY_DEVICE float power_of_two(int n) { return bits_as<float>((n + 127) << 23); }  // |n| <= 126

// NaN stays NaN, overflow is infinity, underflow is gradual.
LAPIDARY_DEVICE float exp_accurate(float x) {
  if (!(x == x)) return x;
  x = min_f32(89.0f, max_f32(-104.0f, x));  // beyond these the result is infinity or 0
  int n;
  const float q = expm1_reduced(reduce_by_ln2(x, n));
  const float half = power_of_two(n >> 1), rest = power_of_two(n - (n >> 1));
  return fma(q, half, half) * rest;
}

// (e^2a - 1) / (e^2a - 1 + 2) for a = |x|: no cancellation anywhere.
LAPIDARY_DEVICE float tanh_accurate(float x) {
  if (!(x == x)) return x;
  const float magnitude = abs_f32(x);
  int n;
  const float q = expm1_reduced(reduce_by_ln2(min_f32(20.0f, magnitude + magnitude), n));  // from 18 on the result is 1
  const float power = power_of_two(n);
  const float e = fma(q, power, power - 1.0f);
  return bits_as<float>(bits_as<uint32_t>(divide_exact(e, e + 2.0f)) | (bits_as<uint32_t>(x) & 0x80000000u));
}

// g / (1 + e^(-2u)), u = sqrt(2 / pi) (g + 0.044715 g^3): the same function as 0.5 g (1 + tanh u), exact in the left tail too.
LAPIDARY_DEVICE float gelu_accurate(float g) {
  const float inner = fma(g * g * 0.044715f, g, g);
  return divide_exact(g, 1.0f + exp_accurate(-1.5957691216057308f * inner));
}

// Natural logarithm of a positive normal double, error below 1e-14: x = 2^n m with m about 1, log m = 2 atanh((m - 1) / (m + 1)).
LAPIDARY_DEVICE double log_accurate(double x) {
  const uint64_t bits = bits_as<uint64_t>(x);
  int n = static_cast<int>(bits >> 52) - 1023;
  double m = bits_as<double>((bits & 0x000fffffffffffffu) | 0x3ff0000000000000u);  // [1, 2)
  if (m > 1.4142135623730951) {
    m *= 0.5;
    ++n;
  }
  const double f = (m - 1) / (m + 1), s = f * f;  // s <= 0.0295
  double series = 1.0 / 19;
  LAPIDARY_UNROLL
  for (int k = 17; k >= 1; k -= 2) series = series * s + 1.0 / k;
  return n * 0.6931471805599453 + 2 * f * series;
}

struct SinCos {
  float sin, cos;
};
// Within one unit of the last place for |angle| <= 10^7: the angle less a multiple of pi / 2 in double, then series in double.
LAPIDARY_DEVICE SinCos sin_cos_accurate(float angle) {
  constexpr double kMagic = 0x1.8p+52, kTwoOverPi = 0x1.45f306dc9c883p-1;
  // pi / 2 in parts of 29, 29 and 53 bits: multiples up to 2^24 of the first two are exact.
  constexpr double kHigh = 0x1.921fb54p+0, kMiddle = 0x1.10b4611p-30, kLow = 0x1.4c4c6628b80dcp-59;
  const double shifted = static_cast<double>(angle) * kTwoOverPi + kMagic;
  const double turns = shifted - kMagic;
  const int quadrant = static_cast<int>(bits_as<uint64_t>(shifted) & 3);
  const double r = static_cast<double>(angle) - turns * kHigh - turns * kMiddle - turns * kLow, s = r * r;
  // Taylor's coefficients: at pi / 4 the first left out is below 1e-13.
  const double sine =
      r * (1 + s * (-1.0 / 6 + s * (1.0 / 120 + s * (-1.0 / 5040 + s * (1.0 / 362880 + s * (-1.0 / 39916800 + s * (1.0 / 6227020800)))))));
  const double cosine =
      1 + s * (-0.5 + s * (1.0 / 24 + s * (-1.0 / 720 +
                                           s * (1.0 / 40320 + s * (-1.0 / 3628800 + s * (1.0 / 479001600 + s * (-1.0 / 87178291200.0)))))));
  const float a = static_cast<float>(sine), b = static_cast<float>(cosine);
  const float sin_abs = quadrant & 1 ? b : a, cos_abs = quadrant & 1 ? a : b;
  return {quadrant & 2 ? -sin_abs : sin_abs, (quadrant + 1) & 2 ? -cos_abs : cos_abs};
}

}  // namespace lapidary::cuda
