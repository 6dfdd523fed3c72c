// The values of every block layout, one plain function per kind; arithmetic in f32 in the order that the format defines.
#include "tensor/blocks.h"

#include <cstring>

#include "base/error.h"

namespace lapidary {
namespace {

constexpr int kSmall = 32;   // elements of the Q*_0 and Q*_1 blocks
constexpr int kSuper = 256;  // elements of the K blocks

void dequantize(const BlockQ8_0& b, float* out) {
  const float d = to_f32(b.d);
  for (int j = 0; j < kSmall; ++j) out[j] = d * static_cast<float>(b.q[j]);
}

void dequantize(const BlockQ4_0& b, float* out) {
  const float d = to_f32(b.d);
  for (int j = 0; j < kSmall / 2; ++j) {
    out[j] = d * static_cast<float>((b.qs[j] & 15) - 8);
    out[j + kSmall / 2] = d * static_cast<float>((b.qs[j] >> 4) - 8);
  }
}

void dequantize(const BlockQ4_1& b, float* out) {
  const float d = to_f32(b.d), m = to_f32(b.m);
  for (int j = 0; j < kSmall / 2; ++j) {
    out[j] = d * static_cast<float>(b.qs[j] & 15) + m;
    out[j + kSmall / 2] = d * static_cast<float>(b.qs[j] >> 4) + m;
  }
}

// The fifth bits: bit j of qh, read as one little-endian word, belongs to element j.
int fifth_bit(const uint8_t (&qh)[4], int j) { return ((qh[j / 8] >> (j % 8)) & 1) << 4; }

void dequantize(const BlockQ5_0& b, float* out) {
  const float d = to_f32(b.d);
  for (int j = 0; j < kSmall / 2; ++j) {
    const int low = (b.qs[j] & 15) | fifth_bit(b.qh, j), high = (b.qs[j] >> 4) | fifth_bit(b.qh, j + kSmall / 2);
    out[j] = d * static_cast<float>(low - 16);
    out[j + kSmall / 2] = d * static_cast<float>(high - 16);
  }
}

void dequantize(const BlockQ5_1& b, float* out) {
  const float d = to_f32(b.d), m = to_f32(b.m);
  for (int j = 0; j < kSmall / 2; ++j) {
    const int low = (b.qs[j] & 15) | fifth_bit(b.qh, j), high = (b.qs[j] >> 4) | fifth_bit(b.qh, j + kSmall / 2);
    out[j] = d * static_cast<float>(low) + m;
    out[j + kSmall / 2] = d * static_cast<float>(high) + m;
  }
}

// Q2_K and Q3_K: 16 groups of 16. Element 128 h + 32 s + l (l < 32) has its two bits at 2 s of qs[32 h + l]; its group is
// 8 h + 2 s + l / 16.
void dequantize(const BlockQ2_K& b, float* out) {
  const float d = to_f32(b.d), dmin = to_f32(b.dmin);
  for (int group = 0; group < 16; ++group) {
    const float scale = d * static_cast<float>(b.scales[group] & 15), minimum = dmin * static_cast<float>(b.scales[group] >> 4);
    const uint8_t* qs = b.qs + 32 * (group / 8) + 16 * (group % 2);
    const int shift = 2 * (group / 2 % 4);
    for (int l = 0; l < 16; ++l) out[16 * group + l] = scale * static_cast<float>((qs[l] >> shift) & 3) - minimum;
  }
}

// Six-bit scales of Q3_K: low four bits in bytes 0..7 (groups 0..7 in the low nibbles, 8..15 in the high ones), high two
// bits in bytes 8..11, byte 8 + group % 4 at bit 2 (group / 4).
int q3_k_scale(const uint8_t (&scales)[12], int group) {
  const int low = group < 8 ? scales[group] & 15 : scales[group - 8] >> 4;
  const int high = (scales[8 + group % 4] >> (2 * (group / 4))) & 3;
  return (low | (high << 4)) - 32;
}

// The third bit of element 128 h + 32 s + l is bit 4 h + s of hmask[l]; a clear bit means minus 4.
void dequantize(const BlockQ3_K& b, float* out) {
  const float d = to_f32(b.d);
  for (int group = 0; group < 16; ++group) {
    const float scale = d * static_cast<float>(q3_k_scale(b.scales, group));
    const uint8_t* qs = b.qs + 32 * (group / 8) + 16 * (group % 2);
    const uint8_t* hmask = b.hmask + 16 * (group % 2);
    const int shift = 2 * (group / 2 % 4), bit = group / 2;
    for (int l = 0; l < 16; ++l) {
      const int q = ((qs[l] >> shift) & 3) - ((hmask[l] >> bit) & 1 ? 0 : 4);
      out[16 * group + l] = scale * static_cast<float>(q);
    }
  }
}

// Q4_K and Q5_K: 8 groups of 32 with a six-bit scale and a six-bit minimum each, packed into 12 bytes.
struct ScaleAndMin {
  int scale, minimum;
};
ScaleAndMin q4_k_scale(const uint8_t (&s)[12], int group) {
  if (group < 4) return {s[group] & 63, s[group + 4] & 63};
  return {(s[group + 4] & 15) | ((s[group - 4] >> 6) << 4), (s[group + 4] >> 4) | ((s[group] >> 6) << 4)};
}

void dequantize(const BlockQ4_K& b, float* out) {
  const float d = to_f32(b.d), dmin = to_f32(b.dmin);
  for (int group = 0; group < 8; ++group) {
    const auto [s, m] = q4_k_scale(b.scales, group);
    const float scale = d * static_cast<float>(s), minimum = dmin * static_cast<float>(m);
    const uint8_t* qs = b.qs + 32 * (group / 2);
    const int shift = 4 * (group % 2);
    for (int l = 0; l < 32; ++l) out[32 * group + l] = scale * static_cast<float>((qs[l] >> shift) & 15) - minimum;
  }
}

void dequantize(const BlockQ5_K& b, float* out) {
  const float d = to_f32(b.d), dmin = to_f32(b.dmin);
  for (int group = 0; group < 8; ++group) {
    const auto [s, m] = q4_k_scale(b.scales, group);
    const float scale = d * static_cast<float>(s), minimum = dmin * static_cast<float>(m);
    const uint8_t* qs = b.qs + 32 * (group / 2);
    const int shift = 4 * (group % 2);
    for (int l = 0; l < 32; ++l) {
      const int q = ((qs[l] >> shift) & 15) + (((b.qh[l] >> group) & 1) << 4);
      out[32 * group + l] = scale * static_cast<float>(q) - minimum;
    }
  }
}

// Q6_K: 16 groups of 16. Element 128 h + 32 s + l (l < 32): low four bits in ql[64 h + 32 (s % 2) + l], nibble s / 2; high
// two bits at 2 s of qh[32 h + l].
void dequantize(const BlockQ6_K& b, float* out) {
  const float d = to_f32(b.d);
  for (int group = 0; group < 16; ++group) {
    const int half = group / 8, s = group / 2 % 4, first = 16 * (group % 2);
    const float scale = d * static_cast<float>(b.scales[group]);
    const uint8_t* ql = b.ql + 64 * half + 32 * (s % 2) + first;
    const uint8_t* qh = b.qh + 32 * half + first;
    for (int l = 0; l < 16; ++l) {
      const int q = ((ql[l] >> (4 * (s / 2))) & 15) | (((qh[l] >> (2 * s)) & 3) << 4);
      out[16 * group + l] = scale * static_cast<float>(q - 32);
    }
  }
}

void dequantize(bf16 v, float* out) { *out = to_f32(v); }
void dequantize(f16 v, float* out) { *out = to_f32(v); }

// Block is copied out first: rows in a mapped file start anywhere.
template <typename Block, int kElements>
void dequantize_blocks(const std::byte* src, int64_t elements, float* dst) {
  for (int64_t i = 0; i < elements; i += kElements, src += sizeof(Block)) {
    Block block;
    std::memcpy(&block, src, sizeof(Block));
    dequantize(block, dst + i);
  }
}

}  // namespace

void dequantize_row(DType dtype, const void* src, int64_t elements, float* dst) {
  const DTypeInfo& info = dtype_info(dtype);
  expect(elements >= 0 && elements % info.block_elements == 0, ErrorCode::invalid_argument, "dequantize_row: ", elements,
         " elements are no whole number of ", info.name, " blocks of ", info.block_elements);
  const auto* bytes = static_cast<const std::byte*>(src);
  switch (dtype) {
    case DType::f32:
      if (elements > 0) std::memcpy(dst, src, static_cast<size_t>(elements) * sizeof(float));
      return;
    case DType::bf16:
      return dequantize_blocks<bf16, 1>(bytes, elements, dst);
    case DType::f16:
      return dequantize_blocks<f16, 1>(bytes, elements, dst);
    case DType::q8_0:
      return dequantize_blocks<BlockQ8_0, kSmall>(bytes, elements, dst);
    case DType::q4_0:
      return dequantize_blocks<BlockQ4_0, kSmall>(bytes, elements, dst);
    case DType::q4_1:
      return dequantize_blocks<BlockQ4_1, kSmall>(bytes, elements, dst);
    case DType::q5_0:
      return dequantize_blocks<BlockQ5_0, kSmall>(bytes, elements, dst);
    case DType::q5_1:
      return dequantize_blocks<BlockQ5_1, kSmall>(bytes, elements, dst);
    case DType::q2_k:
      return dequantize_blocks<BlockQ2_K, kSuper>(bytes, elements, dst);
    case DType::q3_k:
      return dequantize_blocks<BlockQ3_K, kSuper>(bytes, elements, dst);
    case DType::q4_k:
      return dequantize_blocks<BlockQ4_K, kSuper>(bytes, elements, dst);
    case DType::q5_k:
      return dequantize_blocks<BlockQ5_K, kSuper>(bytes, elements, dst);
    case DType::q6_k:
      return dequantize_blocks<BlockQ6_K, kSuper>(bytes, elements, dst);
    case DType::i8:
    case DType::i32:
    case DType::u8:
      break;
  }
  fail(ErrorCode::invalid_argument, "dequantize_row: ", info.name, " elements are no weights of a float or block type");
}

}  // namespace lapidary
