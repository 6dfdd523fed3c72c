// The sampler's two passes over a vocabulary. Part of kernels_impl.h.
#pragma once

#include "cpu/kernels_math.h"

namespace lapidary::cpu {
namespace {

// The largest of each `block` elements -> maxima; false: some x is NaN or +infinity.
bool block_maxima(const float* x, int64_t n, int64_t block, float* maxima) {
  V wrong = zero();  // (x - x) * 0 is NaN for either, and for -infinity, which is allowed: so that is raised first
  const V lowest = set1(-__FLT_MAX__);
  for (int64_t b = 0; b < n; b += block) {
    const int64_t end = b + block < n ? b + block : n;
    V most = set1(-__builtin_inff());
    int64_t i = b;
    for (; i + 16 <= end; i += 16) {
      const V a = load(x + i);
      most = max(most, a);
      wrong = fma(max(lowest, a), zero(), wrong);
    }
    float top = reduce_max(most);
    for (; i < end; ++i) {
      top = x[i] > top ? x[i] : top;
      if (!(x[i] < __builtin_inff())) wrong = set1(__builtin_nanf(""));
    }
    *maxima++ = top;
  }
  return reduce_add(wrong) == 0;
}

// The weights of sampling::weight_of: products and sums, unfused.
LAPIDARY_INLINE V sampling_weight(V z) {
  z = max(z, set1(-104.0f));
  const V shifted = add(mul(z, set1(0x1.715476p+0f)), set1(kRoundingMagic)), whole = sub(shifted, set1(kRoundingMagic));
  const V r = sub(sub(z, mul(whole, set1(0x1.62e4p-1f))), mul(whole, set1(0x1.7f7d1cp-20f)));
  V p = add(mul(set1(0x1.a12a42p-13f), r), set1(0x1.6d4920p-10f));
  p = add(mul(p, r), set1(0x1.1110e0p-7f));
  p = add(mul(p, r), set1(0x1.5554e4p-5f));
  p = add(mul(p, r), set1(0x1.555556p-3f));
  p = add(mul(p, r), set1(0.5f));
  V a, b;
  pow2_halves(shifted, a, b);
  return mul(mul(add(set1(1), add(r, mul(mul(r, r), p))), a), b);
}

// Σ units of each `block` elements -> sums; unit = 2^unit_bits (sampling::units_of).
void block_units(const float* x, int64_t n, int64_t block, float top, float temperature, float unit, uint64_t* sums) {
  for (int64_t b = 0; b < n; b += block) {
    const int64_t end = b + block < n ? b + block : n;
    int64_t lanes[16] = {};
    for (int64_t i = b; i < end; i += 16) {
      const int64_t left = lanes_left(i, end);
      float scaled[16];
      store(scaled, mul(sampling_weight(div(sub(load_lanes(x + i, left), set1(top)), set1(temperature))), set1(unit)));
      for (int64_t l = left; l < 16; ++l) scaled[l] = 0;
      for (int l = 0; l < 16; ++l) lanes[l] += static_cast<int64_t>(scaled[l]);
    }
    uint64_t sum = 0;
    for (int64_t lane : lanes) sum += static_cast<uint64_t>(lane);
    *sums++ = sum;
  }
}

}  // namespace
}  // namespace lapidary::cpu
