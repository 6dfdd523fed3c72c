// V, sixteen f32 lanes, as four NEON registers. The same functions as the other simd/*.h, lane by lane the same results.
#pragma once

#define LAPIDARY_NEON  // the compiler's own macro holds for simd/scalar.h too

#include <arm_neon.h>

#include "cpu/kernels.h"
#include "cpu/simd/common.h"

namespace lapidary::cpu {
namespace {

struct V {
  float32x4_t q[4];
};

// Register tiles of kernels/linear.h and kernels/attention.h: 32 registers, four to a V.
constexpr int kTileTokens = 3, kTileRows = 2;
constexpr int direct_rows(int tokens) { return tokens == 1 ? 4 : tokens <= 3 ? 2 : 1; }
constexpr int kAttendQueries = 6, kAttendVectors = 1;

template <typename Fn>
LAPIDARY_INLINE V each_quad(const Fn& fn) {
  return {{fn(0), fn(1), fn(2), fn(3)}};
}

LAPIDARY_INLINE V set1(float x) {
  const float32x4_t all = vdupq_n_f32(x);
  return {{all, all, all, all}};
}
LAPIDARY_INLINE V zero() { return set1(0); }
LAPIDARY_INLINE float first(const V& a) { return vgetq_lane_f32(a.q[0], 0); }
// Through bytes: memory is aligned to nothing.
LAPIDARY_INLINE int8x16_t load128(const void* p, int index) { return vld1q_s8(static_cast<const int8_t*>(p) + 16 * index); }
LAPIDARY_INLINE V load(const void* p) {
  return each_quad([&](int i) { return vreinterpretq_f32_s8(load128(p, i)); });
}
LAPIDARY_INLINE void store(float* p, const V& a) { LAPIDARY_UNROLL for (int i = 0; i < 4; ++i) vst1q_f32(p + 4 * i, a.q[i]); }
LAPIDARY_INLINE V load_bf16(const void* p) {
  const uint16x8_t lo = vreinterpretq_u16_s8(load128(p, 0)), hi = vreinterpretq_u16_s8(load128(p, 1));
  return {{vreinterpretq_f32_u32(vshll_n_u16(vget_low_u16(lo), 16)), vreinterpretq_f32_u32(vshll_high_n_u16(lo, 16)),
           vreinterpretq_f32_u32(vshll_n_u16(vget_low_u16(hi), 16)), vreinterpretq_f32_u32(vshll_high_n_u16(hi, 16))}};
}
LAPIDARY_INLINE V load_f16(const void* p) {
  const float16x8_t lo = vreinterpretq_f16_s8(load128(p, 0)), hi = vreinterpretq_f16_s8(load128(p, 1));
  return {{vcvt_f32_f16(vget_low_f16(lo)), vcvt_high_f32_f16(lo), vcvt_f32_f16(vget_low_f16(hi)), vcvt_high_f32_f16(hi)}};
}
LAPIDARY_INLINE float f16_to_f32(uint16_t bits) { return vgetq_lane_f32(vcvt_f32_f16(vreinterpret_f16_u16(vdup_n_u16(bits))), 0); }
LAPIDARY_INLINE V from_i8(int8x16_t q) {
  const int16x8_t lo = vmovl_s8(vget_low_s8(q)), hi = vmovl_high_s8(q);
  return {{vcvtq_f32_s32(vmovl_s16(vget_low_s16(lo))), vcvtq_f32_s32(vmovl_high_s16(lo)), vcvtq_f32_s32(vmovl_s16(vget_low_s16(hi))),
           vcvtq_f32_s32(vmovl_high_s16(hi))}};
}
LAPIDARY_INLINE V load_i8(const void* p) { return from_i8(load128(p, 0)); }
// The elements of 32-bit words: the two bf16, the four int8.
LAPIDARY_INLINE V bf16_low(const V& w) {
  return each_quad([&](int i) { return vreinterpretq_f32_u32(vshlq_n_u32(vreinterpretq_u32_f32(w.q[i]), 16)); });
}
LAPIDARY_INLINE V bf16_high(const V& w) {
  const uint32x4_t mask = vdupq_n_u32(0xffff0000u);
  return each_quad([&](int i) { return vreinterpretq_f32_u32(vandq_u32(vreinterpretq_u32_f32(w.q[i]), mask)); });
}
template <int kByte>
LAPIDARY_INLINE V i8_of_word(const V& w) {
  return each_quad([&](int i) { return vcvtq_f32_s32(vshrq_n_s32(vshlq_n_s32(vreinterpretq_s32_f32(w.q[i]), 24 - 8 * kByte), 24)); });
}
// columns[j] is word j of sixteen rows of sixteen words, row_bytes apart; four by four words at a time.
LAPIDARY_INLINE void load_turned(const uint8_t* rows, int64_t row_bytes, V (&columns)[16]) {
  LAPIDARY_UNROLL for (int a = 0; a < 4; ++a) {
    LAPIDARY_UNROLL for (int b = 0; b < 4; ++b) {
      float32x4_t r[4];
      LAPIDARY_UNROLL for (int i = 0; i < 4; ++i) r[i] = vreinterpretq_f32_s8(load128(rows + (4 * a + i) * row_bytes, b));
      const float64x2_t even01 = vreinterpretq_f64_f32(vtrn1q_f32(r[0], r[1])), odd01 = vreinterpretq_f64_f32(vtrn2q_f32(r[0], r[1]));
      const float64x2_t even23 = vreinterpretq_f64_f32(vtrn1q_f32(r[2], r[3])), odd23 = vreinterpretq_f64_f32(vtrn2q_f32(r[2], r[3]));
      columns[4 * b].q[a] = vreinterpretq_f32_f64(vtrn1q_f64(even01, even23));
      columns[4 * b + 1].q[a] = vreinterpretq_f32_f64(vtrn1q_f64(odd01, odd23));
      columns[4 * b + 2].q[a] = vreinterpretq_f32_f64(vtrn2q_f64(even01, even23));
      columns[4 * b + 3].q[a] = vreinterpretq_f32_f64(vtrn2q_f64(odd01, odd23));
    }
  }
}
// Sixteen bytes of two 4-bit numbers each: the low halves, the high halves, less 8.
LAPIDARY_INLINE void load_i4(const void* p, V& low, V& high) {
  const uint8x16_t q = vreinterpretq_u8_s8(load128(p, 0));
  const int8x16_t eight = vdupq_n_s8(8);
  low = from_i8(vsubq_s8(vreinterpretq_s8_u8(vandq_u8(q, vdupq_n_u8(15))), eight));
  high = from_i8(vsubq_s8(vreinterpretq_s8_u8(vshrq_n_u8(q, 4)), eight));
}
LAPIDARY_INLINE uint16x4_t bf16_bits(float32x4_t a) {
  const uint32x4_t u = vreinterpretq_u32_f32(a), odd = vandq_u32(vshrq_n_u32(u, 16), vdupq_n_u32(1));
  const uint32x4_t rounded = vaddq_u32(vaddq_u32(u, vdupq_n_u32(0x7fff)), odd), quiet = vorrq_u32(u, vdupq_n_u32(0x400000));
  return vshrn_n_u32(vbslq_u32(vceqq_f32(a, a), rounded, quiet), 16);
}
LAPIDARY_INLINE void store_bf16(void* p, const V& a) {
  const uint16x8_t bits[2] = {vcombine_u16(bf16_bits(a.q[0]), bf16_bits(a.q[1])), vcombine_u16(bf16_bits(a.q[2]), bf16_bits(a.q[3]))};
  std::memcpy(p, bits, sizeof bits);
}
// to_int8 of ops/int8.h: each narrowing saturates, and NaN is converted to 0.
LAPIDARY_INLINE void store_int8(int8_t* p, const V& a) {
  const int16x8_t lo = vcombine_s16(vqmovn_s32(vcvtnq_s32_f32(a.q[0])), vqmovn_s32(vcvtnq_s32_f32(a.q[1])));
  const int16x8_t hi = vcombine_s16(vqmovn_s32(vcvtnq_s32_f32(a.q[2])), vqmovn_s32(vcvtnq_s32_f32(a.q[3])));
  vst1q_s8(p, vmaxq_s8(vcombine_s8(vqmovn_s16(lo), vqmovn_s16(hi)), vdupq_n_s8(-127)));
}

LAPIDARY_INLINE V fma(const V& a, const V& b, const V& c) {
  return each_quad([&](int i) { return vfmaq_f32(c.q[i], a.q[i], b.q[i]); });
}
// sums[i] = fma(*x, w[i], sums[i]).
template <int N>
LAPIDARY_INLINE void fma_each(const float* x, const V (&w)[N], V (&sums)[N]) {
  LAPIDARY_UNROLL for (int i = 0; i < N; ++i) sums[i] = fma(set1(*x), w[i], sums[i]);
}
LAPIDARY_INLINE V add(const V& a, const V& b) {
  return each_quad([&](int i) { return vaddq_f32(a.q[i], b.q[i]); });
}
LAPIDARY_INLINE V sub(const V& a, const V& b) {
  return each_quad([&](int i) { return vsubq_f32(a.q[i], b.q[i]); });
}
LAPIDARY_INLINE V mul(const V& a, const V& b) {
  return each_quad([&](int i) { return vmulq_f32(a.q[i], b.q[i]); });
}
LAPIDARY_INLINE V div(const V& a, const V& b) {
  return each_quad([&](int i) { return vdivq_f32(a.q[i], b.q[i]); });
}
// Where either is NaN, b: the instructions of these names would give NaN.
LAPIDARY_INLINE float32x4_t max4(float32x4_t a, float32x4_t b) { return vbslq_f32(vcgtq_f32(a, b), a, b); }
LAPIDARY_INLINE V min(const V& a, const V& b) {
  return each_quad([&](int i) { return vbslq_f32(vcltq_f32(a.q[i], b.q[i]), a.q[i], b.q[i]); });
}
LAPIDARY_INLINE V max(const V& a, const V& b) {
  return each_quad([&](int i) { return max4(a.q[i], b.q[i]); });
}
LAPIDARY_INLINE V abs(const V& a) {
  return each_quad([&](int i) { return vabsq_f32(a.q[i]); });
}
LAPIDARY_INLINE V copysign(const V& magnitude, const V& sign) {  // magnitude >= 0
  const uint32x4_t bit = vdupq_n_u32(0x80000000u);
  return each_quad([&](int i) { return vbslq_f32(bit, sign.q[i], magnitude.q[i]); });
}

// t = kRoundingMagic + n: 2^n as two factors, each a normal number. Of a NaN, anything.
LAPIDARY_INLINE void pow2_halves(const V& t, V& a, V& b) {
  const int32x4_t magic = vdupq_n_s32(kRoundingMagicBits), bias = vdupq_n_s32(127);
  LAPIDARY_UNROLL for (int i = 0; i < 4; ++i) {
    const int32x4_t n = vsubq_s32(vreinterpretq_s32_f32(t.q[i]), magic), half = vshrq_n_s32(n, 1);
    a.q[i] = vreinterpretq_f32_s32(vshlq_n_s32(vaddq_s32(half, bias), 23));
    b.q[i] = vreinterpretq_f32_s32(vshlq_n_s32(vaddq_s32(vsubq_s32(n, half), bias), 23));
  }
}

// a in lanes [begin, end), 0 <= begin, end <= 16, and other elsewhere.
LAPIDARY_INLINE V keep_range(const V& a, int begin, int end, const V& other) {
  const int32_t lanes[4] = {0, 1, 2, 3};
  const int32x4_t from = vdupq_n_s32(begin), to = vdupq_n_s32(end);
  return each_quad([&](int i) {
    const int32x4_t lane = vaddq_s32(vld1q_s32(lanes), vdupq_n_s32(4 * i));
    return vbslq_f32(vandq_u32(vcgeq_s32(lane, from), vcltq_s32(lane, to)), a.q[i], other.q[i]);
  });
}

// The tree of dot16: l += l + 8, + 4, then for two vectors at once + 2: two lanes each, whose sum is the vector's.
LAPIDARY_INLINE float32x4_t reduce_add_to_pairs(const V& a, const V& b) {
  const auto quads = [](const V& v) { return vreinterpretq_f64_f32(vaddq_f32(vaddq_f32(v.q[0], v.q[2]), vaddq_f32(v.q[1], v.q[3]))); };
  const float64x2_t x = quads(a), y = quads(b);
  return vaddq_f32(vreinterpretq_f32_f64(vzip1q_f64(x, y)), vreinterpretq_f32_f64(vzip2q_f64(x, y)));
}
template <int N>
LAPIDARY_INLINE void reduce_add_to(const V (&a)[N], float* out) {
  LAPIDARY_UNROLL for (int i = 0; i + 4 <= N; i += 4) {
    vst1q_f32(out + i, vpaddq_f32(reduce_add_to_pairs(a[i], a[i + 1]), reduce_add_to_pairs(a[i + 2], a[i + 3])));
  }
  LAPIDARY_UNROLL for (int i = N / 4 * 4; i < N; ++i) {
    const float32x4_t pair = reduce_add_to_pairs(a[i], a[i]);
    out[i] = vgetq_lane_f32(vpaddq_f32(pair, pair), 0);
  }
}
LAPIDARY_INLINE float reduce_add(const V& a) {
  const float32x4_t pair = reduce_add_to_pairs(a, a);
  return vgetq_lane_f32(vpaddq_f32(pair, pair), 0);
}
LAPIDARY_INLINE float reduce_max(const V& a) {
  const float32x4_t m4 = max4(max4(a.q[0], a.q[2]), max4(a.q[1], a.q[3]));
  const float32x4_t m2 = max4(m4, vextq_f32(m4, m4, 2));
  return vgetq_lane_f32(max4(m2, vextq_f32(m2, m2, 1)), 0);
}

// The probe's products, see kernels/probe.h: products of bytes in 16 bits, added to four sums of 32.
double int8_probe(const void* data, int64_t rounds) {
  constexpr int kSums = 8;
  int8x16_t x[kSums / 2];
  int32x4_t sums[kSums];
  LAPIDARY_UNROLL for (int j = 0; j < kSums / 2; ++j) x[j] = load128(data, j);
  LAPIDARY_UNROLL for (int j = 0; j < kSums; ++j) sums[j] = vreinterpretq_s32_s8(load128(data, kProbeBytes / 16 + j));
  for (int64_t r = 0; r < rounds; ++r) {
    for (int i = 0; i < kProbeBytes / 16; ++i) {
      const int8x16_t w = load128(data, i);
      LAPIDARY_UNROLL for (int j = 0; j < kSums / 2; ++j) {
        sums[2 * j] = vpadalq_s16(sums[2 * j], vmull_s8(vget_low_s8(x[j]), vget_low_s8(w)));
        sums[2 * j + 1] = vpadalq_s16(sums[2 * j + 1], vmull_high_s8(x[j], w));
      }
    }
  }
  double total = 0;
  for (const int32x4_t& lanes : sums) total += static_cast<double>(vaddlvq_s32(lanes));
  return total;
}
constexpr ProbeLoop kInt8Probe = {Feature::none, DType::i8, 2 * 4 * kProbeBytes, int8_probe}, kInt8FastProbe = {};
constexpr ProbeLoop kBf16Probe = {};

}  // namespace
}  // namespace lapidary::cpu
