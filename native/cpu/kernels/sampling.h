// The sampler's passes over a vocabulary. Part of kernels/impl.h.
#pragma once

#include "cpu/simd/whole.h"
#include "ops/sampling_math.h"  // its constants alone: see kernels.h

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

// What turns logits into units, 2^unit_bits being `unit` (sampling::units_of).
struct UnitsOf {
  V top, temperature, unit;
  bool divides;  // by a temperature other than 1

  UnitsOf(float t, float degrees, float u) : top(set1(t)), temperature(set1(degrees)), unit(set1(u)), divides(degrees != 1) {}
  LAPIDARY_INLINE V scaled(V x) const {
    const V z = sub(x, top);
    return divides ? div(z, temperature) : z;
  }
  LAPIDARY_INLINE V units(V z) const { return mul(sampling_weight(z), unit); }
};

// Σ units of those of each `block` elements that are not below `low` -> sums.
void block_units(const float* x, int64_t n, int64_t block, float low, float top, float temperature, float unit, uint64_t* sums) {
  const UnitsOf of(top, temperature, unit);
  const V lowest = set1(low);
  for (int64_t b = 0; b < n; b += block) {
    const int64_t end = b + block < n ? b + block : n;
    Whole total = no_whole();
    int64_t i = b;
    for (; i + 16 <= end; i += 16) {
      const V a = load(x + i);
      total = add(total, whole(from(a, lowest, of.units(of.scaled(a)))));
    }
    if (i < end) {
      const V a = load_lanes(x + i, end - i), units = from(a, lowest, of.units(of.scaled(a)));
      total = add(total, whole(keep_range(units, 0, static_cast<int>(end - i), zero())));
    }
    uint64_t lanes[16], sum = 0;
    store_whole(lanes, total);
    for (uint64_t lane : lanes) sum += lane;
    *sums++ = sum;
  }
}

// Units by bucket (sampling::bucket_of): of a piece of the elements first, then added up one by one. Taken in turn, vector by vector, the
// two ways of work would wait for each other.
void bucket_units(const float* x, int64_t n, float top, float temperature, float unit, uint64_t* buckets) {
  constexpr int64_t kPiece = 256;
  const UnitsOf of(top, temperature, unit);
  const V scale = set1(sampling::kBucketScale), last = set1(sampling::kBuckets - 1), magic = set1(kRoundingMagic);
  // Two sums of each, since neighbours often share a bucket and would wait for each other's addition.
  uint64_t odd[sampling::kBuckets] = {};
  std::memset(buckets, 0, sizeof odd);
  alignas(64) float moved[kPiece];
  alignas(64) uint64_t units[kPiece];
  for (int64_t i = 0; i < n; i += kPiece) {
    const int64_t piece = n - i < kPiece ? n - i : kPiece;
    for (int64_t j = 0; j < piece; j += 16) {
      const V z = of.scaled(load_lanes(x + i + j, lanes_left(j, piece)));
      store(moved + j, add(min(mul(z, scale), last), magic));
      store_whole(units + j, whole(of.units(z)));
    }
    const auto add_units = [&](uint64_t* sums, int64_t j) {
      uint32_t at;
      std::memcpy(&at, moved + j, sizeof at);
      sums[at - kRoundingMagicBits] += units[j];
    };
    int64_t j = 0;
    for (; j + 8 <= piece; j += 8) {
      LAPIDARY_UNROLL for (int l = 0; l < 8; l += 2) add_units(buckets, j + l), add_units(odd, j + l + 1);
    }
    for (; j < piece; ++j) add_units(buckets, j);
  }
  for (int i = 0; i < sampling::kBuckets; ++i) buckets[i] += odd[i];
}

// Indices of elements from `low` to `high`, rising -> indices; gives their number.
int64_t find_between(const float* x, int64_t n, float low, float high, int32_t* indices) {
  const V lowest = set1(low), highest = set1(high);
  int64_t count = 0;
  for (int64_t i = 0; i < n; i += 16) {
    const int64_t left = lanes_left(i, n);
    uint32_t found = between(load_lanes(x + i, left), lowest, highest);
    if (left < 16) found &= (1u << left) - 1;
    for (; found != 0; found &= found - 1) indices[count++] = static_cast<int32_t>(i + __builtin_ctz(found));
  }
  return count;
}

}  // namespace
}  // namespace lapidary::cpu
