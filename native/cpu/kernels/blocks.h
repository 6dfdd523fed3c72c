// Widening of the block formats that models are most often shipped in; the values are those of dequantize_row, bit for bit.
// Part of kernels/impl.h. The byte loops are plain so that the compiler vectorises them for each instruction set.
#pragma once

#include "cpu/kernels/math.h"
#include "tensor/blocks.h"

namespace lapidary::cpu {
namespace {

constexpr int64_t kSuperBlock = 256;

LAPIDARY_INLINE float scale_of(f16 d) { return f16_to_f32(d.bits); }

// The j-th of eight 6-bit scales and minimums, packed as in Q4_K and Q5_K.
LAPIDARY_INLINE void unpack_scale(const uint8_t* packed, int j, int& scale, int& minimum) {
  if (j < 4) {
    scale = packed[j] & 63;
    minimum = packed[j + 4] & 63;
  } else {
    scale = (packed[j + 4] & 15) | (packed[j - 4] >> 6 << 4);
    minimum = (packed[j + 4] >> 4) | (packed[j] >> 6 << 4);
  }
}

// dst[i] = q[i] * d - m for 32 numbers.
LAPIDARY_INLINE void widen_affine(const int8_t* q, float d, float m, float* dst) {
  store(dst, sub(mul(load_i8(q), set1(d)), set1(m)));
  store(dst + 16, sub(mul(load_i8(q + 16), set1(d)), set1(m)));
}

void widen_q4_k(const BlockQ4_K& block, float* dst) {
  const float d = scale_of(block.d), dmin = scale_of(block.dmin);
  for (int j = 0; j < 8; ++j) {
    const uint8_t* nibbles = block.qs + j / 2 * 32;
    int8_t q[32];
    for (int i = 0; i < 32; ++i) q[i] = static_cast<int8_t>(nibbles[i] >> (j % 2 * 4) & 15);
    int scale, minimum;
    unpack_scale(block.scales, j, scale, minimum);
    widen_affine(q, d * static_cast<float>(scale), dmin * static_cast<float>(minimum), dst + 32 * j);
  }
}

void widen_q5_k(const BlockQ5_K& block, float* dst) {
  const float d = scale_of(block.d), dmin = scale_of(block.dmin);
  for (int j = 0; j < 8; ++j) {
    const uint8_t* nibbles = block.qs + j / 2 * 32;
    int8_t q[32];
    for (int i = 0; i < 32; ++i) q[i] = static_cast<int8_t>((nibbles[i] >> (j % 2 * 4) & 15) | (block.qh[i] >> j & 1) << 4);
    int scale, minimum;
    unpack_scale(block.scales, j, scale, minimum);
    widen_affine(q, d * static_cast<float>(scale), dmin * static_cast<float>(minimum), dst + 32 * j);
  }
}

void widen_q6_k(const BlockQ6_K& block, float* dst) {
  const float d = scale_of(block.d);
  for (int j = 0; j < 8; ++j) {  // 32 numbers with two scales
    const int half = j / 4, part = j % 4;
    const uint8_t* low = block.ql + half * 64 + part % 2 * 32;
    const uint8_t* high = block.qh + half * 32;
    int8_t q[32];
    for (int i = 0; i < 32; ++i) q[i] = static_cast<int8_t>(((low[i] >> (part / 2 * 4) & 15) | (high[i] >> (2 * part) & 3) << 4) - 32);
    const int8_t* scales = block.scales + 2 * j;
    store(dst + 32 * j, mul(set1(d * static_cast<float>(scales[0])), load_i8(q)));
    store(dst + 32 * j + 16, mul(set1(d * static_cast<float>(scales[1])), load_i8(q + 16)));
  }
}

template <class Block, void (*kWiden)(const Block&, float*)>
void widen_blocks(const uint8_t* src, int64_t n, float* dst) {
  for (int64_t i = 0; i < n; i += kSuperBlock, src += sizeof(Block)) {
    Block block;  // a copy: files do not align blocks
    std::memcpy(&block, src, sizeof block);
    kWiden(block, dst + i);
  }
}

}  // namespace
}  // namespace lapidary::cpu
