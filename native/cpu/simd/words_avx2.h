// W, sixteen 32-bit words, as two AVX2 registers. The same functions as the other simd/words_*.h.
#pragma once

#include LAPIDARY_SIMD_HEADER

namespace lapidary::cpu {
namespace {

struct W {
  __m256i lo, hi;
};

// Register tiles of kernels/packed_blocks.h: tokens by panels; 16 registers.
constexpr int kBlockTokens = 4, kBlockPanels = 1;
#ifdef LAPIDARY_VNNI
constexpr int kPairUnroll = 4;
#else
constexpr int kPairUnroll = 1;  // more, and gcc 12 adds the products up out of order, which spills
#endif

LAPIDARY_INLINE W load_words(const void* p) { return {load256(p, 0), load256(p, 1)}; }
LAPIDARY_INLINE void store_words(void* p, W a) {
  _mm256_storeu_si256(static_cast<__m256i*>(p), a.lo);
  _mm256_storeu_si256(static_cast<__m256i*>(p) + 1, a.hi);
}
LAPIDARY_INLINE W set_words(uint32_t word) {
  const __m256i all = _mm256_set1_epi32(static_cast<int>(word));
  return {all, all};
}
LAPIDARY_INLINE W broadcast_word(const void* p) {
  uint32_t word;
  std::memcpy(&word, p, sizeof word);
  return set_words(word);
}
LAPIDARY_INLINE W widen_u8(const void* p) {
  const __m128i bytes = load128(p, 0);
  return {_mm256_cvtepu8_epi32(bytes), _mm256_cvtepu8_epi32(_mm_srli_si128(bytes, 8))};
}
LAPIDARY_INLINE W widen_i8(const void* p) {
  const __m128i bytes = load128(p, 0);
  return {_mm256_cvtepi8_epi32(bytes), _mm256_cvtepi8_epi32(_mm_srli_si128(bytes, 8))};
}
LAPIDARY_INLINE W keep(W a, uint32_t mask) {
  const W m = set_words(mask);
  return {_mm256_and_si256(a.lo, m.lo), _mm256_and_si256(a.hi, m.hi)};
}
LAPIDARY_INLINE W merge(W a, W b, uint32_t mask) {
  const W kept = keep(b, mask);
  return {_mm256_or_si256(a.lo, kept.lo), _mm256_or_si256(a.hi, kept.hi)};
}
LAPIDARY_INLINE W choose(W a, W b, uint32_t mask) { return merge(keep(b, ~mask), a, mask); }
constexpr bool kLooksUp = false;
LAPIDARY_INLINE V look_up(V table, W) { return table; }
template <int kBits>
LAPIDARY_INLINE W shift(W a) {
  if constexpr (kBits == 0) {
    return a;
  } else if constexpr (kBits < 0) {
    return {_mm256_slli_epi32(a.lo, -kBits), _mm256_slli_epi32(a.hi, -kBits)};
  } else {
    return {_mm256_srli_epi32(a.lo, kBits), _mm256_srli_epi32(a.hi, kBits)};
  }
}
LAPIDARY_INLINE W add(W a, W b) { return {_mm256_add_epi32(a.lo, b.lo), _mm256_add_epi32(a.hi, b.hi)}; }
LAPIDARY_INLINE W mul(W a, W b) { return {_mm256_mullo_epi32(a.lo, b.lo), _mm256_mullo_epi32(a.hi, b.hi)}; }
LAPIDARY_INLINE W sub_pairs(W a, W b) { return {_mm256_sub_epi16(a.lo, b.lo), _mm256_sub_epi16(a.hi, b.hi)}; }
LAPIDARY_INLINE W mul_pairs(W a, W b) { return {_mm256_mullo_epi16(a.lo, b.lo), _mm256_mullo_epi16(a.hi, b.hi)}; }
LAPIDARY_INLINE W dot_pairs(W sum, W a, W b) {
#if defined(LAPIDARY_VNNI) && (defined(__GNUC__) || defined(__clang__))
  // gcc 12 copies every sum to and fro around the intrinsic.
  asm("%{vex%} vpdpwssd %2, %1, %0" : "+x"(sum.lo) : "x"(a.lo), "x"(b.lo));
  asm("%{vex%} vpdpwssd %2, %1, %0" : "+x"(sum.hi) : "x"(a.hi), "x"(b.hi));
  return sum;
#elif defined(LAPIDARY_VNNI)
  return {_mm256_dpwssd_avx_epi32(sum.lo, a.lo, b.lo), _mm256_dpwssd_avx_epi32(sum.hi, a.hi, b.hi)};
#else
  return add(sum, {_mm256_madd_epi16(a.lo, b.lo), _mm256_madd_epi16(a.hi, b.hi)});
#endif
}
LAPIDARY_INLINE W dot_pairs_at(W sum, W a, const void* p) { return dot_pairs(sum, a, broadcast_word(p)); }
LAPIDARY_INLINE V widen_f16(__m256 column) {
  const __m256i h = _mm256_castps_si256(column);
  return {_mm256_cvtph_ps(_mm256_castsi256_si128(h)), _mm256_cvtph_ps(_mm256_extracti128_si256(h, 1))};
}
LAPIDARY_INLINE void widen_f16_columns(V v, V& first, V& second) {
  first = widen_f16(v.lo);
  second = widen_f16(v.hi);
}
LAPIDARY_INLINE V to_f32(W a) { return {_mm256_cvtepi32_ps(a.lo), _mm256_cvtepi32_ps(a.hi)}; }
LAPIDARY_INLINE V as_f32(W a) { return {_mm256_castsi256_ps(a.lo), _mm256_castsi256_ps(a.hi)}; }
LAPIDARY_INLINE W as_words(V a) { return {_mm256_castps_si256(a.lo), _mm256_castps_si256(a.hi)}; }
LAPIDARY_INLINE W add_bytes(W sum, W a) {
  const __m256i ones = _mm256_set1_epi8(1), pairs = _mm256_set1_epi16(1);
  return add(sum, {_mm256_madd_epi16(_mm256_maddubs_epi16(ones, a.lo), pairs), _mm256_madd_epi16(_mm256_maddubs_epi16(ones, a.hi), pairs)});
}

}  // namespace
}  // namespace lapidary::cpu
