// What every kernel stands on: the two compilations of one source. With nvcc the primitives are PTX; with LAPIDARY_EMULATED the
// same kernels are plain C++ and the primitives call the emulator of the CUDA model (test/emulator), one fiber per CUDA thread.
// Kernels use the primitives for everything that is not arithmetic: thread ids, every load and store, barriers, collectives, tensor
// cores, copies. No PTX, no `__shared__` variable and no raw dereference of memory above this folder.
#pragma once

#include <cstddef>
#include <cstdint>

#ifdef LAPIDARY_EMULATED
#include "emulator/device.h"
#define LAPIDARY_DEVICE inline
#define LAPIDARY_HOST_DEVICE inline
#else
#define LAPIDARY_DEVICE __device__ __forceinline__
#define LAPIDARY_HOST_DEVICE __host__ __device__ __forceinline__
#endif

// #pragma unroll for both compilers, and its opposite, for paths that are rare and long.
#ifdef LAPIDARY_EMULATED
#define LAPIDARY_UNROLL
#define LAPIDARY_ROLLED
#else
#define LAPIDARY_UNROLL _Pragma("unroll")
#define LAPIDARY_ROLLED _Pragma("unroll 1")
#endif

// Statements of primitives that only some architectures have; elsewhere nothing, and kernels that need them are not started (Needs).
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
#define LAPIDARY_SM90(...) __VA_ARGS__
#else
#define LAPIDARY_SM90(...)
#endif
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
#define LAPIDARY_SM90A(...) __VA_ARGS__
#else
#define LAPIDARY_SM90A(...)
#endif

namespace lapidary::cuda {

inline constexpr int kWarp = 32;

// What a kernel needs of the device. A kernel's body is compiled only for the architectures that have it; launchers ask
// `supports_x` before they start one.
enum class Needs { sm80, sm90, sm90a };  // sm90: clusters, bulk copies, PDL; sm90a: wgmma, setmaxnreg

#if defined(LAPIDARY_EMULATED)
inline constexpr bool compiled_for(Needs) { return true; }
#else
LAPIDARY_HOST_DEVICE constexpr bool compiled_for(Needs needs) {
#if !defined(__CUDA_ARCH__)
  return true;
#elif defined(__CUDA_ARCH_FEAT_SM90_ALL)
  return true;
#elif __CUDA_ARCH__ >= 900
  return needs != Needs::sm90a;
#else
  return needs == Needs::sm80;
#endif
}
#endif

template <typename T>
LAPIDARY_HOST_DEVICE constexpr T ceil_div(T a, T b) {
  return (a + b - 1) / b;
}
template <typename T>
LAPIDARY_HOST_DEVICE constexpr T round_up(T a, T b) {
  return ceil_div(a, b) * b;
}

// N elements that move as one access of N * sizeof(T) bytes (at most 16). Aligned to its size.
template <typename T, int N>
struct alignas(sizeof(T) * N) Vec {
  static_assert(sizeof(T) * N <= 16, "one access moves at most 16 bytes");
  T v[N];
  LAPIDARY_HOST_DEVICE T& operator[](int i) { return v[i]; }
  LAPIDARY_HOST_DEVICE const T& operator[](int i) const { return v[i]; }
};
using U32x4 = Vec<uint32_t, 4>;  // 16 bytes
using U32x2 = Vec<uint32_t, 2>;
using F32x4 = Vec<float, 4>;
using F32x2 = Vec<float, 2>;

// Same bits, other type.
template <typename To, typename From>
LAPIDARY_HOST_DEVICE To bits_as(const From& from) {
  static_assert(sizeof(To) == sizeof(From));
  To to;
#ifdef LAPIDARY_EMULATED
  __builtin_memcpy(&to, &from, sizeof(To));
#else
  memcpy(&to, &from, sizeof(To));
#endif
  return to;
}

// The value itself, but what is computed from it stays where it is written: the compiler does not move it out of a loop, where it would
// hold registers all along.
LAPIDARY_DEVICE int not_hoisted(int v) {
#ifndef LAPIDARY_EMULATED
  asm volatile("" : "+r"(v));
#endif
  return v;
}

// --- where a thread is. Blocks are one-dimensional; grids have three dimensions. -------------------------------------------
#ifdef LAPIDARY_EMULATED
LAPIDARY_DEVICE int thread_index() { return emulator::thread_index(); }
LAPIDARY_DEVICE int block_threads() { return emulator::block_threads(); }
LAPIDARY_DEVICE int block_x() { return emulator::block_index(0); }
LAPIDARY_DEVICE int block_y() { return emulator::block_index(1); }
LAPIDARY_DEVICE int block_z() { return emulator::block_index(2); }
LAPIDARY_DEVICE int grid_x() { return emulator::grid_size(0); }
LAPIDARY_DEVICE int grid_y() { return emulator::grid_size(1); }
LAPIDARY_DEVICE int grid_z() { return emulator::grid_size(2); }
#else
LAPIDARY_DEVICE int thread_index() { return static_cast<int>(threadIdx.x); }
LAPIDARY_DEVICE int block_threads() { return static_cast<int>(blockDim.x); }
LAPIDARY_DEVICE int block_x() { return static_cast<int>(blockIdx.x); }
LAPIDARY_DEVICE int block_y() { return static_cast<int>(blockIdx.y); }
LAPIDARY_DEVICE int block_z() { return static_cast<int>(blockIdx.z); }
LAPIDARY_DEVICE int grid_x() { return static_cast<int>(gridDim.x); }
LAPIDARY_DEVICE int grid_y() { return static_cast<int>(gridDim.y); }
LAPIDARY_DEVICE int grid_z() { return static_cast<int>(gridDim.z); }
#endif
LAPIDARY_DEVICE int lane() { return thread_index() % kWarp; }
LAPIDARY_DEVICE int warp() { return thread_index() / kWarp; }

}  // namespace lapidary::cuda
