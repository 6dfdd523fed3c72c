// The XOR swizzles of shared-memory tiles, as TMA, wgmma descriptors and the cp.async + ldmatrix kernels use them: the 16-byte chunk index
// is XORed with bits of the row, so that the eight rows of an ldmatrix phase (or of a wgmma core matrix) stand in eight different bank
// groups.
//
// The hardware's rule is on the byte address in shared memory: bits 4.. are XORed with bits 7.. (3 bits for the 128-byte swizzle, 2 for 64,
// 1 for 32), for every tile that starts on its atom (8 rows: 1024, 512, 256 bytes). Everything here is constexpr and runs on host and
// device.
#pragma once

#include "cuda/primitives/platform.cuh"

namespace lapidary::cuda {

// The values are the layout field of a wgmma matrix descriptor.
enum class Swizzle : int { none = 0, bytes128 = 1, bytes64 = 2, bytes32 = 3 };

// Bytes of a row that the swizzle permutes, which is also the row pitch of a swizzled tile (none: 16, a row of a core matrix).
LAPIDARY_HOST_DEVICE constexpr int swizzle_span(Swizzle s) {
  return s == Swizzle::bytes128 ? 128 : s == Swizzle::bytes64 ? 64 : s == Swizzle::bytes32 ? 32 : 16;
}
// Bytes after which the pattern repeats: a swizzled tile starts on a multiple of this (none: 128, what TMA asks of any tile).
LAPIDARY_HOST_DEVICE constexpr int swizzle_atom(Swizzle s) { return s == Swizzle::none ? 128 : 8 * swizzle_span(s); }

// Where the byte that an unswizzled tile would hold at `offset` stands. Offsets are from the tile's start, which is on an atom.
template <Swizzle S>
LAPIDARY_HOST_DEVICE constexpr uint32_t swizzled(uint32_t offset) {
  constexpr uint32_t kMask = S == Swizzle::bytes128 ? 7 : S == Swizzle::bytes64 ? 3 : S == Swizzle::bytes32 ? 1 : 0;
  return offset ^ (((offset >> 7) & kMask) << 4);
}

// Byte offset of 16-byte chunk `chunk` of row `row` in a tile whose rows are RowBytes (64 or 128) long. Rows of 128 bytes take the 128-byte
// swizzle, rows of 64 the 64-byte one (two rows share a 128-byte line): both free of bank conflicts for ldmatrix phases of eight rows of
// one chunk column, and for the 16-byte stores of cp.async.
template <int RowBytes>
LAPIDARY_HOST_DEVICE constexpr int swizzled_chunk(int row, int chunk) {
  static_assert(RowBytes == 128 || RowBytes == 64, "a swizzled tile has rows of 64 or 128 bytes; split wider rows in tiles of 128");
  if constexpr (RowBytes == 128) return row * 128 + ((chunk ^ (row & 7)) << 4);
  return row * 64 + ((chunk ^ ((row >> 1) & 3)) << 4);
}

}  // namespace lapidary::cuda
