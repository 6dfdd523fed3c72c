// wgmma: a warpgroup (4 warps) multiplies a 64-row A tile (shared memory or registers) with B from shared memory, asynchronously. (sm_90a)
//
// One step is m64 nN and 32 bytes of k: k16 for bf16 (accumulators f32), k32 for int8 (int32, wrapping). All 128 threads of the group call
// together: threads 128 i .. 128 i + 127 of the block.
//
// D fragment: warp w of the group owns rows 16 w .. 16 w + 15; with g = lane / 4, t = lane % 4, register 4 j + {0, 1} = (row g, columns
// 8 j + 2 t, + 1), 4 j + {2, 3} = (row g + 8, the same columns). A from registers: as mma_bf16's a[4] over 16 k's (mma_s8's over 32) of the
// warp's 16 rows; so packing eight neighbouring accumulators of one product gives the A fragment of the next (P of attention), for its
// k 16 i .. 16 i + 15: a[j] = pack_bf16(d[8 i + 2 j], d[8 i + 2 j + 1]).
//
// Shared operands are described by 64-bit descriptors (smem_descriptor). With swizzle S, span = swizzle_span(S):
//   K-major (k contiguous; A, and B as [n][k]): rows of `span` bytes (k), eight rows an atom, rows 8 i .. 8 i + 7 at i * stride_bytes
//     (tight: 8 * span). leading_bytes is not used (give 16). Without swizzle the core matrices of 8 rows x 16 bytes are contiguous
//     (128 bytes), stride_bytes apart along the rows and leading_bytes apart along k. The next step of k inside a span:
//     descriptor_advance(desc, 32).
//   N-major (n contiguous; bf16 B as [k][n], kBTransposed): rows of `span` bytes (n), one per k, k 8 .. 15 at + stride_bytes (tight:
//     8 * span); columns beyond the span at + leading_bytes each span. Without swizzle: 8 columns (16 bytes) x 8 k's contiguous,
//     stride_bytes apart along n, leading_bytes apart along k. The next 16 k's: descriptor_advance(desc, 2 * stride_bytes).
// A swizzled tile starts on its atom (swizzle_atom). This is what TMA writes with the same swizzle.
//
// Use:
//   wgmma_fence();                                  // registers and earlier work are ready for the asynchronous unit
//   for each k step: wgmma_bf16<N>(d, a, b, true);  // same d: in order, without a wait between
//   wgmma_commit();                                 // closes a group
//   ... work that touches neither d nor the tiles ...
//   wgmma_wait<0>(); wgmma_keep(d);                 // d may be read, the tiles may be overwritten
// Every group starts with wgmma_fence. Between issue and wait nothing touches d: one access is enough to make ptxas serialise (C7510). From
// the fence to the commit the code is straight: descriptors and registers of A are made before it, or ptxas adds fences of its own (C7519).
// Shared memory that threads (not TMA) wrote needs fence_proxy_async by the writer before the barrier in front of the issue.
#pragma once

#include "cuda/primitives/swizzle.cuh"
#include "cuda/primitives/wgmma_shapes.cuh"

namespace lapidary::cuda {

LAPIDARY_HOST_DEVICE constexpr bool wgmma_s8_size(int n) { return n >= 8 && n <= 256 && (n <= 32 ? n % 8 == 0 : n % 16 == 0); }
LAPIDARY_HOST_DEVICE constexpr bool wgmma_bf16_size(int n) { return n >= 8 && n <= 256 && n % 8 == 0; }

// `bytes` further inside the same tile: a multiple of 16 that keeps the tile's place in the swizzle pattern.
LAPIDARY_HOST_DEVICE constexpr uint64_t descriptor_advance(uint64_t descriptor, int bytes) {
  return descriptor + static_cast<uint64_t>(bytes / 16);
}

// The fields of a descriptor around a shared address; the strides are multiples of 16 below 256 KiB.
LAPIDARY_HOST_DEVICE constexpr uint64_t descriptor_bits(uint32_t address, int leading_bytes, int stride_bytes, Swizzle swizzle) {
  return static_cast<uint64_t>((address & 0x3ffffu) >> 4) | static_cast<uint64_t>(leading_bytes >> 4) << 16 |
         static_cast<uint64_t>(stride_bytes >> 4) << 32 | static_cast<uint64_t>(swizzle) << 62;
}

#ifdef LAPIDARY_EMULATED

#define LAPIDARY_WGMMA_WHERE , emulator::Where where = emulator::Where::here()
#define LAPIDARY_WGMMA_WHERE0 emulator::Where where = emulator::Where::here()

LAPIDARY_DEVICE uint64_t smem_descriptor(const void* tile, int leading_bytes, int stride_bytes, Swizzle swizzle) {
  return descriptor_bits(emulator::shared_address(tile), leading_bytes, stride_bytes, swizzle);
}
LAPIDARY_DEVICE void wgmma_fence(LAPIDARY_WGMMA_WHERE0) { emulator::wgmma_fence(where); }
LAPIDARY_DEVICE void wgmma_commit(LAPIDARY_WGMMA_WHERE0) { emulator::wgmma_commit(where); }
// Until at most `Pending` of the newest groups are unfinished.
template <int Pending>
LAPIDARY_DEVICE void wgmma_wait(LAPIDARY_WGMMA_WHERE0) {
  emulator::wgmma_wait(Pending, where);
}
// The registers are as the wait left them: the compiler may not move their reads or writes over this place.
template <typename T, int Count>
LAPIDARY_DEVICE void wgmma_keep(T (&)[Count]) {}

// d = a · b (+ d if accumulate). a: 64 rows x 16 k's, K-major. b: K-major ([n][k]), or N-major ([k][n]) when kBTransposed.
template <int N, bool kBTransposed = false>
LAPIDARY_DEVICE void wgmma_bf16(float (&d)[N / 2], uint64_t a, uint64_t b, bool accumulate LAPIDARY_WGMMA_WHERE) {
  static_assert(wgmma_bf16_size(N));
  emulator::wgmma(d, N, false, nullptr, a, b, accumulate, kBTransposed, where);
}
template <int N, bool kBTransposed = false>
LAPIDARY_DEVICE void wgmma_bf16(float (&d)[N / 2], const uint32_t (&a)[4], uint64_t b, bool accumulate LAPIDARY_WGMMA_WHERE) {
  static_assert(wgmma_bf16_size(N));
  emulator::wgmma(d, N, false, a, 0, b, accumulate, kBTransposed, where);
}
// int8: 32 k's a step, both operands K-major.
template <int N>
LAPIDARY_DEVICE void wgmma_s8(int (&d)[N / 2], uint64_t a, uint64_t b, bool accumulate LAPIDARY_WGMMA_WHERE) {
  static_assert(wgmma_s8_size(N));
  emulator::wgmma(d, N, true, nullptr, a, b, accumulate, false, where);
}
template <int N>
LAPIDARY_DEVICE void wgmma_s8(int (&d)[N / 2], const uint32_t (&a)[4], uint64_t b, bool accumulate LAPIDARY_WGMMA_WHERE) {
  static_assert(wgmma_s8_size(N));
  emulator::wgmma(d, N, true, a, 0, b, accumulate, false, where);
}

#else

LAPIDARY_DEVICE uint64_t smem_descriptor(const void* tile, int leading_bytes, int stride_bytes, Swizzle swizzle) {
  return descriptor_bits(static_cast<uint32_t>(__cvta_generic_to_shared(tile)), leading_bytes, stride_bytes, swizzle);
}
LAPIDARY_DEVICE void wgmma_fence() { LAPIDARY_SM90A(asm volatile("wgmma.fence.sync.aligned;" :: : "memory");) }
LAPIDARY_DEVICE void wgmma_commit() { LAPIDARY_SM90A(asm volatile("wgmma.commit_group.sync.aligned;" :: : "memory");) }
template <int Pending>
LAPIDARY_DEVICE void wgmma_wait() {
  static_assert(Pending >= 0 && Pending <= 7);
  LAPIDARY_SM90A(asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(Pending) : "memory");)
}
template <int Count>
LAPIDARY_DEVICE void wgmma_keep(float (&d)[Count]) {
  LAPIDARY_UNROLL
  for (int i = 0; i < Count; ++i) asm volatile("" : "+f"(d[i])::"memory");
}
template <int Count>
LAPIDARY_DEVICE void wgmma_keep(int (&d)[Count]) {
  LAPIDARY_UNROLL
  for (int i = 0; i < Count; ++i) asm volatile("" : "+r"(d[i])::"memory");
}
template <int Count>
LAPIDARY_DEVICE void wgmma_keep(uint32_t (&a)[Count]) {
  LAPIDARY_UNROLL
  for (int i = 0; i < Count; ++i) asm volatile("" : "+r"(a[i])::"memory");
}

// The six operands in front of the accumulators are %0 = b, %1 = accumulate, %2..%5 = a: four registers, or a descriptor and three that the
// text does not name, so that the accumulators have the same numbers in both forms. They are read-write operands only because those come
// first in the numbering; the instruction reads them.
#define LAPIDARY_WGMMA_ASM(n, type, a_names, flags, c, ...)                                                                          \
  asm volatile("{\n .reg .pred p;\n setp.ne.b32 p, %1, 0;\n wgmma.mma_async.sync.aligned.m64n" #n type " {" LAPIDARY_WGMMA_NAMES_##n \
               "}, " a_names ", %0, p" flags ";\n}"                                                                                  \
               : "+l"(b), "+r"(scale), __VA_ARGS__, LAPIDARY_WGMMA_OPERANDS_##n(c));
#define LAPIDARY_WGMMA_SHARED_A "+l"(a), "+r"(unused), "+r"(unused), "+r"(unused)
#define LAPIDARY_WGMMA_REGISTER_A "+r"(a0), "+r"(a1), "+r"(a2), "+r"(a3)

template <int N, bool kBTransposed = false>
LAPIDARY_DEVICE void wgmma_bf16(float (&d)[N / 2], uint64_t a, uint64_t b, bool accumulate) {
  static_assert(wgmma_bf16_size(N));
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
  int scale = accumulate, unused = 0;
#define LAPIDARY_WGMMA_CASE(n)                                                                      \
  if constexpr (N == n && kBTransposed) {                                                           \
    LAPIDARY_WGMMA_ASM(n, "k16.f32.bf16.bf16", "%2", ", 1, 1, 0, 1", "+f", LAPIDARY_WGMMA_SHARED_A) \
  } else if constexpr (N == n) {                                                                    \
    LAPIDARY_WGMMA_ASM(n, "k16.f32.bf16.bf16", "%2", ", 1, 1, 0, 0", "+f", LAPIDARY_WGMMA_SHARED_A) \
  }
  LAPIDARY_WGMMA_BF16_SIZES(LAPIDARY_WGMMA_CASE)
#undef LAPIDARY_WGMMA_CASE
#endif
}
template <int N, bool kBTransposed = false>
LAPIDARY_DEVICE void wgmma_bf16(float (&d)[N / 2], const uint32_t (&a)[4], uint64_t b, bool accumulate) {
  static_assert(wgmma_bf16_size(N));
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
  int scale = accumulate;
  uint32_t a0 = a[0], a1 = a[1], a2 = a[2], a3 = a[3];
#define LAPIDARY_WGMMA_CASE(n)                                                                                   \
  if constexpr (N == n && kBTransposed) {                                                                        \
    LAPIDARY_WGMMA_ASM(n, "k16.f32.bf16.bf16", "{%2, %3, %4, %5}", ", 1, 1, 1", "+f", LAPIDARY_WGMMA_REGISTER_A) \
  } else if constexpr (N == n) {                                                                                 \
    LAPIDARY_WGMMA_ASM(n, "k16.f32.bf16.bf16", "{%2, %3, %4, %5}", ", 1, 1, 0", "+f", LAPIDARY_WGMMA_REGISTER_A) \
  }
  LAPIDARY_WGMMA_BF16_SIZES(LAPIDARY_WGMMA_CASE)
#undef LAPIDARY_WGMMA_CASE
#endif
}
template <int N>
LAPIDARY_DEVICE void wgmma_s8(int (&d)[N / 2], uint64_t a, uint64_t b, bool accumulate) {
  static_assert(wgmma_s8_size(N));
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
  int scale = accumulate, unused = 0;
#define LAPIDARY_WGMMA_CASE(n)                                                      \
  if constexpr (N == n) {                                                           \
    LAPIDARY_WGMMA_ASM(n, "k32.s32.s8.s8", "%2", "", "+r", LAPIDARY_WGMMA_SHARED_A) \
  }
  LAPIDARY_WGMMA_S8_SIZES(LAPIDARY_WGMMA_CASE)
#undef LAPIDARY_WGMMA_CASE
#endif
}
template <int N>
LAPIDARY_DEVICE void wgmma_s8(int (&d)[N / 2], const uint32_t (&a)[4], uint64_t b, bool accumulate) {
  static_assert(wgmma_s8_size(N));
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
  int scale = accumulate;
  uint32_t a0 = a[0], a1 = a[1], a2 = a[2], a3 = a[3];
#define LAPIDARY_WGMMA_CASE(n)                                                                      \
  if constexpr (N == n) {                                                                           \
    LAPIDARY_WGMMA_ASM(n, "k32.s32.s8.s8", "{%2, %3, %4, %5}", "", "+r", LAPIDARY_WGMMA_REGISTER_A) \
  }
  LAPIDARY_WGMMA_S8_SIZES(LAPIDARY_WGMMA_CASE)
#undef LAPIDARY_WGMMA_CASE
#endif
}

#endif

}  // namespace lapidary::cuda
