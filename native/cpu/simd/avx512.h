// V, sixteen f32 lanes, as one AVX-512 register. The same functions as the other simd/*.h, lane by lane the same results.
#pragma once

#include <immintrin.h>

#include "cpu/kernels.h"
#include "cpu/simd/common.h"

namespace lapidary::cpu {
namespace {

struct V {
  __m512 v;
};

// Register tiles of kernels/linear.h and kernels/attention.h: 32 registers.
constexpr int kTileTokens = 4, kTileRows = 4;
constexpr int direct_rows(int) { return 4; }
constexpr int kAttendQueries = 6, kAttendVectors = 4;

LAPIDARY_INLINE V zero() { return {_mm512_setzero_ps()}; }
LAPIDARY_INLINE V set1(float x) { return {_mm512_set1_ps(x)}; }
LAPIDARY_INLINE float first(V a) { return _mm512_cvtss_f32(a.v); }
LAPIDARY_INLINE V load(const void* p) { return {_mm512_loadu_ps(p)}; }
LAPIDARY_INLINE void store(float* p, V a) { _mm512_storeu_ps(p, a.v); }
LAPIDARY_INLINE V load_bf16(const void* p) {
  const __m256i h = _mm256_loadu_si256(static_cast<const __m256i*>(p));
  return {_mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(h), 16))};
}
LAPIDARY_INLINE V load_f16(const void* p) { return {_mm512_cvtph_ps(_mm256_loadu_si256(static_cast<const __m256i*>(p)))}; }
LAPIDARY_INLINE float f16_to_f32(uint16_t bits) { return _mm_cvtss_f32(_mm_cvtph_ps(_mm_cvtsi32_si128(bits))); }
LAPIDARY_INLINE V from_i8(__m128i q) { return {_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(q))}; }
LAPIDARY_INLINE V load_i8(const void* p) { return from_i8(_mm_loadu_si128(static_cast<const __m128i*>(p))); }
// The elements of 32-bit words: the two bf16, the four int8.
LAPIDARY_INLINE V bf16_low(V w) { return {_mm512_castsi512_ps(_mm512_slli_epi32(_mm512_castps_si512(w.v), 16))}; }
LAPIDARY_INLINE V bf16_high(V w) {
  return {_mm512_castsi512_ps(_mm512_and_si512(_mm512_castps_si512(w.v), _mm512_set1_epi32(static_cast<int>(0xffff0000u))))};
}
template <int kByte>
LAPIDARY_INLINE V i8_of_word(V w) {
  return {_mm512_cvtepi32_ps(_mm512_srai_epi32(_mm512_slli_epi32(_mm512_castps_si512(w.v), 24 - 8 * kByte), 24))};
}
// columns[j] is word j of sixteen rows of sixteen words, row_bytes apart. Rows four apart are loaded as the quarters of a register, so
// that what is left is four by four words within each quarter.
LAPIDARY_INLINE void load_turned(const uint8_t* rows, int64_t row_bytes, V (&columns)[16]) {
  LAPIDARY_UNROLL for (int b = 0; b < 4; ++b) {
    __m512 q[4];
    LAPIDARY_UNROLL for (int i = 0; i < 4; ++i) {
      const uint8_t* p = rows + i * row_bytes + 16 * b;
      const auto quarter = [&](int n) { return _mm_loadu_ps(reinterpret_cast<const float*>(p + 4 * n * row_bytes)); };
      q[i] = _mm512_castps128_ps512(quarter(0));
      q[i] = _mm512_insertf32x4(q[i], quarter(1), 1);
      q[i] = _mm512_insertf32x4(q[i], quarter(2), 2);
      q[i] = _mm512_insertf32x4(q[i], quarter(3), 3);
    }
    const __m512d a = _mm512_castps_pd(_mm512_unpacklo_ps(q[0], q[1])), c = _mm512_castps_pd(_mm512_unpackhi_ps(q[0], q[1]));
    const __m512d e = _mm512_castps_pd(_mm512_unpacklo_ps(q[2], q[3])), g = _mm512_castps_pd(_mm512_unpackhi_ps(q[2], q[3]));
    columns[4 * b].v = _mm512_castpd_ps(_mm512_unpacklo_pd(a, e));
    columns[4 * b + 1].v = _mm512_castpd_ps(_mm512_unpackhi_pd(a, e));
    columns[4 * b + 2].v = _mm512_castpd_ps(_mm512_unpacklo_pd(c, g));
    columns[4 * b + 3].v = _mm512_castpd_ps(_mm512_unpackhi_pd(c, g));
  }
}
// Sixteen bytes of two 4-bit numbers each: the low halves, the high halves, less 8.
LAPIDARY_INLINE void load_i4(const void* p, V& low, V& high) {
  const __m128i q = _mm_loadu_si128(static_cast<const __m128i*>(p)), mask = _mm_set1_epi8(15), eight = _mm_set1_epi8(8);
  low = from_i8(_mm_sub_epi8(_mm_and_si128(q, mask), eight));
  high = from_i8(_mm_sub_epi8(_mm_and_si128(_mm_srli_epi16(q, 4), mask), eight));
}
LAPIDARY_INLINE void store_bf16(void* p, V a) {
  const __m512i u = _mm512_castps_si512(a.v);
  const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(u, 16), _mm512_set1_epi32(1));
  const __m512i rounded = _mm512_srli_epi32(_mm512_add_epi32(_mm512_add_epi32(u, _mm512_set1_epi32(0x7fff)), odd), 16);
  const __m512i quiet = _mm512_or_si512(_mm512_srli_epi32(u, 16), _mm512_set1_epi32(0x40));
  const __mmask16 nan = _mm512_cmp_ps_mask(a.v, a.v, _CMP_UNORD_Q);
  _mm256_storeu_si256(static_cast<__m256i*>(p), _mm512_cvtepi32_epi16(_mm512_mask_mov_epi32(rounded, nan, quiet)));
}
// to_int8 of ops/int8.h.
LAPIDARY_INLINE void store_int8(int8_t* p, V a) {
  const __m512 clamped = _mm512_max_ps(_mm512_set1_ps(-127), _mm512_min_ps(_mm512_set1_ps(127), a.v));
  const __m512i q = _mm512_maskz_cvtps_epi32(_mm512_cmp_ps_mask(a.v, a.v, _CMP_ORD_Q), clamped);
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm512_cvtepi32_epi8(q));
}

LAPIDARY_INLINE V fma(V a, V b, V c) { return {_mm512_fmadd_ps(a.v, b.v, c.v)}; }
// sums[i] = fma(*x, w[i], sums[i]). Left to itself, gcc 12 reads many x ahead and runs out of registers.
template <int N>
LAPIDARY_INLINE void fma_each(const float* x, const V (&w)[N], V (&sums)[N]) {
#if defined(__GNUC__) || defined(__clang__)
  if constexpr (N == 2) {
    __m512 all;
    asm("vbroadcastss %3, %2\n\tvfmadd231ps %4, %2, %0\n\tvfmadd231ps %5, %2, %1"
        : "+v"(sums[0].v), "+v"(sums[1].v), "=&v"(all)
        : "m"(*x), "v"(w[0].v), "v"(w[1].v));
    return;
  }
#endif
  LAPIDARY_UNROLL for (int i = 0; i < N; ++i) sums[i] = fma(set1(*x), w[i], sums[i]);
}
LAPIDARY_INLINE V add(V a, V b) { return {_mm512_add_ps(a.v, b.v)}; }
LAPIDARY_INLINE V sub(V a, V b) { return {_mm512_sub_ps(a.v, b.v)}; }
LAPIDARY_INLINE V mul(V a, V b) { return {_mm512_mul_ps(a.v, b.v)}; }
LAPIDARY_INLINE V div(V a, V b) { return {_mm512_div_ps(a.v, b.v)}; }
// Where either is NaN, b.
LAPIDARY_INLINE V min(V a, V b) { return {_mm512_min_ps(a.v, b.v)}; }
LAPIDARY_INLINE V max(V a, V b) { return {_mm512_max_ps(a.v, b.v)}; }
LAPIDARY_INLINE V abs(V a) { return {_mm512_abs_ps(a.v)}; }
LAPIDARY_INLINE V copysign(V magnitude, V sign) {
  const __m512 bit = _mm512_set1_ps(-0.0f);
  return {_mm512_or_ps(magnitude.v, _mm512_and_ps(sign.v, bit))};  // magnitude >= 0
}

// t = kRoundingMagic + n: 2^n as two factors, each a normal number.
LAPIDARY_INLINE void pow2_halves(V t, V& a, V& b) {
  const __m512i n = _mm512_sub_epi32(_mm512_castps_si512(t.v), _mm512_set1_epi32(kRoundingMagicBits));
  const __m512i half = _mm512_srai_epi32(n, 1), bias = _mm512_set1_epi32(127);
  a.v = _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_add_epi32(half, bias), 23));
  b.v = _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_add_epi32(_mm512_sub_epi32(n, half), bias), 23));
}

// a in lanes [begin, end), 0 <= begin, end <= 16, and other elsewhere.
LAPIDARY_INLINE V keep_range(V a, int begin, int end, V other) {
  const uint32_t mask = ((1u << end) - 1) & ~((1u << begin) - 1);
  return {_mm512_mask_mov_ps(other.v, static_cast<__mmask16>(mask), a.v)};
}

// The tree of dot16: l += l + 8, + 4, + 2, + 1, for four vectors at once.
LAPIDARY_INLINE __m128 reduce_add4(V a, V b, V c, V d) {
  const __m512 ab = _mm512_add_ps(_mm512_shuffle_f32x4(a.v, b.v, 0x44), _mm512_shuffle_f32x4(a.v, b.v, 0xee));
  const __m512 cd = _mm512_add_ps(_mm512_shuffle_f32x4(c.v, d.v, 0x44), _mm512_shuffle_f32x4(c.v, d.v, 0xee));
  const __m512 quads = _mm512_add_ps(_mm512_shuffle_f32x4(ab, cd, 0x88), _mm512_shuffle_f32x4(ab, cd, 0xdd));
  const __m512 pairs = _mm512_add_ps(quads, _mm512_permute_ps(quads, 0x4e));
  const __m512 sums = _mm512_add_ps(pairs, _mm512_permute_ps(pairs, 0xb1));
  const __m512i pick = _mm512_set_epi32(0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 12, 8, 4, 0);
  return _mm512_castps512_ps128(_mm512_permutexvar_ps(pick, sums));
}
template <int N>
LAPIDARY_INLINE void reduce_add_to(const V (&a)[N], float* out) {
  if constexpr (N == 4) {
    _mm_storeu_ps(out, reduce_add4(a[0], a[1], a[2], a[3]));
  } else {
    LAPIDARY_UNROLL for (int i = 0; i < N; ++i) out[i] = _mm_cvtss_f32(reduce_add4(a[i], a[i], a[i], a[i]));
  }
}
LAPIDARY_INLINE float reduce_add(V a) { return _mm_cvtss_f32(reduce_add4(a, a, a, a)); }
LAPIDARY_INLINE float reduce_max(V a) { return _mm512_reduce_max_ps(a.v); }

// The probes' products, see kernels/probe.h: sums of the same row with others, as many as hide an instruction's latency.
constexpr int kDotSums = 12;
LAPIDARY_INLINE __m512i load512(const void* p, int64_t index) { return _mm512_loadu_si512(static_cast<const __m512i*>(p) + index); }
LAPIDARY_INLINE double add_lanes(__m512i sums) {
  int32_t lanes[16];
  std::memcpy(lanes, &sums, sizeof lanes);
  double total = 0;
  for (int32_t lane : lanes) total += lane;
  return total;
}
// Exact products, as the kernels have them without VNNI: of 16 bits, in pairs.
LAPIDARY_INLINE __m512i widen512(const void* p, int64_t index) {
  return _mm512_cvtepi8_epi16(_mm256_loadu_si256(static_cast<const __m256i*>(p) + index));
}
double int8_probe(const void* data, int64_t rounds) {
  __m512i x[kDotSums], sums[kDotSums];
  LAPIDARY_UNROLL for (int j = 0; j < kDotSums; ++j) x[j] = widen512(data, j), sums[j] = load512(data, kProbeBytes / 64 + j);
  for (int64_t r = 0; r < rounds; ++r) {
    for (int64_t i = 0; i < kProbeBytes / 32; ++i) {
      const __m512i w = widen512(data, i);
      LAPIDARY_UNROLL for (int j = 0; j < kDotSums; ++j) sums[j] = _mm512_add_epi32(sums[j], _mm512_madd_epi16(x[j], w));
    }
  }
  double total = 0;
  for (const __m512i& lanes : sums) total += add_lanes(lanes);
  return total;
}
LAPIDARY_TARGET("avx512vnni") double int8_vnni_probe(const void* data, int64_t rounds) {
  const __m512i x = load512(data, 0);
  __m512i sums[kDotSums];
  LAPIDARY_UNROLL for (int j = 0; j < kDotSums; ++j) sums[j] = load512(data, kProbeBytes / 64 + j);
  for (int64_t r = 0; r < rounds; ++r) {
    for (int64_t i = 0; i < kProbeBytes / 64; ++i) {
      const __m512i w = load512(data, i);
      LAPIDARY_UNROLL for (int j = 0; j < kDotSums; ++j) sums[j] = _mm512_dpbusd_epi32(sums[j], x, w);
    }
  }
  double total = 0;
  for (const __m512i& lanes : sums) total += add_lanes(lanes);
  return total;
}
LAPIDARY_TARGET("avx512bf16") double bf16_probe(const void* data, int64_t rounds) {
  const __m512i x = load512(data, 0);
  __m512 sums[kDotSums];
  LAPIDARY_UNROLL for (int j = 0; j < kDotSums; ++j) sums[j] = _mm512_castsi512_ps(load512(data, kProbeBytes / 64 + j));
  for (int64_t r = 0; r < rounds; ++r) {
    for (int64_t i = 0; i < kProbeBytes / 64; ++i) {
      const __m512i w = load512(data, i);
      LAPIDARY_UNROLL for (int j = 0; j < kDotSums; ++j) sums[j] =
          _mm512_dpbf16_ps(sums[j], reinterpret_cast<const __m512bh&>(x), reinterpret_cast<const __m512bh&>(w));
    }
  }
  double total = 0;
  for (const __m512& lanes : sums) total += reduce_add({lanes});
  return total;
}
constexpr ProbeLoop kInt8Probe = {Feature::none, DType::i8, 2 * kDotSums* kProbeBytes, int8_probe};
constexpr ProbeLoop kInt8FastProbe = {Feature::avx512_vnni, DType::i8, 2 * kDotSums* kProbeBytes, int8_vnni_probe};
constexpr ProbeLoop kBf16Probe = {Feature::avx512_bf16, DType::bf16, kDotSums* kProbeBytes, bf16_probe};

}  // namespace
}  // namespace lapidary::cpu
