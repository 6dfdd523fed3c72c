// W, sixteen 32-bit words, as one AVX-512 register; LAPIDARY_VNNI: with its products of pairs. The same functions as the other
// simd/words_*.h.
#pragma once

#include LAPIDARY_SIMD_HEADER

namespace lapidary::cpu {
namespace {

struct W {
  __m512i v;
};

// Register tiles of kernels/packed_blocks.h: tokens by panels; 32 registers.
constexpr int kBlockTokens = 6, kBlockPanels = 2;
#ifdef LAPIDARY_VNNI
constexpr int kPairUnroll = 4;
#else
constexpr int kPairUnroll = 1;  // more, and gcc 12 adds the products up out of order, which spills
#endif

LAPIDARY_INLINE W load_words(const void* p) { return {_mm512_loadu_si512(p)}; }
LAPIDARY_INLINE void store_words(void* p, W a) { _mm512_storeu_si512(p, a.v); }
LAPIDARY_INLINE W set_words(uint32_t word) { return {_mm512_set1_epi32(static_cast<int>(word))}; }
LAPIDARY_INLINE W broadcast_word(const void* p) {
  uint32_t word;
  std::memcpy(&word, p, sizeof word);
  return set_words(word);
}
LAPIDARY_INLINE W widen_u8(const void* p) { return {_mm512_cvtepu8_epi32(_mm_loadu_si128(static_cast<const __m128i*>(p)))}; }
LAPIDARY_INLINE W widen_i8(const void* p) { return {_mm512_cvtepi8_epi32(_mm_loadu_si128(static_cast<const __m128i*>(p)))}; }
LAPIDARY_INLINE W keep(W a, uint32_t mask) { return {_mm512_and_si512(a.v, set_words(mask).v)}; }
LAPIDARY_INLINE W merge(W a, W b, uint32_t mask) { return {_mm512_ternarylogic_epi32(a.v, b.v, set_words(mask).v, 0xf8)}; }
LAPIDARY_INLINE W choose(W a, W b, uint32_t mask) { return {_mm512_ternarylogic_epi32(set_words(mask).v, a.v, b.v, 0xca)}; }
constexpr bool kLooksUp = true;
LAPIDARY_INLINE V look_up(V table, W a) { return {_mm512_permutexvar_ps(a.v, table.v)}; }
template <int kBits>
LAPIDARY_INLINE W shift(W a) {
  if constexpr (kBits == 0) {
    return a;
  } else if constexpr (kBits < 0) {
    return {_mm512_slli_epi32(a.v, -kBits)};
  } else {
    return {_mm512_srli_epi32(a.v, kBits)};
  }
}
LAPIDARY_INLINE W add(W a, W b) { return {_mm512_add_epi32(a.v, b.v)}; }
LAPIDARY_INLINE W mul(W a, W b) { return {_mm512_mullo_epi32(a.v, b.v)}; }
LAPIDARY_INLINE W sub_pairs(W a, W b) { return {_mm512_sub_epi16(a.v, b.v)}; }
LAPIDARY_INLINE W mul_pairs(W a, W b) { return {_mm512_mullo_epi16(a.v, b.v)}; }
#ifdef LAPIDARY_VNNI
// gcc 12 copies every sum to and fro around the intrinsic.
LAPIDARY_INLINE W dot_pairs(W sum, W a, W b) {
#if defined(__GNUC__) || defined(__clang__)
  asm("vpdpwssd %2, %1, %0" : "+v"(sum.v) : "v"(a.v), "v"(b.v));
  return sum;
#else
  return {_mm512_dpwssd_epi32(sum.v, a.v, b.v)};
#endif
}
LAPIDARY_INLINE W dot_pairs_at(W sum, W a, const void* p) {
#if defined(__GNUC__) || defined(__clang__)
  asm("vpdpwssd %2%{1to16%}, %1, %0" : "+v"(sum.v) : "v"(a.v), "m"(*static_cast<const int32_t*>(p)));
  return sum;
#else
  return dot_pairs(sum, a, broadcast_word(p));
#endif
}
#else
LAPIDARY_INLINE W dot_pairs(W sum, W a, W b) { return add(sum, {_mm512_madd_epi16(a.v, b.v)}); }
LAPIDARY_INLINE W dot_pairs_at(W sum, W a, const void* p) { return dot_pairs(sum, a, broadcast_word(p)); }
#endif
LAPIDARY_INLINE void widen_f16_columns(V v, V& first, V& second) {
  const __m512i h = _mm512_castps_si512(v.v);
  first.v = _mm512_cvtph_ps(_mm512_castsi512_si256(h));
  second.v = _mm512_cvtph_ps(_mm512_extracti64x4_epi64(h, 1));
}
LAPIDARY_INLINE V to_f32(W a) { return {_mm512_cvtepi32_ps(a.v)}; }
LAPIDARY_INLINE V as_f32(W a) { return {_mm512_castsi512_ps(a.v)}; }
LAPIDARY_INLINE W as_words(V a) { return {_mm512_castps_si512(a.v)}; }
LAPIDARY_INLINE W add_bytes(W sum, W a) {
#ifdef LAPIDARY_VNNI
  return {_mm512_dpbusd_epi32(sum.v, _mm512_set1_epi8(1), a.v)};
#else
  return add(sum, {_mm512_madd_epi16(_mm512_maddubs_epi16(_mm512_set1_epi8(1), a.v), _mm512_set1_epi16(1))});
#endif
}

}  // namespace
}  // namespace lapidary::cpu
