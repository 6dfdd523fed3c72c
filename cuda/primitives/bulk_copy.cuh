// Bulk asynchronous copies: contiguous bytes, and boxes of tensors through a tensor map (TMA), counted by an mbarrier. (sm_90)
//
// A tensor map is made on the host (cuda/launch/tensor_map.h) and lives in a kernel's params, which are __grid_constant__. A box is stored
// as its rows one after another (x fastest, then y, ...), each row of the box's inner bytes; with a swizzle as swizzle.cuh says. All are
// issued by one thread. The fence for shared memory that threads read or wrote before: fence_proxy_async (barrier.cuh).
#pragma once

#include "cuda/primitives/barrier.cuh"
#include "cuda/primitives/swizzle.cuh"

namespace lapidary::cuda {

struct alignas(128) TensorMap {
  uint64_t words[16];
};  // a CUtensorMap; in the emulator its own description

// What L2 does with the lines of a load: evict_first for what is read once (weights at small batch), evict_last for what every block reads
// again (activations).
enum class L2 { normal, evict_first, evict_last };

#ifdef LAPIDARY_EMULATED

#define LAPIDARY_BULK_WHERE , emulator::Where where = emulator::Where::here()
#define LAPIDARY_BULK_WHERE0 emulator::Where where = emulator::Where::here()

// `bytes` a multiple of 16, both sides 16-byte aligned; completes `bytes` on the barrier.
template <L2 kHint = L2::normal>
LAPIDARY_DEVICE void bulk_load(void* to_shared, const void* from_global, int bytes, Barrier* b LAPIDARY_BULK_WHERE) {
  emulator::bulk_load(to_shared, from_global, bytes, b, where);
}
// The box whose first element has these coordinates (x: the contiguous dimension; they may be negative or beyond the end); elements outside
// the tensor are zeros. to_shared on swizzle_atom(swizzle). Completes the whole box's bytes on the barrier, also those outside.
template <L2 kHint = L2::normal>
LAPIDARY_DEVICE void tensor_load(void* to_shared, const TensorMap* map, Barrier* b, int x, int y LAPIDARY_BULK_WHERE) {
  const int at[] = {x, y};
  emulator::tensor_load(to_shared, map, b, 2, at, 0, where);
}
template <L2 kHint = L2::normal>
LAPIDARY_DEVICE void tensor_load(void* to_shared, const TensorMap* map, Barrier* b, int x, int y, int z LAPIDARY_BULK_WHERE) {
  const int at[] = {x, y, z};
  emulator::tensor_load(to_shared, map, b, 3, at, 0, where);
}
template <L2 kHint = L2::normal>
LAPIDARY_DEVICE void tensor_load(void* to_shared, const TensorMap* map, Barrier* b, int x, int y, int z, int w LAPIDARY_BULK_WHERE) {
  const int at[] = {x, y, z, w};
  emulator::tensor_load(to_shared, map, b, 4, at, 0, where);
}
// The same box to the same place in every block of the cluster whose bit is set; completes on the barrier at the same place in each.
// For kernels of sm_90a: elsewhere multicast is slow, and ptxas warns.
template <L2 kHint = L2::normal>
LAPIDARY_DEVICE void tensor_load_multicast(void* to_shared, const TensorMap* map, Barrier* b, int x, int y,
                                           uint16_t blocks LAPIDARY_BULK_WHERE) {
  const int at[] = {x, y};
  emulator::tensor_load(to_shared, map, b, 2, at, blocks, where);
}
template <L2 kHint = L2::normal>
LAPIDARY_DEVICE void tensor_load_multicast(void* to_shared, const TensorMap* map, Barrier* b, int x, int y, int z,
                                           uint16_t blocks LAPIDARY_BULK_WHERE) {
  const int at[] = {x, y, z};
  emulator::tensor_load(to_shared, map, b, 3, at, blocks, where);
}
// After fence_proxy_async by the writers and a barrier. Elements outside the tensor are not written.
LAPIDARY_DEVICE void tensor_store(const TensorMap* map, const void* from_shared, int x, int y LAPIDARY_BULK_WHERE) {
  const int at[] = {x, y};
  emulator::tensor_store(map, from_shared, 2, at, where);
}
LAPIDARY_DEVICE void tensor_store(const TensorMap* map, const void* from_shared, int x, int y, int z LAPIDARY_BULK_WHERE) {
  const int at[] = {x, y, z};
  emulator::tensor_store(map, from_shared, 3, at, where);
}
LAPIDARY_DEVICE void bulk_store_commit() { emulator::bulk_store_commit(); }
// Until at most `Pending` of this thread's store groups still read shared memory.
template <int Pending>
LAPIDARY_DEVICE void bulk_store_wait_read() {
  emulator::bulk_store_wait(Pending, true);
}
// Until at most `Pending` of this thread's store groups are unfinished (what they wrote is visible to this thread).
template <int Pending>
LAPIDARY_DEVICE void bulk_store_wait() {
  emulator::bulk_store_wait(Pending, false);
}
LAPIDARY_DEVICE void prefetch_tensor_map(const TensorMap*) {}

#else

LAPIDARY_DEVICE uint32_t bulk_address(const void* p) { return static_cast<uint32_t>(__cvta_generic_to_shared(p)); }

// Not volatile: the compiler makes it once, outside the loop.
template <L2 kHint>
LAPIDARY_DEVICE uint64_t l2_policy() {
  uint64_t policy = 0;
  if constexpr (kHint == L2::evict_first) {
    LAPIDARY_SM90(asm("createpolicy.fractional.L2::evict_first.b64 %0, 1.0;" : "=l"(policy));)
  } else if constexpr (kHint == L2::evict_last) {
    LAPIDARY_SM90(asm("createpolicy.fractional.L2::evict_last.b64 %0, 1.0;" : "=l"(policy));)
  }
  return policy;
}

template <L2 kHint = L2::normal>
LAPIDARY_DEVICE void bulk_load(void* to_shared, const void* from_global, int bytes, Barrier* b) {
  if constexpr (kHint == L2::normal) {
    LAPIDARY_SM90(asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(
                                   bulk_address(to_shared)),
                               "l"(__cvta_generic_to_global(from_global)), "r"(bytes), "r"(barrier_address(b)) : "memory");)
  } else {
    LAPIDARY_SM90(
        asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes.L2::cache_hint [%0], [%1], %2, [%3], %4;" ::"r"(
                         bulk_address(to_shared)),
                     "l"(__cvta_generic_to_global(from_global)), "r"(bytes), "r"(barrier_address(b)), "l"(l2_policy<kHint>()) : "memory");)
  }
}

// `at` names the coordinates, which are the operands from %3 on; `next` is the number after the last of them.
#define LAPIDARY_TENSOR_LOAD(rank, at, next, ...)                                                                                        \
  if constexpr (kHint == L2::normal) {                                                                                                   \
    LAPIDARY_SM90(asm volatile("cp.async.bulk.tensor." rank ".shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {" at       \
                               "}], [%2];" ::"r"(bulk_address(to_shared)),                                                               \
                               "l"(map), "r"(barrier_address(b)), __VA_ARGS__ : "memory");)                                              \
  } else {                                                                                                                               \
    LAPIDARY_SM90(asm volatile("cp.async.bulk.tensor." rank ".shared::cluster.global.mbarrier::complete_tx::bytes.L2::cache_hint [%0], " \
                               "[%1, {" at "}], [%2], " next ";" ::"r"(bulk_address(to_shared)),                                         \
                               "l"(map), "r"(barrier_address(b)), __VA_ARGS__, "l"(l2_policy<kHint>()) : "memory");)                     \
  }
#define LAPIDARY_TENSOR_MULTICAST(rank, at, mask, next, ...)                                                                           \
  if constexpr (kHint == L2::normal) {                                                                                                 \
    LAPIDARY_SM90A(asm volatile("cp.async.bulk.tensor." rank                                                                           \
                                ".shared::cluster.global.mbarrier::complete_tx::bytes.multicast::cluster [%0], "                       \
                                "[%1, {" at "}], [%2], " mask ";" ::"r"(bulk_address(to_shared)),                                      \
                                "l"(map), "r"(barrier_address(b)), __VA_ARGS__, "h"(blocks) : "memory");)                              \
  } else {                                                                                                                             \
    LAPIDARY_SM90A(asm volatile("cp.async.bulk.tensor." rank ".shared::cluster.global.mbarrier::complete_tx::bytes.multicast::cluster" \
                                ".L2::cache_hint [%0], [%1, {" at "}], [%2], " mask ", " next ";" ::"r"(bulk_address(to_shared)),      \
                                "l"(map), "r"(barrier_address(b)), __VA_ARGS__, "h"(blocks), "l"(l2_policy<kHint>()) : "memory");)     \
  }

template <L2 kHint = L2::normal>
LAPIDARY_DEVICE void tensor_load(void* to_shared, const TensorMap* map, Barrier* b, int x, int y) {
  LAPIDARY_TENSOR_LOAD("2d", "%3, %4", "%5", "r"(x), "r"(y))
}
template <L2 kHint = L2::normal>
LAPIDARY_DEVICE void tensor_load(void* to_shared, const TensorMap* map, Barrier* b, int x, int y, int z) {
  LAPIDARY_TENSOR_LOAD("3d", "%3, %4, %5", "%6", "r"(x), "r"(y), "r"(z))
}
template <L2 kHint = L2::normal>
LAPIDARY_DEVICE void tensor_load(void* to_shared, const TensorMap* map, Barrier* b, int x, int y, int z, int w) {
  LAPIDARY_TENSOR_LOAD("4d", "%3, %4, %5, %6", "%7", "r"(x), "r"(y), "r"(z), "r"(w))
}
template <L2 kHint = L2::normal>
LAPIDARY_DEVICE void tensor_load_multicast(void* to_shared, const TensorMap* map, Barrier* b, int x, int y, uint16_t blocks) {
  LAPIDARY_TENSOR_MULTICAST("2d", "%3, %4", "%5", "%6", "r"(x), "r"(y))
}
template <L2 kHint = L2::normal>
LAPIDARY_DEVICE void tensor_load_multicast(void* to_shared, const TensorMap* map, Barrier* b, int x, int y, int z, uint16_t blocks){
    LAPIDARY_TENSOR_MULTICAST("3d", "%3, %4, %5", "%6", "%7", "r"(x), "r"(y), "r"(z))}
#undef LAPIDARY_TENSOR_LOAD
#undef LAPIDARY_TENSOR_MULTICAST

LAPIDARY_DEVICE void tensor_store(const TensorMap* map, const void* from_shared, int x, int y) {
  LAPIDARY_SM90(asm volatile("cp.async.bulk.tensor.2d.global.shared::cta.bulk_group [%0, {%2, %3}], [%1];" ::"l"(map),
                             "r"(bulk_address(from_shared)), "r"(x), "r"(y) : "memory");)
}
LAPIDARY_DEVICE void tensor_store(const TensorMap* map, const void* from_shared, int x, int y, int z) {
  LAPIDARY_SM90(asm volatile("cp.async.bulk.tensor.3d.global.shared::cta.bulk_group [%0, {%2, %3, %4}], [%1];" ::"l"(map),
                             "r"(bulk_address(from_shared)), "r"(x), "r"(y), "r"(z) : "memory");)
}
LAPIDARY_DEVICE void bulk_store_commit() { LAPIDARY_SM90(asm volatile("cp.async.bulk.commit_group;" :: : "memory");) }
template <int Pending>
LAPIDARY_DEVICE void bulk_store_wait_read() {
  LAPIDARY_SM90(asm volatile("cp.async.bulk.wait_group.read %0;" ::"n"(Pending) : "memory");)
}
template <int Pending>
LAPIDARY_DEVICE void bulk_store_wait() {
  LAPIDARY_SM90(asm volatile("cp.async.bulk.wait_group %0;" ::"n"(Pending) : "memory");)
}
LAPIDARY_DEVICE void prefetch_tensor_map(const TensorMap* map) {
  LAPIDARY_SM90(asm volatile("prefetch.tensormap [%0];" ::"l"(map) : "memory");)
}

#endif

}  // namespace lapidary::cuda
