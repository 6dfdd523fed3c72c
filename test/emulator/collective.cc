// Rendezvous of warps and warpgroups, and the barriers of a block.
#include <cstring>

#include "emulator/grid.h"
#include "emulator/settings.h"

namespace lapidary::emulator {
namespace {

std::string lane_text(const Thread& t) { return "thread " + std::to_string(t.index); }

// Comes to `r` as member `index` of `count`; true for the last one, who finds all payloads there.
bool arrive(Rendezvous& r, Thread& t, int index, int count, const char* operation, Where where, void* payload) {
  if (r.ended) fail(where, std::string("divergence: the thread comes to ") + operation + " though another that it has to meet has ended");
  if (r.arrived == 0) {
    r.operation = operation;
    r.where = where;
    r.first = t.index;
  } else if (r.where.line != where.line || (r.where.file != where.file && std::strcmp(r.where.file, where.file) != 0) ||
             (r.operation != operation && std::strcmp(r.operation, operation) != 0)) {
    fail(where, std::string("divergence: ") + lane_text(t) + " comes to " + operation + " while thread " + std::to_string(r.first) +
                    " is in " + r.operation + " at " + text_of(r.where));
  }
  r.payloads[index] = payload;
  t.where = where;
  return ++r.arrived == count;
}

// Lets the threads of [begin, begin + count) go on, all but the one that runs.
void release(Block& block, int begin, int count, const Thread& running) {
  for (int i = begin; i < begin + count; ++i) {
    if (i != running.index) grid().wake(block.threads[i]);
  }
}

int warp_begin(const Thread& t) { return t.index / 32 * 32; }
int warpgroup_begin(const Thread& t) { return t.index / 128 * 128; }

}  // namespace

Thread& warp_peer(int lane) { return running_thread->block->threads[warp_begin(*running_thread) + lane]; }
Thread& warpgroup_peer(int index) { return running_thread->block->threads[warpgroup_begin(*running_thread) + index]; }

void warp_collective(const char* operation, Where where, void* payload, WarpBody body) {
  Thread& t = self(operation);
  Rendezvous& r = t.block->warps[t.index / 32];
  if (!arrive(r, t, t.index % 32, 32, operation, where, payload)) {
    grid().wait(t, operation, -1, where);
    return;
  }
  body(reinterpret_cast<void* const(&)[32]>(r.payloads));
  r.arrived = 0;
  release(*t.block, warp_begin(t), 32, t);
}

void warpgroup_collective(const char* operation, Where where, void* payload, WarpgroupBody body) {
  Thread& t = self(operation);
  if (warpgroup_begin(t) + 128 > grid().shape.threads) fail(where, std::string(operation) + " by a warp outside a group of four");
  Rendezvous& r = t.block->warpgroups[t.index / 128];
  if (!arrive(r, t, t.index % 128, 128, operation, where, payload)) {
    grid().wait(t, operation, -1, where);
    return;
  }
  body(r.payloads);
  r.arrived = 0;
  release(*t.block, warpgroup_begin(t), 128, t);
}

namespace {
struct ShufflePayload {
  void* to;
  const void* from;
  size_t bytes;
  int from_lane;
};
struct BallotPayload {
  bool predicate;
  uint32_t result;
};
}  // namespace

void shuffle(void* to, const void* from, size_t bytes, int from_lane, Where where) {
  ShufflePayload mine = {to, from, bytes, from_lane};
  if (from_lane < 0 || from_lane > 31) fail(where, "shuffle from lane " + std::to_string(from_lane));
  warp_collective("shuffle", where, &mine, [](void* const(&payloads)[32]) {
    // Copied out first: `to` of one lane may be `from` of itself.
    alignas(16) std::byte values[32][64];
    for (int i = 0; i < 32; ++i) {
      const auto& p = *static_cast<const ShufflePayload*>(payloads[i]);
      if (p.bytes > 64 || p.bytes != static_cast<const ShufflePayload*>(payloads[0])->bytes)
        fail({}, "shuffle of values of different sizes");
      std::memcpy(values[i], p.from, p.bytes);
    }
    for (int i = 0; i < 32; ++i) {
      const auto& p = *static_cast<const ShufflePayload*>(payloads[i]);
      std::memcpy(p.to, values[p.from_lane], p.bytes);
    }
  });
}

uint32_t ballot(bool predicate, Where where) {
  BallotPayload mine = {predicate, 0};
  warp_collective("ballot", where, &mine, [](void* const(&payloads)[32]) {
    uint32_t mask = 0;
    for (int i = 0; i < 32; ++i) mask |= static_cast<uint32_t>(static_cast<const BallotPayload*>(payloads[i])->predicate) << i;
    for (void* p : payloads) static_cast<BallotPayload*>(p)->result = mask;
  });
  return mine.result;
}

void sync_warp(Where where) {
  warp_collective("sync_warp", where, nullptr, [](void* const(&)[32]) {
    if (settings().checks == Checks::bounds) return;
    Meeting meeting;
    for (int i = 0; i < 32; ++i) {
      Thread& t = warp_peer(i);
      meeting.add(t.known, t.actor, t.clock++);
    }
    const Knowledge all = meeting.take();
    for (int i = 0; i < 32; ++i) warp_peer(i).known = all;
  });
}

void barrier(int id, int threads, bool wait, Where where) {
  Thread& t = self("a barrier");
  Block& block = *t.block;
  const int block_threads = grid().shape.threads;
  const auto name = [id] { return id == 0 ? std::string("the block's barrier") : "barrier " + std::to_string(id); };
  if (id < 0 || id > 15) fail(where, name() + " does not exist: barriers are 0..15");
  if (threads <= 0 || threads % 32 || threads > block_threads) {
    fail(where, name() + " among " + std::to_string(threads) + " threads: whole warps of the block are needed");
  }
  NamedBarrier& b = block.barriers[static_cast<size_t>(id)];
  if (id == 0 && block.first_exited >= 0) {
    fail(where, "divergence: the thread comes to " + name() + " though thread " + std::to_string(block.first_exited) + " has ended");
  }
  if (b.arrived == 0) {
    b.expected = threads;
    b.where = where;
    b.first = t.index;
  } else if (b.expected != threads) {
    fail(where, name() + " among " + std::to_string(threads) + " threads, but thread " + std::to_string(b.first) + " came to it among " +
                    std::to_string(b.expected) + " at " + text_of(b.where));
  } else if (id == 0 && (b.where.line != where.line || std::strcmp(b.where.file, where.file) != 0)) {
    fail(where, "divergence: the thread comes to the block's barrier here, thread " + std::to_string(b.first) + " at " + text_of(b.where));
  }
  if (t.barrier_phase[id] == b.phase + 1) fail(where, "the thread comes to " + name() + " twice before the others have come once");
  t.barrier_phase[id] = b.phase + 1;
  if (settings().checks == Checks::full) b.meeting.add(t.known, t.actor, t.clock++);
  ++b.arrived;
  grid().progress();
  if (b.arrived < b.expected) {
    if (wait) {
      b.waiting.push_back(&t);
      grid().wait(t, "barrier", id, where);
    } else {
      t.where = where;
    }
    return;
  }
  t.where = where;
  if (settings().checks == Checks::full) {
    const Knowledge all = b.meeting.take();
    for (Thread* other : b.waiting) other->known = all;
    if (wait) t.known = all;
  }
  for (Thread* other : b.waiting) grid().wake(*other);
  b.waiting.clear();
  b.arrived = 0;
  ++b.phase;
}

}  // namespace lapidary::emulator
