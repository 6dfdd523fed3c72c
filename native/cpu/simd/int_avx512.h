// I, sixteen int32 lanes, as one AVX-512 register, for kernels/packed_int8.h. With VNNI (LAPIDARY_VNNI) a lane is a row and multiplies four
// bytes at once; else two lanes share a row and multiply two numbers of 16 bits each. The same names as the other simd/int_*.h.
#pragma once

#include <immintrin.h>

#include "cpu/simd/common.h"

namespace lapidary::cpu {
namespace {

struct I {
  __m512i v;
};

LAPIDARY_INLINE I int_zero() { return {_mm512_setzero_si512()}; }
LAPIDARY_INLINE I int_load(const void* p) { return {_mm512_loadu_si512(p)}; }
LAPIDARY_INLINE void int_store(void* p, I a) { _mm512_storeu_si512(p, a.v); }
LAPIDARY_INLINE I int_add(I a, I b) { return {_mm512_add_epi32(a.v, b.v)}; }

// float(sum - offset * row sum) * (x_scale * w_scale) of sixteen rows.
LAPIDARY_INLINE void store_rows(float* out, __m512i sums, int offset_bits, const int32_t* row_sums, float x_scale, const float* w_scales) {
  if (offset_bits > 0) sums = _mm512_sub_epi32(sums, _mm512_slli_epi32(_mm512_loadu_si512(row_sums), static_cast<unsigned>(offset_bits)));
  const __m512 scale = _mm512_mul_ps(_mm512_set1_ps(x_scale), _mm512_loadu_ps(w_scales));
  _mm512_storeu_ps(out, _mm512_mul_ps(_mm512_cvtepi32_ps(sums), scale));
}

#ifdef LAPIDARY_VNNI
// The instruction multiplies unsigned by signed bytes: inputs are moved up by 128, and 128 times the row sums is taken off again.
using IntNumber = uint8_t;
constexpr int kIntVectors = 1, kIntTileVectors = 3, kIntTileTokens = 8, kIntUnitPanels = 3, kIntFewTokens = 8, kIntPieceTokens = 16,
              kIntJoined = 1;
constexpr bool kIntWidens = false;
LAPIDARY_INLINE IntNumber int_number(int8_t q) { return static_cast<uint8_t>(q ^ -128); }
LAPIDARY_INLINE I int_weights(const int8_t* group, int) { return {_mm512_loadu_si512(group)}; }
LAPIDARY_INLINE I int_input(const IntNumber* p) {
  int32_t group;
  std::memcpy(&group, p, 4);
  return {_mm512_set1_epi32(group)};
}
LAPIDARY_INLINE I int_multiply_add(I sum, I weights, I x) {
#if defined(__GNUC__) || defined(__clang__)
  asm("vpdpbusd %2, %1, %0" : "+v"(sum.v) : "v"(x.v), "v"(weights.v));  // gcc 12 copies every sum to and fro around the intrinsic
  return sum;
#else
  return {_mm512_dpbusd_epi32(sum.v, x.v, weights.v)};
#endif
}
LAPIDARY_INLINE void int_store_rows(float* out, const I* sums, const int32_t* row_sums, float x_scale, const float* w_scales) {
  store_rows(out, sums[0].v, 7, row_sums, x_scale, w_scales);
}
#else
using IntNumber = int16_t;
constexpr int kIntVectors = 2, kIntTileVectors = 4, kIntTileTokens = 6, kIntUnitPanels = 2, kIntFewTokens = 6, kIntPieceTokens = 0,
              kIntJoined = 2;
constexpr bool kIntWidens = true;
LAPIDARY_INLINE IntNumber int_number(int8_t q) { return q; }
LAPIDARY_INLINE I int_weights(const int8_t* group, int v) {
  return {_mm512_cvtepi8_epi16(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(group) + v))};
}
LAPIDARY_INLINE I int_input(const IntNumber* p) {
  int64_t group;
  std::memcpy(&group, p, 8);
  return {_mm512_set1_epi64(group)};
}
LAPIDARY_INLINE I int_multiply_add(I sum, I weights, I x) { return {_mm512_add_epi32(sum.v, _mm512_madd_epi16(weights.v, x.v))}; }
LAPIDARY_INLINE void int_store_rows(float* out, const I* sums, const int32_t* row_sums, float x_scale, const float* w_scales) {
  const __m512i even = _mm512_set_epi32(30, 28, 26, 24, 22, 20, 18, 16, 14, 12, 10, 8, 6, 4, 2, 0);
  const __m512i a = _mm512_add_epi32(sums[0].v, _mm512_srli_epi64(sums[0].v, 32));
  const __m512i b = _mm512_add_epi32(sums[1].v, _mm512_srli_epi64(sums[1].v, 32));
  store_rows(out, _mm512_permutex2var_epi32(a, even, b), 0, row_sums, x_scale, w_scales);
}
#endif

}  // namespace
}  // namespace lapidary::cpu
