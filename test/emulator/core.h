// What the parts of the emulator share: who runs, rendezvous of warps and warpgroups, asynchronous operations, checks of memory.
//
// Rules for code that runs inside a launch: a finding calls fail(), which does not return. A fiber that waits may be given up when another
// one fails, so nothing that owns memory may live on the stack across a wait (warp_collective, barrier, ...).
#pragma once

#include <functional>
#include <memory>
#include <span>
#include <string>

#include "emulator/control.h"
#include "emulator/device.h"

namespace lapidary::emulator {

struct Thread;  // one CUDA thread: a fiber (grid.h)

// Ends the launch with this text; kernel, block, thread and place are added. Outside a launch: throws std::logic_error.
[[noreturn]] void fail(Where where, const std::string& what);
// The running thread; `operation` is named when there is none.
Thread& self(const char* operation);
// Of the warp (the warpgroup) of the running thread: its thread in lane 0..31 (0..127).
Thread& warp_peer(int lane);
Thread& warpgroup_peer(int index);

// --- rendezvous -------------------------------------------------------------------------------------------------------------------------
// All 32 lanes come with a payload; the last one runs `body` on all of them, then all go on. Lanes that come from another place or with
// another operation (compared by text) are divergence. The payloads may live on the lanes' stacks. `body` may fail() but not wait.
// No ordering of memory follows from it (sync_warp gives that), as for __shfl_sync.
using WarpBody = void (*)(void* const (&payloads)[32]);
void warp_collective(const char* operation, Where where, void* payload, WarpBody body);
// The same for four consecutive warps, the first a multiple of four.
using WarpgroupBody = void (*)(void* const (&payloads)[128]);
void warpgroup_collective(const char* operation, Where where, void* payload, WarpgroupBody body);

// --- checks of memory -------------------------------------------------------------------------------------------------------------------
enum class Access : uint8_t { read, write };

// Fails unless [p, p + bytes) lies in one live allocation of the device and p is aligned.
void check_global(Access access, const void* p, size_t bytes, size_t alignment, Where where);
// An access of `by` to its block's shared memory: bounds, alignment, initialised (reads), no copy in flight, no race; then remembered for
// later checks. Accesses of the async proxy while an operation is in flight are made by the issue functions below, not here.
void check_shared(Thread& by, Access access, const void* p, size_t bytes, size_t alignment, Where where);
// Bounds and alignment alone.
void check_shared_bounds(const void* p, size_t bytes, size_t alignment, Where where);
// Offset of p in the running block's shared memory, and back (the address field of matrix descriptors holds the offset).
uint32_t shared_offset(const void* p, Where where);
std::byte* shared_pointer(uint32_t offset);

// --- asynchronous operations ------------------------------------------------------------------------------------------------------------
// Eager mode runs an operation when it is issued, lazy mode at the last moment at which something could depend on it, random mode at some
// time in between, from whatever fiber or from none. The shadow of shared memory treats it as in flight until the wait that completes it,
// in all of them. Checks of what it touches belong before the issue: `run` and `copy` move bytes and compute.

// Into shared memory, by the async proxy, completing `bytes` on a barrier. `to` and `b` are addresses in the running block and stand for
// the same places in block `rank` of the cluster (-1: this block); copy(to) gets the translated address. Call once per destination block.
void issue_bulk_load(void* to, int bytes, cuda::Barrier* b, int rank, std::function<void(std::byte* to)> copy, Where where);
// Out of shared memory, by the async proxy; a member of the thread's open bulk group (bulk_store_commit).
void issue_bulk_store(const void* from, int bytes, std::function<void(const std::byte* from)> copy, Where where);

struct SharedRange {
  const void* begin;
  size_t bytes;
};
// Inside the body of a warpgroup_collective: an operation of the warpgroup's open wgmma group that reads these ranges of shared memory
// through the async proxy. `run` computes and writes the destination registers.
void issue_wgmma(std::span<const SharedRange> reads, std::function<void()> run, Where where);
void commit_wgmma();               // closes the open group
void complete_wgmma(int pending);  // runs the oldest groups until at most `pending` are left; orders their reads before what follows
int wgmma_groups_in_flight();      // committed groups, plus one if the open group holds operations

// --- counters of the running launch (control.h) ----------------------------------------------------------------------------------------
LaunchStatistics& statistics();

}  // namespace lapidary::emulator
