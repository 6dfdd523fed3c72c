// Q8_0 and Q4_0 weights as the skinny kernels read them: the blocks of a GGUF tensor [n, k] taken apart into two planes, one of quants and
// one of scales, so that every load is 16 aligned bytes. The values are the blocks' own; only their place changes.
//
//   one allocation:  | quants, row after row | to a multiple of 256 bytes | scales, row after row |
//
//   scales  f16 [n, scale_stride]: of block b (elements 32b..32b+31) of a row at b; scale_stride = k / 32 rounded up to 8, the rest zeros
//   Q8_0    quants int8 [n, k], in the order of k
//   Q4_0    quants [n, k / 2] bytes. Word j (little-endian) of a row holds elements 8j..8j+7 so that one shift and one mask give two of
//   them in
//           the halves of a register, as a bf16 fragment of the tensor cores wants them:
//
//             bit   31..28  27..24  23..20  19..16 | 15..12  11..8   7..4    3..0
//             k      8j+7    8j+5    8j+3    8j+1  |  8j+6    8j+4    8j+2    8j
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>

#include "tensor/blocks.h"

namespace lapidary::cuda {

enum class PlaneKind : int32_t { q8_0, q4_0 };

inline constexpr int kPlaneBlock = 32;  // elements that share a scale

// Where things stand in the allocation; k is a multiple of 32.
struct PlaneLayout {
  int64_t quant_row_bytes;  // a multiple of 16
  int64_t scale_stride;     // f16 elements, a multiple of 8
  int64_t scales_offset;    // bytes from the start, a multiple of 256
  int64_t bytes;            // of everything
};
inline PlaneLayout plane_layout(PlaneKind kind, int64_t n, int64_t k) {
  PlaneLayout l;
  l.quant_row_bytes = kind == PlaneKind::q8_0 ? k : k / 2;
  l.scale_stride = (k / kPlaneBlock + 7) / 8 * 8;
  l.scales_offset = (n * l.quant_row_bytes + 255) / 256 * 256;
  l.bytes = l.scales_offset + n * l.scale_stride * static_cast<int64_t>(sizeof(uint16_t));
  return l;
}

// The nibble of element e (0..7) of a Q4_0 word: even elements in the low half, odd ones in the high half.
inline constexpr int plane_nibble_shift(int e) { return 4 * (e / 2) + 16 * (e % 2); }

inline DType plane_dtype(PlaneKind kind) { return kind == PlaneKind::q8_0 ? DType::q8_0 : DType::q4_0; }

namespace planes {

inline void pack_block(const BlockQ8_0& b, std::byte* quants) { std::memcpy(quants, b.q, sizeof b.q); }
inline void unpack_block(const std::byte* quants, BlockQ8_0& b) { std::memcpy(b.q, quants, sizeof b.q); }

// Element e of a Q4_0 block is nibble e / 16 of byte e % 16.
inline void pack_block(const BlockQ4_0& b, std::byte* quants) {
  for (int word = 0; word < 4; ++word) {
    uint32_t bits = 0;
    for (int i = 0; i < 8; ++i) {
      const int e = 8 * word + i;
      bits |= static_cast<uint32_t>((b.qs[e % 16] >> (4 * (e / 16))) & 15) << plane_nibble_shift(i);
    }
    std::memcpy(quants + 4 * word, &bits, 4);
  }
}
inline void unpack_block(const std::byte* quants, BlockQ4_0& b) {
  std::memset(b.qs, 0, sizeof b.qs);
  for (int word = 0; word < 4; ++word) {
    uint32_t bits;
    std::memcpy(&bits, quants + 4 * word, 4);
    for (int i = 0; i < 8; ++i) {
      const int e = 8 * word + i;
      b.qs[e % 16] = static_cast<uint8_t>(b.qs[e % 16] | ((bits >> plane_nibble_shift(i)) & 15) << (4 * (e / 16)));
    }
  }
}

template <typename Block>
void pack_rows(PlaneKind kind, const std::byte* src, int64_t n, int64_t k, std::byte* dst) {
  const PlaneLayout l = plane_layout(kind, n, k);
  const int64_t blocks = k / kPlaneBlock, quant_bytes = l.quant_row_bytes / (blocks ? blocks : 1);
  std::memset(dst + l.scales_offset, 0, static_cast<size_t>(l.bytes - l.scales_offset));
  for (int64_t row = 0; row < n; ++row) {
    for (int64_t b = 0; b < blocks; ++b) {
      Block block;
      std::memcpy(&block, src + (row * blocks + b) * static_cast<int64_t>(sizeof block), sizeof block);
      pack_block(block, dst + row * l.quant_row_bytes + b * quant_bytes);
      std::memcpy(dst + l.scales_offset + (row * l.scale_stride + b) * 2, &block.d, 2);
    }
  }
}
template <typename Block>
void unpack_rows(PlaneKind kind, const std::byte* src, int64_t n, int64_t k, std::byte* dst) {
  const PlaneLayout l = plane_layout(kind, n, k);
  const int64_t blocks = k / kPlaneBlock, quant_bytes = l.quant_row_bytes / (blocks ? blocks : 1);
  for (int64_t row = 0; row < n; ++row) {
    for (int64_t b = 0; b < blocks; ++b) {
      Block block;
      unpack_block(src + row * l.quant_row_bytes + b * quant_bytes, block);
      std::memcpy(&block.d, src + l.scales_offset + (row * l.scale_stride + b) * 2, 2);
      std::memcpy(dst + (row * blocks + b) * static_cast<int64_t>(sizeof block), &block, sizeof block);
    }
  }
}

}  // namespace planes

// Host memory: the GGUF blocks of [n, k] (any alignment) -> plane_layout(...).bytes bytes, and back.
inline void pack_planes(PlaneKind kind, const void* blocks, int64_t n, int64_t k, void* planes_out) {
  const auto* src = static_cast<const std::byte*>(blocks);
  auto* dst = static_cast<std::byte*>(planes_out);
  kind == PlaneKind::q8_0 ? planes::pack_rows<BlockQ8_0>(kind, src, n, k, dst) : planes::pack_rows<BlockQ4_0>(kind, src, n, k, dst);
}
inline void unpack_planes(PlaneKind kind, const void* planes_in, int64_t n, int64_t k, void* blocks_out) {
  const auto* src = static_cast<const std::byte*>(planes_in);
  auto* dst = static_cast<std::byte*>(blocks_out);
  kind == PlaneKind::q8_0 ? planes::unpack_rows<BlockQ8_0>(kind, src, n, k, dst) : planes::unpack_rows<BlockQ4_0>(kind, src, n, k, dst);
}

}  // namespace lapidary::cuda
