// I, eight int32 lanes, as one AVX2 register. As an operand of multiply_add a lane holds kGroup = 2 numbers of 16 bits: the forms on bytes
// saturate, this one is exact. The same functions as the other simd_int_*.h.
#pragma once

#include <immintrin.h>

#include "cpu/simd_common.h"

namespace lapidary::cpu {
namespace {

struct I {
  __m256i v;
};

using Operand = int16_t;
constexpr int kIntLanes = 8, kGroup = 2;
constexpr int32_t kWeightOffset = 0;
// Register tiles of kernels_int8.h: 16 registers.
constexpr int kPanelTokens = 4, kPanelVectors = 2, kDirectTile = 2;
constexpr int64_t kInt8DirectTokens = 8;

LAPIDARY_INLINE I int_zero() { return {_mm256_setzero_si256()}; }
LAPIDARY_INLINE I int_load(const void* p) { return {_mm256_loadu_si256(static_cast<const __m256i*>(p))}; }
LAPIDARY_INLINE void int_store(void* p, I a) { _mm256_storeu_si256(static_cast<__m256i*>(p), a.v); }
// Sixteen weights.
LAPIDARY_INLINE I load_weights(const int8_t* p) { return {_mm256_cvtepi8_epi16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)))}; }
// The first n < 16, then anything: the input has zeros there.
LAPIDARY_INLINE I load_weights_part(const int8_t* p, int64_t n) {
  int8_t lanes[16] = {};
  std::memcpy(lanes, p, static_cast<size_t>(n));
  return load_weights(lanes);
}
// One group of an input row in every lane.
LAPIDARY_INLINE I broadcast_group(const Operand* p) {
  int32_t group;
  std::memcpy(&group, p, 4);
  return {_mm256_set1_epi32(group)};
}
LAPIDARY_INLINE I multiply_add(I sum, I weights, I x) { return {_mm256_add_epi32(sum.v, _mm256_madd_epi16(weights.v, x.v))}; }

// Each vector's lanes added up.
LAPIDARY_INLINE void int_reduce_add4(const I (&a)[4], int32_t* out) {
  const __m256i pairs = _mm256_hadd_epi32(_mm256_hadd_epi32(a[0].v, a[1].v), _mm256_hadd_epi32(a[2].v, a[3].v));
  const __m128i sums = _mm_add_epi32(_mm256_castsi256_si128(pairs), _mm256_extracti128_si256(pairs, 1));
  _mm_storeu_si128(reinterpret_cast<__m128i*>(out), sums);
}

// float(a - offset) * (x_scale * w_scales[lane]).
LAPIDARY_INLINE void store_scaled(float* out, I a, int32_t offset, float x_scale, const float* w_scales) {
  const __m256 scale = _mm256_mul_ps(_mm256_set1_ps(x_scale), _mm256_loadu_ps(w_scales));
  _mm256_storeu_ps(out, _mm256_mul_ps(_mm256_cvtepi32_ps(_mm256_sub_epi32(a.v, _mm256_set1_epi32(offset))), scale));
}

// Lane i of vector j becomes lane j of vector i.
LAPIDARY_INLINE void transpose(I (&a)[8]) {
  __m256i t[8];
  LAPIDARY_UNROLL for (int i = 0; i < 8; i += 4) {  // quads of rows i .. i + 3: lane pairs, then lane quads
    const __m256i p = _mm256_unpacklo_epi32(a[i].v, a[i + 1].v), q = _mm256_unpackhi_epi32(a[i].v, a[i + 1].v);
    const __m256i r = _mm256_unpacklo_epi32(a[i + 2].v, a[i + 3].v), s = _mm256_unpackhi_epi32(a[i + 2].v, a[i + 3].v);
    t[i] = _mm256_unpacklo_epi64(p, r);
    t[i + 1] = _mm256_unpackhi_epi64(p, r);
    t[i + 2] = _mm256_unpacklo_epi64(q, s);
    t[i + 3] = _mm256_unpackhi_epi64(q, s);
  }
  LAPIDARY_UNROLL for (int i = 0; i < 4; ++i) {
    a[i].v = _mm256_permute2x128_si256(t[i], t[i + 4], 0x20);
    a[i + 4].v = _mm256_permute2x128_si256(t[i], t[i + 4], 0x31);
  }
}

}  // namespace
}  // namespace lapidary::cpu
