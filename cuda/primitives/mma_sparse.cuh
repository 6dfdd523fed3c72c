// Sparse tensor cores: int8 with a 2:4 sparse A (of every four consecutive k's at most two are stored), one warp at a time. (sm_80)
//
// mma_sparse_s8 m16n8k64, with g = lane / 4 and t = lane % 4:
//   A  stored values, 32 a row (two of every chunk of four k's, in rising k): exactly mma_s8's fragment over the stored index s:
//      a[0] = (row g, s 4t..4t+3: the chunks k 8t..8t+3 and 8t+4..8t+7)  a[1] = (row g+8, same)
//      a[2] = (row g, s 4t+16..4t+19)                                   a[3] = (row g+8, same)
//   B  dense, column g: b[i] = (k 16i + 4t .. 16i + 4t + 3), i = 0..3;  D int32 as mma_s8
//   metadata  32 bits a lane: which places the stored values have. Stored value s of a row stands in chunk s / 2 at
//      k = 4 (s / 2) + index(s), index a 2-bit number; within a chunk the indices rise (index(2c) < index(2c + 1)).
//      lane 4g:     row g,     k 0..31  (s 0..15),  index(s) in bits 2 s .. 2 s + 1
//      lane 4g + 1: row g + 8, k 0..31
//      lane 4g + 2: row g,     k 32..63 (s 16..31), index(s) in bits 2 (s - 16) ..
//      lane 4g + 3: row g + 8, k 32..63
//   A chunk with fewer than two non-zeros stores zeros at any free index.
#pragma once

#include "cuda/primitives/mma.cuh"

namespace lapidary::cuda {

// Of a lane: the row of the 16 and the first k whose metadata it holds.
LAPIDARY_HOST_DEVICE constexpr int sparse_metadata_row(int lane) { return lane / 4 + 8 * (lane & 1); }
LAPIDARY_HOST_DEVICE constexpr int sparse_metadata_k(int lane) { return 32 * ((lane >> 1) & 1); }

#ifdef LAPIDARY_EMULATED
// d += a · b
LAPIDARY_DEVICE void mma_sparse_s8(int (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[4], uint32_t metadata LAPIDARY_MMA_WHERE) {
  emulator::mma_sparse_s8(d, a, b, metadata, where);
}
#else
// The ordered form: the plain mma.sp is slow on newer architectures, and this one runs on all from sm_80 on. The sparsity selector is 0:
// all lanes hold metadata.
LAPIDARY_DEVICE void mma_sparse_s8(int (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[4], uint32_t metadata) {
  asm volatile(
      "mma.sp::ordered_metadata.sync.aligned.m16n8k64.row.col.s32.s8.s8.s32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9, %10, %11}, "
      "{%0, %1, %2, %3}, %12, 0x0;"
      : "+r"(d[0]), "+r"(d[1]), "+r"(d[2]), "+r"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]), "r"(b[2]), "r"(b[3]), "r"(metadata));
}
#endif

}  // namespace lapidary::cuda
