// Every access to memory: global and shared loads and stores of 1 to 16 bytes, cache hints, atomics, fences. In the emulator each is
// checked: bounds, alignment, initialisation, races between barriers.
#pragma once

#include "cuda/primitives/platform.cuh"

namespace lapidary::cuda {

// T is trivially copyable, 1, 2, 4, 8 or 16 bytes, and `p` is aligned to it.
#ifdef LAPIDARY_EMULATED
#define LAPIDARY_MEMORY_WHERE , emulator::Where where = emulator::Where::here()
template <typename T>
LAPIDARY_DEVICE T load_global(const T* p LAPIDARY_MEMORY_WHERE) {
  T v;
  emulator::global_read(&v, p, sizeof(T), alignof(T), where);
  return v;
}
// Data that no thread of the grid writes: may come through the non-coherent cache.
template <typename T>
LAPIDARY_DEVICE T load_readonly(const T* p LAPIDARY_MEMORY_WHERE) {
  T v;
  emulator::global_read_readonly(&v, p, sizeof(T), alignof(T), where);
  return v;
}
// Read once, then never again by this grid (weights at small batch): does not displace other lines.
template <typename T>
LAPIDARY_DEVICE T load_streaming(const T* p LAPIDARY_MEMORY_WHERE) {
  return load_readonly(p, where);
}
// Sees what other blocks wrote before a flag that this thread has read (bypasses L1).
template <typename T>
LAPIDARY_DEVICE T load_coherent(const T* p LAPIDARY_MEMORY_WHERE) {
  T v;
  emulator::global_read_coherent(&v, p, sizeof(T), alignof(T), where);
  return v;
}
template <typename T>
LAPIDARY_DEVICE void store_global(T* p, const T& v LAPIDARY_MEMORY_WHERE) {
  emulator::global_write(p, &v, sizeof(T), alignof(T), where);
}
template <typename T>
LAPIDARY_DEVICE T load_shared(const T* p LAPIDARY_MEMORY_WHERE) {
  T v;
  emulator::shared_read(&v, p, sizeof(T), alignof(T), where);
  return v;
}
template <typename T>
LAPIDARY_DEVICE void store_shared(T* p, const T& v LAPIDARY_MEMORY_WHERE) {
  emulator::shared_write(p, &v, sizeof(T), alignof(T), where);
}

// Atomics give the old value. Global: device scope, relaxed; order other data with fence_device().
LAPIDARY_DEVICE int atomic_add_global(int* p, int v LAPIDARY_MEMORY_WHERE) { return emulator::atomic_add(p, v, false, where); }
LAPIDARY_DEVICE float atomic_add_global(float* p, float v LAPIDARY_MEMORY_WHERE) { return emulator::atomic_add(p, v, false, where); }
LAPIDARY_DEVICE uint32_t atomic_add_global(uint32_t* p, uint32_t v LAPIDARY_MEMORY_WHERE) {
  return emulator::atomic_add(p, v, false, where);
}
LAPIDARY_DEVICE uint64_t atomic_max_global(uint64_t* p, uint64_t v LAPIDARY_MEMORY_WHERE) {
  return emulator::atomic_max(p, v, false, where);
}
LAPIDARY_DEVICE int atomic_add_shared(int* p, int v LAPIDARY_MEMORY_WHERE) { return emulator::atomic_add(p, v, true, where); }
LAPIDARY_DEVICE uint32_t atomic_add_shared(uint32_t* p, uint32_t v LAPIDARY_MEMORY_WHERE) {
  return emulator::atomic_add(p, v, true, where);
}
LAPIDARY_DEVICE float atomic_add_shared(float* p, float v LAPIDARY_MEMORY_WHERE) { return emulator::atomic_add(p, v, true, where); }
LAPIDARY_DEVICE uint64_t atomic_max_shared(uint64_t* p, uint64_t v LAPIDARY_MEMORY_WHERE) {
  return emulator::atomic_max(p, v, true, where);
}
LAPIDARY_DEVICE void fence_block() { emulator::fence(false); }
LAPIDARY_DEVICE void fence_device() { emulator::fence(true); }
LAPIDARY_DEVICE void prefetch_l2(const void*) {}
#else
template <typename T>
LAPIDARY_DEVICE T load_global(const T* p) {
  return *p;
}
// Volatile, so that no load moves above wait_for_previous_grids() or a barrier. The coherent one also clobbers memory: what follows it in
// the source, plain loads too, stays below it (a flag is read before the data that it announces).
#define LAPIDARY_LOAD(name, qualifier, ...)                                                                          \
  template <typename T>                                                                                              \
  LAPIDARY_DEVICE T name(const T* p) {                                                                               \
    static_assert(sizeof(T) == 1 || sizeof(T) == 2 || sizeof(T) == 4 || sizeof(T) == 8 || sizeof(T) == 16);          \
    const size_t from = __cvta_generic_to_global(p);                                                                 \
    if constexpr (sizeof(T) == 16) {                                                                                 \
      U32x4 r;                                                                                                       \
      asm volatile("ld" qualifier ".v4.u32 {%0, %1, %2, %3}, [%4];"                                                  \
                   : "=r"(r.v[0]), "=r"(r.v[1]), "=r"(r.v[2]), "=r"(r.v[3])                                          \
                   : "l"(from)                                                                                       \
                   : __VA_ARGS__);                                                                                   \
      return bits_as<T>(r);                                                                                          \
    } else if constexpr (sizeof(T) == 8) {                                                                           \
      U32x2 r;                                                                                                       \
      asm volatile("ld" qualifier ".v2.u32 {%0, %1}, [%2];" : "=r"(r.v[0]), "=r"(r.v[1]) : "l"(from) : __VA_ARGS__); \
      return bits_as<T>(r);                                                                                          \
    } else if constexpr (sizeof(T) == 4) {                                                                           \
      uint32_t r;                                                                                                    \
      asm volatile("ld" qualifier ".u32 %0, [%1];" : "=r"(r) : "l"(from) : __VA_ARGS__);                             \
      return bits_as<T>(r);                                                                                          \
    } else if constexpr (sizeof(T) == 2) {                                                                           \
      uint16_t r;                                                                                                    \
      asm volatile("ld" qualifier ".u16 %0, [%1];" : "=h"(r) : "l"(from) : __VA_ARGS__);                             \
      return bits_as<T>(r);                                                                                          \
    } else {                                                                                                         \
      uint32_t r;                                                                                                    \
      asm volatile("ld" qualifier ".u8 %0, [%1];" : "=r"(r) : "l"(from) : __VA_ARGS__);                              \
      return bits_as<T>(static_cast<uint8_t>(r));                                                                    \
    }                                                                                                                \
  }
LAPIDARY_LOAD(load_readonly, ".global.nc")
LAPIDARY_LOAD(load_streaming, ".global.nc.L1::no_allocate.L2::256B")
LAPIDARY_LOAD(load_coherent, ".relaxed.gpu.global", "memory")
#undef LAPIDARY_LOAD
template <typename T>
LAPIDARY_DEVICE void store_global(T* p, const T& v) {
  *p = v;
}
template <typename T>
LAPIDARY_DEVICE T load_shared(const T* p) {
  return *p;
}
template <typename T>
LAPIDARY_DEVICE void store_shared(T* p, const T& v) {
  *p = v;
}

LAPIDARY_DEVICE int atomic_add_global(int* p, int v) { return atomicAdd(p, v); }
LAPIDARY_DEVICE float atomic_add_global(float* p, float v) { return atomicAdd(p, v); }
LAPIDARY_DEVICE uint32_t atomic_add_global(uint32_t* p, uint32_t v) { return atomicAdd(p, v); }
LAPIDARY_DEVICE uint64_t atomic_max_global(uint64_t* p, uint64_t v) {
  return atomicMax(reinterpret_cast<unsigned long long*>(p), static_cast<unsigned long long>(v));
}
LAPIDARY_DEVICE int atomic_add_shared(int* p, int v) { return atomicAdd(p, v); }
LAPIDARY_DEVICE uint32_t atomic_add_shared(uint32_t* p, uint32_t v) { return atomicAdd(p, v); }
LAPIDARY_DEVICE float atomic_add_shared(float* p, float v) { return atomicAdd(p, v); }
LAPIDARY_DEVICE uint64_t atomic_max_shared(uint64_t* p, uint64_t v) {
  return atomicMax(reinterpret_cast<unsigned long long*>(p), static_cast<unsigned long long>(v));
}
LAPIDARY_DEVICE void fence_block() { __threadfence_block(); }
LAPIDARY_DEVICE void fence_device() { __threadfence(); }
LAPIDARY_DEVICE void prefetch_l2(const void* p) { asm volatile("prefetch.global.L2 [%0];" ::"l"(p)); }
#endif

}  // namespace lapidary::cuda
