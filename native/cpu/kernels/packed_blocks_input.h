// Inputs of block products: f32 rows quantised to 15 bits per 32 columns (docs/numerics.md, "Blocks").
//
// A prepared row: per 32 columns sixteen pairs of i16 in the order of packed_layout.h; then an InputBlock each.
#pragma once

#include "cpu/kernels/math.h"
#include "cpu/packed_layout.h"

namespace lapidary::cpu {
namespace {

struct InputBlock {
  float scale;       // of the numbers; NaN where one of them is no finite number
  float sum;         // scale times the sum of the numbers, with the sign of the weights' minimum
  int32_t start[2];  // what moves the weights back down: - offset times the sum of columns 0 .. 15, of 16 .. 31
};

constexpr float kInputMost = 16383;
// Blocks whose numbers are all smaller count as zeros.
constexpr float kInputLeast = 1e-30f;
constexpr int64_t kInputPairBytes = kPairs * 4;

template <class Form>
int64_t blocks_padded(int64_t k) {
  return (k + Form::kBlocks * kQuantColumns - 1) / (Form::kBlocks * kQuantColumns) * Form::kBlocks;
}

// An odd number of cache lines: rows that lay a power of two apart would share a few sets of the first-level cache.
template <class Form>
int64_t blocks_input_bytes(int64_t k) {
  return (blocks_padded<Form>(k) * (kInputPairBytes + static_cast<int64_t>(sizeof(InputBlock))) + 63) / 64 * 64 | 64;
}

// x of 32 columns -> q [32], scale.
LAPIDARY_INLINE float quantize_block(const float* x, int32_t (&q)[32]) {
  uint32_t bits[32], most_bits = 0;  // without their signs, floats are in the order of their bits
  std::memcpy(bits, x, sizeof bits);
  for (int i = 0; i < 32; ++i) {
    const uint32_t magnitude = bits[i] & 0x7fffffffu;
    most_bits = magnitude > most_bits ? magnitude : most_bits;
  }
  float most;
  std::memcpy(&most, &most_bits, sizeof most);
  const bool finite = most_bits < 0x7f800000u, counts = finite && most >= kInputLeast;
  const V inverse = set1(counts ? kInputMost / most : 0.0f), magic = set1(kRoundingMagic);
  float lanes[32];
  store(lanes, add(mul(finite ? load(x) : zero(), inverse), magic));
  store(lanes + 16, add(mul(finite ? load(x + 16) : zero(), inverse), magic));
  std::memcpy(q, lanes, sizeof q);
  for (int i = 0; i < 32; ++i) q[i] -= kRoundingMagicBits;
  return counts ? most / kInputMost : finite ? 0.0f : __builtin_nanf("");
}

template <class Form>
void blocks_prepare(const float* x, int64_t k, const InputRule&, std::byte* row) {
  const int64_t blocks = k / kQuantColumns, all = blocks_padded<Form>(k);
  std::byte* input_blocks = row + all * kInputPairBytes;
  for (int64_t b = 0; b < blocks; ++b) {
    int32_t q[32];
    InputBlock block;
    block.scale = quantize_block(x + b * kQuantColumns, q);
    int32_t sums[2] = {};
    for (int i = 0; i < 16; ++i) sums[0] += q[i];
    for (int i = 16; i < 32; ++i) sums[1] += q[i];
    const float sum = static_cast<float>(sums[0] + sums[1]) * block.scale;
    block.sum = Form::kSuper ? -sum : sum;
    for (int h = 0; h < 2; ++h) block.start[h] = -Form::kOffset * sums[h];
    uint64_t pairs[kPairs / 2];  // both pairs of four columns at once
    for (int j = 0; j < 8; ++j) {
      uint64_t first, second;
      std::memcpy(&first, q + 4 * j, 8);
      std::memcpy(&second, q + 4 * j + 2, 8);
      pairs[j] = (first & 0x0000ffff0000ffffu) | (second << 16 & 0xffff0000ffff0000u);
    }
    std::memcpy(row + b * kInputPairBytes, pairs, sizeof pairs);
    std::memcpy(input_blocks + b * static_cast<int64_t>(sizeof block), &block, sizeof block);
  }
  std::memset(row + blocks * kInputPairBytes, 0, static_cast<size_t>((all - blocks) * kInputPairBytes));
  const int64_t written = all * kInputPairBytes + blocks * static_cast<int64_t>(sizeof(InputBlock));
  std::memset(row + written, 0, static_cast<size_t>(blocks_input_bytes<Form>(k) - written));
}

}  // namespace
}  // namespace lapidary::cpu
