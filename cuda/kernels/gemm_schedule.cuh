// Which block computes which part of which output tile, and how parts of one tile become whole again. Shared by the mma.sync and the wgmma
// kernels.
//
// A tile's k range is cut into units. Without a split, block b computes the whole tiles b, b + blocks, ... With a split, all tiles' units
// form one list and block b owns an equal, contiguous range of it (stream-k; with blocks = s * tiles it is split-k by s): it writes the
// sums of the parts of tiles at its range's ends to the workspace, and the block that completes a tile adds up the tile's parts in rising k
// and finishes it.
#pragma once

#include "cuda/api/gemm_plan.h"
#include "cuda/primitives/memory.cuh"
#include "cuda/primitives/warp.cuh"

namespace lapidary::cuda {

// Consecutive units of one tile.
struct Segment {
  int tile, first, end;
  int slot;  // of an int8 part: two for each block, 0 when the segment is the block's first
};

// A block's segments, one after another, from a single number: its place in the list of units (without a split: of tiles). A kernel may
// keep the place in shared memory across its main loop and work out the rest again, which saves registers. The launcher has proved that
// tiles * units fits 31 bits.
struct Segments {
  // First unit of `block`'s range.
  static LAPIDARY_DEVICE int first_unit(const GemmSchedule& s, int block, int blocks) {
    return static_cast<int>(static_cast<int64_t>(block) * (s.tiles_m * s.tiles_n * s.units) / blocks);
  }
  static LAPIDARY_DEVICE int begin(const GemmSchedule& s, int block, int blocks) { return s.split ? first_unit(s, block, blocks) : block; }
  // The segment at `place`; false: there is none. `next`: the place after it (may be the variable that holds `place`).
  static LAPIDARY_DEVICE bool at(const GemmSchedule& s, int block, int blocks, const int place, Segment& segment, int& next) {
    if (!s.split) {
      segment = {place, 0, s.units, 0};
      next = place + blocks;
      return place < s.tiles_m * s.tiles_n;
    }
    const int range_end = first_unit(s, block + 1, blocks);
    const int tile = place / s.units, tile_begin = tile * s.units;
    const int end = range_end - tile_begin < s.units ? range_end - tile_begin : s.units;
    segment = {tile, place - tile_begin, end, 2 * block + (place == first_unit(s, block, blocks) ? 0 : 1)};
    next = tile_begin + end;
    return place < range_end;
  }
};

struct TilePlace {
  int m, n;  // in tiles
};
// Tiles in groups of group_m rows of tiles, m fastest: neighbours in time share the weight slab, and a group's activations stay in L2.
LAPIDARY_DEVICE TilePlace tile_place(const GemmSchedule& s, int tile) {
  const int per_group = s.group_m * s.tiles_n;
  const int group = tile / per_group, within = tile % per_group;
  const int first_m = group * s.group_m;
  const int rows = s.tiles_m - first_m < s.group_m ? s.tiles_m - first_m : s.group_m;
  return {first_m + within % rows, within / rows};
}

// A part is Registers * Threads accumulators, those of a thread apart by whole rows of Threads 16-byte vectors: coalesced.
template <int Registers, int Threads, class Acc>
LAPIDARY_DEVICE void store_part(const GemmSchedule& s, int64_t slot, int thread, const Acc (&acc)[Registers]) {
  using Vector = Vec<Acc, 4>;
  Vector* to = reinterpret_cast<Vector*>(s.parts) + slot * (Registers / 4) * Threads + thread;
  LAPIDARY_UNROLL
  for (int i = 0; i < Registers / 4; ++i)
    store_global(to + i * Threads, Vector{{acc[4 * i], acc[4 * i + 1], acc[4 * i + 2], acc[4 * i + 3]}});
}
template <int Registers, int Threads, class Acc>
LAPIDARY_DEVICE void add_part(const GemmSchedule& s, int64_t slot, int thread, Acc (&acc)[Registers]) {
  using Vector = Vec<Acc, 4>;
  const Vector* from = reinterpret_cast<const Vector*>(s.parts) + slot * (Registers / 4) * Threads + thread;
  LAPIDARY_UNROLL
  for (int i = 0; i < Registers / 4; ++i) {
    const Vector v = load_coherent(from + i * Threads);
    LAPIDARY_UNROLL
    for (int e = 0; e < 4; ++e) acc[4 * i + e] = acc[4 * i + e] + v[e];
  }
}

// After a segment's parts are stored by `Threads` threads (thread 0 .. Threads - 1 of them, `sync` their barrier): true in all of them when
// the tile is now complete; the other blocks' parts are then visible and the tile's counter is zero again. `flag`: a word of shared memory.
template <class Sync>
LAPIDARY_DEVICE bool completes_tile(const GemmSchedule& s, const Segment& segment, int thread, int* flag, Sync sync) {
  fence_device();
  sync();
  if (thread == 0) {
    const int mine = segment.end - segment.first;
    const int before = atomic_add_global(s.counters + segment.tile, mine);
    const bool last = before + mine == s.units;
    if (last) atomic_add_global(s.counters + segment.tile, -s.units);
    store_shared(flag, last ? 1 : 0);
    fence_device();
  }
  sync();
  const bool last = load_shared(flag) != 0;
  sync();
  return last;
}

// Adds the other blocks' int8 parts of the segment's tile to `acc`.
template <int Registers, int Threads>
LAPIDARY_DEVICE void add_other_parts(const GemmSchedule& s, const Segment& segment, int thread, int blocks, int (&acc)[Registers]) {
  const int total = s.tiles_m * s.tiles_n * s.units;
  const int begin = segment.tile * s.units, end = begin + s.units;
  // The block whose range holds `begin`: the last b with b * total / blocks <= begin.
  int block = static_cast<int>(((begin + int64_t{1}) * blocks + total - 1) / total - 1);
  for (int at = begin; at < end; ++block) {
    const int first = Segments::first_unit(s, block, blocks);
    const int slot = 2 * block + (first / s.units == segment.tile ? 0 : 1);
    if (slot != segment.slot) add_part<Registers, Threads>(s, slot, thread, acc);
    at = Segments::first_unit(s, block + 1, blocks);
  }
}

}  // namespace lapidary::cuda
