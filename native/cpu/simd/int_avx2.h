// I, eight int32 lanes, as one AVX2 register, for kernels/packed_int8.h. With AVX-VNNI (LAPIDARY_VNNI) a lane is a row and multiplies four
// bytes at once; else two lanes share a row and multiply two numbers of 16 bits each: AVX2's products of bytes saturate, this form is exact
// and takes no more instructions. The same names as the other simd/int_*.h.
#pragma once

#include <immintrin.h>

#include "cpu/simd/common.h"

namespace lapidary::cpu {
namespace {

struct I {
  __m256i v;
};

LAPIDARY_INLINE I int_zero() { return {_mm256_setzero_si256()}; }
LAPIDARY_INLINE I int_load(const void* p) { return {_mm256_loadu_si256(static_cast<const __m256i*>(p))}; }
LAPIDARY_INLINE void int_store(void* p, I a) { _mm256_storeu_si256(static_cast<__m256i*>(p), a.v); }
LAPIDARY_INLINE I int_add(I a, I b) { return {_mm256_add_epi32(a.v, b.v)}; }

// float(sum - offset * row sum) * (x_scale * w_scale) of eight rows.
LAPIDARY_INLINE void store_rows(float* out, __m256i sums, int offset_bits, const int32_t* row_sums, float x_scale, const float* w_scales) {
  if (offset_bits > 0)
    sums = _mm256_sub_epi32(sums, _mm256_slli_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(row_sums)), offset_bits));
  const __m256 scale = _mm256_mul_ps(_mm256_set1_ps(x_scale), _mm256_loadu_ps(w_scales));
  _mm256_storeu_ps(out, _mm256_mul_ps(_mm256_cvtepi32_ps(sums), scale));
}

#ifdef LAPIDARY_VNNI
// The instruction multiplies unsigned by signed bytes: inputs are moved up by 128, and 128 times the row sums is taken off again.
using IntNumber = uint8_t;
constexpr int kIntVectors = 2, kIntTileVectors = 2, kIntTileTokens = 6, kIntUnitPanels = 1, kIntFewTokens = 6, kIntPieceTokens = 0,
              kIntJoined = 1;
constexpr bool kIntWidens = false;
LAPIDARY_INLINE IntNumber int_number(int8_t q) { return static_cast<uint8_t>(q ^ -128); }
LAPIDARY_INLINE I int_weights(const int8_t* group, int v) { return int_load(group + 32 * v); }
LAPIDARY_INLINE I int_input(const IntNumber* p) {
  int32_t group;
  std::memcpy(&group, p, 4);
  return {_mm256_set1_epi32(group)};
}
LAPIDARY_INLINE I int_multiply_add(I sum, I weights, I x) {
#if defined(__GNUC__) || defined(__clang__)
  asm("%{vex%} vpdpbusd %2, %1, %0" : "+x"(sum.v) : "x"(x.v), "x"(weights.v));  // gcc 12 copies every sum to and fro around the intrinsic
  return sum;
#else
  return {_mm256_dpbusd_avx_epi32(sum.v, x.v, weights.v)};
#endif
}
LAPIDARY_INLINE void int_store_rows(float* out, const I* sums, const int32_t* row_sums, float x_scale, const float* w_scales) {
  store_rows(out, sums[0].v, 7, row_sums, x_scale, w_scales);
}
#else
using IntNumber = int16_t;
constexpr int kIntVectors = 4, kIntTileVectors = 2, kIntTileTokens = 6, kIntUnitPanels = 1, kIntFewTokens = 2, kIntPieceTokens = 0,
              kIntJoined = 2;
constexpr bool kIntWidens = true;
LAPIDARY_INLINE IntNumber int_number(int8_t q) { return q; }
LAPIDARY_INLINE I int_weights(const int8_t* group, int v) {
  return {_mm256_cvtepi8_epi16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(group) + v))};
}
LAPIDARY_INLINE I int_input(const IntNumber* p) {
  int64_t group;
  std::memcpy(&group, p, 8);
  return {_mm256_set1_epi64x(group)};
}
LAPIDARY_INLINE I int_multiply_add(I sum, I weights, I x) { return {_mm256_add_epi32(sum.v, _mm256_madd_epi16(weights.v, x.v))}; }
LAPIDARY_INLINE void int_store_rows(float* out, const I* sums, const int32_t* row_sums, float x_scale, const float* w_scales) {
  const __m256i rows = _mm256_permute4x64_epi64(_mm256_hadd_epi32(sums[0].v, sums[1].v), 0xd8);
  store_rows(out, rows, 0, row_sums, x_scale, w_scales);
}
#endif

}  // namespace
}  // namespace lapidary::cpu
