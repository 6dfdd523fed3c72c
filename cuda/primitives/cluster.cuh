// Thread-block clusters and distributed shared memory; programmatic dependent launch; register reallocation. (sm_90)
// On a device without clusters a block is a cluster of one and every call here is correct for that.
#pragma once

#include "cuda/primitives/memory.cuh"

namespace lapidary::cuda {

#ifdef LAPIDARY_EMULATED
#define LAPIDARY_CLUSTER_WHERE0 emulator::Where where = emulator::Where::here()
LAPIDARY_DEVICE int cluster_rank() { return emulator::cluster_rank(); }
LAPIDARY_DEVICE int cluster_size() { return emulator::cluster_size(); }
// Barrier of all threads of the cluster; orders their accesses to each other's shared memory. Arrive and wait may be apart.
LAPIDARY_DEVICE void cluster_arrive(LAPIDARY_CLUSTER_WHERE0) { emulator::cluster_arrive(where); }
LAPIDARY_DEVICE void cluster_wait(LAPIDARY_CLUSTER_WHERE0) { emulator::cluster_wait(where); }
// Reads / writes at the place `p` of this block's shared memory, in block `rank` of the cluster.
template <typename T>
LAPIDARY_DEVICE T load_remote(const T* p, int rank, emulator::Where where = emulator::Where::here()) {
  T v;
  emulator::remote_read(&v, p, sizeof(T), rank, where);
  return v;
}
template <typename T>
LAPIDARY_DEVICE void store_remote(T* p, int rank, const T& v, emulator::Where where = emulator::Where::here()) {
  emulator::remote_write(p, &v, sizeof(T), rank, where);
}
// What the grids before this one in the stream wrote is visible after this; without PDL it is visible anyway.
LAPIDARY_DEVICE void wait_for_previous_grids() { emulator::grid_dependency_wait(); }
LAPIDARY_DEVICE void allow_next_grid() { emulator::grid_dependency_launch(); }
// Registers per thread of this warpgroup from here on, all four warps together: `more` waits until others have given theirs back.
template <int Registers>
LAPIDARY_DEVICE void more_registers() {}
template <int Registers>
LAPIDARY_DEVICE void fewer_registers() {}
#else
LAPIDARY_DEVICE int cluster_rank() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  uint32_t r;
  asm("mov.u32 %0, %%cluster_ctarank;" : "=r"(r));
  return static_cast<int>(r);
#else
  return 0;
#endif
}
LAPIDARY_DEVICE int cluster_size() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  uint32_t r;
  asm("mov.u32 %0, %%cluster_nctarank;" : "=r"(r));
  return static_cast<int>(r);
#else
  return 1;
#endif
}
// Without .aligned: the lanes of a warp may come from divergent code.
LAPIDARY_DEVICE void cluster_arrive() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile("barrier.cluster.arrive.release;" ::: "memory");
#endif
}
LAPIDARY_DEVICE void cluster_wait() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile("barrier.cluster.wait.acquire;" ::: "memory");
#else
  __syncthreads();
#endif
}
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
template <typename T>
LAPIDARY_DEVICE T* remote_pointer(const T* p, int rank) {
  uint64_t out;
  asm("mapa.u64 %0, %1, %2;" : "=l"(out) : "l"(p), "r"(rank));
  return reinterpret_cast<T*>(out);
}
#else
template <typename T>
LAPIDARY_DEVICE T* remote_pointer(const T* p, int) {
  return const_cast<T*>(p);
}
#endif
template <typename T>
LAPIDARY_DEVICE T load_remote(const T* p, int rank) {
  return *remote_pointer(p, rank);
}
template <typename T>
LAPIDARY_DEVICE void store_remote(T* p, int rank, const T& v) {
  *remote_pointer(p, rank) = v;
}
LAPIDARY_DEVICE void wait_for_previous_grids() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}
LAPIDARY_DEVICE void allow_next_grid() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}
template <int Registers>
LAPIDARY_DEVICE void more_registers() {
  static_assert(Registers >= 24 && Registers <= 256 && Registers % 8 == 0);
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(Registers));
#endif
}
template <int Registers>
LAPIDARY_DEVICE void fewer_registers() {
  static_assert(Registers >= 24 && Registers <= 256 && Registers % 8 == 0);
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(Registers));
#endif
}
#endif

LAPIDARY_DEVICE void cluster_sync() {
  cluster_arrive();
  cluster_wait();
}

}  // namespace lapidary::cuda
