// Products over AMX tiles: the walk over panels, slices of the sum and blocks of tokens, for bf16 and int8 alike. Part of kernels/amx.h.
//
// Sixteen groups of a panel are the tile B as they lie in memory, 64 bytes of sixteen prepared rows are the tile A. Two panels and two
// tiles of tokens are multiplied at a time: four loads for four products. A slice of two panels stays in the first-level cache while all
// tokens pass by; the tiles of sums wait in scratch meanwhile, which changes no bit. Pairs of panels whose inputs would not stay in the
// second-level cache are joined: all of them pass by a slice of the inputs before the next. Tiles have as many rows as there are tokens, so
// nothing beyond the input is read.
#pragma once

#include "cpu/kernels/joined_units.h"
#include "cpu/kernels/math.h"
#include "cpu/packed_layout.h"
#include "cpu/simd/amx.h"

namespace lapidary::cpu {
namespace {

constexpr int64_t kTileBytes = 1024, kTileRowBytes = 64, kTileFloats = kTileBytes / 4, kBlockFloats = 4 * kTileFloats;
constexpr int64_t kBlockTokens = 32;
// Tiles of two panels and of a block's tokens, and their sums, lie in the first-level cache together.
constexpr int64_t kSliceTiles = 10;
constexpr int64_t kPairSumBytes = 2 * kTileRowBytes;  // of a token and two panels
// How far ahead the first slice of a call is fetched; the others are while the tokens pass by the one before.
constexpr int64_t kAmxAheadBytes = 4096;

// The sums of 16 t + m tokens and of panel p are tile 2 t + p; A is 4 + t, B is 6 + p.
LAPIDARY_INLINE void configure_tokens(int64_t tokens, int64_t& configured) {
  if (tokens == configured) return;
  TileConfig config;
  const auto set = [&](int tile, int64_t rows) {
    config.rows[tile] = static_cast<uint8_t>(rows);
    config.row_bytes[tile] = rows > 0 ? kTileRowBytes : 0;
  };
  for (int t = 0; t < 2; ++t) {
    const int64_t left = tokens - 16 * t, rows = left < 0 ? 0 : left < 16 ? left : 16;
    set(2 * t, rows), set(2 * t + 1, rows), set(4 + t, rows), set(6 + t, 16);
  }
  tile_configure(config);
  configured = tokens;
}

// One slice of one block of tokens.
struct TileBlock {
  const std::byte* input;  // of the block's first token
  int64_t input_stride;
  const std::byte* panels[2];
  int64_t steps;
  bool first_slice, streams;  // streams: the panels come from memory, not asked for before
  const std::byte* next[2];   // the lines of the next slice's panels that this block asks for
  int64_t next_lines;         // of each
  const float* sums;          // [token tile][panel] tiles, not read by the first slice
  float* to;                  // where they go
};

template <typename Dot, int kTokenTiles, int kPanels>
void multiply_block(const TileBlock& block) {
  const auto each_sum = [&](auto&& fn0, auto&& fn1, auto&& fn2, auto&& fn3) {
    fn0(0);
    if constexpr (kPanels == 2) fn1(kTileFloats);
    if constexpr (kTokenTiles == 2) fn2(2 * kTileFloats);
    if constexpr (kTokenTiles == 2 && kPanels == 2) fn3(3 * kTileFloats);
  };
  if (block.first_slice) {
    each_sum([](int64_t) { tile_zero<0>(); }, [](int64_t) { tile_zero<1>(); }, [](int64_t) { tile_zero<2>(); },
             [](int64_t) { tile_zero<3>(); });
  } else {
    const float* from = block.sums;
    each_sum([&](int64_t i) { tile_load<0>(from + i, kTileRowBytes); }, [&](int64_t i) { tile_load<1>(from + i, kTileRowBytes); },
             [&](int64_t i) { tile_load<2>(from + i, kTileRowBytes); }, [&](int64_t i) { tile_load<3>(from + i, kTileRowBytes); });
  }
  const std::byte *x = block.input, *w0 = block.panels[0], *w1 = block.panels[1];
  const int64_t at_once = block.steps > 0 ? (block.next_lines + block.steps - 1) / block.steps : 0;
  int64_t line = 0;
  for (int64_t i = 0; i < block.steps; ++i, x += kTileRowBytes, w0 += kTileBytes, w1 += kTileBytes) {
    if (block.streams) {
      for (int64_t line = 0; line < kTileBytes; line += 64) {
        LAPIDARY_PREFETCH(w0 + kAmxAheadBytes + line);
        if constexpr (kPanels == 2) LAPIDARY_PREFETCH(w1 + kAmxAheadBytes + line);
      }
    }
    for (const int64_t end = line + at_once < block.next_lines ? line + at_once : block.next_lines; line < end; ++line) {
      LAPIDARY_PREFETCH(block.next[0] + line * 64);
      if constexpr (kPanels == 2) LAPIDARY_PREFETCH(block.next[1] + line * 64);
    }
    tile_load<6>(w0, kTileRowBytes);
    tile_load<4>(x, block.input_stride);
    Dot::template step<0, 4, 6>();
    if constexpr (kPanels == 2) {
      tile_load<7>(w1, kTileRowBytes);
      Dot::template step<1, 4, 7>();
    }
    if constexpr (kTokenTiles == 2) {
      tile_load<5>(x + 16 * block.input_stride, block.input_stride);
      Dot::template step<2, 5, 6>();
      if constexpr (kPanels == 2) Dot::template step<3, 5, 7>();
    }
  }
  each_sum([&](int64_t i) { tile_store<0>(block.to + i, kTileRowBytes); }, [&](int64_t i) { tile_store<1>(block.to + i, kTileRowBytes); },
           [&](int64_t i) { tile_store<2>(block.to + i, kTileRowBytes); }, [&](int64_t i) { tile_store<3>(block.to + i, kTileRowBytes); });
}

// Dot: step<C, A, B>(), input_bytes(k), where a row's operands begin, panel tiles of k, and finish(), which stores one tile of sums.
template <typename Dot>
void multiply_tiles(const PackedTask& task, int64_t p0, int64_t p1, float* scratch) {
  const int64_t stride = Dot::input_bytes(task.k), steps = Dot::panel_tiles(task.k);
  const int64_t slices = (steps + kSliceTiles - 1) / kSliceTiles, most = slices > 0 ? (steps + slices - 1) / slices : 1;
  const int64_t blocks = (task.tokens + kBlockTokens - 1) / kBlockTokens;
  const int64_t joined = 2 * joined_units((p1 - p0 + 1) / 2, blocks * kBlockTokens, stride, kPairSumBytes);
  float* const finished = scratch;  // the sums of the block at hand, after its last slice; those of others wait behind them
  int64_t configured = 0;
  for (int64_t first = p0; first < p1; first += joined) {
    const int64_t end = p1 - first < joined ? p1 : first + joined;
    for (int64_t s = 0; s == 0 || s < steps; s += most) {
      float* sums = scratch + kBlockFloats;
      for (int64_t p = first; p < end; p += 2, sums += blocks * kBlockFloats) {
        const int64_t panels = end - p < 2 ? 1 : 2;
        TileBlock block{};
        block.input_stride = stride;
        block.steps = steps - s < most ? steps - s : most;
        block.first_slice = s == 0;
        const bool last_slice = s + block.steps == steps;
        const int64_t next_p = p + 2 < end ? p + 2 : last_slice ? end : first;
        const int64_t next_s = p + 2 < end ? s : last_slice ? 0 : s + block.steps;
        const int64_t lines = block.steps * (kTileBytes / 64);
        for (int64_t i = 0; i < 2; ++i) block.panels[i] = task.panels + (p + (i < panels ? i : 0)) * task.panel_bytes + s * kTileBytes;
        for (int64_t t = 0; t < blocks; ++t) {
          const int64_t token = t * kBlockTokens, tokens = task.tokens - token < kBlockTokens ? task.tokens - token : kBlockTokens;
          block.input = task.input + token * stride + Dot::kInputStart + s * kTileRowBytes;
          block.streams = t == 0 && s == 0 && p == p0;
          for (int64_t i = 0; i < 2; ++i)
            block.next[i] = task.panels + (next_p + i) * task.panel_bytes + next_s * kTileBytes + t * lines / blocks * 64;
          block.next_lines = (t + 1) * lines / blocks - t * lines / blocks;
          float* waiting = sums + t * kBlockFloats;
          block.sums = waiting, block.to = last_slice ? finished : waiting;
          configure_tokens(tokens, configured);
          if (tokens > 16) {
            panels == 2 ? multiply_block<Dot, 2, 2>(block) : multiply_block<Dot, 2, 1>(block);
          } else {
            panels == 2 ? multiply_block<Dot, 1, 2>(block) : multiply_block<Dot, 1, 1>(block);
          }
          if (!last_slice) continue;
          for (int64_t row = 0; row < tokens; row += 16) {
            for (int64_t i = 0; i < panels; ++i) {
              const int64_t rows = tokens - row < 16 ? tokens - row : 16;
              Dot::finish(task, p + i, token + row, rows, finished + (row / 16 * 2 + i) * kTileFloats);
            }
          }
        }
      }
    }
  }
  tile_release();
}

template <typename Dot>
size_t tiles_scratch_floats(int64_t tokens, int64_t k) {
  const int64_t padded_tokens = (tokens + kBlockTokens - 1) / kBlockTokens * kBlockTokens;
  return static_cast<size_t>(kBlockFloats + waiting_bytes(padded_tokens, Dot::input_bytes(k), kPairSumBytes) / 4);
}

}  // namespace
}  // namespace lapidary::cpu
