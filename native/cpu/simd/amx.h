// The AMX instructions that the kernels use, tiles numbered at compile time. Two bodies: the instructions, and with LAPIDARY_EMULATED_AMX
// plain C++ that does the same, bit for bit, on any processor. Only for files that are compiled per instruction set: internal linkage.
//
// Tiles belong to the thread. Whoever configures them releases them before returning: a configured palette makes switches between threads
// dearer and keeps the core from deeper sleep.
#pragma once

#include <cstddef>
#include <cstdint>

#include "cpu/simd/common.h"

namespace lapidary::cpu {
namespace {

// Rows of at most 64 bytes, at most 16 of them, for tiles 0 .. 7; the layout is that of LDTILECFG.
struct alignas(64) TileConfig {
  uint8_t palette = 1, start_row = 0;
  uint8_t reserved[14] = {};
  uint16_t row_bytes[16] = {};
  uint8_t rows[16] = {};
};
static_assert(sizeof(TileConfig) == 64);

}  // namespace
}  // namespace lapidary::cpu

#ifdef LAPIDARY_EMULATED_AMX
#include "cpu/simd/amx_emulated.h"
#else

namespace lapidary::cpu {
namespace {

// Written as assembly, since gcc's own functions take no tile number from a template, do not say that they read and write memory, and let
// the compiler drop the stores that fill a configuration.
LAPIDARY_INLINE void tile_configure(const TileConfig& config) { asm volatile("ldtilecfg %0" : : "m"(config) : "memory"); }
LAPIDARY_INLINE void tile_release() { asm volatile("tilerelease" : : : "memory"); }
template <int kTile>
LAPIDARY_INLINE void tile_zero() {
  asm volatile("tilezero %%tmm%c0" : : "i"(kTile));
}
// Rows `stride` bytes apart.
template <int kTile>
LAPIDARY_INLINE void tile_load(const void* rows, int64_t stride) {
  asm volatile("tileloadd (%0,%1,1), %%tmm%c2" : : "r"(rows), "r"(stride), "i"(kTile) : "memory");
}
template <int kTile>
LAPIDARY_INLINE void tile_store(void* rows, int64_t stride) {
  asm volatile("tilestored %%tmm%c2, (%0,%1,1)" : : "r"(rows), "r"(stride), "i"(kTile) : "memory");
}
// C[m][n] += Σ A[m][k] · B[k][n] over pairs of bf16; the order is in amx_emulated.h.
template <int C, int A, int B>
LAPIDARY_INLINE void tile_dot_bf16() {
  asm volatile("tdpbf16ps %%tmm%c2, %%tmm%c1, %%tmm%c0" : : "i"(C), "i"(A), "i"(B));
}
// The same over fours of bytes, A unsigned, B signed, in int32.
template <int C, int A, int B>
LAPIDARY_INLINE void tile_dot_u8_i8() {
  asm volatile("tdpbusd %%tmm%c2, %%tmm%c1, %%tmm%c0" : : "i"(C), "i"(A), "i"(B));
}

}  // namespace
}  // namespace lapidary::cpu

#endif
