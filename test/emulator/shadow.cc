#include "emulator/shadow.h"

#include <mutex>

namespace lapidary::emulator {
namespace {

// Few files, so a linear search; the last one found is tried first.
struct Files {
  std::mutex mutex;
  std::vector<const char*> names{nullptr};
};
Files& files() {
  static Files* const all = new Files;
  return *all;
}

constexpr uint32_t kLineBits = 20;

}  // namespace

Place place_of(Where where) {
  if (!where.file) return 0;
  static thread_local const char* last_file = nullptr;
  static thread_local uint32_t last_index = 0;
  if (where.file != last_file) {
    const std::lock_guard lock(files().mutex);
    auto& names = files().names;
    uint32_t i = 1;
    while (i < names.size() && names[i] != where.file) ++i;
    if (i == names.size()) names.push_back(where.file);
    last_file = where.file;
    last_index = i;
  }
  return last_index << kLineBits | (where.line & ((1u << kLineBits) - 1));
}

Where where_of(Place place) {
  if (!place) return {nullptr, 0};
  const std::lock_guard lock(files().mutex);
  return {files().names[place >> kLineBits], place & ((1u << kLineBits) - 1)};
}

void Shadow::reset(size_t bytes) {
  const Chunk fresh = {{0, 0, kNobody, 0, 0, 0}, 0, 16};
  chunks_.assign((bytes + 15) / 16, fresh);
  splits_.clear();
  epochs_.clear();
  sets_.clear();
  grown_.clear();
  known_sets_.clear();
}

void Shadow::divide(Chunk& chunk, uint32_t step) {
  if (!chunk.split) {
    splits_.emplace_back();
    chunk.split = static_cast<uint32_t>(splits_.size());
  }
  Cell* cells = splits_[chunk.split - 1].cell;
  for (uint32_t i = 0; i < 16; i += step) {
    const Cell from = chunk.step == 16 ? chunk.cell : cells[i & ~(chunk.step - 1)];
    cells[i] = from;
  }
  chunk.step = step;
}

// f(cell, offset) for every cell of the range; stops at a conflict.
template <class F>
Conflict Shadow::each(uint32_t offset, uint32_t bytes, F f) {
  while (bytes) {
    Chunk& chunk = chunks_[offset / 16];
    const uint32_t in = offset % 16, n = std::min(16 - in, bytes);
    if (n == 16 && chunk.step == 16) {
      if (const Conflict c = f(chunk.cell, offset)) return c;
    } else {
      const uint32_t step = (in | n) % 4 == 0 ? 4 : 1;
      if (chunk.step > step) divide(chunk, step);
      Cell* cells = splits_[chunk.split - 1].cell;
      for (uint32_t i = in; i < in + n; i += chunk.step) {
        if (const Conflict c = f(cells[i], offset - in + i)) return c;
      }
    }
    offset += n;
    bytes -= n;
  }
  return {};
}

Conflict Shadow::read_cell(Cell& cell, uint32_t offset, const Visitor& by) {
  if (cell.state != kInitialised && cell.state != (kInitialised | kGeneric)) [[unlikely]] {
    if (cell.state & kBarrier) return {Conflict::Kind::barrier, offset, cell.writer, cell.write_place};
    if (cell.state & kInFlight) return {Conflict::Kind::in_flight, offset, cell.writer, cell.write_place};
    if (!(cell.state & kInitialised)) return {Conflict::Kind::uninitialised, offset, kNobody, 0};
  }
  if (!knows(by, cell.writer, cell.write_clock)) return {Conflict::Kind::after_write, offset, cell.writer, cell.write_place};
  if (not_fenced(cell, by)) return {Conflict::Kind::not_fenced, offset, cell.writer, cell.write_place};
  const uint64_t epoch = epoch_of(by);
  if (cell.readers != epoch) {
    if (!(cell.readers & kSet) &&
        (!cell.readers || knows(by, static_cast<Actor>((cell.readers >> 32) - 1), static_cast<uint32_t>(cell.readers)))) {
      cell.readers = epoch;
    } else {
      cell.readers = add_reader(cell.readers, by);
    }
    cell.read_place = by.place;
  }
  return {};
}

// `readers` without those that the new reader knows of, and with it.
uint64_t Shadow::add_reader(uint64_t readers, const Visitor& by) {
  const SetKey key = {readers, epoch_of(by), by.known->serial()};
  if (const auto found = grown_.find(key); found != grown_.end()) return found->second;
  const uint32_t begin = static_cast<uint32_t>(epochs_.size());
  const auto keep = [&](Epoch e) {
    if (!knows(by, e.actor, e.clock)) epochs_.push_back(e);
  };
  if (readers & kSet) {
    const EpochSet old = sets_[readers & ~kSet];
    for (uint32_t i = 0; i < old.count; ++i) keep(Epoch(epochs_[old.begin + i]));
  } else {
    keep({static_cast<Actor>((readers >> 32) - 1), static_cast<uint32_t>(readers)});
  }
  uint64_t result = epoch_of(by);
  if (epochs_.size() > begin) {
    epochs_.push_back({by.actor, by.clock});
    result = set_of(begin);
  }
  grown_.emplace(key, result);
  return result;
}

// The set of the epochs from `begin` on: an old one with the same contents, or a new one.
uint64_t Shadow::set_of(uint32_t begin) {
  const auto first = epochs_.begin() + begin;
  std::sort(first, epochs_.end(), [](const Epoch& a, const Epoch& b) { return a.actor < b.actor; });
  uint64_t hash = 0;
  for (auto e = first; e != epochs_.end(); ++e) hash = (hash ^ (static_cast<uint64_t>(e->actor) << 32 | e->clock)) * 0x9e3779b97f4a7c15ull;
  const auto [from, to] = known_sets_.equal_range(hash);
  for (auto candidate = from; candidate != to; ++candidate) {
    const EpochSet set = sets_[candidate->second];
    const auto old = epochs_.begin() + set.begin;
    if (std::equal(first, epochs_.end(), old, old + set.count)) {
      epochs_.resize(begin);
      return kSet | candidate->second;
    }
  }
  sets_.push_back({begin, static_cast<uint32_t>(epochs_.size()) - begin});
  known_sets_.emplace(hash, static_cast<uint32_t>(sets_.size() - 1));
  return kSet | (sets_.size() - 1);
}

// Written by the generic proxy without a fence that the async proxy's access could rely on.
bool Shadow::not_fenced(const Cell& cell, const Visitor& by) {
  return by.fenced && (cell.state & kGeneric) && by.fenced[cell.writer] < cell.write_clock &&
         !(*by.known_at_fence && by.known_at_fence->of(cell.writer) >= cell.write_clock);
}

Conflict Shadow::check_write(const Cell& cell, uint32_t offset, const Visitor& by) const {
  if (cell.state & (kInFlight | kBarrier)) [[unlikely]] {
    return {cell.state & kBarrier ? Conflict::Kind::barrier : Conflict::Kind::in_flight, offset, cell.writer, cell.write_place};
  }
  if (!knows(by, cell.writer, cell.write_clock)) return {Conflict::Kind::after_write, offset, cell.writer, cell.write_place};
  if (not_fenced(cell, by)) return {Conflict::Kind::not_fenced, offset, cell.writer, cell.write_place};
  if (cell.readers & kSet) {
    const EpochSet set = sets_[cell.readers & ~kSet];
    for (uint32_t i = 0; i < set.count; ++i) {
      const Epoch e = epochs_[set.begin + i];
      if (!knows(by, e.actor, e.clock)) return {Conflict::Kind::after_read, offset, e.actor, cell.read_place};
    }
  } else if (cell.readers) {
    const Actor reader = static_cast<Actor>((cell.readers >> 32) - 1);
    if (!knows(by, reader, static_cast<uint32_t>(cell.readers))) return {Conflict::Kind::after_read, offset, reader, cell.read_place};
  }
  return {};
}

Conflict Shadow::read(uint32_t offset, uint32_t bytes, const Visitor& by) {
  return each(offset, bytes, [&](Cell& cell, uint32_t at) { return read_cell(cell, at, by); });
}

Conflict Shadow::write(uint32_t offset, uint32_t bytes, const Visitor& by) {
  const Cell written = {0, by.clock, by.actor, static_cast<uint8_t>(kInitialised | (by.fenced ? 0 : kGeneric)), by.place, 0};
  const Conflict c = each(offset, bytes, [&](Cell& cell, uint32_t at) {
    const Conflict found = check_write(cell, at, by);
    if (!found) cell = written;
    return found;
  });
  if (!c) {
    for (uint32_t i = (offset + 15) / 16; (i + 1) * 16 <= offset + bytes; ++i) chunks_[i].step = 16, chunks_[i].cell = written;
  }
  return c;
}

Conflict Shadow::atomic(uint32_t offset, uint32_t bytes, const Visitor& by) {
  return each(offset, bytes, [&](Cell& cell, uint32_t at) -> Conflict {
    const bool among_atomics = cell.state & kAtomic;
    if (!(cell.state & kInitialised)) return {Conflict::Kind::uninitialised, at, kNobody, 0};
    if (!among_atomics) {
      if (const Conflict found = check_write(cell, at, by)) return found;
      cell.readers = 0;
    }
    // All atomic writers stay in the set of readers, so that a later plain write or read has to know them all.
    cell.readers = cell.readers ? add_reader(cell.readers, by) : epoch_of(by);
    cell.write_clock = by.clock;
    cell.writer = by.actor;
    cell.state = kInitialised | kGeneric | kAtomic;
    cell.write_place = cell.read_place = by.place;
    return {};
  });
}

Conflict Shadow::begin_copy(uint32_t offset, uint32_t bytes, const Visitor& by) {
  const Conflict c = write(offset, bytes, by);
  if (!c) {
    each(offset, bytes, [](Cell& cell, uint32_t) {
      cell.state |= kInFlight;
      return Conflict{};
    });
  }
  return c;
}

void Shadow::end_copy(uint32_t offset, uint32_t bytes, Actor actor, uint32_t clock, bool generic) {
  each(offset, bytes, [&](Cell& cell, uint32_t) {
    cell.writer = actor;
    cell.write_clock = clock;
    cell.state = static_cast<uint8_t>(kInitialised | (generic ? kGeneric : 0));
    return Conflict{};
  });
}

void Shadow::mark_barrier(uint32_t offset, bool is_barrier) {
  each(offset, 8, [&](Cell& cell, uint32_t) {
    cell.state = static_cast<uint8_t>(is_barrier ? cell.state | kBarrier : cell.state & ~kBarrier);
    return Conflict{};
  });
}

}  // namespace lapidary::emulator
