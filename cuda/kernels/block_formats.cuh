// Eight neighbouring weights of a row, widened to f32: one struct per storage kind. The arithmetic and its order are those of
// native/tensor/blocks.cc, so the bits are the same; layouts are described there and in native/tensor/blocks.h.
#pragma once

#include "cuda/api/block_planes.h"
#include "cuda/primitives/math.cuh"
#include "cuda/primitives/memory.cuh"

namespace lapidary::cuda {

// Bytes in registers: byte i of a row of words.
struct Bytes8 {
  uint32_t word[2];
  LAPIDARY_DEVICE int operator[](int i) const { return static_cast<int>(word[i / 4] >> (8 * (i % 4)) & 0xff); }
};
// Eight bytes by accesses of `Align` bytes, as aligned as the block's size allows.
template <int Align>
LAPIDARY_DEVICE Bytes8 load_bytes8(const std::byte* p) {
  if constexpr (Align >= 8) {
    const U32x2 v = load_readonly(reinterpret_cast<const U32x2*>(p));
    return {{v[0], v[1]}};
  } else if constexpr (Align == 4) {
    const auto* words = reinterpret_cast<const uint32_t*>(p);
    return {{load_readonly(words), load_readonly(words + 1)}};
  } else {
    const auto* halves = reinterpret_cast<const uint16_t*>(p);
    uint32_t h[4];
    LAPIDARY_UNROLL
    for (int i = 0; i < 4; ++i) h[i] = load_readonly(halves + i);
    return {{h[0] | h[1] << 16, h[2] | h[3] << 16}};
  }
}
LAPIDARY_DEVICE uint32_t load_u16(const std::byte* p) { return load_readonly(reinterpret_cast<const uint16_t*>(p)); }
LAPIDARY_DEVICE uint32_t load_u32_by_halves(const std::byte* p) { return load_u16(p) | load_u16(p + 2) << 16; }
LAPIDARY_DEVICE float load_half(const std::byte* p) { return to_f32(load_readonly(reinterpret_cast<const Half*>(p))); }
LAPIDARY_DEVICE int load_byte(const std::byte* p) { return load_readonly(reinterpret_cast<const uint8_t*>(p)); }

using Values8 = float[8];

// Each: elements and bytes of a block, and widen(row, i, v): elements i .. i + 7 of a row, i a multiple of 8.
template <DType Type>
struct BlockFormat;

template <>
struct BlockFormat<DType::f32> {
  static LAPIDARY_DEVICE void widen(const std::byte* row, int i, Values8& v) {
    const auto* from = reinterpret_cast<const F32x4*>(row) + i / 4;
    const F32x4 a = load_readonly(from), b = load_readonly(from + 1);
    LAPIDARY_UNROLL
    for (int e = 0; e < 8; ++e) v[e] = e < 4 ? a[e % 4] : b[e % 4];
  }
};
template <>
struct BlockFormat<DType::bf16> {
  static LAPIDARY_DEVICE void widen(const std::byte* row, int i, Values8& v) {
    const U32x4 pairs = load_readonly(reinterpret_cast<const U32x4*>(row) + i / 8);
    LAPIDARY_UNROLL
    for (int e = 0; e < 8; ++e) v[e] = e % 2 ? high_bf16(pairs[e / 2]) : low_bf16(pairs[e / 2]);
  }
};
template <>
struct BlockFormat<DType::f16> {
  static LAPIDARY_DEVICE void widen(const std::byte* row, int i, Values8& v) {
    const U32x4 pairs = load_readonly(reinterpret_cast<const U32x4*>(row) + i / 8);
    LAPIDARY_UNROLL
    for (int e = 0; e < 8; ++e) v[e] = to_f32(Half{static_cast<uint16_t>(pairs[e / 2] >> (16 * (e % 2)))});
  }
};

template <>
struct BlockFormat<DType::q8_0> {
  static constexpr int kBytes = 34;
  static LAPIDARY_DEVICE void widen(const std::byte* row, int i, Values8& v) {
    const std::byte* b = row + i / 32 * kBytes;
    const float d = load_half(b);
    const Bytes8 q = load_bytes8<2>(b + 2 + i % 32);
    LAPIDARY_UNROLL
    for (int e = 0; e < 8; ++e) v[e] = d * static_cast<float>(static_cast<int8_t>(q[e]));
  }
};
// The nibbles of elements i .. i + 7 of a 32-block: low ones for the first half, high ones for the second.
LAPIDARY_DEVICE int nibble(const Bytes8& q, int e, int i) { return q[e] >> (i % 32 / 16 * 4) & 15; }
template <>
struct BlockFormat<DType::q4_0> {
  static constexpr int kBytes = 18;
  static LAPIDARY_DEVICE void widen(const std::byte* row, int i, Values8& v) {
    const std::byte* b = row + i / 32 * kBytes;
    const float d = load_half(b);
    const Bytes8 q = load_bytes8<2>(b + 2 + i % 16);
    LAPIDARY_UNROLL
    for (int e = 0; e < 8; ++e) v[e] = d * static_cast<float>(nibble(q, e, i) - 8);
  }
};
template <>
struct BlockFormat<DType::q4_1> {
  static constexpr int kBytes = 20;
  static LAPIDARY_DEVICE void widen(const std::byte* row, int i, Values8& v) {
    const std::byte* b = row + i / 32 * kBytes;
    const float d = load_half(b), m = load_half(b + 2);
    const Bytes8 q = load_bytes8<4>(b + 4 + i % 16);
    LAPIDARY_UNROLL
    for (int e = 0; e < 8; ++e) v[e] = d * static_cast<float>(nibble(q, e, i)) + m;
  }
};
template <>
struct BlockFormat<DType::q5_0> {
  static constexpr int kBytes = 22;
  static LAPIDARY_DEVICE void widen(const std::byte* row, int i, Values8& v) {
    const std::byte* b = row + i / 32 * kBytes;
    const float d = load_half(b);
    const uint32_t fifth = load_u32_by_halves(b + 2) >> (i % 32);
    const Bytes8 q = load_bytes8<2>(b + 6 + i % 16);
    LAPIDARY_UNROLL
    for (int e = 0; e < 8; ++e) v[e] = d * static_cast<float>((nibble(q, e, i) | static_cast<int>(fifth >> e & 1) << 4) - 16);
  }
};
template <>
struct BlockFormat<DType::q5_1> {
  static constexpr int kBytes = 24;
  static LAPIDARY_DEVICE void widen(const std::byte* row, int i, Values8& v) {
    const std::byte* b = row + i / 32 * kBytes;
    const float d = load_half(b), m = load_half(b + 2);
    const uint32_t fifth = load_u32_by_halves(b + 4) >> (i % 32);
    const Bytes8 q = load_bytes8<8>(b + 8 + i % 16);
    LAPIDARY_UNROLL
    for (int e = 0; e < 8; ++e) v[e] = d * static_cast<float>(nibble(q, e, i) | static_cast<int>(fifth >> e & 1) << 4) + m;
  }
};

template <>
struct BlockFormat<DType::q2_k> {
  static constexpr int kBytes = 84;
  static LAPIDARY_DEVICE void widen(const std::byte* row, int i, Values8& v) {
    const std::byte* b = row + i / 256 * kBytes;
    const int at = i % 256, half = at / 128, shift = at % 128 / 32 * 2;
    const int packed = load_byte(b + at / 16);
    const float scale = load_half(b + 80) * static_cast<float>(packed & 15), minimum = load_half(b + 82) * static_cast<float>(packed >> 4);
    const Bytes8 q = load_bytes8<4>(b + 16 + half * 32 + at % 32);
    LAPIDARY_UNROLL
    for (int e = 0; e < 8; ++e) v[e] = scale * static_cast<float>(q[e] >> shift & 3) - minimum;
  }
};
template <>
struct BlockFormat<DType::q3_k> {
  static constexpr int kBytes = 110;
  static LAPIDARY_DEVICE void widen(const std::byte* row, int i, Values8& v) {
    const std::byte* b = row + i / 256 * kBytes;
    const int at = i % 256, half = at / 128, shift = at % 128 / 32 * 2, group = at / 16;
    const int low = load_byte(b + 96 + group % 8) >> (group / 8 * 4) & 15, high = load_byte(b + 104 + group % 4) >> (group / 4 * 2) & 3;
    const float scale = load_half(b + 108) * static_cast<float>((low | high << 4) - 32);
    const Bytes8 q = load_bytes8<2>(b + 32 + half * 32 + at % 32), third = load_bytes8<2>(b + at % 32);
    LAPIDARY_UNROLL
    for (int e = 0; e < 8; ++e) v[e] = scale * static_cast<float>((q[e] >> shift & 3) - (third[e] >> (at / 32) & 1 ? 0 : 4));
  }
};
// The six-bit scale and minimum of one of the 8 groups of Q4_K and Q5_K.
struct ScaleAndMinimum {
  float scale, minimum;
};
LAPIDARY_DEVICE ScaleAndMinimum q4_k_scale(const std::byte* b, int group) {
  const std::byte* s = b + 4;
  int scale, minimum;
  if (group < 4) {
    scale = load_byte(s + group) & 63;
    minimum = load_byte(s + group + 4) & 63;
  } else {
    const int both = load_byte(s + group + 4);
    scale = (both & 15) | load_byte(s + group - 4) >> 6 << 4;
    minimum = both >> 4 | load_byte(s + group) >> 6 << 4;
  }
  return {load_half(b) * static_cast<float>(scale), load_half(b + 2) * static_cast<float>(minimum)};
}
template <>
struct BlockFormat<DType::q4_k> {
  static constexpr int kBytes = 144;
  static LAPIDARY_DEVICE void widen(const std::byte* row, int i, Values8& v) {
    const std::byte* b = row + i / 256 * kBytes;
    const int at = i % 256, group = at / 32, shift = group % 2 * 4;
    const ScaleAndMinimum s = q4_k_scale(b, group);
    const Bytes8 q = load_bytes8<8>(b + 16 + group / 2 * 32 + at % 32);
    LAPIDARY_UNROLL
    for (int e = 0; e < 8; ++e) v[e] = s.scale * static_cast<float>(q[e] >> shift & 15) - s.minimum;
  }
};
template <>
struct BlockFormat<DType::q5_k> {
  static constexpr int kBytes = 176;
  static LAPIDARY_DEVICE void widen(const std::byte* row, int i, Values8& v) {
    const std::byte* b = row + i / 256 * kBytes;
    const int at = i % 256, group = at / 32, shift = group % 2 * 4;
    const ScaleAndMinimum s = q4_k_scale(b, group);
    const Bytes8 q = load_bytes8<8>(b + 48 + group / 2 * 32 + at % 32), fifth = load_bytes8<8>(b + 16 + at % 32);
    LAPIDARY_UNROLL
    for (int e = 0; e < 8; ++e) v[e] = s.scale * static_cast<float>((q[e] >> shift & 15) + ((fifth[e] >> group & 1) << 4)) - s.minimum;
  }
};
template <>
struct BlockFormat<DType::q6_k> {
  static constexpr int kBytes = 210;
  static LAPIDARY_DEVICE void widen(const std::byte* row, int i, Values8& v) {
    const std::byte* b = row + i / 256 * kBytes;
    const int at = i % 256, half = at / 128, s = at % 128 / 32;
    const float scale = load_half(b + 208) * static_cast<float>(static_cast<int8_t>(load_byte(b + 192 + at / 16)));
    const Bytes8 low = load_bytes8<2>(b + half * 64 + s % 2 * 32 + at % 32), high = load_bytes8<2>(b + 128 + half * 32 + at % 32);
    LAPIDARY_UNROLL
    for (int e = 0; e < 8; ++e) v[e] = scale * static_cast<float>(((low[e] >> (s / 2 * 4) & 15) | (high[e] >> (2 * s) & 3) << 4) - 32);
  }
};

// Bytes between rows of raw blocks.
template <DType Type>
LAPIDARY_HOST_DEVICE constexpr int64_t block_row_bytes(int64_t k) {
  if constexpr (Type == DType::f32) {
    return k * 4;
  } else if constexpr (Type == DType::bf16 || Type == DType::f16) {
    return k * 2;
  } else {
    return k / (Type >= DType::q2_k ? 256 : 32) * BlockFormat<Type>::kBytes;
  }
}

// Planes of block_planes.h: elements i .. i + 7 of a row of quants, with the row's scales.
LAPIDARY_DEVICE void widen_q8_plane(const std::byte* quants, const std::byte* scales, int i, Values8& v) {
  const float d = load_half(scales + i / kPlaneBlock * 2);
  const Bytes8 q = load_bytes8<8>(quants + i);
  LAPIDARY_UNROLL
  for (int e = 0; e < 8; ++e) v[e] = d * static_cast<float>(static_cast<int8_t>(q[e]));
}
LAPIDARY_DEVICE void widen_q4_plane(const std::byte* quants, const std::byte* scales, int i, Values8& v) {
  const float d = load_half(scales + i / kPlaneBlock * 2);
  const uint32_t word = load_readonly(reinterpret_cast<const uint32_t*>(quants + i / 2));
  LAPIDARY_UNROLL
  for (int e = 0; e < 8; ++e) v[e] = d * static_cast<float>(static_cast<int>(word >> (4 * (e / 2) + 16 * (e % 2)) & 15) - 8);
}

}  // namespace lapidary::cuda
