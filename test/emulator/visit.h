// How threads and asynchronous operations present themselves to the shadow of shared memory.
#pragma once

#include "emulator/grid.h"

namespace lapidary::emulator {

Visitor visitor(const Thread& t, Where where);
// `actor`, at its clock, through the async proxy, with what the issuing thread knows.
Visitor async_visitor(const Thread& t, Actor actor, uint32_t clock, Where where);
// Fails with the conflict's text, if there is one.
void require(const Conflict& c, const Block& block, bool write, Where where);
// Bounds and alignment in a block's shared memory.
void check_range(const Block& block, const void* p, size_t bytes, size_t alignment, Where where);
// check_shared for another block of the cluster.
void check_block_shared(Thread& by, Block& block, Access access, const void* p, size_t bytes, size_t alignment, Where where);

}  // namespace lapidary::emulator
