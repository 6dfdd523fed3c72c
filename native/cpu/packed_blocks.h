// What the packers of block weights share: the numbers of 32 columns of one row on their way between file and panel.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>

#include "base/float16.h"
#include "cpu/packed_layout.h"
#include "cpu/packed_turn.h"
#include "tensor/blocks.h"

namespace lapidary::cpu {

// The words of one row and 32 columns as a panel holds them: 4 or 8 of numbers, then those of the bits above the fourth.
struct RowWords {
  uint32_t words[8];
};

// Bits `mask` of x change places with those `shift` above.
inline uint32_t exchange(uint32_t x, uint32_t mask, int shift) {
  const uint32_t t = ((x >> shift) ^ x) & mask;
  return x ^ t ^ (t << shift);
}

// Bit c of x -> bit s + 16 i, where column c is element i of pair s: of the bits of a place, the one of value 2 goes to the top.
inline uint32_t to_pairs(uint32_t x) { return exchange(exchange(exchange(x, 0x0c0c0c0c, 2), 0x00f000f0, 4), 0x0000ff00, 8); }

// Bits 0 .. 7 and 16 .. 23 of x at every second place of their half.
inline uint32_t spread(uint32_t x) {
  x = (x | x << 4) & 0x0f0f0f0f;
  x = (x | x << 2) & 0x33333333;
  return (x | x << 1) & 0x55555555;
}

// Bit `bit` of each of 32 bytes.
inline uint32_t gather_bits(const uint8_t* bytes, int bit) {
  uint32_t bits = 0;
#ifdef __SSE2__
  const __m128i left = _mm_cvtsi32_si128(7 - bit);  // to the top of its byte; what crosses over from the other byte lies below
  for (int i = 0; i < 2; ++i) {
    const __m128i sixteen = _mm_loadu_si128(reinterpret_cast<const __m128i*>(bytes) + i);
    bits |= static_cast<uint32_t>(_mm_movemask_epi8(_mm_sll_epi16(sixteen, left))) << (16 * i);
  }
#else
  for (int i = 0; i < 4; ++i) {
    uint64_t eight;
    std::memcpy(&eight, bytes + 8 * i, 8);
    bits |= static_cast<uint32_t>((eight >> bit & 0x0101010101010101u) * 0x0102040810204080u >> 56) << (8 * i);
  }
#endif
  return bits;
}

// The low (shift 0) or high (shift 4) four bits of 32 bytes -> the four words of numbers.
inline void set_nibbles(const uint8_t* bytes, int shift, RowWords& row) {
  constexpr uint64_t kLow = 0x0f0f0f0f0f0f0f0fu;
  for (int i = 0; i < 2; ++i) {
    uint64_t first, second;
    std::memcpy(&first, bytes + 8 * i, 8);
    std::memcpy(&second, bytes + 16 + 8 * i, 8);
    const uint64_t both = (first >> shift & kLow) | (second >> shift & kLow) << 4;
    std::memcpy(row.words + 2 * i, &both, 8);
  }
}

inline void set_fifth_bits(uint32_t columns, RowWords& row) { row.words[4] = to_pairs(columns); }

// low, high: the two bits of each column.
inline void set_high_bits(uint32_t low, uint32_t high, RowWords& row) {
  low = to_pairs(low);
  high = to_pairs(high);
  row.words[4] = spread(low & 0x00ff00ff) | spread(high & 0x00ff00ff) << 1;
  row.words[5] = spread(low >> 8 & 0x00ff00ff) | spread(high >> 8 & 0x00ff00ff) << 1;
}

// Number `column` of 32, as the panel has it (not moved down).
template <class Form>
int number_of(const RowWords& row, int column) {
  if constexpr (Form::kBits == 8) return row.words[column / 4] >> (8 * (column % 4)) & 255;
  const int low = row.words[column % 16 / 4] >> (8 * (column % 4) + 4 * (column / 16)) & 15;
  const int pair = column / 4 * 2 + column % 2, element = column / 2 % 2;
  if constexpr (Form::kBits == 5) return low | (row.words[4] >> (pair + 16 * element) & 1) << 4;
  if constexpr (Form::kBits == 6) return low | (row.words[4 + pair / 8] >> (2 * (pair % 8) + 16 * element) & 3) << 4;
  return low;
}

template <class Form>
int64_t block_panel_bytes(int64_t k) {
  constexpr int64_t kColumns = Form::kBlocks * kQuantColumns;
  return (k + kColumns - 1) / kColumns * Form::kChunkBytes;
}

// The words of all rows of 32 columns -> a panel, whose numbers for these columns begin at `numbers`.
template <class Form>
void put_words(const RowWords (&rows)[kPackedRows], std::byte* numbers) {
  constexpr int64_t kQuads = Form::kBits / 4 * 4;
  for (int64_t j = 0; j < kQuads; j += 4)
    turn_quads(reinterpret_cast<const std::byte*>(rows[0].words + j), sizeof rows[0], numbers + j * kPackedRows * 4);
  for (int64_t j = kQuads; j < Form::kBits; ++j) {
    for (int64_t r = 0; r < kPackedRows; ++r) std::memcpy(numbers + (j * kPackedRows + r) * 4, rows[r].words + j, 4);
  }
}
// Those of row `row` of a panel.
template <class Form>
RowWords get_words(const std::byte* numbers, int64_t row) {
  RowWords words;
  for (int64_t j = 0; j < Form::kBits; ++j) std::memcpy(words.words + j, numbers + (j * kPackedRows + row) * 4, 4);
  return words;
}

inline float f16_at(const std::byte* at) {
  f16 v;
  std::memcpy(&v, at, sizeof v);
  return to_f32(v);
}

}  // namespace lapidary::cpu
