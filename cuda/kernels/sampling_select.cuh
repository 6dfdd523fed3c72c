// Selection without sorting: by three radix steps a block finds where a running sum over items in the order of their keys passes a target.
// The sums are of whole numbers, so the answer does not depend on who adds what when. Top-k, top-p, ties and the draw itself are all this
// search.
#pragma once

#include "cuda/api/sampling.h"
#include "cuda/primitives/memory.cuh"
#include "cuda/primitives/warp.cuh"

namespace lapidary::cuda {

inline constexpr int kSampleThreads = 512;
inline constexpr int kBinsPerThread = kSampleBins / kSampleThreads;
static_assert(kBinsPerThread == 4, "a thread takes its bins as one vector");

// Shared memory of a search.
struct alignas(16) SelectSmem {
  uint32_t low[kSampleBins], high[kSampleBins];  // the halves of a bin's 64-bit sum
  uint64_t warp_sums[kSampleThreads / kWarp];
  uint64_t before;
  uint32_t bin, found;
};

// The sum over the threads below this one; `total` becomes that over all. `sums` holds a value per warp and may be used again at once.
LAPIDARY_DEVICE uint64_t block_scan(uint64_t v, uint64_t* sums, uint64_t& total) {
  constexpr int kWarps = kSampleThreads / kWarp;
  uint64_t inclusive = v;
  LAPIDARY_UNROLL
  for (int step = 1; step < kWarp; step *= 2) {
    const uint64_t before = shuffle_up(inclusive, step);
    if (lane() >= step) inclusive += before;
  }
  if (lane() == kWarp - 1) store_shared(sums + warp(), inclusive);
  sync_threads();
  uint64_t of_warps = lane() < kWarps ? load_shared(sums + lane()) : 0;
  LAPIDARY_UNROLL
  for (int step = 1; step < kWarps; step *= 2) {
    const uint64_t before = shuffle_up(of_warps, step);
    if (lane() >= step) of_warps += before;
  }
  total = shuffle(of_warps, kWarps - 1);
  const uint64_t warps_below = shuffle(of_warps, warp() > 0 ? warp() - 1 : 0);
  sync_threads();
  return (warp() > 0 ? warps_below : 0) + inclusive - v;
}

struct BinFound {
  uint32_t bin;
  uint64_t before;  // the sum of the bins below it
  bool found;       // false: the target is not below the sum of all
};
// The first of consecutive bins, four of them this thread's, at whose end the sum exceeds `target`. Every thread gets the answer.
LAPIDARY_DEVICE BinFound find_bin(const uint64_t (&mine)[kBinsPerThread], uint64_t target, SelectSmem* s) {
  uint64_t total;
  uint64_t before = block_scan(mine[0] + mine[1] + mine[2] + mine[3], s->warp_sums, total);
  if (total <= target) return {0, 0, false};
  LAPIDARY_UNROLL
  for (int b = 0; b < kBinsPerThread; ++b) {
    if (before <= target && target - before < mine[b]) {
      store_shared(&s->bin, static_cast<uint32_t>(thread_index() * kBinsPerThread + b));
      store_shared(&s->before, before);
    }
    before += mine[b];
  }
  sync_threads();
  const BinFound r = {load_shared(&s->bin), load_shared(&s->before), true};
  sync_threads();
  return r;
}

// Adds to one bin of halves; exact in any order.
LAPIDARY_DEVICE void add_to_bin(uint32_t* low, uint32_t* high, int bin, uint64_t v) {
  const uint32_t part = static_cast<uint32_t>(v), old = atomic_add_shared(low + bin, part);
  const uint32_t rest = static_cast<uint32_t>(v >> 32) + (old + part < part ? 1u : 0u);
  if (rest != 0) atomic_add_shared(high + bin, rest);
}

LAPIDARY_DEVICE void clear_bins(uint32_t* bins) { store_shared(reinterpret_cast<U32x4*>(bins) + thread_index(), U32x4{{0, 0, 0, 0}}); }

struct Selected {
  uint32_t key;
  uint64_t before;  // the sum over the items of lower keys
  bool found;       // false: the target is not below the sum of all
};
// An item of a search: its place in the order and what it adds.
struct Measured {
  uint32_t key;
  uint64_t measure;
};
// Over n items item(i) -> Measured: the lowest key such that the measures of keys up to it sum to more than `target`. Only the high `bits`
// of keys are used, at least one. All threads of the block, with the same arguments; every thread gets the answer.
template <class Item>
LAPIDARY_DEVICE Selected select(int n, Item item, int bits, uint64_t target, SelectSmem* s) {
  constexpr int kStep = 11;
  uint32_t prefix = 0;
  uint64_t before = 0;
  for (int done = 0; done < bits; done += kStep) {
    const int shift = 32 - done > kStep ? 32 - done - kStep : 0, above = 32 - done;  // above: the bits that prefix does not hold yet
    const uint32_t mask = (1u << (above - shift)) - 1;
    clear_bins(s->low);
    clear_bins(s->high);
    sync_threads();
    for (int i = thread_index(); i < n; i += kSampleThreads) {
      const Measured m = item(i);
      if (m.measure == 0 || (done > 0 && (m.key >> above) != prefix)) continue;
      add_to_bin(s->low, s->high, static_cast<int>(m.key >> shift & mask), m.measure);
    }
    sync_threads();
    const U32x4 low = load_shared(reinterpret_cast<const U32x4*>(s->low) + thread_index()),
                high = load_shared(reinterpret_cast<const U32x4*>(s->high) + thread_index());
    uint64_t mine[kBinsPerThread];
    LAPIDARY_UNROLL
    for (int b = 0; b < kBinsPerThread; ++b) mine[b] = static_cast<uint64_t>(high[b]) << 32 | low[b];
    const BinFound f = find_bin(mine, target - before, s);
    if (!f.found) return {0, 0, false};
    prefix = prefix << (above - shift) | f.bin;
    before += f.before;
    if (shift == 0 || done + kStep >= bits) return {prefix << shift, before, true};
  }
  return {0, 0, false};
}

// The sum of value(i) over n items; every thread gets it.
template <class Value>
LAPIDARY_DEVICE uint64_t sum_items(int n, Value value, SelectSmem* s) {
  uint64_t sum = 0, total;
  for (int i = thread_index(); i < n; i += kSampleThreads) sum += value(i);
  block_scan(sum, s->warp_sums, total);
  return total;
}

// Whether this block is the last of `blocks` to come here, all of whose earlier writes it may then read with load_coherent. Leaves the
// counter zero.
LAPIDARY_DEVICE bool last_block(uint32_t* counter, int blocks, uint32_t* flag) {
  fence_device();
  sync_threads();
  if (thread_index() == 0) {
    const bool last = atomic_add_global(counter, 1u) == static_cast<uint32_t>(blocks) - 1;
    if (last) store_global(counter, 0u);
    store_shared(flag, last ? 1u : 0u);
  }
  sync_threads();
  const bool last = load_shared(flag) != 0;
  if (last) fence_device();
  sync_threads();
  return last;
}

}  // namespace lapidary::cuda
