// I, sixteen int32 lanes, as one AVX-512 register. As an operand of multiply_add a lane holds kGroup numbers: 4 bytes with VNNI
// (LAPIDARY_VNNI), else 2 of 16 bits. The same functions as the other simd_int_*.h.
#pragma once

#include <immintrin.h>

#include "cpu/simd_common.h"

namespace lapidary::cpu {
namespace {

struct I {
  __m512i v;
};

constexpr int kIntLanes = 16;
// Register tiles of kernels_int8.h: 32 registers.
constexpr int kPanelTokens = 8, kPanelVectors = 3;
constexpr int64_t kInt8DirectTokens = 16;

LAPIDARY_INLINE I int_zero() { return {_mm512_setzero_si512()}; }
LAPIDARY_INLINE I int_load(const void* p) { return {_mm512_loadu_si512(p)}; }
LAPIDARY_INLINE void int_store(void* p, I a) { _mm512_storeu_si512(p, a.v); }

#ifdef LAPIDARY_VNNI
// The instruction multiplies unsigned by signed bytes: weights are moved up by 128, and 128 times the input's sum is taken off again.
using Operand = int8_t;
constexpr int kGroup = 4;
constexpr int32_t kWeightOffset = 128;
constexpr int kDirectTile = 6;
LAPIDARY_INLINE I moved_up(__m512i w) { return {_mm512_xor_si512(w, _mm512_set1_epi8(-128))}; }
// 64 weights.
LAPIDARY_INLINE I load_weights(const int8_t* p) { return moved_up(_mm512_loadu_si512(p)); }
// The first n < 64, then anything: the input has zeros there.
LAPIDARY_INLINE I load_weights_part(const int8_t* p, int64_t n) { return moved_up(_mm512_maskz_loadu_epi8((1ull << n) - 1, p)); }
LAPIDARY_INLINE I multiply_add(I sum, I weights, I x) {
#if defined(__GNUC__) || defined(__clang__)
  asm("vpdpbusd %2, %1, %0" : "+v"(sum.v) : "v"(weights.v), "vm"(x.v));  // gcc 12 copies every sum to and fro around the intrinsic
  return sum;
#else
  return {_mm512_dpbusd_epi32(sum.v, weights.v, x.v)};
#endif
}
#else
using Operand = int16_t;
constexpr int kGroup = 2;
constexpr int32_t kWeightOffset = 0;
constexpr int kDirectTile = 4;
// 32 weights.
LAPIDARY_INLINE I load_weights(const int8_t* p) { return {_mm512_cvtepi8_epi16(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)))}; }
// The first n < 32, then anything: the input has zeros there.
LAPIDARY_INLINE I load_weights_part(const int8_t* p, int64_t n) {
  return {_mm512_cvtepi8_epi16(_mm256_maskz_loadu_epi8((1u << n) - 1, p))};
}
LAPIDARY_INLINE I multiply_add(I sum, I weights, I x) { return {_mm512_add_epi32(sum.v, _mm512_madd_epi16(weights.v, x.v))}; }
#endif

// One group of an input row in every lane.
LAPIDARY_INLINE I broadcast_group(const Operand* p) {
  int32_t group;
  std::memcpy(&group, p, 4);
  return {_mm512_set1_epi32(group)};
}

// Each vector's lanes added up.
LAPIDARY_INLINE void int_reduce_add4(const I (&a)[4], int32_t* out) {
  const __m512i ab = _mm512_add_epi32(_mm512_unpacklo_epi32(a[0].v, a[1].v), _mm512_unpackhi_epi32(a[0].v, a[1].v));
  const __m512i cd = _mm512_add_epi32(_mm512_unpacklo_epi32(a[2].v, a[3].v), _mm512_unpackhi_epi32(a[2].v, a[3].v));
  const __m512i abcd = _mm512_add_epi32(_mm512_unpacklo_epi64(ab, cd), _mm512_unpackhi_epi64(ab, cd));
  const __m256i half = _mm256_add_epi32(_mm512_castsi512_si256(abcd), _mm512_extracti64x4_epi64(abcd, 1));
  const __m128i sums = _mm_add_epi32(_mm256_castsi256_si128(half), _mm256_extracti128_si256(half, 1));
  _mm_storeu_si128(reinterpret_cast<__m128i*>(out), sums);
}

// float(a - offset) * (x_scale * w_scales[lane]).
LAPIDARY_INLINE void store_scaled(float* out, I a, int32_t offset, float x_scale, const float* w_scales) {
  const __m512 scale = _mm512_mul_ps(_mm512_set1_ps(x_scale), _mm512_loadu_ps(w_scales));
  _mm512_storeu_ps(out, _mm512_mul_ps(_mm512_cvtepi32_ps(_mm512_sub_epi32(a.v, _mm512_set1_epi32(offset))), scale));
}

// Lane i of vector j becomes lane j of vector i.
LAPIDARY_INLINE void transpose(I (&a)[16]) {
  __m512i t[16];
  LAPIDARY_UNROLL for (int i = 0; i < 16; i += 4) {  // rows i .. i + 3 within each quarter of a register
    const __m512i p = _mm512_unpacklo_epi32(a[i].v, a[i + 1].v), q = _mm512_unpackhi_epi32(a[i].v, a[i + 1].v);
    const __m512i r = _mm512_unpacklo_epi32(a[i + 2].v, a[i + 3].v), s = _mm512_unpackhi_epi32(a[i + 2].v, a[i + 3].v);
    t[i] = _mm512_unpacklo_epi64(p, r);
    t[i + 1] = _mm512_unpackhi_epi64(p, r);
    t[i + 2] = _mm512_unpacklo_epi64(q, s);
    t[i + 3] = _mm512_unpackhi_epi64(q, s);
  }
  LAPIDARY_UNROLL for (int i = 0; i < 4; ++i) {  // t[i + 4 j], quarter q: lane 4 q + i of rows 4 j .. 4 j + 3
    const __m512i p = _mm512_shuffle_i32x4(t[i], t[i + 4], 0x44), q = _mm512_shuffle_i32x4(t[i], t[i + 4], 0xee);
    const __m512i r = _mm512_shuffle_i32x4(t[i + 8], t[i + 12], 0x44), s = _mm512_shuffle_i32x4(t[i + 8], t[i + 12], 0xee);
    a[i].v = _mm512_shuffle_i32x4(p, r, 0x88);
    a[i + 4].v = _mm512_shuffle_i32x4(p, r, 0xdd);
    a[i + 8].v = _mm512_shuffle_i32x4(q, s, 0x88);
    a[i + 12].v = _mm512_shuffle_i32x4(q, s, 0xdd);
  }
}

}  // namespace
}  // namespace lapidary::cpu
