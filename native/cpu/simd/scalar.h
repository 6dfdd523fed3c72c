// V, sixteen f32 lanes, as an array in plain C++: for processors without a vector header of their own, and the definition of
// what the other simd/*.h do lane by lane. Only kernels/scalar.cc, which has no special flags, may include it.
#pragma once

#include <bit>

#include "base/float16.h"
#include "cpu/kernels.h"
#include "cpu/simd/common.h"
#include "ops/int8.h"

namespace lapidary::cpu {
namespace {

struct V {
  float l[16];
};

constexpr int kTileTokens = 2, kTileRows = 2;
constexpr int direct_rows(int) { return 1; }
constexpr int kAttendQueries = 2, kAttendVectors = 1;

template <typename Fn>
LAPIDARY_INLINE V each_lane(const Fn& fn) {
  V r;
  for (int i = 0; i < 16; ++i) r.l[i] = fn(i);
  return r;
}

LAPIDARY_INLINE V set1(float x) {
  return each_lane([&](int) { return x; });
}
LAPIDARY_INLINE V zero() { return set1(0); }
LAPIDARY_INLINE float first(V a) { return a.l[0]; }
LAPIDARY_INLINE V load(const void* p) {
  V r;
  std::memcpy(r.l, p, sizeof r.l);
  return r;
}
LAPIDARY_INLINE void store(float* p, const V& a) { std::memcpy(p, a.l, sizeof a.l); }
LAPIDARY_INLINE V load_bf16(const void* p) {
  bf16 h[16];
  std::memcpy(h, p, sizeof h);
  return each_lane([&](int i) { return to_f32(h[i]); });
}
LAPIDARY_INLINE V load_f16(const void* p) {
  f16 h[16];
  std::memcpy(h, p, sizeof h);
  return each_lane([&](int i) { return to_f32(h[i]); });
}
LAPIDARY_INLINE float f16_to_f32(uint16_t bits) { return to_f32(f16{bits}); }
LAPIDARY_INLINE V load_i8(const void* p) {
  const int8_t* q = static_cast<const int8_t*>(p);
  return each_lane([&](int i) { return static_cast<float>(q[i]); });
}
// The elements of 32-bit words: the two bf16, the four int8.
LAPIDARY_INLINE V bf16_low(const V& w) {
  return each_lane([&](int i) { return std::bit_cast<float>(std::bit_cast<uint32_t>(w.l[i]) << 16); });
}
LAPIDARY_INLINE V bf16_high(const V& w) {
  return each_lane([&](int i) { return std::bit_cast<float>(std::bit_cast<uint32_t>(w.l[i]) & 0xffff0000u); });
}
template <int kByte>
LAPIDARY_INLINE V i8_of_word(const V& w) {
  return each_lane([&](int i) { return static_cast<float>(static_cast<int8_t>(std::bit_cast<uint32_t>(w.l[i]) >> (8 * kByte))); });
}
// columns[j] is word j of sixteen rows of sixteen words, row_bytes apart.
LAPIDARY_INLINE void load_turned(const uint8_t* rows, int64_t row_bytes, V (&columns)[16]) {
  for (int i = 0; i < 16; ++i) {
    for (int j = 0; j < 16; ++j) std::memcpy(&columns[j].l[i], rows + i * row_bytes + 4 * j, 4);
  }
}
// Sixteen bytes of two 4-bit numbers each: the low halves, the high halves, less 8.
LAPIDARY_INLINE void load_i4(const void* p, V& low, V& high) {
  const uint8_t* q = static_cast<const uint8_t*>(p);
  low = each_lane([&](int i) { return static_cast<float>((q[i] & 15) - 8); });
  high = each_lane([&](int i) { return static_cast<float>((q[i] >> 4) - 8); });
}
LAPIDARY_INLINE void store_bf16(void* p, const V& a) {
  bf16 h[16];
  for (int i = 0; i < 16; ++i) h[i] = to_bf16(a.l[i]);
  std::memcpy(p, h, sizeof h);
}
LAPIDARY_INLINE void store_int8(int8_t* p, const V& a) {
  for (int i = 0; i < 16; ++i) p[i] = to_int8(a.l[i]);
}

LAPIDARY_INLINE V fma(const V& a, const V& b, const V& c) {
  return each_lane([&](int i) { return __builtin_fmaf(a.l[i], b.l[i], c.l[i]); });
}
// sums[i] = fma(*x, w[i], sums[i]).
template <int N>
LAPIDARY_INLINE void fma_each(const float* x, const V (&w)[N], V (&sums)[N]) {
  for (int i = 0; i < N; ++i) sums[i] = fma(set1(*x), w[i], sums[i]);
}
LAPIDARY_INLINE V add(const V& a, const V& b) {
  return each_lane([&](int i) { return a.l[i] + b.l[i]; });
}
LAPIDARY_INLINE V sub(const V& a, const V& b) {
  return each_lane([&](int i) { return a.l[i] - b.l[i]; });
}
LAPIDARY_INLINE V mul(const V& a, const V& b) {
  return each_lane([&](int i) { return a.l[i] * b.l[i]; });
}
LAPIDARY_INLINE V div(const V& a, const V& b) {
  return each_lane([&](int i) { return a.l[i] / b.l[i]; });
}
// Where either is NaN, b.
LAPIDARY_INLINE V min(const V& a, const V& b) {
  return each_lane([&](int i) { return a.l[i] < b.l[i] ? a.l[i] : b.l[i]; });
}
LAPIDARY_INLINE V max(const V& a, const V& b) {
  return each_lane([&](int i) { return a.l[i] > b.l[i] ? a.l[i] : b.l[i]; });
}
LAPIDARY_INLINE V abs(const V& a) {
  return each_lane([&](int i) { return __builtin_fabsf(a.l[i]); });
}
LAPIDARY_INLINE V copysign(const V& magnitude, const V& sign) {  // magnitude >= 0
  return each_lane([&](int i) { return __builtin_copysignf(magnitude.l[i], sign.l[i]); });
}

// t = kRoundingMagic + n: 2^n as two factors, each a normal number. Of a NaN, anything.
LAPIDARY_INLINE void pow2_halves(const V& t, V& a, V& b) {
  for (int i = 0; i < 16; ++i) {
    const uint32_t n = std::bit_cast<uint32_t>(t.l[i]) - static_cast<uint32_t>(kRoundingMagicBits);
    const uint32_t half = static_cast<uint32_t>(static_cast<int32_t>(n) >> 1);
    a.l[i] = std::bit_cast<float>((half + 127) << 23);
    b.l[i] = std::bit_cast<float>((n - half + 127) << 23);
  }
}

// a in lanes [begin, end), 0 <= begin, end <= 16, and other elsewhere.
LAPIDARY_INLINE V keep_range(const V& a, int begin, int end, const V& other) {
  return each_lane([&](int i) { return i >= begin && i < end ? a.l[i] : other.l[i]; });
}

// The tree of dot16.
LAPIDARY_INLINE float reduce_add(V a) {
  for (int half = 8; half > 0; half /= 2) {
    for (int i = 0; i < half; ++i) a.l[i] += a.l[i + half];
  }
  return a.l[0];
}
template <int N>
LAPIDARY_INLINE void reduce_add_to(const V (&a)[N], float* out) {
  for (int i = 0; i < N; ++i) out[i] = reduce_add(a[i]);
}
LAPIDARY_INLINE float reduce_max(V a) {
  for (int half = 8; half > 0; half /= 2) {
    for (int i = 0; i < half; ++i) a.l[i] = a.l[i] > a.l[i + half] ? a.l[i] : a.l[i + half];
  }
  return a.l[0];
}

// The probes' products, see kernels/probe.h. Shifted by the round, so that no round is the one before it again.
double int8_probe(const void* data, int64_t rounds) {
  const int8_t* numbers = static_cast<const int8_t*>(data);
  int64_t total = 0;
  for (int64_t r = 0; r < rounds; ++r) {
    const int8_t* shifted = numbers + (r & 63);
    int32_t sum = 0;
    for (int64_t i = 0; i < kProbeBytes / 2; ++i) sum += numbers[kProbeBytes / 2 + i] * shifted[i];
    total += sum;
  }
  return static_cast<double>(total);
}
constexpr ProbeLoop kInt8Probe = {Feature::none, DType::i8, kProbeBytes, int8_probe}, kInt8FastProbe = {};
constexpr ProbeLoop kBf16Probe = {};

}  // namespace
}  // namespace lapidary::cpu
