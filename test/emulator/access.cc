// Accesses of threads to global and shared memory, and the checks of both.
#include <cstring>

#include "emulator/global_memory.h"
#include "emulator/grid.h"
#include "emulator/settings.h"
#include "emulator/visit.h"

namespace lapidary::emulator {
namespace {

void copy_bytes(void* to, const void* from, size_t bytes) {
  switch (bytes) {
    case 16:
      std::memcpy(to, from, 16);
      break;
    case 8:
      std::memcpy(to, from, 8);
      break;
    case 4:
      std::memcpy(to, from, 4);
      break;
    case 2:
      std::memcpy(to, from, 2);
      break;
    case 1:
      std::memcpy(to, from, 1);
      break;
    default:
      std::memcpy(to, from, bytes);
  }
}

bool aligned(const void* p, size_t alignment) { return (reinterpret_cast<uintptr_t>(p) & (alignment - 1)) == 0; }

[[noreturn]] void fail_alignment(const char* what, const void* p, size_t bytes, size_t alignment, Where where) {
  fail(where, std::string(what) + " of " + std::to_string(bytes) + " bytes is not aligned to " + std::to_string(alignment) +
                  ": the address is " + std::to_string(reinterpret_cast<uintptr_t>(p) % alignment) + " past a multiple of it");
}

// A kernel that may overlap the one before it must wait before it touches what that one writes.
void check_waited(const Thread& t, Access access, const void* p, size_t bytes, Where where) {
  if (t.waited_for_previous) return;
  for (const auto& [actor, clock] : t.block->waited_for_previous) {
    if (t.known.of(actor) >= clock) return;
  }
  if (access == Access::write) fail(where, "a dependent launch writes global memory before it waits for the grids before it");
  if (written_by_previous(p, bytes)) fail(where, "a dependent launch reads what a grid before it wrote, and has not waited for it");
}

void note_write(const void* p, size_t bytes) {
  Grid& g = grid();
  const auto first = reinterpret_cast<uintptr_t>(p) / 128, last = (reinterpret_cast<uintptr_t>(p) + bytes - 1) / 128;
  for (uintptr_t line = first; line <= last; ++line) {
    if (line == g.last_written) continue;
    g.written.insert(line);
    g.last_written = line;
  }
}

// Bounds, alignment, order after the grids before; counts.
void check_device(Access access, const void* p, size_t bytes, size_t alignment, Where where) {
  if (!is_device_range(p, bytes)) [[unlikely]] {
    fail(where, std::string(access == Access::read ? "a read" : "a write") + " of " + std::to_string(bytes) +
                    " bytes of global memory: " + judge_device_range(p, bytes));
  }
  if (!aligned(p, alignment)) [[unlikely]]
    fail_alignment("an access to global memory", p, bytes, alignment, where);
  Grid& g = grid();
  if (g.dependent && running_thread) check_waited(*running_thread, access, p, bytes, where);
  if (access == Access::read) {
    g.statistics.global_read_bytes += static_cast<int64_t>(bytes);
  } else {
    g.statistics.global_write_bytes += static_cast<int64_t>(bytes);
    g.progress();
    note_write(p, bytes);
  }
}

// Blocks come in any order, so what one writes another may neither read nor overwrite with something else, unless it has looked at a flag
// or counter. `value`: what is to be written, or null where that is not known yet.
void check_other_blocks(Access access, const void* p, size_t bytes, const void* value, Where where) {
  Grid& g = grid();
  if (settings().checks == Checks::bounds || !running_thread || !bytes) return;
  const Cluster& cluster = *running_thread->block->cluster;
  if (!cluster.synchronised) {
    const int64_t other = g.global.other_writer(p, bytes, cluster.place);
    if (other != GlobalShadow::kNone && (access == Access::read || (value && std::memcmp(p, value, bytes) != 0))) {
      fail(where, "race between blocks: " + std::string(access == Access::read ? "a read" : "a write") + " of " + std::to_string(bytes) +
                      " bytes of global memory that " + g.block_at(other) +
                      " of the same grid wrote, without a flag or counter between them");
    }
  }
  if (access == Access::write) g.global.note_write(p, bytes, cluster.place);
}

}  // namespace

void check_global(Access access, const void* p, size_t bytes, size_t alignment, Where where) {
  check_device(access, p, bytes, alignment, where);
  check_other_blocks(access, p, bytes, nullptr, where);
}

void check_range(const Block& block, const void* p, size_t bytes, size_t alignment, Where where) {
  const auto offset = static_cast<size_t>(static_cast<const std::byte*>(p) - block.smem);
  if (offset > block.smem_bytes || bytes > block.smem_bytes - offset) [[unlikely]] {
    const auto signed_offset = static_cast<const std::byte*>(p) - block.smem;
    if (signed_offset < -(1 << 24) || signed_offset > (1 << 24))
      fail(where, "an access to shared memory at an address that is not in the block's");
    fail(where, "out of bounds: bytes " + std::to_string(signed_offset) + ".." +
                    std::to_string(signed_offset + static_cast<std::ptrdiff_t>(bytes) - 1) + " of the " + std::to_string(block.smem_bytes) +
                    " bytes of shared memory");
  }
  if (!aligned(p, alignment)) [[unlikely]]
    fail_alignment("an access to shared memory", p, bytes, alignment, where);
}

Visitor visitor(const Thread& t, Where where) { return {t.actor, t.clock, &t.known, place_of(where.file ? where : t.where)}; }

Visitor async_visitor(const Thread& t, Actor actor, uint32_t clock, Where where) {
  return {actor, clock, &t.known, place_of(where), t.block->cluster->fenced.data(), &t.known_at_fence};
}

void require(const Conflict& c, const Block& block, bool write, Where where) {
  if (!c) [[likely]]
    return;
  const std::string other = grid().name(*block.cluster, c.other);
  const std::string before = c.other_place ? " at " + text_of(where_of(c.other_place)) : "";
  const std::string byte = std::string(write ? "a write" : "a read") + " of byte " + std::to_string(c.offset) + " of shared memory";
  switch (c.kind) {
    case Conflict::Kind::uninitialised:
      fail(where, "uninitialised: " + byte + ", which nobody has written");
    case Conflict::Kind::in_flight:
      fail(where, "missing wait: " + byte + " while a copy into it, started by " + other + before + ", is in flight");
    case Conflict::Kind::after_write:
      fail(where, "race: " + byte + " is not ordered after the write by " + other + before);
    case Conflict::Kind::after_read:
      fail(where, "race: " + byte + " is not ordered after the read by " + other + before);
    case Conflict::Kind::not_fenced:
      fail(where,
           "missing proxy fence: " + byte + " by the async proxy after the write by " + other + before + " without fence_proxy_async");
    case Conflict::Kind::barrier:
      fail(where, byte + ", which belongs to an mbarrier");
    case Conflict::Kind::none:
      break;
  }
}

void check_shared_bounds(const void* p, size_t bytes, size_t alignment, Where where) {
  check_range(*self("shared memory").block, p, bytes, alignment, where);
}

void check_shared(Thread& by, Access access, const void* p, size_t bytes, size_t alignment, Where where) {
  check_block_shared(by, *by.block, access, p, bytes, alignment, where);
}

void check_block_shared(Thread& by, Block& block, Access access, const void* p, size_t bytes, size_t alignment, Where where) {
  check_range(block, p, bytes, alignment, where);
  LaunchStatistics& s = grid().statistics;
  (access == Access::read ? s.shared_read_bytes : s.shared_write_bytes) += static_cast<int64_t>(bytes);
  if (settings().checks == Checks::bounds || !bytes) return;
  const auto offset = static_cast<uint32_t>(static_cast<const std::byte*>(p) - block.smem);
  const Visitor v = visitor(by, where);
  const Conflict c = access == Access::read ? block.shadow.read(offset, static_cast<uint32_t>(bytes), v)
                                            : block.shadow.write(offset, static_cast<uint32_t>(bytes), v);
  require(c, block, access == Access::write, where);
}

uint32_t shared_offset(const void* p, Where where) {
  const Block& block = *self("shared memory").block;
  check_range(block, p, 0, 1, where);
  return static_cast<uint32_t>(static_cast<const std::byte*>(p) - block.smem);
}

std::byte* shared_pointer(uint32_t offset) { return self("shared memory").block->smem + offset; }

namespace {

void count_request(const Thread& t, Requests::Kind kind, const void* p, size_t bytes, Where where) {
  if (!settings().count_requests) [[likely]]
    return;
  const uint64_t address =
      reinterpret_cast<uintptr_t>(p) - (kind == Requests::Kind::shared ? reinterpret_cast<uintptr_t>(t.block->smem) : 0);
  t.block->requests.add(kind, place_of(where), t.index / 32, t.index % 32, address, static_cast<int>(bytes), grid().statistics);
}

}  // namespace

// --- what threads do --------------------------------------------------------------------------------------------------------------------

int thread_index() { return self("thread_index").index; }
int block_threads() { return self("block_threads").block ? grid().shape.threads : 0; }
int block_index(int axis) { return static_cast<int>(self("block_index").block->index[axis]); }
int grid_size(int axis) {
  (void)self("grid_size");
  return static_cast<int>(grid().shape.grid[axis]);
}

void global_read(void* to, const void* from, size_t bytes, size_t alignment, Where where) {
  Thread& t = self("load_global");
  grid().touch(t);
  check_global(Access::read, from, bytes, alignment, where);
  count_request(t, Requests::Kind::global, from, bytes, where);
  copy_bytes(to, from, bytes);
}

void global_read_readonly(void* to, const void* from, size_t bytes, size_t alignment, Where where) {
  global_read(to, from, bytes, alignment, where);
  if (settings().checks == Checks::full && grid().global.written(from, bytes)) {
    fail(where, "load_readonly or load_streaming of memory that the same launch writes");
  }
}

void global_read_coherent(void* to, const void* from, size_t bytes, size_t alignment, Where where) {
  Thread& t = self("load_coherent");
  if (where.file) t.where = where;
  t.block->cluster->synchronised = true;
  grid().look(t, from);
  check_device(Access::read, from, bytes, alignment, where);
  copy_bytes(to, from, bytes);
}

void global_write(void* to, const void* from, size_t bytes, size_t alignment, Where where) {
  Thread& t = self("store_global");
  grid().touch(t);
  check_device(Access::write, to, bytes, alignment, where);
  check_other_blocks(Access::write, to, bytes, from, where);
  count_request(t, Requests::Kind::global, to, bytes, where);
  copy_bytes(to, from, bytes);
}

void shared_read(void* to, const void* from, size_t bytes, size_t alignment, Where where) {
  Thread& t = self("load_shared");
  grid().touch(t);
  check_shared(t, Access::read, from, bytes, alignment, where);
  count_request(t, Requests::Kind::shared, from, bytes, where);
  copy_bytes(to, from, bytes);
}

void shared_write(void* to, const void* from, size_t bytes, size_t alignment, Where where) {
  Thread& t = self("store_shared");
  grid().touch(t);
  check_shared(t, Access::write, to, bytes, alignment, where);
  count_request(t, Requests::Kind::shared, to, bytes, where);
  copy_bytes(to, from, bytes);
}

namespace {

template <typename T, class F>
T atomic(T* p, bool shared, Where where, F update) {
  Thread& t = self("an atomic");
  if (where.file) t.where = where;
  grid().look(t, p);
  if (shared) {
    check_range(*t.block, p, sizeof(T), sizeof(T), where);
    if (settings().checks == Checks::full) {
      const auto offset = static_cast<uint32_t>(reinterpret_cast<std::byte*>(p) - t.block->smem);
      require(t.block->shadow.atomic(offset, sizeof(T), visitor(t, where)), *t.block, true, where);
    }
  } else {
    t.block->cluster->synchronised = true;
    check_device(Access::read, p, sizeof(T), sizeof(T), where);
  }
  T old;
  std::memcpy(&old, p, sizeof(T));
  const T now = update(old);
  if (std::memcmp(&old, &now, sizeof(T)) != 0) {
    if (!shared) check_device(Access::write, p, sizeof(T), sizeof(T), where);
    grid().progress();
    std::memcpy(p, &now, sizeof(T));
  }
  return old;
}

}  // namespace

int atomic_add(int* p, int v, bool shared, Where where) {
  return atomic(p, shared, where, [v](int old) { return static_cast<int>(static_cast<uint32_t>(old) + static_cast<uint32_t>(v)); });
}
uint32_t atomic_add(uint32_t* p, uint32_t v, bool shared, Where where) {
  return atomic(p, shared, where, [v](uint32_t old) { return old + v; });
}
float atomic_add(float* p, float v, bool shared, Where where) {
  return atomic(p, shared, where, [v](float old) { return old + v; });
}
uint64_t atomic_max(uint64_t* p, uint64_t v, bool shared, Where where) {
  return atomic(p, shared, where, [v](uint64_t old) { return old > v ? old : v; });
}

// Memory is always up to date here; the order it gives between blocks is checked by the schedules alone.
void fence(bool) { (void)self("a fence"); }

}  // namespace lapidary::emulator
