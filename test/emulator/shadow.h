// The shadow of a block's shared memory: of every byte who wrote it last, who has read it since, whether it was ever written and whether a
// copy into it is in flight. Answers with a conflict instead of failing, so that it knows nothing of threads but their clocks.
//
// Bytes with one history share a cell: 16 aligned bytes, until an access divides them into words or bytes; a write of all 16 joins them
// again.
#pragma once

#include <unordered_map>
#include <vector>

#include "emulator/clocks.h"
#include "emulator/device.h"

namespace lapidary::emulator {

// A kernel line as a number; 0 is an unknown place.
using Place = uint32_t;
Place place_of(Where where);
Where where_of(Place place);

// Who makes an access.
struct Visitor {
  Actor actor;
  uint32_t clock;
  const Knowledge* known;
  Place place;
  // Set for accesses of the async proxy: the clock of every actor at its last proxy fence, and what the issuing thread knew at its own.
  const uint32_t* fenced = nullptr;
  const Knowledge* known_at_fence = nullptr;
};

struct Conflict {
  enum class Kind : uint8_t { none, uninitialised, in_flight, after_write, after_read, not_fenced, barrier };
  Kind kind = Kind::none;
  uint32_t offset = 0;  // of the byte
  Actor other = kNobody;
  Place other_place = 0;
  explicit operator bool() const { return kind != Kind::none; }
};

class Shadow {
 public:
  // Nothing written, nobody knows anything.
  void reset(size_t bytes);

  Conflict read(uint32_t offset, uint32_t bytes, const Visitor& by);
  Conflict write(uint32_t offset, uint32_t bytes, const Visitor& by);
  // Atomics are ordered among themselves.
  Conflict atomic(uint32_t offset, uint32_t bytes, const Visitor& by);
  // A copy into these bytes starts: as a write, and until end_copy nobody may touch them.
  Conflict begin_copy(uint32_t offset, uint32_t bytes, const Visitor& by);
  // The copy counts as a write of this actor at this clock. `generic`: of the generic proxy.
  void end_copy(uint32_t offset, uint32_t bytes, Actor actor, uint32_t clock, bool generic);
  // The bytes hold an mbarrier from now on (or no more): plain accesses conflict.
  void mark_barrier(uint32_t offset, bool is_barrier);

 private:
  enum State : uint8_t { kInitialised = 1, kInFlight = 2, kGeneric = 4, kAtomic = 8, kBarrier = 16 };
  struct Cell {
    uint64_t readers;  // 0: none; one epoch: (actor + 1) << 32 | clock; else kSet | index of a set
    uint32_t write_clock;
    Actor writer;
    uint8_t state;
    Place write_place, read_place;
  };
  static constexpr uint64_t kSet = 1ull << 63;
  struct Chunk {
    Cell cell;
    uint32_t split;  // index + 1 of its divided cells, 0: never divided
    uint32_t step;   // bytes of a cell: 16, 4 or 1
  };
  struct Split {
    Cell cell[16];
  };
  struct Epoch {
    Actor actor;
    uint32_t clock;
    bool operator==(const Epoch&) const = default;
  };
  struct EpochSet {
    uint32_t begin, count;
  };
  struct SetKey {
    uint64_t readers, epoch;
    uint32_t serial;
    bool operator==(const SetKey&) const = default;
  };
  struct SetKeyHash {
    size_t operator()(const SetKey& k) const {
      return (k.readers * 0x9e3779b97f4a7c15ull ^ k.epoch * 0xc2b2ae3d27d4eb4full ^ k.serial * 0x165667b19e3779f9ull) *
                 0x9e3779b97f4a7c15ull >>
             7;
    }
  };

  template <class F>
  Conflict each(uint32_t offset, uint32_t bytes, F f);
  void divide(Chunk& chunk, uint32_t step);
  static bool knows(const Visitor& by, Actor actor, uint32_t clock) {
    return actor == by.actor || actor == kNobody || by.known->of(actor) >= clock;
  }
  static bool not_fenced(const Cell& cell, const Visitor& by);
  Conflict read_cell(Cell& cell, uint32_t offset, const Visitor& by);
  Conflict check_write(const Cell& cell, uint32_t offset, const Visitor& by) const;
  uint64_t add_reader(uint64_t readers, const Visitor& by);
  uint64_t set_of(uint32_t begin);
  static uint64_t epoch_of(const Visitor& by) { return static_cast<uint64_t>(by.actor + 1) << 32 | by.clock; }

  std::vector<Chunk> chunks_;
  std::vector<Split> splits_;
  std::vector<Epoch> epochs_;
  std::vector<EpochSet> sets_;
  std::unordered_map<SetKey, uint64_t, SetKeyHash> grown_;  // (readers, new reader) -> readers
  std::unordered_multimap<uint64_t, uint32_t> known_sets_;  // hash of the contents -> set: one order of arrival is as good as another
};

}  // namespace lapidary::emulator
