// Asynchronous operations of threads and warpgroups: cp.async, bulk stores, wgmma groups. Bulk loads belong to their mbarrier
// (mbarrier.cc).
#include <algorithm>
#include <cstring>

#include "emulator/grid.h"
#include "emulator/settings.h"
#include "emulator/visit.h"

namespace lapidary::emulator {
namespace {

bool tracked() { return settings().checks == Checks::full; }

void count_in_flight(Block& block, int64_t bytes) {
  block.bytes_in_flight += bytes;
  int64_t& most = statistics().most_bytes_in_flight;
  most = std::max(most, block.bytes_in_flight);
}

void move_now(ThreadCopy& c) {
  if (c.done) return;
  if (c.valid) std::memcpy(c.to, c.from, static_cast<size_t>(c.valid));
  std::memset(c.to + c.valid, 0, static_cast<size_t>(c.bytes - c.valid));
  c.done = true;
}

void run_group(AsyncGroup& group) {
  for (auto& operation : group.operations) operation();
  group.operations.clear();
}

// Adds an operation to an open group; when it is to run now, all before it run first.
template <class Queue>
void add(Queue& queue, std::function<void()> run) {
  if (!grid().issue_now()) {
    queue.open.operations.push_back(std::move(run));
    return;
  }
  for (AsyncGroup& group : queue.groups) run_group(group);
  run_group(queue.open);
  run();
}

// The threads learn that `actor` has come to `clock`.
void teach(Block& block, int begin, int count, Actor actor, uint32_t clock) {
  if (!tracked()) return;
  Knowledge fact = Knowledge::nothing(block.cluster->clocks);
  fact.learn(actor, clock);
  Lesson lesson;
  lesson.set(std::move(fact));
  for (int i = begin; i < begin + count; ++i) lesson.teach(block.threads[i].known);
}

}  // namespace

// --- cp.async ---------------------------------------------------------------------------------------------------------------------------

void cp_async(void* to_shared, const void* from_global, int bytes, int valid_bytes, Where where) {
  Thread& t = self("copy_async");
  Grid& g = grid();
  g.touch(t);
  if ((bytes != 4 && bytes != 8 && bytes != 16) || valid_bytes < 0 || valid_bytes > bytes)
    fail(where, "copy_async of " + std::to_string(bytes) + " bytes");
  Block& block = *t.block;
  const auto size = static_cast<size_t>(bytes);
  check_range(block, to_shared, size, size, where);
  if (valid_bytes) check_global(Access::read, from_global, static_cast<size_t>(valid_bytes), size, where);
  const auto offset = static_cast<uint32_t>(static_cast<std::byte*>(to_shared) - block.smem);
  if (tracked()) require(block.shadow.begin_copy(offset, static_cast<uint32_t>(bytes), visitor(t, where)), block, true, where);
  g.statistics.shared_write_bytes += bytes;
  if (settings().count_requests) {
    block.requests.add(Requests::Kind::shared, place_of(where), t.index / 32, t.index % 32, offset, bytes, g.statistics);
    if (valid_bytes) {
      block.requests.add(Requests::Kind::global, place_of(where), t.index / 32, t.index % 32, reinterpret_cast<uintptr_t>(from_global),
                         bytes, g.statistics);
    }
  }
  count_in_flight(block, bytes);
  t.copies.push_back({static_cast<std::byte*>(to_shared), static_cast<const std::byte*>(from_global), bytes, valid_bytes, false});
  ++t.open_copies;
  if (g.issue_now()) move_now(t.copies.back());
}

void cp_async_commit() {
  Thread& t = self("copy_async_commit");
  t.copy_groups.push_back(t.open_copies);
  t.open_copies = 0;
}

void cp_async_wait(int pending) {
  Thread& t = self("copy_async_wait");
  const size_t groups = t.copy_groups.size(), keep = static_cast<size_t>(std::max(pending, 0));
  if (groups <= keep) return;
  size_t copies = 0;
  for (size_t i = 0; i < groups - keep; ++i) copies += t.copy_groups[i];
  Block& block = *t.block;
  for (size_t i = 0; i < copies; ++i) {
    ThreadCopy& c = t.copies[i];
    move_now(c);
    block.bytes_in_flight -= c.bytes;
    if (tracked()) block.shadow.end_copy(static_cast<uint32_t>(c.to - block.smem), static_cast<uint32_t>(c.bytes), t.actor, t.clock, true);
  }
  t.copies.erase(t.copies.begin(), t.copies.begin() + static_cast<std::ptrdiff_t>(copies));
  t.copy_groups.erase(t.copy_groups.begin(), t.copy_groups.begin() + static_cast<std::ptrdiff_t>(groups - keep));
}

// --- bulk stores ------------------------------------------------------------------------------------------------------------------------

void issue_bulk_store(const void* from, int bytes, std::function<void(const std::byte* from)> copy, Where where) {
  Thread& t = self("a bulk store");
  Block& block = *t.block;
  Grid& g = grid();
  t.where = where;
  check_range(block, from, static_cast<size_t>(bytes), 16, where);
  if (!t.stores) t.stores = std::make_unique<BulkStores>();
  BulkStores& s = *t.stores;
  if (s.actor == kNobody) s.actor = g.new_actor(*block.cluster, "the bulk stores of " + g.name(*block.cluster, t.actor));
  const auto* source = static_cast<const std::byte*>(from);
  if (tracked()) {
    const Conflict c = block.shadow.read(static_cast<uint32_t>(source - block.smem), static_cast<uint32_t>(bytes),
                                         async_visitor(t, s.actor, s.clock, where));
    require(c, block, false, where);
  }
  g.statistics.shared_read_bytes += bytes;
  ++s.open.issued;
  add(s, [copy = std::move(copy), source] { copy(source); });
}

void bulk_store_commit() {
  Thread& t = self("bulk_store_commit");
  if (!t.stores) t.stores = std::make_unique<BulkStores>();
  BulkStores& s = *t.stores;
  s.open.clock = s.clock++;
  s.groups.push_back(std::move(s.open));
  s.open = {};
}

void bulk_store_wait(int pending, bool, Where where) {
  Thread& t = self("bulk_store_wait");
  if (where.file) t.where = where;
  if (!t.stores) return;
  BulkStores& s = *t.stores;
  uint32_t done = 0;
  while (s.groups.size() > static_cast<size_t>(pending)) {
    run_group(s.groups.front());
    done = s.groups.front().clock;
    s.groups.pop_front();
  }
  if (done && s.actor != kNobody) teach(*t.block, t.index, 1, s.actor, done);
}

// --- wgmma ------------------------------------------------------------------------------------------------------------------------------

void issue_wgmma(std::span<const SharedRange> reads, std::function<void()> run, Where where) {
  Thread& t = self("wgmma");
  Block& block = *t.block;
  Grid& g = grid();
  Wgmma& w = block.wgmma[static_cast<size_t>(t.index / 128)];
  if (w.actor == kNobody) {
    w.actor = g.new_actor(*block.cluster, "wgmma of the warpgroup that begins at " + g.name(*block.cluster, warpgroup_peer(0).actor));
  }
  for (const SharedRange& r : reads) {
    check_range(block, r.begin, r.bytes, 1, where);
    g.statistics.shared_read_bytes += static_cast<int64_t>(r.bytes);
    if (!tracked()) continue;
    const auto offset = static_cast<uint32_t>(static_cast<const std::byte*>(r.begin) - block.smem);
    // Every warp has to know of the writes. Mostly they know the same, and one look is enough.
    const Thread* seen = nullptr;
    for (int warp = 0; warp < 4; ++warp) {
      const Thread& leader = warpgroup_peer(32 * warp);
      if (seen && seen->known.same(leader.known) && seen->known_at_fence.same(leader.known_at_fence)) continue;
      seen = &leader;
      require(block.shadow.read(offset, static_cast<uint32_t>(r.bytes), async_visitor(leader, w.actor, w.clock, where)), block, false,
              where);
    }
  }
  ++w.open.issued;
  add(w, std::move(run));
}

void commit_wgmma() {
  Thread& t = self("wgmma_commit");
  Wgmma& w = t.block->wgmma[static_cast<size_t>(t.index / 128)];
  w.open.clock = w.clock++;
  w.groups.push_back(std::move(w.open));
  w.open = {};
}

void complete_wgmma(int pending) {
  Thread& t = self("wgmma_wait");
  Wgmma& w = t.block->wgmma[static_cast<size_t>(t.index / 128)];
  uint32_t done = 0;
  while (w.groups.size() > static_cast<size_t>(pending)) {
    run_group(w.groups.front());
    done = w.groups.front().clock;
    w.groups.pop_front();
  }
  if (done && w.actor != kNobody) teach(*t.block, t.index / 128 * 128, 128, w.actor, done);
}

int wgmma_groups_in_flight() {
  const Thread& t = self("wgmma");
  const Wgmma& w = t.block->wgmma[static_cast<size_t>(t.index / 128)];
  return static_cast<int>(w.groups.size()) + (w.open.issued > 0);
}

// --- the end ----------------------------------------------------------------------------------------------------------------------------

void check_ended(Thread& t) {
  if (!t.copies.empty()) fail(t.where, "missing wait: the thread ends with " + std::to_string(t.copies.size()) + " copy_async in flight");
  if (!t.stores) return;
  const auto unread = std::count_if(t.stores->groups.begin(), t.stores->groups.end(), [](const AsyncGroup& g) { return g.issued > 0; });
  if (unread || t.stores->open.issued) {
    fail(t.where, "missing wait: the thread ends with bulk stores that may still read shared memory (bulk_store_wait_read)");
  }
}

void check_ended(Block& block) {
  for (const Wgmma& w : block.wgmma) {
    const bool busy = w.open.issued > 0 || std::any_of(w.groups.begin(), w.groups.end(), [](const AsyncGroup& g) { return g.issued > 0; });
    if (busy) fail({}, "missing wait: the block ends with wgmma in flight");
  }
  for (const MBarrier& b : block.mbarriers) {
    if (!b.loads.empty() || b.loaded > b.seen) {
      fail({}, "missing wait: the block ends with bulk loads in flight on the mbarrier at offset " + std::to_string(b.offset));
    }
  }
}

}  // namespace lapidary::emulator
