// A block of cached keys or values as f32 panels, a slab of its elements at a time. Part of kernels/impl.h.
//
// Keys are turned, so that sixteen keys lie in the lanes of a vector: panel[d][key], kBlockKeys floats a row. Values stay as they are:
// panel[key][d], kSlab floats a row, zeros behind the last element. What the cache holds is widened exactly; of int8 it is q * scale.
#pragma once

#include "cpu/kernels/math.h"

namespace lapidary::cpu {
namespace {

constexpr int64_t kBlockKeys = 64;  // = kPageTokens
constexpr int64_t kSlab = 64;       // elements of a panel: it stays in the first-level cache

// One side, keys or values, of a block: rows of head_dim elements one after another.
struct BlockSide {
  const uint8_t* data;
  const float* scales;  // [rows], i8 only
  int64_t rows;         // that exist: kBlockKeys, or fewer at the end of a prefix
  const uint8_t* next;  // the side that is read next, asked for from its beginning while this one is read; null: none
};

// Asks for kBytes from p on: calls in rising order, which the hardware's own prefetching follows.
template <int64_t kBytes>
LAPIDARY_INLINE void ask_for(const uint8_t* p) {
  LAPIDARY_UNROLL for (int64_t i = 0; i < kBytes; i += 64) LAPIDARY_PREFETCH(p + i);
}

// How a row is read. kWord: elements in 32 bits. `split` gives the elements of a word whose sixteen lanes are sixteen rows.
struct RowsF32 {
  static constexpr int kWord = 1;
  static LAPIDARY_INLINE void split(const V& word, const V&, V* out) { out[0] = word; }
  static LAPIDARY_INLINE V read(const uint8_t* row, int64_t i, const V&) { return load(row + i * 4); }
};
struct RowsBf16 {
  static constexpr int kWord = 2;
  static LAPIDARY_INLINE void split(const V& word, const V&, V* out) { out[0] = bf16_low(word), out[1] = bf16_high(word); }
  static LAPIDARY_INLINE V read(const uint8_t* row, int64_t i, const V&) { return load_bf16(row + i * 2); }
};
struct RowsI8 {
  static constexpr int kWord = 4;
  static LAPIDARY_INLINE void split(const V& word, const V& scale, V* out) {
    out[0] = mul(i8_of_word<0>(word), scale), out[1] = mul(i8_of_word<1>(word), scale);
    out[2] = mul(i8_of_word<2>(word), scale), out[3] = mul(i8_of_word<3>(word), scale);
  }
  static LAPIDARY_INLINE V read(const uint8_t* row, int64_t i, const V& scale) { return mul(load_i8(row + i), scale); }
};

template <class W>
constexpr bool kScaled = W::kWord == 4;

// Element i of a row and the n <= 16 from there, zeros behind them.
template <class W>
LAPIDARY_INLINE V read_row(const uint8_t* row, int64_t i, int64_t n, const V& scale) {
  if (n >= 16) return W::read(row, i, scale);
  constexpr int64_t kBytes = 4 / W::kWord;
  uint8_t lanes[64] = {};
  std::memcpy(lanes, row + i * kBytes, static_cast<size_t>(n * kBytes));
  return W::read(lanes, 0, scale);
}

template <class W>
LAPIDARY_INLINE V row_scale(const BlockSide& side, int64_t row) {
  if constexpr (kScaled<W>) return set1(side.scales[row]);
  return zero();
}

// Elements [d0, d0 + n) of the sixteen keys from 16 * v on -> panel[0 .. n)[16 * v ..].
template <class W>
void turn_keys(const BlockSide& side, int64_t head_dim, int64_t d0, int64_t n, int64_t v, float* panel) {
  constexpr int64_t kBytes = 4 / W::kWord, kStep = 16 * W::kWord;
  const int64_t row_bytes = head_dim * kBytes, first = 16 * v;
  const uint8_t* rows = side.data + first * row_bytes + d0 * kBytes;
  V scale = zero();
  if constexpr (kScaled<W>) scale = load_lanes(side.scales + first, side.rows - first < 16 ? side.rows - first : 16);
  for (int64_t d = 0; d < n; d += kStep) {
    const int64_t left = n - d < kStep ? n - d : kStep;
    V words[16];
    if (left == kStep && first + 16 <= side.rows) {
      load_turned(rows + d * kBytes, row_bytes, words);
      if (side.next) ask_for<16 * 64>(side.next + ((d0 + d) / kStep * (kBlockKeys / 16) + v) * 16 * 64);
    } else {  // where a row or the rows end
      uint8_t part[16 * 64] = {};
      for (int64_t i = 0; i < 16 && first + i < side.rows; ++i)
        std::memcpy(part + i * 64, rows + d * kBytes + i * row_bytes, static_cast<size_t>(left * kBytes));
      load_turned(part, 64, words);
    }
    float* to = panel + d * kBlockKeys + 16 * v;
    for (int64_t j = 0; j < 16 && j * W::kWord < left; ++j) {
      V elements[W::kWord];
      W::split(words[j], scale, elements);
      const int64_t count = left - j * W::kWord < W::kWord ? left - j * W::kWord : W::kWord;
      for (int64_t e = 0; e < count; ++e) store(to + (j * W::kWord + e) * kBlockKeys, elements[e]);
    }
  }
}

// Elements [d0, d0 + n) of keys [begin, end) -> panel[key][0 .. n), to whole vectors. False: some are infinite or NaN.
template <class W>
bool copy_values(const BlockSide& side, int64_t head_dim, int64_t d0, int64_t n, int64_t begin, int64_t end, float* panel) {
  const int64_t row_bytes = head_dim * (4 / W::kWord);
  V wrong = zero();  // x * 0 is 0 or NaN
  for (int64_t key = begin; key < end; ++key) {
    const V scale = row_scale<W>(side, key);
    if (side.next) {
      constexpr int64_t kBytes = kSlab * 4 / W::kWord;
      ask_for<kBytes>(side.next + (d0 / kSlab * kBlockKeys + key) * kBytes);
    }
    for (int64_t d = 0; d < n; d += 16) {
      const V x = read_row<W>(side.data + key * row_bytes, d0 + d, n - d, scale);
      wrong = fma(x, zero(), wrong);
      store(panel + key * kSlab + d, x);
    }
  }
  return reduce_add(wrong) == 0;
}

}  // namespace
}  // namespace lapidary::cpu
