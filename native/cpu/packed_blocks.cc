// The panels of the blocks of 32 and of f16, packed_layout.h: packers and unpackers.
#include "cpu/packed_blocks.h"

#include <algorithm>

#include "cpu/packed.h"
#include "cpu/packed_turn.h"

namespace lapidary::cpu {

namespace {

RowWords words_of(const BlockQ8_0& b) {
  RowWords row;
  std::memcpy(row.words, b.q, sizeof b.q);
  for (uint32_t& word : row.words) word ^= 0x80808080u;
  return row;
}

// The file's order of nibbles is that of the panel.
template <class Block>
RowWords words_of(const Block& b) {
  RowWords row;
  std::memcpy(row.words, b.qs, sizeof b.qs);
  if constexpr (requires { b.qh; }) {
    uint32_t fifth;
    std::memcpy(&fifth, b.qh, sizeof fifth);
    set_fifth_bits(fifth, row);
  }
  return row;
}

template <class Form, class Block>
void pack(const std::byte* rows, int64_t row_bytes, int64_t count, int64_t k, std::byte* panel) {
  const int64_t blocks = k / kQuantColumns, chunks = (blocks + 1) / 2;
  if (count < kPackedRows || blocks % 2 != 0) std::memset(panel, 0, static_cast<size_t>(block_panel_bytes<Form>(k)));
  for (int64_t c = 0; c < chunks; ++c, panel += Form::kChunkBytes) {
    for (int64_t b = 0; b < 2 && 2 * c + b < blocks; ++b) {
      RowWords numbers[kPackedRows] = {};
      for (int64_t r = 0; r < count; ++r) {
        Block block;
        std::memcpy(&block, rows + r * row_bytes + (2 * c + b) * static_cast<int64_t>(sizeof block), sizeof block);
        std::memcpy(panel + (b * kPackedRows + r) * 2, &block.d, 2);
        if constexpr (Form::kMinimum) std::memcpy(panel + 64 + (b * kPackedRows + r) * 2, &block.m, 2);
        numbers[r] = words_of(block);
      }
      put_words<Form>(numbers, panel + Form::kScaleBytes + b * Form::kNumberBytes);
    }
  }
}

template <class Form>
void unpack_row(const std::byte* panel, int64_t row, int64_t k, float* out) {
  for (int64_t i = 0; i < k; i += kQuantColumns) {
    const int64_t b = i / kQuantColumns % 2;
    const std::byte* chunk = panel + i / (2 * kQuantColumns) * Form::kChunkBytes;
    const RowWords words = get_words<Form>(chunk + Form::kScaleBytes + b * Form::kNumberBytes, row);
    const std::byte* scales = chunk + (b * kPackedRows + row) * 2;
    const float d = f16_at(scales), m = Form::kMinimum ? f16_at(scales + 64) : 0;
    for (int j = 0; j < kQuantColumns; ++j) {
      const float product = d * static_cast<float>(number_of<Form>(words, j) - Form::kOffset);
      out[i + j] = Form::kMinimum ? product + m : product;
    }
  }
}

template <class Form, class Block>
constexpr PackedLayout layout_of() {
  return {Form::kType, block_panel_bytes<Form>, pack<Form, Block>, unpack_row<Form>};
}

int64_t f16_panel_bytes(int64_t k) { return packed_f16_columns(k) * kPackedRows * 2; }

// Sixteen words of two columns at a time.
void pack_f16(const std::byte* rows, int64_t row_bytes, int64_t count, int64_t k, std::byte* panel) {
  constexpr int64_t kWords = 16, kTile = 2 * kWords, kTileBytes = 2 * kTile;
  for (int64_t i = 0; i < k; i += kTile) {
    const int64_t columns = std::min(kTile, k - i);
    uint32_t turned[kWords][kPackedRows];
    if (count == kPackedRows && columns == kTile) {
      turn_words(rows + i * 2, row_bytes, reinterpret_cast<std::byte*>(turned));
    } else {
      std::byte filled[kPackedRows * kTileBytes] = {};
      for (int64_t r = 0; r < count; ++r)
        std::memcpy(filled + r * kTileBytes, rows + r * row_bytes + i * 2, static_cast<size_t>(columns) * 2);
      turn_words(filled, kTileBytes, reinterpret_cast<std::byte*>(turned));
    }
    for (int64_t j = 0; 2 * j < columns; ++j) {
      uint16_t pair[2][kPackedRows];
      for (int64_t r = 0; r < kPackedRows; ++r) {
        pair[0][r] = static_cast<uint16_t>(turned[j][r]);
        pair[1][r] = static_cast<uint16_t>(turned[j][r] >> 16);
      }
      std::memcpy(panel + (i + 2 * j) * kPackedRows * 2, pair, sizeof pair);
    }
  }
}

void unpack_f16_row(const std::byte* panel, int64_t row, int64_t k, float* out) {
  for (int64_t i = 0; i < k; ++i) out[i] = f16_at(panel + (i * kPackedRows + row) * 2);
}

}  // namespace

extern const PackedLayout kPackedF16 = {DType::f16, f16_panel_bytes, pack_f16, unpack_f16_row};
extern const PackedLayout kPackedQ8_0 = layout_of<FormQ8_0, BlockQ8_0>();
extern const PackedLayout kPackedQ4_0 = layout_of<FormQ4_0, BlockQ4_0>();
extern const PackedLayout kPackedQ4_1 = layout_of<FormQ4_1, BlockQ4_1>();
extern const PackedLayout kPackedQ5_0 = layout_of<FormQ5_0, BlockQ5_0>();
extern const PackedLayout kPackedQ5_1 = layout_of<FormQ5_1, BlockQ5_1>();

}  // namespace lapidary::cpu
