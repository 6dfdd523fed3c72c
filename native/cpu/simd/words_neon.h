// W, sixteen 32-bit words, as four NEON registers. The same functions as the other simd/words_*.h.
#pragma once

#include LAPIDARY_SIMD_HEADER

namespace lapidary::cpu {
namespace {

struct W {
  uint32x4_t q[4];
};

// Register tiles of kernels/packed_blocks.h: tokens by panels; 32 registers, four to a W.
constexpr int kBlockTokens = 2, kBlockPanels = 1, kPairUnroll = 1;

template <typename Fn>
LAPIDARY_INLINE W each_quad_word(const Fn& fn) {
  return {{fn(0), fn(1), fn(2), fn(3)}};
}

LAPIDARY_INLINE W load_words(const void* p) {
  return each_quad_word([&](int i) { return vreinterpretq_u32_s8(load128(p, i)); });
}
LAPIDARY_INLINE void store_words(void* p, const W& a) {
  LAPIDARY_UNROLL for (int i = 0; i < 4; ++i) vst1q_u8(static_cast<uint8_t*>(p) + 16 * i, vreinterpretq_u8_u32(a.q[i]));
}
LAPIDARY_INLINE W set_words(uint32_t word) {
  const uint32x4_t all = vdupq_n_u32(word);
  return {{all, all, all, all}};
}
LAPIDARY_INLINE W broadcast_word(const void* p) {
  uint32_t word;
  std::memcpy(&word, p, sizeof word);
  return set_words(word);
}
LAPIDARY_INLINE W widen_u8(const void* p) {
  const uint8x16_t bytes = vreinterpretq_u8_s8(load128(p, 0));
  const uint16x8_t lo = vmovl_u8(vget_low_u8(bytes)), hi = vmovl_high_u8(bytes);
  return {{vmovl_u16(vget_low_u16(lo)), vmovl_high_u16(lo), vmovl_u16(vget_low_u16(hi)), vmovl_high_u16(hi)}};
}
LAPIDARY_INLINE W widen_i8(const void* p) {
  const int8x16_t bytes = load128(p, 0);
  const int16x8_t lo = vmovl_s8(vget_low_s8(bytes)), hi = vmovl_high_s8(bytes);
  return {{vreinterpretq_u32_s32(vmovl_s16(vget_low_s16(lo))), vreinterpretq_u32_s32(vmovl_high_s16(lo)),
           vreinterpretq_u32_s32(vmovl_s16(vget_low_s16(hi))), vreinterpretq_u32_s32(vmovl_high_s16(hi))}};
}
LAPIDARY_INLINE W keep(const W& a, uint32_t mask) {
  const uint32x4_t kept = vdupq_n_u32(mask);
  return each_quad_word([&](int i) { return vandq_u32(a.q[i], kept); });
}
LAPIDARY_INLINE W merge(const W& a, const W& b, uint32_t mask) {
  const uint32x4_t kept = vdupq_n_u32(mask);
  return each_quad_word([&](int i) { return vorrq_u32(a.q[i], vandq_u32(b.q[i], kept)); });
}
LAPIDARY_INLINE W choose(const W& a, const W& b, uint32_t mask) {
  const uint32x4_t kept = vdupq_n_u32(mask);
  return each_quad_word([&](int i) { return vbslq_u32(kept, a.q[i], b.q[i]); });
}
constexpr bool kLooksUp = false;
LAPIDARY_INLINE V look_up(const V& table, const W&) { return table; }
template <int kBits>
LAPIDARY_INLINE W shift(const W& a) {
  if constexpr (kBits == 0) {
    return a;
  } else if constexpr (kBits < 0) {
    return each_quad_word([&](int i) { return vshlq_n_u32(a.q[i], -kBits); });
  } else {
    return each_quad_word([&](int i) { return vshrq_n_u32(a.q[i], kBits); });
  }
}
LAPIDARY_INLINE W add(const W& a, const W& b) {
  return each_quad_word([&](int i) { return vaddq_u32(a.q[i], b.q[i]); });
}
LAPIDARY_INLINE W mul(const W& a, const W& b) {
  return each_quad_word([&](int i) { return vmulq_u32(a.q[i], b.q[i]); });
}
LAPIDARY_INLINE int16x8_t pairs_of(uint32x4_t words) { return vreinterpretq_s16_u32(words); }
LAPIDARY_INLINE W sub_pairs(const W& a, const W& b) {
  return each_quad_word([&](int i) { return vreinterpretq_u32_s16(vsubq_s16(pairs_of(a.q[i]), pairs_of(b.q[i]))); });
}
LAPIDARY_INLINE W mul_pairs(const W& a, const W& b) {
  return each_quad_word([&](int i) { return vreinterpretq_u32_s16(vmulq_s16(pairs_of(a.q[i]), pairs_of(b.q[i]))); });
}
LAPIDARY_INLINE W dot_pairs(const W& sum, const W& a, const W& b) {
  return each_quad_word([&](int i) {
    const int16x8_t x = pairs_of(a.q[i]), y = pairs_of(b.q[i]);
    const int32x4_t lo = vmull_s16(vget_low_s16(x), vget_low_s16(y)), hi = vmull_high_s16(x, y);
    return vaddq_u32(sum.q[i], vreinterpretq_u32_s32(vpaddq_s32(lo, hi)));
  });
}
LAPIDARY_INLINE W dot_pairs_at(const W& sum, const W& a, const void* p) { return dot_pairs(sum, a, broadcast_word(p)); }
LAPIDARY_INLINE V widen_f16(float32x4_t first, float32x4_t second) {
  const float16x8_t lo = vreinterpretq_f16_f32(first), hi = vreinterpretq_f16_f32(second);
  return {{vcvt_f32_f16(vget_low_f16(lo)), vcvt_high_f32_f16(lo), vcvt_f32_f16(vget_low_f16(hi)), vcvt_high_f32_f16(hi)}};
}
LAPIDARY_INLINE void widen_f16_columns(const V& v, V& first, V& second) {
  first = widen_f16(v.q[0], v.q[1]);
  second = widen_f16(v.q[2], v.q[3]);
}
LAPIDARY_INLINE V to_f32(const W& a) {
  return each_quad([&](int i) { return vcvtq_f32_s32(vreinterpretq_s32_u32(a.q[i])); });
}
LAPIDARY_INLINE V as_f32(const W& a) {
  return each_quad([&](int i) { return vreinterpretq_f32_u32(a.q[i]); });
}
LAPIDARY_INLINE W as_words(const V& a) {
  return each_quad_word([&](int i) { return vreinterpretq_u32_f32(a.q[i]); });
}
LAPIDARY_INLINE W add_bytes(const W& sum, const W& a) {
  return each_quad_word([&](int i) {
    const int32x4_t total = vreinterpretq_s32_u32(sum.q[i]);
    return vreinterpretq_u32_s32(vpadalq_s16(total, vpaddlq_s8(vreinterpretq_s8_u32(a.q[i]))));
  });
}

}  // namespace
}  // namespace lapidary::cpu
