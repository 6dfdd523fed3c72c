// The int8 rule, shared by every backend and by tests (docs/numerics.md, "int8"): symmetric, ±127, scale = max(A, 1e-8) / 127 in f32,
// q = clamp(round to nearest, ties to even, of x * (1 / scale)); NaN becomes 0.
#pragma once

#include <cmath>
#include <cstdint>

namespace lapidary {

inline float int8_scale(float absolute_max) { return (absolute_max > 1e-8f ? absolute_max : 1e-8f) / 127.0f; }

inline int8_t to_int8(float scaled) {
  if (std::isnan(scaled)) return 0;
  const float q = std::nearbyint(scaled);
  return static_cast<int8_t>(q > 127 ? 127 : q < -127 ? -127 : q);
}

// The largest |x|, NaN passed over.
inline float absolute_max(const float* x, int64_t n) {
  float most = 0;
  for (int64_t i = 0; i < n; ++i) {
    const float a = std::fabs(x[i]);
    most = a > most ? a : most;
  }
  return most;
}

inline void quantize_int8(const float* x, int64_t n, float scale, int8_t* q) {
  const float inverse = 1.0f / scale;
  for (int64_t i = 0; i < n; ++i) q[i] = to_int8(x[i] * inverse);
}

}  // namespace lapidary
