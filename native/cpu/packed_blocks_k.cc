// The panels of the K blocks, packed_layout.h: packers and unpackers.
#include "cpu/packed.h"
#include "cpu/packed_blocks.h"

namespace lapidary::cpu {

namespace {

// Offsets in a chunk's scales.
constexpr int64_t kMinimumOfBlock = 32, kScales = 64, kMinimums = 192;

// Eight six-bit scales and minimums of twelve bytes.
void unpack_scales(const uint8_t (&packed)[12], uint8_t (&scales)[8], uint8_t (&minimums)[8]) {
  for (int j = 0; j < 4; ++j) {
    scales[j] = packed[j] & 63;
    minimums[j] = packed[j + 4] & 63;
    scales[j + 4] = static_cast<uint8_t>((packed[j + 8] & 15) | packed[j] >> 6 << 4);
    minimums[j + 4] = static_cast<uint8_t>(packed[j + 8] >> 4 | packed[j + 4] >> 6 << 4);
  }
}

template <class Block>
void put_scales(const Block& b, std::byte* chunk, int64_t row) {
  std::memcpy(chunk + row * 2, &b.d, 2);
  std::memcpy(chunk + kMinimumOfBlock + row * 2, &b.dmin, 2);
  uint8_t scales[8], minimums[8];
  unpack_scales(b.scales, scales, minimums);
  for (int64_t j = 0; j < 8; ++j) {
    chunk[kScales + j * kPackedRows + row] = static_cast<std::byte>(scales[j]);
    chunk[kMinimums + j * kPackedRows + row] = static_cast<std::byte>(minimums[j]);
  }
}
void put_scales(const BlockQ6_K& b, std::byte* chunk, int64_t row) {
  std::memcpy(chunk + row * 2, &b.d, 2);
  for (int64_t j = 0; j < 16; ++j) chunk[kScales + j * kPackedRows + row] = static_cast<std::byte>(b.scales[j]);
}

// Columns 32 j and on.
template <class Block>
RowWords words_of(const Block& b, int j) {
  RowWords row;
  set_nibbles(b.qs + 32 * (j / 2), 4 * (j % 2), row);
  if constexpr (requires { b.qh; }) set_fifth_bits(gather_bits(b.qh, j), row);
  return row;
}
RowWords words_of(const BlockQ6_K& b, int j) {
  const int half = j / 4, part = j % 4;
  RowWords row;
  set_nibbles(b.ql + 64 * half + 32 * (part % 2), 4 * (part / 2), row);
  const uint8_t* high = b.qh + 32 * half;
  set_high_bits(gather_bits(high, 2 * part), gather_bits(high, 2 * part + 1), row);
  return row;
}

template <class Form, class Block>
void pack(const std::byte* rows, int64_t row_bytes, int64_t count, int64_t k, std::byte* panel) {
  if (count < kPackedRows || !Form::kMinimum) std::memset(panel, 0, static_cast<size_t>(block_panel_bytes<Form>(k)));
  for (int64_t c = 0; c < k / 256; ++c, panel += Form::kChunkBytes) {
    // Of 32 columns at a time.
    RowWords numbers[8][kPackedRows] = {};
    for (int64_t r = 0; r < count; ++r) {
      Block block;
      std::memcpy(&block, rows + r * row_bytes + c * static_cast<int64_t>(sizeof block), sizeof block);
      put_scales(block, panel, r);
      for (int j = 0; j < 8; ++j) numbers[j][r] = words_of(block, j);
    }
    for (int j = 0; j < 8; ++j) put_words<Form>(numbers[j], panel + Form::kScaleBytes + j * Form::kNumberBytes);
  }
}

// Where the number at `at` of a chunk's scales stands for signed ones: Q6_K's.
float scale_at(const std::byte* at, bool is_signed) {
  const auto bits = static_cast<uint8_t>(*at);
  return static_cast<float>(is_signed ? static_cast<int8_t>(bits) : bits);
}

template <class Form>
void unpack_row(const std::byte* panel, int64_t row, int64_t k, float* out) {
  for (int64_t i = 0; i < k; i += kQuantColumns) {
    const int64_t j = i / kQuantColumns % 8;
    const std::byte* chunk = panel + i / 256 * Form::kChunkBytes;
    const RowWords words = get_words<Form>(chunk + Form::kScaleBytes + j * Form::kNumberBytes, row);
    const float d = f16_at(chunk + row * 2);
    for (int column = 0; column < kQuantColumns; ++column) {
      const int64_t group = Form::kGroupsOf16 ? 2 * j + column / 16 : j;
      const float scale = d * scale_at(chunk + kScales + group * kPackedRows + row, Form::kGroupsOf16);
      const float product = scale * static_cast<float>(number_of<Form>(words, column) - Form::kOffset);
      out[i + column] = product;
      if constexpr (Form::kMinimum)
        out[i + column] -= f16_at(chunk + kMinimumOfBlock + row * 2) * scale_at(chunk + kMinimums + j * kPackedRows + row, false);
    }
  }
}

template <class Form, class Block>
constexpr PackedLayout layout_of() {
  return {Form::kType, block_panel_bytes<Form>, pack<Form, Block>, unpack_row<Form>};
}

}  // namespace

extern const PackedLayout kPackedQ4_K = layout_of<FormQ4_K, BlockQ4_K>();
extern const PackedLayout kPackedQ5_K = layout_of<FormQ5_K, BlockQ5_K>();
extern const PackedLayout kPackedQ6_K = layout_of<FormQ6_K, BlockQ6_K>();

}  // namespace lapidary::cpu
