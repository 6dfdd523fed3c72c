// Products of panels of 32-bit words over V: the walk over panels, slices of the sum and tiles of tokens; a Words type names the elements
// of a word and the multiplication. Part of kernels/impl.h.
//
// Order of an output element: the sum in slices of kSliceGroups words, each one chain started at 0, word by word in rising order; the
// slices' sums added in rising order. Tiles only decide how many such chains run beside each other.
#pragma once

#include "cpu/kernels/math.h"
#include "cpu/packed_layout.h"

namespace lapidary::cpu {
namespace {

constexpr int64_t kSliceGroups = 256, kWordsBytes = 64;
// A tile of sums fills the registers: 12 x 2 of 32, or 6 of 16 that a V takes two of.
constexpr int kTilePanels = kTileTokens * kTileRows >= 16 ? 2 : 1, kMostTileTokens = kTilePanels == 2 ? 12 : 6;
// How far ahead panels are fetched that are read once.
constexpr int64_t kTileAheadBytes = 2048;

// A slice of up to kTilePanels panels and of all tokens.
struct TileTask {
  const std::byte* input;  // of the first token
  int64_t input_stride;
  const std::byte* panels[kTilePanels];
  int64_t columns[kTilePanels];  // that are stored
  int64_t groups;
  bool first;  // slice
  float* out;  // first token, first row of the first panel
  int64_t out_stride;
};

// The sums of T tokens from `token` on -> sums [T][kTilePanels][16].
template <typename Words, int T>
LAPIDARY_NOINLINE void sum_tile(const TileTask& task, int64_t token, float* to) {
  // Three rows from one address: an address for each would not fit into registers.
  constexpr int kBases = (T + 2) / 3;
  const int64_t stride = task.input_stride;
  const std::byte* rows[kBases];
  LAPIDARY_UNROLL for (int i = 0; i < kBases; ++i) rows[i] = task.input + (token + 3 * i) * stride;
  const std::byte* panels[kTilePanels];
  LAPIDARY_UNROLL for (int p = 0; p < kTilePanels; ++p) panels[p] = task.panels[p];
  V sums[T][kTilePanels];
  LAPIDARY_UNROLL for (int t = 0; t < T; ++t) { LAPIDARY_UNROLL for (int p = 0; p < kTilePanels; ++p) sums[t][p] = zero(); }
  for (int64_t g = 0; g < task.groups; ++g) {
    V words[kTilePanels];
    LAPIDARY_UNROLL for (int p = 0; p < kTilePanels; ++p) {
      words[p] = load(panels[p]);
      if constexpr (2 * T <= kMostTileTokens) LAPIDARY_PREFETCH(panels[p] + kTileAheadBytes);
      panels[p] += kWordsBytes;
    }
    Words::multiply([&](int t) { return rows[t / 3] + t % 3 * stride; }, words, sums);
    LAPIDARY_UNROLL for (int i = 0; i < kBases; ++i) rows[i] += Words::kInputBytes;
  }
  LAPIDARY_UNROLL for (int t = 0; t < T; ++t) {
    LAPIDARY_UNROLL for (int p = 0; p < kTilePanels; ++p) store(to + 16 * (kTilePanels * t + p), sums[t][p]);
  }
}

template <typename Words, int T>
LAPIDARY_INLINE void sum_tile_of(int64_t tokens, const TileTask& task, int64_t token, float* sums) {
  if constexpr (T > 0) {
    if (tokens == T) return sum_tile<Words, T>(task, token, sums);
    sum_tile_of<Words, T - 1>(tokens, task, token, sums);
  }
}

// The sums of a slice to where they belong. Apart from the loop above, which would lose registers to it.
LAPIDARY_NOINLINE void store_tile(const TileTask& task, int64_t token, int64_t tokens, const float* sums) {
  for (int64_t t = 0; t < tokens; ++t) {
    for (int64_t p = 0; p < kTilePanels; ++p, sums += 16) {
      const int64_t n = task.columns[p];
      if (n == 0) continue;
      float* to = task.out + (token + t) * task.out_stride + 16 * p;
      const V sum = load(sums);
      store_lanes(to, task.first ? sum : add(load_lanes(to, n), sum), n);
    }
  }
}

// Panels of `groups` words each, prepared rows of input_stride bytes.
template <typename Words>
void multiply_panels_of(const PackedTask& task, int64_t input_stride, int64_t groups, int64_t p0, int64_t p1) {
  // Tiles of about equal size: a chain alone waits for its own sums.
  const int64_t tiles = (task.tokens + kMostTileTokens - 1) / kMostTileTokens, least = task.tokens / tiles, larger = task.tokens % tiles;
  for (int64_t p = p0; p < p1; p += kTilePanels) {
    for (int64_t g = 0; g < groups; g += kSliceGroups) {
      TileTask tile{
          task.input + g * Words::kInputBytes, input_stride,   {}, {}, groups - g < kSliceGroups ? groups - g : kSliceGroups, g == 0,
          task.out + p * 16 - task.out_first,  task.out_stride};
      for (int64_t i = 0; i < kTilePanels; ++i) {
        const bool there = p + i < p1;  // else the last panel again, for nothing
        tile.panels[i] = task.panels + (there ? p + i : p) * task.panel_bytes + g * kWordsBytes;
        tile.columns[i] = there ? lanes_left((p + i) * 16, task.n) : 0;
      }
      int64_t token = 0;
      for (int64_t i = 0; i < tiles; ++i) {
        const int64_t count = least + (i < larger);
        alignas(64) float sums[16 * kMostTileTokens * kTilePanels];
        sum_tile_of<Words, kMostTileTokens>(count, tile, token, sums);
        store_tile(tile, token, count, sums);
        token += count;
      }
    }
  }
}

size_t no_scratch(int64_t, int64_t) { return 0; }

}  // namespace
}  // namespace lapidary::cpu
