// mbarriers, and the bulk loads that complete on them.
#include <algorithm>

#include "emulator/grid.h"
#include "emulator/settings.h"
#include "emulator/visit.h"

namespace lapidary::emulator {
namespace {

bool tracked() { return settings().checks == Checks::full; }

std::string name(const MBarrier& b) { return "the mbarrier at offset " + std::to_string(b.offset); }

// The block of the cluster with this rank (-1: the thread's own), still there.
Block& block_of(const Thread& t, int rank, Where where) {
  Cluster& cluster = *t.block->cluster;
  if (rank < 0) return *t.block;
  if (rank >= static_cast<int>(cluster.blocks.size()))
    fail(where, "block " + std::to_string(rank) + " of a cluster of " + std::to_string(cluster.blocks.size()));
  Block& block = *cluster.blocks[static_cast<size_t>(rank)];
  if (block.live == 0) fail(where, "block " + std::to_string(rank) + " of the cluster has ended, its shared memory is gone");
  return block;
}

// `b` is an address in the thread's own block that stands for the same place in `block`.
MBarrier& find(const Thread& t, Block& block, const cuda::Barrier* b, Where where) {
  check_range(*t.block, b, 8, 8, where);
  const auto offset = static_cast<uint32_t>(reinterpret_cast<const std::byte*>(b) - t.block->smem);
  for (MBarrier& m : block.mbarriers) {
    if (m.offset != offset) continue;
    if (tracked() && m.initialised_by != t.actor && t.known.of(m.initialised_by) < m.initialised_at) {
      fail(where,
           "race: " + name(m) + " is used without a barrier after its initialisation by " + grid().name(*block.cluster, m.initialised_by));
    }
    if (&block != t.block && !m.fenced)
      fail(where, name(m) + " is used by another block without fence_barrier_init after its initialisation");
    return m;
  }
  fail(where, "the mbarrier at offset " + std::to_string(offset) + " has not been initialised");
}

// If all arrivals and bytes are in: the next phase.
void advance(MBarrier& m) {
  if (m.pending > 0 || m.bytes != 0) return;
  if (m.not_resumed > 0) {
    fail({},
         name(m) +
             " completes a phase before a thread that waited for the one before has gone on: the parity it waits for may come again first");
  }
  ++m.phase;
  m.pending = m.expected;
  ++m.clock;
  if (tracked()) {
    m.meeting.note(m.actor, m.clock);
    m.lesson.set(m.meeting.take());
  }
  m.not_resumed = static_cast<int>(m.waiting.size());
  if (m.not_resumed) m.seen = m.phase;
  for (Thread* t : m.waiting) {
    if (tracked()) m.lesson.teach(t->known);
    grid().wake(*t);
  }
  m.waiting.clear();
  grid().progress();
}

void complete_load(MBarrier& m, BulkLoad load) {
  load.copy(load.to);
  Block& block = *m.block;
  if (tracked()) {
    block.shadow.end_copy(static_cast<uint32_t>(load.to - block.smem), static_cast<uint32_t>(load.bytes), m.actor, m.clock + 1, false);
  }
  block.bytes_in_flight -= load.bytes;
  m.bytes -= load.bytes;
  m.loaded = m.phase + 1;
  advance(m);
}

}  // namespace

void complete_loads(MBarrier& m) {
  std::vector<BulkLoad> loads = std::move(m.loads);
  m.loads.clear();
  for (BulkLoad& load : loads) complete_load(m, std::move(load));
}

void mbarrier_init(cuda::Barrier* b, int arrivals, Where where) {
  Thread& t = self("barrier_init");
  Block& block = *t.block;
  check_range(block, b, 8, 8, where);
  if (arrivals < 1 || arrivals >= 1 << 20) fail(where, "an mbarrier of " + std::to_string(arrivals) + " arrivals");
  const auto offset = static_cast<uint32_t>(reinterpret_cast<std::byte*>(b) - block.smem);
  for (const MBarrier& m : block.mbarriers) {
    if (m.offset == offset) fail(where, name(m) + " is initialised twice");
  }
  if (tracked()) {
    require(block.shadow.write(offset, 8, visitor(t, where)), block, true, where);
    block.shadow.mark_barrier(offset, true);
  }
  MBarrier& m = block.mbarriers.emplace_back();
  m.block = &block;
  m.offset = offset;
  m.expected = m.pending = arrivals;
  m.actor = grid().new_actor(*block.cluster, "the bulk loads of " + name(m));
  m.initialised_by = t.actor;
  m.initialised_at = t.clock;
}

void fence_barrier_init() {
  const Thread& t = self("fence_barrier_init");
  for (MBarrier& m : t.block->mbarriers) m.fenced |= m.initialised_by == t.actor;
}

void fence_proxy_async() {
  Thread& t = self("fence_proxy_async");
  fence_barrier_init();
  if (!tracked()) return;
  t.block->cluster->fenced[t.actor] = t.clock++;
  t.known_at_fence = t.known;
}

void mbarrier_arrive(cuda::Barrier* b, int expect_bytes, int rank, Where where) {
  Thread& t = self("barrier_arrive");
  t.where = where;
  MBarrier& m = find(t, block_of(t, rank, where), b, where);
  if (m.pending == 0) fail(where, name(m) + " gets more than its " + std::to_string(m.expected) + " arrivals in a phase");
  if (expect_bytes < 0 || m.bytes + expect_bytes >= 1 << 20)
    fail(where, name(m) + " expects " + std::to_string(m.bytes + expect_bytes) + " bytes, beyond its limit");
  if (tracked()) m.meeting.add(t.known, t.actor, t.clock++);
  m.bytes += expect_bytes;
  --m.pending;
  grid().progress();
  advance(m);
}

void mbarrier_wait(cuda::Barrier* b, uint32_t parity, Where where) {
  Thread& t = self("barrier_wait");
  t.where = where;
  MBarrier& m = find(t, *t.block, b, where);
  if (parity > 1) fail(where, "parity " + std::to_string(parity));
  if ((m.phase & 1) == parity) {
    m.waiting.push_back(&t);
    grid().wait(t, "the mbarrier at offset", static_cast<int>(m.offset), where);
    --m.not_resumed;
  } else {
    if (tracked()) m.lesson.teach(t.known);
    m.seen = m.phase;
    grid().touch(t);
  }
}

void issue_bulk_load(void* to, int bytes, cuda::Barrier* b, int rank, std::function<void(std::byte* to)> copy, Where where) {
  Thread& t = self("a bulk load");
  Grid& g = grid();
  t.where = where;
  Block& block = block_of(t, rank, where);
  check_range(*t.block, to, static_cast<size_t>(bytes), 16, where);
  if (bytes <= 0 || bytes % 16) fail(where, "a bulk load of " + std::to_string(bytes) + " bytes: a multiple of 16 is needed");
  MBarrier& m = find(t, block, b, where);
  if (!m.fenced) fail(where, name(m) + " is used by a bulk load without fence_barrier_init after its initialisation");
  const auto offset = static_cast<uint32_t>(static_cast<std::byte*>(to) - t.block->smem);
  if (tracked()) {
    require(block.shadow.begin_copy(offset, static_cast<uint32_t>(bytes), async_visitor(t, t.actor, t.clock, where)), block, true, where);
  }
  g.statistics.shared_write_bytes += bytes;
  block.bytes_in_flight += bytes;
  g.statistics.most_bytes_in_flight = std::max(g.statistics.most_bytes_in_flight, block.bytes_in_flight);
  BulkLoad load = {block.smem + offset, bytes, std::move(copy), where};
  if (g.issue_now()) {
    complete_load(m, std::move(load));
  } else {
    m.loads.push_back(std::move(load));
    g.begin_loading(m);
  }
}

}  // namespace lapidary::emulator
