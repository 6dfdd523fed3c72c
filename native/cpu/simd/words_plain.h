// W, sixteen 32-bit words, as an array in plain C++: the definition of what the other simd/words_*.h do. A word is an integer, or a pair of
// 16-bit integers: element 0 in its low half.
#pragma once

#include LAPIDARY_SIMD_HEADER

namespace lapidary::cpu {
namespace {

struct W {
  uint32_t l[16];
};

// Register tiles of kernels/packed_blocks.h: tokens by panels.
constexpr int kBlockTokens = 2, kBlockPanels = 1, kPairUnroll = 1;

template <typename Fn>
LAPIDARY_INLINE W each_word(const Fn& fn) {
  W r;
  for (int i = 0; i < 16; ++i) r.l[i] = static_cast<uint32_t>(fn(i));
  return r;
}

LAPIDARY_INLINE W load_words(const void* p) {
  W r;
  std::memcpy(r.l, p, sizeof r.l);
  return r;
}
LAPIDARY_INLINE void store_words(void* p, const W& a) { std::memcpy(p, a.l, sizeof a.l); }
// The word at p in every lane.
LAPIDARY_INLINE W broadcast_word(const void* p) {
  uint32_t word;
  std::memcpy(&word, p, sizeof word);
  return each_word([&](int) { return word; });
}
LAPIDARY_INLINE W set_words(uint32_t word) {
  return each_word([&](int) { return word; });
}
// Sixteen bytes.
LAPIDARY_INLINE W widen_u8(const void* p) {
  return each_word([&](int i) { return static_cast<const uint8_t*>(p)[i]; });
}
LAPIDARY_INLINE W widen_i8(const void* p) {
  return each_word([&](int i) { return static_cast<int32_t>(static_cast<const int8_t*>(p)[i]); });
}
LAPIDARY_INLINE W keep(const W& a, uint32_t mask) {
  return each_word([&](int i) { return a.l[i] & mask; });
}
// a | (b & mask).
LAPIDARY_INLINE W merge(const W& a, const W& b, uint32_t mask) {
  return each_word([&](int i) { return a.l[i] | (b.l[i] & mask); });
}
// Bits of a in the mask, of b elsewhere.
LAPIDARY_INLINE W choose(const W& a, const W& b, uint32_t mask) {
  return each_word([&](int i) { return (a.l[i] & mask) | (b.l[i] & ~mask); });
}
// To the right, to the left where negative.
template <int kBits>
LAPIDARY_INLINE W shift(const W& a) {
  if constexpr (kBits < 0) {
    return each_word([&](int i) { return a.l[i] << -kBits; });
  } else {
    return each_word([&](int i) { return a.l[i] >> kBits; });
  }
}
LAPIDARY_INLINE W add(const W& a, const W& b) {
  return each_word([&](int i) { return a.l[i] + b.l[i]; });
}
LAPIDARY_INLINE W mul(const W& a, const W& b) {
  return each_word([&](int i) { return a.l[i] * b.l[i]; });
}
LAPIDARY_INLINE int32_t element(uint32_t pair, int i) { return static_cast<int16_t>(pair >> (16 * i)); }
template <typename Fn>
LAPIDARY_INLINE W each_element(const Fn& fn) {
  return each_word([&](int i) { return (static_cast<uint32_t>(fn(i, 0)) & 0xffff) | static_cast<uint32_t>(fn(i, 1)) << 16; });
}
LAPIDARY_INLINE W sub_pairs(const W& a, const W& b) {
  return each_element([&](int i, int e) { return element(a.l[i], e) - element(b.l[i], e); });
}
// The low 16 bits of the products.
LAPIDARY_INLINE W mul_pairs(const W& a, const W& b) {
  return each_element([&](int i, int e) { return element(a.l[i], e) * element(b.l[i], e); });
}
// sum + both products of the pairs. The sums never leave 32 bits.
LAPIDARY_INLINE W dot_pairs(const W& sum, const W& a, const W& b) {
  return each_word([&](int i) {
    return sum.l[i] + static_cast<uint32_t>(element(a.l[i], 0) * element(b.l[i], 0) + element(a.l[i], 1) * element(b.l[i], 1));
  });
}
// b: the pair at p, in every lane.
LAPIDARY_INLINE W dot_pairs_at(const W& sum, const W& a, const void* p) { return dot_pairs(sum, a, broadcast_word(p)); }
// Two columns of sixteen f16, which lie one behind the other in v.
LAPIDARY_INLINE void widen_f16_columns(const V& v, V& first, V& second) {
  float words[16];
  store(words, v);
  first = load_f16(words);
  second = load_f16(words + 8);
}
// Whether this set finds the lane of `table` that the low four bits of each word name faster than it computes what stands there.
constexpr bool kLooksUp = false;
LAPIDARY_INLINE V look_up(const V& table, const W&) { return table; }
// The same bits.
LAPIDARY_INLINE V as_f32(const W& a) { return load(a.l); }
LAPIDARY_INLINE W as_words(const V& a) {
  W r;
  store(reinterpret_cast<float*>(r.l), a);
  return r;
}
// sum + the four signed bytes of a word.
LAPIDARY_INLINE W add_bytes(const W& sum, const W& a) {
  return each_word([&](int i) {
    uint32_t total = sum.l[i];
    for (int e = 0; e < 4; ++e) total += static_cast<uint32_t>(static_cast<int32_t>(static_cast<int8_t>(a.l[i] >> (8 * e))));
    return total;
  });
}
// Of signed integers.
LAPIDARY_INLINE V to_f32(const W& a) {
  float lanes[16];
  for (int i = 0; i < 16; ++i) lanes[i] = static_cast<float>(static_cast<int32_t>(a.l[i]));
  return load(lanes);
}

}  // namespace
}  // namespace lapidary::cpu
