// Collectives of a warp and of a block, and the reductions made of them. A warp collective is reached by all 32 lanes together.
#pragma once

#include "cuda/primitives/memory.cuh"

namespace lapidary::cuda {

#ifdef LAPIDARY_EMULATED
#define LAPIDARY_WHERE , emulator::Where where = emulator::Where::here()
#define LAPIDARY_WHERE0 emulator::Where where = emulator::Where::here()
template <typename T>
LAPIDARY_DEVICE T shuffle(T v, int from_lane LAPIDARY_WHERE) {
  T out;
  emulator::shuffle(&out, &v, sizeof(T), from_lane & 31, where);
  return out;
}
template <typename T>
LAPIDARY_DEVICE T shuffle_xor(T v, int mask LAPIDARY_WHERE) {
  return shuffle(v, lane() ^ mask, where);
}
// Of the lane `delta` below / above; a lane with no such lane keeps its own value.
template <typename T>
LAPIDARY_DEVICE T shuffle_up(T v, int delta LAPIDARY_WHERE) {
  return shuffle(v, lane() < delta ? lane() : lane() - delta, where);
}
template <typename T>
LAPIDARY_DEVICE T shuffle_down(T v, int delta LAPIDARY_WHERE) {
  return shuffle(v, lane() + delta > 31 ? lane() : lane() + delta, where);
}
LAPIDARY_DEVICE uint32_t ballot(bool predicate LAPIDARY_WHERE) { return emulator::ballot(predicate, where); }
LAPIDARY_DEVICE void sync_warp(LAPIDARY_WHERE0) { emulator::sync_warp(where); }
LAPIDARY_DEVICE void sync_threads(LAPIDARY_WHERE0) { emulator::barrier(0, emulator::block_threads(), true, where); }
// Barriers 1..15 among `threads` threads (whole warps): sync waits, arrive only counts.
LAPIDARY_DEVICE void named_barrier_sync(int id, int threads LAPIDARY_WHERE) { emulator::barrier(id, threads, true, where); }
LAPIDARY_DEVICE void named_barrier_arrive(int id, int threads LAPIDARY_WHERE) { emulator::barrier(id, threads, false, where); }
// True in exactly one lane of the (converged) warp, the same one every time.
LAPIDARY_DEVICE bool elect_one() { return lane() == 0; }
#else
template <typename T>
LAPIDARY_DEVICE T shuffle(T v, int from_lane) {
  return __shfl_sync(0xffffffffu, v, from_lane);
}
template <typename T>
LAPIDARY_DEVICE T shuffle_xor(T v, int mask) {
  return __shfl_xor_sync(0xffffffffu, v, mask);
}
template <typename T>
LAPIDARY_DEVICE T shuffle_up(T v, int delta) {
  return __shfl_up_sync(0xffffffffu, v, delta);
}
template <typename T>
LAPIDARY_DEVICE T shuffle_down(T v, int delta) {
  return __shfl_down_sync(0xffffffffu, v, delta);
}
LAPIDARY_DEVICE uint32_t ballot(bool predicate) { return __ballot_sync(0xffffffffu, predicate); }
LAPIDARY_DEVICE void sync_warp() { __syncwarp(); }
LAPIDARY_DEVICE void sync_threads() { __syncthreads(); }
LAPIDARY_DEVICE void named_barrier_sync(int id, int threads) { asm volatile("bar.sync %0, %1;" ::"r"(id), "r"(threads) : "memory"); }
LAPIDARY_DEVICE void named_barrier_arrive(int id, int threads) { asm volatile("bar.arrive %0, %1;" ::"r"(id), "r"(threads) : "memory"); }
// elect.sync gives the same lane every time, and tells the compiler that one lane runs what follows.
LAPIDARY_DEVICE bool elect_one() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  uint32_t elected;
  asm volatile("{\n .reg .pred p;\n elect.sync _|p, 0xffffffff;\n selp.u32 %0, 1, 0, p;\n}" : "=r"(elected));
  return elected != 0;
#else
  return lane() == 0;
#endif
}
#endif

LAPIDARY_DEVICE bool warp_any(bool predicate) { return ballot(predicate) != 0; }
LAPIDARY_DEVICE bool warp_all(bool predicate) { return ballot(predicate) == 0xffffffffu; }

struct Sum {
  template <typename T>
  LAPIDARY_DEVICE T operator()(T a, T b) const {
    return a + b;
  }
};
struct Max {
  template <typename T>
  LAPIDARY_DEVICE T operator()(T a, T b) const {
    return a > b ? a : b;
  }
};

// Over `Width` neighbouring lanes (a power of two): a butterfly, so every lane gets the same bits.
template <int Width = kWarp, typename T, typename Op>
LAPIDARY_DEVICE T warp_reduce(T v, Op op) {
  LAPIDARY_UNROLL
  for (int step = Width / 2; step > 0; step /= 2) v = op(v, shuffle_xor(v, step));
  return v;
}

// Over the block's Threads threads (whole warps); every thread gets the result. `scratch` holds Threads / 32 values in shared
// memory and may be used again at once: the call begins and ends with a barrier.
template <int Threads, typename T, typename Op>
LAPIDARY_DEVICE T block_reduce(T v, Op op, T identity, T* scratch) {
  constexpr int kWarps = Threads / kWarp;
  v = warp_reduce(v, op);
  if constexpr (kWarps == 1) return v;
  if (lane() == 0) store_shared(scratch + warp(), v);
  sync_threads();
  v = lane() < kWarps ? load_shared(scratch + lane()) : identity;
  v = warp_reduce(v, op);
  sync_threads();
  return v;
}

}  // namespace lapidary::cuda
