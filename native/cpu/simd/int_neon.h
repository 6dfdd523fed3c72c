// I, four int32 lanes, as one NEON register, for kernels/packed_int8.h. With the dot product (LAPIDARY_DOT) a lane is a row and multiplies
// four bytes at once; else two lanes share a row, to which pairs of 16-bit products are added: one such product may be 2^14, so two do not
// fit 16 bits. The same names as the other simd/int_*.h.
#pragma once

#include <arm_neon.h>

#include "cpu/simd/common.h"

namespace lapidary::cpu {
namespace {

struct I {
  int32x4_t v;
};

using IntNumber = int8_t;
constexpr bool kIntWidens = false;

LAPIDARY_INLINE I int_zero() { return {vdupq_n_s32(0)}; }
LAPIDARY_INLINE I int_load(const void* p) { return {vreinterpretq_s32_s8(vld1q_s8(static_cast<const int8_t*>(p)))}; }
LAPIDARY_INLINE void int_store(void* p, I a) { vst1q_s8(static_cast<int8_t*>(p), vreinterpretq_s8_s32(a.v)); }
LAPIDARY_INLINE I int_add(I a, I b) { return {vaddq_s32(a.v, b.v)}; }
LAPIDARY_INLINE IntNumber int_number(int8_t q) { return q; }
LAPIDARY_INLINE I int_input(const IntNumber* p) {
  int32_t group;
  std::memcpy(&group, p, 4);
  return {vdupq_n_s32(group)};
}

// float(sum) * (x_scale * w_scale) of four rows.
LAPIDARY_INLINE void store_rows(float* out, int32x4_t sums, float x_scale, const float* w_scales) {
  vst1q_f32(out, vmulq_f32(vcvtq_f32_s32(sums), vmulq_f32(vdupq_n_f32(x_scale), vld1q_f32(w_scales))));
}

// Register tiles: 32 registers.
#ifdef LAPIDARY_DOT
constexpr int kIntVectors = 4, kIntTileVectors = 4, kIntTileTokens = 5, kIntUnitPanels = 1, kIntFewTokens = 5, kIntPieceTokens = 0,
              kIntJoined = 1;
LAPIDARY_INLINE I int_weights(const int8_t* group, int v) { return int_load(group + 16 * v); }
LAPIDARY_INLINE I int_multiply_add(I sum, I weights, I x) {
  return {vdotq_s32(sum.v, vreinterpretq_s8_s32(weights.v), vreinterpretq_s8_s32(x.v))};
}
LAPIDARY_INLINE void int_store_rows(float* out, const I* sums, const int32_t*, float x_scale, const float* w_scales) {
  store_rows(out, sums[0].v, x_scale, w_scales);
}
#else
constexpr int kIntVectors = 8, kIntTileVectors = 8, kIntTileTokens = 2, kIntUnitPanels = 1, kIntFewTokens = 2, kIntPieceTokens = 0,
              kIntJoined = 2;
// Eight bytes, in the low half.
LAPIDARY_INLINE I int_weights(const int8_t* group, int v) {
  return {vreinterpretq_s32_s8(vcombine_s8(vld1_s8(group + 8 * v), vdup_n_s8(0)))};
}
LAPIDARY_INLINE I int_multiply_add(I sum, I weights, I x) {
  const int8x8_t w = vget_low_s8(vreinterpretq_s8_s32(weights.v)), q = vget_low_s8(vreinterpretq_s8_s32(x.v));
  return {vpadalq_s16(sum.v, vmull_s8(w, q))};
}
LAPIDARY_INLINE void int_store_rows(float* out, const I* sums, const int32_t*, float x_scale, const float* w_scales) {
  store_rows(out, vpaddq_s32(sums[0].v, sums[1].v), x_scale, w_scales);
}
#endif

}  // namespace
}  // namespace lapidary::cpu
