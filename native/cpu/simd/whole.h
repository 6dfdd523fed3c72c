// V turned into whole numbers of 64 bits, and compared: what the sampler's kernels need beyond kernels/math.h.
#pragma once

#include "cpu/kernels/math.h"

namespace lapidary::cpu {
namespace {

// Whole: sixteen uint64. whole: numbers from 0 to 2^62, rounded down. from: a where x >= low, elsewhere 0. between: bit i: low <= x <=
// high.
#if defined(__AVX512F__)

struct Whole {
  __m512i lo, hi;
};
LAPIDARY_INLINE Whole whole(V a) {
  return {_mm512_cvttps_epi64(_mm512_castps512_ps256(a.v)), _mm512_cvttps_epi64(_mm512_extractf32x8_ps(a.v, 1))};
}
LAPIDARY_INLINE Whole no_whole() { return {_mm512_setzero_si512(), _mm512_setzero_si512()}; }
LAPIDARY_INLINE Whole add(const Whole& a, const Whole& b) { return {_mm512_add_epi64(a.lo, b.lo), _mm512_add_epi64(a.hi, b.hi)}; }
LAPIDARY_INLINE void store_whole(uint64_t* p, const Whole& a) {
  _mm512_storeu_si512(p, a.lo);
  _mm512_storeu_si512(p + 8, a.hi);
}
LAPIDARY_INLINE V from(V x, V low, V a) { return {_mm512_maskz_mov_ps(_mm512_cmp_ps_mask(x.v, low.v, _CMP_GE_OQ), a.v)}; }
LAPIDARY_INLINE uint32_t between(V x, V low, V high) {
  return _mm512_mask_cmp_ps_mask(_mm512_cmp_ps_mask(x.v, low.v, _CMP_GE_OQ), x.v, high.v, _CMP_LE_OQ);
}

#elif defined(__AVX2__)

struct Whole {
  __m256i quarters[4];
};
// The mantissa moved to where the exponent has it; a count of 64 or more, as of a negative number, leaves nothing.
LAPIDARY_INLINE __m256i whole4(__m128 a) {
  const __m256i bits = _mm256_cvtepi32_epi64(_mm_castps_si128(a)), one = _mm256_set1_epi64x(1 << 23);
  const __m256i mantissa = _mm256_or_si256(_mm256_and_si256(bits, _mm256_set1_epi64x((1 << 23) - 1)), one);
  const __m256i up = _mm256_sub_epi64(_mm256_srli_epi64(bits, 23), _mm256_set1_epi64x(150));
  return _mm256_or_si256(_mm256_sllv_epi64(mantissa, up), _mm256_srlv_epi64(mantissa, _mm256_sub_epi64(_mm256_setzero_si256(), up)));
}
LAPIDARY_INLINE Whole whole(V a) {
  return {{whole4(_mm256_castps256_ps128(a.lo)), whole4(_mm256_extractf128_ps(a.lo, 1)), whole4(_mm256_castps256_ps128(a.hi)),
           whole4(_mm256_extractf128_ps(a.hi, 1))}};
}
LAPIDARY_INLINE Whole no_whole() {
  const __m256i none = _mm256_setzero_si256();
  return {{none, none, none, none}};
}
LAPIDARY_INLINE Whole add(const Whole& a, const Whole& b) {
  Whole sum;
  LAPIDARY_UNROLL for (int i = 0; i < 4; ++i) sum.quarters[i] = _mm256_add_epi64(a.quarters[i], b.quarters[i]);
  return sum;
}
LAPIDARY_INLINE void store_whole(uint64_t* p, const Whole& a) {
  LAPIDARY_UNROLL for (int i = 0; i < 4; ++i) _mm256_storeu_si256(reinterpret_cast<__m256i*>(p) + i, a.quarters[i]);
}
LAPIDARY_INLINE V from(V x, V low, V a) {
  return {_mm256_and_ps(_mm256_cmp_ps(x.lo, low.lo, _CMP_GE_OQ), a.lo), _mm256_and_ps(_mm256_cmp_ps(x.hi, low.hi, _CMP_GE_OQ), a.hi)};
}
LAPIDARY_INLINE uint32_t between8(__m256 x, __m256 low, __m256 high) {
  return static_cast<uint32_t>(_mm256_movemask_ps(_mm256_and_ps(_mm256_cmp_ps(x, low, _CMP_GE_OQ), _mm256_cmp_ps(x, high, _CMP_LE_OQ))));
}
LAPIDARY_INLINE uint32_t between(V x, V low, V high) { return between8(x.lo, low.lo, high.lo) | between8(x.hi, low.hi, high.hi) << 8; }

#else

struct Whole {
  uint64_t l[16];
};
LAPIDARY_INLINE Whole whole(const V& a) {
  float lanes[16];
  store(lanes, a);
  Whole w;
  for (int i = 0; i < 16; ++i) w.l[i] = static_cast<uint64_t>(static_cast<int64_t>(lanes[i]));
  return w;
}
LAPIDARY_INLINE Whole no_whole() { return {}; }
LAPIDARY_INLINE Whole add(const Whole& a, const Whole& b) {
  Whole sum;
  for (int i = 0; i < 16; ++i) sum.l[i] = a.l[i] + b.l[i];
  return sum;
}
LAPIDARY_INLINE void store_whole(uint64_t* p, const Whole& a) { std::memcpy(p, a.l, sizeof a.l); }
LAPIDARY_INLINE V from(const V& x, const V& low, const V& a) {
  float xs[16], lows[16], all[16];
  store(xs, x), store(lows, low), store(all, a);
  for (int i = 0; i < 16; ++i) all[i] = xs[i] >= lows[i] ? all[i] : 0;
  return load(all);
}
LAPIDARY_INLINE uint32_t between(const V& x, const V& low, const V& high) {
  float xs[16], lows[16], highs[16];
  store(xs, x), store(lows, low), store(highs, high);
  uint32_t bits = 0;
  for (int i = 0; i < 16; ++i) bits |= static_cast<uint32_t>(xs[i] >= lows[i] && xs[i] <= highs[i]) << i;
  return bits;
}

#endif

}  // namespace
}  // namespace lapidary::cpu
