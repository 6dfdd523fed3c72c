// V, sixteen f32 lanes, as two AVX2 registers. The same functions as the other simd/*.h, lane by lane the same results.
#pragma once

#include <immintrin.h>

#include "cpu/kernels.h"
#include "cpu/simd/common.h"

namespace lapidary::cpu {
namespace {

struct V {
  __m256 lo, hi;
};

// Register tiles of kernels/linear.h and kernels/attention.h: 16 registers.
constexpr int kTileTokens = 3, kTileRows = 2;
constexpr int direct_rows(int tokens) { return tokens == 1 ? 4 : tokens == 4 ? 1 : 2; }
constexpr int kAttendQueries = 3, kAttendVectors = 2;

LAPIDARY_INLINE V zero() { return {_mm256_setzero_ps(), _mm256_setzero_ps()}; }
LAPIDARY_INLINE V set1(float x) { return {_mm256_set1_ps(x), _mm256_set1_ps(x)}; }
LAPIDARY_INLINE float first(V a) { return _mm256_cvtss_f32(a.lo); }
LAPIDARY_INLINE V load(const void* p) {
  const float* f = static_cast<const float*>(p);
  return {_mm256_loadu_ps(f), _mm256_loadu_ps(f + 8)};
}
LAPIDARY_INLINE void store(float* p, V a) {
  _mm256_storeu_ps(p, a.lo);
  _mm256_storeu_ps(p + 8, a.hi);
}
LAPIDARY_INLINE __m128i load128(const void* p, int index) { return _mm_loadu_si128(static_cast<const __m128i*>(p) + index); }
LAPIDARY_INLINE __m256 widen_bf16(__m128i h) { return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(h), 16)); }
LAPIDARY_INLINE V load_bf16(const void* p) { return {widen_bf16(load128(p, 0)), widen_bf16(load128(p, 1))}; }
LAPIDARY_INLINE V load_f16(const void* p) { return {_mm256_cvtph_ps(load128(p, 0)), _mm256_cvtph_ps(load128(p, 1))}; }
LAPIDARY_INLINE float f16_to_f32(uint16_t bits) { return _mm_cvtss_f32(_mm_cvtph_ps(_mm_cvtsi32_si128(bits))); }
LAPIDARY_INLINE V from_i8(__m128i q) {
  return {_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(q)), _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_srli_si128(q, 8)))};
}
LAPIDARY_INLINE V load_i8(const void* p) { return from_i8(load128(p, 0)); }
// The elements of 32-bit words: the two bf16, the four int8.
LAPIDARY_INLINE V bf16_low(V w) {
  return {_mm256_castsi256_ps(_mm256_slli_epi32(_mm256_castps_si256(w.lo), 16)),
          _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_castps_si256(w.hi), 16))};
}
LAPIDARY_INLINE V bf16_high(V w) {
  const __m256 mask = _mm256_castsi256_ps(_mm256_set1_epi32(static_cast<int>(0xffff0000u)));
  return {_mm256_and_ps(w.lo, mask), _mm256_and_ps(w.hi, mask)};
}
template <int kByte>
LAPIDARY_INLINE __m256 i8_of_word8(__m256 w) {
  return _mm256_cvtepi32_ps(_mm256_srai_epi32(_mm256_slli_epi32(_mm256_castps_si256(w), 24 - 8 * kByte), 24));
}
template <int kByte>
LAPIDARY_INLINE V i8_of_word(V w) {
  return {i8_of_word8<kByte>(w.lo), i8_of_word8<kByte>(w.hi)};
}
// columns[j] is word j of sixteen rows of sixteen words, row_bytes apart. Rows four apart are loaded as the halves of a register, so
// that what is left is four by four words within each half.
LAPIDARY_INLINE void load_turned(const uint8_t* rows, int64_t row_bytes, V (&columns)[16]) {
  LAPIDARY_UNROLL for (int half = 0; half < 2; ++half) {
    LAPIDARY_UNROLL for (int b = 0; b < 4; ++b) {
      __m256 q[4];
      LAPIDARY_UNROLL for (int i = 0; i < 4; ++i) {
        const float* p = reinterpret_cast<const float*>(rows + (8 * half + i) * row_bytes + 16 * b);
        const float* p4 = reinterpret_cast<const float*>(rows + (8 * half + i + 4) * row_bytes + 16 * b);
        q[i] = _mm256_insertf128_ps(_mm256_castps128_ps256(_mm_loadu_ps(p)), _mm_loadu_ps(p4), 1);
      }
      const __m256d a = _mm256_castps_pd(_mm256_unpacklo_ps(q[0], q[1])), c = _mm256_castps_pd(_mm256_unpackhi_ps(q[0], q[1]));
      const __m256d e = _mm256_castps_pd(_mm256_unpacklo_ps(q[2], q[3])), g = _mm256_castps_pd(_mm256_unpackhi_ps(q[2], q[3]));
      const __m256 turned[4] = {_mm256_castpd_ps(_mm256_unpacklo_pd(a, e)), _mm256_castpd_ps(_mm256_unpackhi_pd(a, e)),
                                _mm256_castpd_ps(_mm256_unpacklo_pd(c, g)), _mm256_castpd_ps(_mm256_unpackhi_pd(c, g))};
      LAPIDARY_UNROLL for (int j = 0; j < 4; ++j)(half == 0 ? columns[4 * b + j].lo : columns[4 * b + j].hi) = turned[j];
    }
  }
}
// Sixteen bytes of two 4-bit numbers each: the low halves, the high halves, less 8.
LAPIDARY_INLINE void load_i4(const void* p, V& low, V& high) {
  const __m128i q = load128(p, 0), mask = _mm_set1_epi8(15), eight = _mm_set1_epi8(8);
  low = from_i8(_mm_sub_epi8(_mm_and_si128(q, mask), eight));
  high = from_i8(_mm_sub_epi8(_mm_and_si128(_mm_srli_epi16(q, 4), mask), eight));
}
LAPIDARY_INLINE __m256i bf16_bits(__m256 a) {
  const __m256i u = _mm256_castps_si256(a), high = _mm256_srli_epi32(u, 16);
  const __m256i odd = _mm256_and_si256(high, _mm256_set1_epi32(1));
  const __m256i rounded = _mm256_srli_epi32(_mm256_add_epi32(_mm256_add_epi32(u, _mm256_set1_epi32(0x7fff)), odd), 16);
  const __m256i quiet = _mm256_or_si256(high, _mm256_set1_epi32(0x40));
  return _mm256_blendv_epi8(rounded, quiet, _mm256_castps_si256(_mm256_cmp_ps(a, a, _CMP_UNORD_Q)));
}
LAPIDARY_INLINE void store_bf16(void* p, V a) {
  const __m256i packed = _mm256_packus_epi32(bf16_bits(a.lo), bf16_bits(a.hi));
  _mm256_storeu_si256(static_cast<__m256i*>(p), _mm256_permute4x64_epi64(packed, 0xd8));
}
// to_int8 of ops/int8.h.
LAPIDARY_INLINE __m256i int8_range(__m256 a) {
  const __m256 clamped = _mm256_max_ps(_mm256_set1_ps(-127), _mm256_min_ps(_mm256_set1_ps(127), a));  // where a is NaN, NaN
  return _mm256_cvtps_epi32(_mm256_and_ps(clamped, _mm256_cmp_ps(a, a, _CMP_ORD_Q)));
}
LAPIDARY_INLINE void store_int8(int8_t* p, V a) {
  const __m256i words = _mm256_permute4x64_epi64(_mm256_packs_epi32(int8_range(a.lo), int8_range(a.hi)), 0xd8);
  const __m128i bytes = _mm_packs_epi16(_mm256_castsi256_si128(words), _mm256_extracti128_si256(words, 1));
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), bytes);
}

LAPIDARY_INLINE V fma(V a, V b, V c) { return {_mm256_fmadd_ps(a.lo, b.lo, c.lo), _mm256_fmadd_ps(a.hi, b.hi, c.hi)}; }
// sums[i] = fma(*x, w[i], sums[i]). Left to itself, gcc 12 reads many x ahead and runs out of registers.
template <int N>
LAPIDARY_INLINE void fma_each(const float* x, const V (&w)[N], V (&sums)[N]) {
#if defined(__GNUC__) || defined(__clang__)
  if constexpr (N == 1) {
    __m256 all;
    asm("vbroadcastss %3, %2\n\tvfmadd231ps %4, %2, %0\n\tvfmadd231ps %5, %2, %1"
        : "+x"(sums[0].lo), "+x"(sums[0].hi), "=&x"(all)
        : "m"(*x), "x"(w[0].lo), "x"(w[0].hi));
    return;
  }
#endif
  LAPIDARY_UNROLL for (int i = 0; i < N; ++i) sums[i] = fma(set1(*x), w[i], sums[i]);
}
LAPIDARY_INLINE V add(V a, V b) { return {_mm256_add_ps(a.lo, b.lo), _mm256_add_ps(a.hi, b.hi)}; }
LAPIDARY_INLINE V sub(V a, V b) { return {_mm256_sub_ps(a.lo, b.lo), _mm256_sub_ps(a.hi, b.hi)}; }
LAPIDARY_INLINE V mul(V a, V b) { return {_mm256_mul_ps(a.lo, b.lo), _mm256_mul_ps(a.hi, b.hi)}; }
LAPIDARY_INLINE V div(V a, V b) { return {_mm256_div_ps(a.lo, b.lo), _mm256_div_ps(a.hi, b.hi)}; }
// Where either is NaN, b.
LAPIDARY_INLINE V min(V a, V b) { return {_mm256_min_ps(a.lo, b.lo), _mm256_min_ps(a.hi, b.hi)}; }
LAPIDARY_INLINE V max(V a, V b) { return {_mm256_max_ps(a.lo, b.lo), _mm256_max_ps(a.hi, b.hi)}; }
LAPIDARY_INLINE V abs(V a) {
  const __m256 bit = _mm256_set1_ps(-0.0f);
  return {_mm256_andnot_ps(bit, a.lo), _mm256_andnot_ps(bit, a.hi)};
}
LAPIDARY_INLINE V copysign(V magnitude, V sign) {  // magnitude >= 0
  const __m256 bit = _mm256_set1_ps(-0.0f);
  return {_mm256_or_ps(magnitude.lo, _mm256_and_ps(sign.lo, bit)), _mm256_or_ps(magnitude.hi, _mm256_and_ps(sign.hi, bit))};
}

// t = kRoundingMagic + n: 2^n as two factors, each a normal number.
LAPIDARY_INLINE void pow2_halves8(__m256 t, __m256& a, __m256& b) {
  const __m256i n = _mm256_sub_epi32(_mm256_castps_si256(t), _mm256_set1_epi32(kRoundingMagicBits));
  const __m256i half = _mm256_srai_epi32(n, 1), bias = _mm256_set1_epi32(127);
  a = _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(half, bias), 23));
  b = _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(_mm256_sub_epi32(n, half), bias), 23));
}
LAPIDARY_INLINE void pow2_halves(V t, V& a, V& b) {
  pow2_halves8(t.lo, a.lo, b.lo);
  pow2_halves8(t.hi, a.hi, b.hi);
}

// a in lanes [begin, end), 0 <= begin, end <= 16, and other elsewhere.
LAPIDARY_INLINE V keep_range(V a, int begin, int end, V other) {
  const __m256i lanes = _mm256_set_epi32(7, 6, 5, 4, 3, 2, 1, 0), eight = _mm256_set1_epi32(8);
  const __m256i after = _mm256_set1_epi32(begin - 1), before = _mm256_set1_epi32(end);
  const __m256i lo = _mm256_and_si256(_mm256_cmpgt_epi32(lanes, after), _mm256_cmpgt_epi32(before, lanes));
  const __m256i high = _mm256_add_epi32(lanes, eight);
  const __m256i hi = _mm256_and_si256(_mm256_cmpgt_epi32(high, after), _mm256_cmpgt_epi32(before, high));
  return {_mm256_blendv_ps(other.lo, a.lo, _mm256_castsi256_ps(lo)), _mm256_blendv_ps(other.hi, a.hi, _mm256_castsi256_ps(hi))};
}

// The tree of dot16: l += l + 8, + 4, + 2, + 1, for two vectors at once: results in lanes 0 and 4.
LAPIDARY_INLINE __m256 reduce_add2(V a, V b) {
  const __m256 a8 = _mm256_add_ps(a.lo, a.hi), b8 = _mm256_add_ps(b.lo, b.hi);
  const __m256 quads = _mm256_add_ps(_mm256_permute2f128_ps(a8, b8, 0x20), _mm256_permute2f128_ps(a8, b8, 0x31));
  const __m256 pairs = _mm256_add_ps(quads, _mm256_permute_ps(quads, 0x4e));
  return _mm256_add_ps(pairs, _mm256_permute_ps(pairs, 0xb1));
}
template <int N>
LAPIDARY_INLINE void reduce_add_to(const V (&a)[N], float* out) {
  LAPIDARY_UNROLL for (int i = 0; i + 1 < N; i += 2) {
    const __m256 both = reduce_add2(a[i], a[i + 1]);
    out[i] = _mm256_cvtss_f32(both);
    out[i + 1] = _mm_cvtss_f32(_mm256_extractf128_ps(both, 1));
  }
  if constexpr (N % 2 == 1) out[N - 1] = _mm256_cvtss_f32(reduce_add2(a[N - 1], a[N - 1]));
}
LAPIDARY_INLINE float reduce_add(V a) { return _mm256_cvtss_f32(reduce_add2(a, a)); }
LAPIDARY_INLINE float reduce_max(V a) {
  const __m256 m8 = _mm256_max_ps(a.lo, a.hi);
  const __m256 m4 = _mm256_max_ps(m8, _mm256_permute2f128_ps(m8, m8, 1));
  const __m256 m2 = _mm256_max_ps(m4, _mm256_permute_ps(m4, 0x4e));
  return _mm256_cvtss_f32(_mm256_max_ps(m2, _mm256_permute_ps(m2, 0xb1)));
}

// The probes' products, see kernels/probe.h: sums of the same row with several others.
LAPIDARY_INLINE __m256i load256(const void* p, int64_t index) { return _mm256_loadu_si256(static_cast<const __m256i*>(p) + index); }
template <int N>
LAPIDARY_INLINE double add_lanes(const __m256i (&sums)[N]) {
  double total = 0;
  for (const __m256i& sum : sums) {
    int32_t lanes[8];
    std::memcpy(lanes, &sum, sizeof lanes);
    for (int32_t lane : lanes) total += lane;
  }
  return total;
}
// Exact products, as the kernels have them: of 16 bits, in pairs. AVX2's products of bytes need one operand without a sign and saturate:
// exact ones cost an instruction more for the same count.
constexpr int kInt8ProbeSums = 6;
LAPIDARY_INLINE __m256i widen256(const void* p, int64_t index) {
  return _mm256_cvtepi8_epi16(_mm_loadu_si128(static_cast<const __m128i*>(p) + index));
}
double int8_probe(const void* data, int64_t rounds) {
  __m256i x[kInt8ProbeSums], sums[kInt8ProbeSums];
  LAPIDARY_UNROLL for (int j = 0; j < kInt8ProbeSums; ++j) x[j] = widen256(data, j), sums[j] = load256(data, kProbeBytes / 32 + j);
  for (int64_t r = 0; r < rounds; ++r) {
    for (int64_t i = 0; i < kProbeBytes / 16; ++i) {
      const __m256i w = widen256(data, i);
      LAPIDARY_UNROLL for (int j = 0; j < kInt8ProbeSums; ++j) sums[j] = _mm256_add_epi32(sums[j], _mm256_madd_epi16(x[j], w));
    }
  }
  return add_lanes(sums);
}
// One instruction for the four products of a lane and their sum: eight sums hide its latency.
LAPIDARY_TARGET("avxvnni") double int8_vnni_probe(const void* data, int64_t rounds) {
  __m256i x[2], sums[2][4];
  LAPIDARY_UNROLL for (int h = 0; h < 2; ++h) {
    x[h] = load256(data, h);
    LAPIDARY_UNROLL for (int j = 0; j < 4; ++j) sums[h][j] = load256(data, kProbeBytes / 32 + 4 * h + j);
  }
  for (int64_t r = 0; r < rounds; ++r) {
    for (int64_t i = 0; i < kProbeBytes / 32; ++i) {
      const __m256i w = load256(data, i);
      LAPIDARY_UNROLL for (int h = 0; h < 2; ++h) {
        LAPIDARY_UNROLL for (int j = 0; j < 4; ++j) sums[h][j] = _mm256_dpbusd_avx_epi32(sums[h][j], x[h], w);
      }
    }
  }
  return add_lanes(sums[0]) + add_lanes(sums[1]);
}
constexpr ProbeLoop kInt8Probe = {Feature::none, DType::i8, 2 * kInt8ProbeSums* kProbeBytes, int8_probe};
constexpr ProbeLoop kInt8FastProbe = {Feature::avx_vnni, DType::i8, 2 * 8 * kProbeBytes, int8_vnni_probe};
constexpr ProbeLoop kBf16Probe = {};

}  // namespace
}  // namespace lapidary::cpu
