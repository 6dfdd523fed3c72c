// Clusters: their barrier and access to each other's shared memory; dependent launches.
#include <cstring>

#include "emulator/grid.h"
#include "emulator/settings.h"
#include "emulator/visit.h"

namespace lapidary::emulator {

int cluster_rank() { return self("cluster_rank").block->rank; }
int cluster_size() {
  (void)self("cluster_size");
  return grid().shape.cluster;
}

void cluster_arrive(Where where) {
  Thread& t = self("cluster_arrive");
  Cluster& c = *t.block->cluster;
  if (t.cluster_arrivals > c.phase) fail(where, "the thread comes to the cluster's barrier twice without waiting");
  t.where = where;
  ++t.cluster_arrivals;
  if (settings().checks == Checks::full) c.meeting.add(t.known, t.actor, t.clock++);
  grid().progress();
  if (++c.arrived < grid().shape.cluster * grid().shape.threads) return;
  c.arrived = 0;
  ++c.phase;
  if (settings().checks == Checks::full) c.lesson.set(c.meeting.take());
  for (Thread* other : c.waiting) {
    c.lesson.teach(other->known);
    grid().wake(*other);
  }
  c.waiting.clear();
}

void cluster_wait(Where where) {
  Thread& t = self("cluster_wait");
  Cluster& c = *t.block->cluster;
  if (t.cluster_arrivals == 0 || t.cluster_waits == t.cluster_arrivals) fail(where, "cluster_wait without cluster_arrive before it");
  ++t.cluster_waits;
  if (t.cluster_arrivals > c.phase) {
    c.waiting.push_back(&t);
    grid().wait(t, "the cluster's barrier", -1, where);
  } else {
    t.where = where;
    c.lesson.teach(t.known);
  }
}

namespace {

// The block with this rank, and the address in it that `p` of the running block stands for.
std::byte* remote(Thread& t, const void* p, size_t bytes, int rank, Access access, Where where) {
  Cluster& c = *t.block->cluster;
  grid().touch(t);
  if (rank < 0 || rank >= grid().shape.cluster)
    fail(where, "block " + std::to_string(rank) + " of a cluster of " + std::to_string(grid().shape.cluster));
  Block& block = *c.blocks[static_cast<size_t>(rank)];
  if (&block != t.block) {
    if (t.cluster_waits == 0)
      fail(where, "another block's shared memory is used before a barrier of the cluster has shown that the block runs");
    if (block.live == 0) fail(where, "block " + std::to_string(rank) + " of the cluster has ended, its shared memory is gone");
  }
  check_range(*t.block, p, bytes, 1, where);
  std::byte* there = block.smem + (static_cast<const std::byte*>(p) - t.block->smem);
  check_block_shared(t, block, access, there, bytes, bytes & (~bytes + 1), where);
  return there;
}

}  // namespace

void remote_read(void* to, const void* from, size_t bytes, int rank, Where where) {
  std::memcpy(to, remote(self("load_remote"), from, bytes, rank, Access::read, where), bytes);
}

void remote_write(void* to, const void* from, size_t bytes, int rank, Where where) {
  std::memcpy(remote(self("store_remote"), to, bytes, rank, Access::write, where), from, bytes);
}

void grid_dependency_wait() {
  Thread& t = self("wait_for_previous_grids");
  if (!grid().dependent || t.waited_for_previous) return;
  t.waited_for_previous = true;
  t.block->waited_for_previous.emplace_back(t.actor, ++t.clock);
}

void grid_dependency_launch() { (void)self("allow_next_grid"); }

}  // namespace lapidary::emulator
