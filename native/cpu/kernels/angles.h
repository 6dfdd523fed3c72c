// Cosines and sines of RoPE's angles. Part of kernels/impl.h.
//
// In f64 without fused operations, which leaves an error of some 1e-14: so the f32 results are the correctly rounded ones, as good as
// always, and equal on every instruction set. Plain loops, which the compiler turns into vectors.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

namespace lapidary::cpu {
namespace {

// angle = n * pi / 2 + r; pi / 2 in two parts, the first of 33 bits, so that n times it is exact.
constexpr double kMostAngle = 1 << 20;
constexpr double kTwoOverPi = 0x1.45f306dc9c883p-1, kHalfPi = 0x1.921fb544p+0, kHalfPiRest = 0x1.0b4611a626331p-34;
constexpr double kRoundingMagic64 = 0x1.8p+52;

void rope_angles(float position, const float* inv_freq, int64_t half, float* cos, float* sin) {
  bool far = false;
  for (int64_t j = 0; j < half; ++j) far |= !(__builtin_fabsf(position * inv_freq[j]) < static_cast<float>(kMostAngle));
  if (far) {
    for (int64_t j = 0; j < half; ++j) {
      const double angle = static_cast<double>(position * inv_freq[j]);
      cos[j] = static_cast<float>(::cos(angle));
      sin[j] = static_cast<float>(::sin(angle));
    }
    return;
  }
  for (int64_t j = 0; j < half; ++j) {
    const double angle = static_cast<double>(position * inv_freq[j]);
    const double shifted = angle * kTwoOverPi + kRoundingMagic64, n = shifted - kRoundingMagic64;
    int64_t quadrant;
    std::memcpy(&quadrant, &shifted, sizeof quadrant);  // n, in the low bits
    const double r = (angle - n * kHalfPi) - n * kHalfPiRest, x = r * r;
    // The series of sin(r) / r and cos(r) to x^6 and x^7: |r| <= pi / 4.
    const double s =
        r +
        r * (x * (-1 / 6.0 + x * (1 / 120.0 + x * (-1 / 5040.0 + x * (1 / 362880.0 + x * (-1 / 39916800.0 + x * (1 / 6227020800.0)))))));
    const double c =
        1 + x * (-1 / 2.0 + x * (1 / 24.0 + x * (-1 / 720.0 + x * (1 / 40320.0 + x * (-1 / 3628800.0 +
                                                                                      x * (1 / 479001600.0 + x * (-1 / 87178291200.0)))))));
    const double first = quadrant & 1 ? c : s, second = quadrant & 1 ? s : c;
    sin[j] = static_cast<float>(quadrant & 2 ? -first : first);
    cos[j] = static_cast<float>((quadrant + 1) & 2 ? -second : second);
  }
}

}  // namespace
}  // namespace lapidary::cpu
