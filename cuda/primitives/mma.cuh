// Tensor cores of sm_80 and later, one warp at a time. Fragment layouts, with g = lane / 4 and t = lane % 4:
//
//   mma_bf16  m16n8k16   A row-major: a[0] = (row g, k 2t, 2t+1)    a[1] = (row g+8, same k)
//                                     a[2] = (row g, k 2t+8, 2t+9)  a[3] = (row g+8, same k)
//                        B column-major: b[0] = (k 2t, 2t+1, column g)  b[1] = (k 2t+8, 2t+9, column g)
//                        C, D f32: c[0], c[1] = (row g, columns 2t, 2t+1)  c[2], c[3] = (row g+8, same columns)
//   mma_s8    m16n8k32   A: a[0] = (row g, k 4t..4t+3)      a[1] = (row g+8, same k)
//                           a[2] = (row g, k 4t+16..4t+19)  a[3] = (row g+8, same k)
//                        B: b[0] = (k 4t..4t+3, column g)  b[1] = (k 4t+16..4t+19, column g);  C, D int32 as above
//   mma_sparse_s8 m16n8k64, A 2:4 sparse: mma_sparse.cuh
//
// ldmatrix: lane i gives the address of row i % 8 (16 bytes, aligned) of matrix i / 8 (x2: lanes 0..15 only); register j holds of matrix j
// the elements (row g, columns 2t, 2t+1), bytes 4t..4t+3 of the row. Transposed: the 16-bit elements (rows 2t, 2t+1, column g). stmatrix is
// the inverse.
//   A of mma_bf16 (16 rows of 32 bytes, k contiguous, as of mma_s8): x4, lane i addresses row i % 16, bytes 16 (i / 16) ..
//   B of two n-tiles from [n][k]: x4, lane i addresses row i % 8 + 8 (i / 16), bytes 16 (i / 8 % 2) ..
//   B of two n-tiles from [k][n] (16-bit only): x4 transposed, lane i addresses k i % 16, column 8 (i / 16)
//   In both r[0], r[1] are the b of columns 0..7 and r[2], r[3] those of columns 8..15.
#pragma once

#include "cuda/primitives/platform.cuh"

namespace lapidary::cuda {

#ifdef LAPIDARY_EMULATED
#define LAPIDARY_MMA_WHERE , emulator::Where where = emulator::Where::here()
// d += a · b
LAPIDARY_DEVICE void mma_bf16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2] LAPIDARY_MMA_WHERE) {
  emulator::mma_bf16(d, a, b, where);
}
LAPIDARY_DEVICE void mma_s8(int (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2] LAPIDARY_MMA_WHERE) {
  emulator::mma_s8(d, a, b, where);
}
LAPIDARY_DEVICE void load_matrix_x4(uint32_t (&r)[4], const void* shared_row LAPIDARY_MMA_WHERE) {
  emulator::ldmatrix(r, 4, shared_row, false, where);
}
LAPIDARY_DEVICE void load_matrix_x2(uint32_t (&r)[2], const void* shared_row LAPIDARY_MMA_WHERE) {
  emulator::ldmatrix(r, 2, shared_row, false, where);
}
// Each 8 x 8 matrix of 16-bit elements transposed.
LAPIDARY_DEVICE void load_matrix_x4_transposed(uint32_t (&r)[4], const void* shared_row LAPIDARY_MMA_WHERE) {
  emulator::ldmatrix(r, 4, shared_row, true, where);
}
LAPIDARY_DEVICE void load_matrix_x2_transposed(uint32_t (&r)[2], const void* shared_row LAPIDARY_MMA_WHERE) {
  emulator::ldmatrix(r, 2, shared_row, true, where);
}
// sm_90.
LAPIDARY_DEVICE void store_matrix_x4(void* shared_row, const uint32_t (&r)[4] LAPIDARY_MMA_WHERE) {
  emulator::stmatrix(shared_row, r, 4, false, where);
}
LAPIDARY_DEVICE void store_matrix_x2(void* shared_row, const uint32_t (&r)[2] LAPIDARY_MMA_WHERE) {
  emulator::stmatrix(shared_row, r, 2, false, where);
}
LAPIDARY_DEVICE void store_matrix_x4_transposed(void* shared_row, const uint32_t (&r)[4] LAPIDARY_MMA_WHERE) {
  emulator::stmatrix(shared_row, r, 4, true, where);
}
#else
LAPIDARY_DEVICE void mma_bf16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
               : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}
LAPIDARY_DEVICE void mma_s8(int (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  asm volatile("mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
               : "+r"(d[0]), "+r"(d[1]), "+r"(d[2]), "+r"(d[3])
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}
LAPIDARY_DEVICE uint32_t shared_address(const void* p) { return static_cast<uint32_t>(__cvta_generic_to_shared(p)); }
LAPIDARY_DEVICE void load_matrix_x4(uint32_t (&r)[4], const void* shared_row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(shared_address(shared_row))
               : "memory");
}
LAPIDARY_DEVICE void load_matrix_x2(uint32_t (&r)[2], const void* shared_row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x2.shared.b16 {%0, %1}, [%2];"
               : "=r"(r[0]), "=r"(r[1])
               : "r"(shared_address(shared_row))
               : "memory");
}
LAPIDARY_DEVICE void load_matrix_x4_transposed(uint32_t (&r)[4], const void* shared_row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(shared_address(shared_row))
               : "memory");
}
LAPIDARY_DEVICE void load_matrix_x2_transposed(uint32_t (&r)[2], const void* shared_row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x2.trans.shared.b16 {%0, %1}, [%2];"
               : "=r"(r[0]), "=r"(r[1])
               : "r"(shared_address(shared_row))
               : "memory");
}
LAPIDARY_DEVICE void store_matrix_x4(void* shared_row, const uint32_t (&r)[4]) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile("stmatrix.sync.aligned.m8n8.x4.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(shared_address(shared_row)), "r"(r[0]), "r"(r[1]),
               "r"(r[2]), "r"(r[3])
               : "memory");
#endif
}
LAPIDARY_DEVICE void store_matrix_x2(void* shared_row, const uint32_t (&r)[2]) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile("stmatrix.sync.aligned.m8n8.x2.shared.b16 [%0], {%1, %2};" ::"r"(shared_address(shared_row)), "r"(r[0]), "r"(r[1])
               : "memory");
#endif
}
LAPIDARY_DEVICE void store_matrix_x4_transposed(void* shared_row, const uint32_t (&r)[4]) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile("stmatrix.sync.aligned.m8n8.x4.trans.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(shared_address(shared_row)), "r"(r[0]),
               "r"(r[1]), "r"(r[2]), "r"(r[3])
               : "memory");
#endif
}
#endif

}  // namespace lapidary::cuda
