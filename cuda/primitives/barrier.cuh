// mbarrier: a barrier object in shared memory that counts arrivals of threads and bytes of bulk copies, phase after phase. (sm_90)
#pragma once

#include "cuda/primitives/platform.cuh"

namespace lapidary::cuda {

struct alignas(8) Barrier {
  uint64_t state;
};

#ifdef LAPIDARY_EMULATED
#define LAPIDARY_BARRIER_WHERE , emulator::Where where = emulator::Where::here()
// One thread; then fence_barrier_init() and a block (or cluster) barrier before anyone uses it.
LAPIDARY_DEVICE void barrier_init(Barrier* b, int arrivals LAPIDARY_BARRIER_WHERE) { emulator::mbarrier_init(b, arrivals, where); }
LAPIDARY_DEVICE void fence_barrier_init() { emulator::fence_barrier_init(); }
LAPIDARY_DEVICE void barrier_arrive(Barrier* b LAPIDARY_BARRIER_WHERE) { emulator::mbarrier_arrive(b, 0, -1, where); }
// Arrives, and the phase also waits for `bytes` of bulk copies.
LAPIDARY_DEVICE void barrier_arrive_expect(Barrier* b, int bytes LAPIDARY_BARRIER_WHERE) { emulator::mbarrier_arrive(b, bytes, -1, where); }
// On the barrier at the same place in block `rank` of the cluster.
LAPIDARY_DEVICE void barrier_arrive_remote(Barrier* b, int rank LAPIDARY_BARRIER_WHERE) { emulator::mbarrier_arrive(b, 0, rank, where); }
// Until the phase of this parity is complete: the first phase has parity 0; a fresh barrier's "previous" phase has parity 1.
LAPIDARY_DEVICE void barrier_wait(Barrier* b, uint32_t parity LAPIDARY_BARRIER_WHERE) { emulator::mbarrier_wait(b, parity, where); }
// The same where threads of other blocks of the cluster arrive, and what they wrote before (store_remote) is read after.
LAPIDARY_DEVICE void barrier_wait_cluster(Barrier* b, uint32_t parity LAPIDARY_BARRIER_WHERE) { emulator::mbarrier_wait(b, parity, where); }
// Orders this thread's generic accesses to shared memory before later asynchronous ones (bulk copies, wgmma).
LAPIDARY_DEVICE void fence_proxy_async() { emulator::fence_proxy_async(); }
#else
LAPIDARY_DEVICE uint32_t barrier_address(const Barrier* b) { return static_cast<uint32_t>(__cvta_generic_to_shared(b)); }
LAPIDARY_DEVICE void barrier_init(Barrier* b, int arrivals) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(barrier_address(b)), "r"(arrivals) : "memory");
#endif
}
LAPIDARY_DEVICE void fence_barrier_init() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
#endif
}
LAPIDARY_DEVICE void barrier_arrive(Barrier* b) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(barrier_address(b)) : "memory");
#endif
}
LAPIDARY_DEVICE void barrier_arrive_expect(Barrier* b, int bytes) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(barrier_address(b)), "r"(bytes) : "memory");
#endif
}
LAPIDARY_DEVICE void barrier_arrive_remote(Barrier* b, int rank) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile(
      "{\n .reg .b32 remote;\n mapa.shared::cluster.u32 remote, %0, %1;\n mbarrier.arrive.release.cluster.shared::cluster.b64 _, "
      "[remote];\n}" ::"r"(barrier_address(b)),
      "r"(rank)
      : "memory");
#endif
}
// try_wait suspends the thread for a time that the hardware limits, then says whether the phase is complete.
LAPIDARY_DEVICE void barrier_wait(Barrier* b, uint32_t parity) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  uint32_t done;
  do {
    asm volatile("{\n .reg .pred p;\n mbarrier.try_wait.parity.shared::cta.b64 p, [%1], %2;\n selp.u32 %0, 1, 0, p;\n}"
                 : "=r"(done)
                 : "r"(barrier_address(b)), "r"(parity)
                 : "memory");
  } while (done == 0);
#endif
}
LAPIDARY_DEVICE void barrier_wait_cluster(Barrier* b, uint32_t parity) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  uint32_t done;
  do {
    asm volatile("{\n .reg .pred p;\n mbarrier.try_wait.parity.acquire.cluster.shared::cta.b64 p, [%1], %2;\n selp.u32 %0, 1, 0, p;\n}"
                 : "=r"(done)
                 : "r"(barrier_address(b)), "r"(parity)
                 : "memory");
  } while (done == 0);
#endif
}
LAPIDARY_DEVICE void fence_proxy_async() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
#endif
}
#endif

}  // namespace lapidary::cuda
