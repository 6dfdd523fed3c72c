// cp.async: 4, 8 or 16 bytes from global to shared memory without a register, grouped per thread. (sm_80)
#pragma once

#include "cuda/primitives/platform.cuh"

namespace lapidary::cuda {

#ifdef LAPIDARY_EMULATED
#define LAPIDARY_COPY_WHERE , emulator::Where where = emulator::Where::here()
// Both sides 16-byte aligned. `valid` false: 16 zeros are written and `from` is not read.
LAPIDARY_DEVICE void copy_async_16(void* to_shared, const void* from_global, bool valid = true LAPIDARY_COPY_WHERE) {
  emulator::cp_async(to_shared, from_global, 16, valid ? 16 : 0, where);
}
// The same for 4 or 8 bytes, aligned to their size: scales, pointers.
template <int Bytes>
LAPIDARY_DEVICE void copy_async_small(void* to_shared, const void* from_global, bool valid = true LAPIDARY_COPY_WHERE) {
  static_assert(Bytes == 4 || Bytes == 8);
  emulator::cp_async(to_shared, from_global, Bytes, valid ? Bytes : 0, where);
}
// Closes the group of all copies this thread has issued since the last commit.
LAPIDARY_DEVICE void copy_async_commit() { emulator::cp_async_commit(); }
// Waits until at most `Pending` of this thread's newest groups are unfinished. Other threads' copies need a barrier after it.
template <int Pending>
LAPIDARY_DEVICE void copy_async_wait() {
  emulator::cp_async_wait(Pending);
}
#else
LAPIDARY_DEVICE void copy_async_16(void* to_shared, const void* from_global, bool valid = true) {
  const uint32_t to = static_cast<uint32_t>(__cvta_generic_to_shared(to_shared));
  const int bytes = valid ? 16 : 0;
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(__cvta_generic_to_global(from_global)), "r"(bytes)
               : "memory");
}
template <int Bytes>
LAPIDARY_DEVICE void copy_async_small(void* to_shared, const void* from_global, bool valid = true) {
  static_assert(Bytes == 4 || Bytes == 8);
  const uint32_t to = static_cast<uint32_t>(__cvta_generic_to_shared(to_shared));
  const int bytes = valid ? Bytes : 0;
  asm volatile("cp.async.ca.shared.global [%0], [%1], %2, %3;" ::"r"(to), "l"(__cvta_generic_to_global(from_global)), "n"(Bytes), "r"(bytes)
               : "memory");
}
LAPIDARY_DEVICE void copy_async_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }
template <int Pending>
LAPIDARY_DEVICE void copy_async_wait() {
  asm volatile("cp.async.wait_group %0;" ::"n"(Pending) : "memory");
}
#endif

}  // namespace lapidary::cuda
