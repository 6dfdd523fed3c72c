// Products of block and f16 panels with f32 inputs, over the tiles of kernels/packed_tiles.h. Part of kernels/impl.h.
//
// A prepared row is that of bf16 panels. Blocks are widened, exactly as the format says, a slice of the tile's panels at a time:
// [columns][16 rows] f32, of which every column is a word.
#pragma once

#include "cpu/kernels/packed_bf16.h"
#include "cpu/kernels/packed_blocks.h"

namespace lapidary::cpu {
namespace {

struct F32Columns {
  static constexpr int64_t kInputBytes = sizeof(float);

  template <typename RowAt, int T, int P>
  static LAPIDARY_INLINE void multiply(const RowAt& row, const V (&words)[P], V (&sums)[T][P]) {
    LAPIDARY_UNROLL for (int t = 0; t < T; ++t) {
      const V x = set1(*reinterpret_cast<const float*>(row(t)));
      LAPIDARY_UNROLL for (int p = 0; p < P; ++p) sums[t][p] = fma(x, words[p], sums[t][p]);
    }
  }
};

// Two columns of sixteen rows.
struct F16Columns {
  static constexpr int64_t kInputBytes = 2 * sizeof(float);

  template <typename RowAt, int T, int P>
  static LAPIDARY_INLINE void multiply(const RowAt& row, const V (&words)[P], V (&sums)[T][P]) {
    V w[2][P];
    LAPIDARY_UNROLL for (int p = 0; p < P; ++p) widen_f16_columns(words[p], w[0][p], w[1][p]);
    LAPIDARY_UNROLL for (int column = 0; column < 2; ++column) {
      LAPIDARY_UNROLL for (int t = 0; t < T; ++t) {
        const V x = set1(reinterpret_cast<const float*>(row(t))[column]);
        LAPIDARY_UNROLL for (int p = 0; p < P; ++p) sums[t][p] = fma(x, w[column][p], sums[t][p]);
      }
    }
  }
};

void packed_f16_multiply(const PackedTask& task, int64_t p0, int64_t p1, float*) {
  multiply_panels_of<F16Columns>(task, packed_bf16_input_bytes(task.k), packed_f16_columns(task.k) / 2, p0, p1);
}

// 32 columns of block b of a chunk -> [32][16 rows].
template <class Form>
LAPIDARY_INLINE void widen_block(const std::byte* chunk, int64_t b, float* columns) {
  const std::byte* numbers = chunk + Form::kScaleBytes + b * Form::kNumberBytes;
  V scales[2] = {block_scale<Form>(chunk, b), zero()}, minimum = zero();
  if constexpr (Form::kGroupsOf16) {
    const V d = scales[0];
    LAPIDARY_UNROLL for (int g = 0; g < 2; ++g) scales[g] = mul(d, to_f32(widen_i8(chunk + 64 + b * 32 + g * 16)));
  }
  if constexpr (Form::kMinimum) minimum = block_minimum<Form>(chunk, b);
  each_pair([&](auto pair) {
    constexpr int s = decltype(pair)::value, column = s / 2 * 4 + s % 2;
    const W w = pair_of<Form, s>(numbers);
    const W elements[2] = {keep(w, 0xffff), shift<16>(w)};
    LAPIDARY_UNROLL for (int e = 0; e < 2; ++e) {
      V x = to_f32(elements[e]);
      if constexpr (Form::kOffset != 0) x = sub(x, set1(Form::kOffset));
      x = mul(scales[Form::kGroupsOf16 ? s / 8 : 0], x);
      if constexpr (Form::kMinimum) x = Form::kSuper ? sub(x, minimum) : add(x, minimum);
      store(columns + (column + 2 * e) * 16, x);
    }
  });
}

template <class Form>
LAPIDARY_NOINLINE void widen_blocks_of(const std::byte* panel, int64_t b0, int64_t blocks, float* columns) {
  for (int64_t i = b0; i < b0 + blocks; ++i, columns += kQuantColumns * 16)
    widen_block<Form>(panel + i / Form::kBlocks * Form::kChunkBytes, i % Form::kBlocks, columns);
}

template <class Form>
void blocks_f32_multiply(const PackedTask& task, int64_t p0, int64_t p1, float* scratch) {
  static_assert(kSliceGroups == kSliceBlocks * kQuantColumns);
  const int64_t blocks = task.k / kQuantColumns, stride = packed_bf16_input_bytes(task.k);
  const int64_t tiles = (task.tokens + kMostTileTokens - 1) / kMostTileTokens, least = task.tokens / tiles, larger = task.tokens % tiles;
  for (int64_t p = p0; p < p1; p += kTilePanels) {
    for (int64_t b = 0; b < blocks; b += kSliceBlocks) {
      const int64_t count = blocks - b < kSliceBlocks ? blocks - b : kSliceBlocks;
      TileTask tile{task.input + b * kQuantColumns * F32Columns::kInputBytes,
                    stride,
                    {},
                    {},
                    count * kQuantColumns,
                    b == 0,
                    task.out + p * kPackedRows - task.out_first,
                    task.out_stride};
      for (int64_t i = 0; i < kTilePanels; ++i) {
        const bool there = p + i < p1;  // else the first panel again, for nothing
        float* columns = scratch + (there ? i : 0) * kSliceGroups * 16;
        if (there) widen_blocks_of<Form>(task.panels + (p + i) * task.panel_bytes, b, count, columns);
        tile.panels[i] = reinterpret_cast<const std::byte*>(columns);
        tile.columns[i] = there ? lanes_left((p + i) * kPackedRows, task.n) : 0;
      }
      for (int64_t i = 0, token = 0; i < tiles; ++i) {
        const int64_t tokens = least + (i < larger);
        alignas(64) float sums[16 * kMostTileTokens * kTilePanels];
        sum_tile_of<F32Columns, kMostTileTokens>(tokens, tile, token, sums);
        store_tile(tile, token, tokens, sums);
        token += tokens;
      }
    }
  }
}

size_t blocks_f32_scratch(int64_t, int64_t) { return kTilePanels * kSliceGroups * 16; }

template <class Form>
constexpr PackedKernel kBlocksF32Kernel = {
    Form::kType, DType::f32, 2, packed_bf16_input_bytes, packed_bf16_prepare, nullptr, blocks_f32_multiply<Form>, blocks_f32_scratch};
constexpr PackedKernel kPackedF16Kernel = {DType::f16, DType::f32,          2,         packed_bf16_input_bytes, packed_bf16_prepare,
                                           nullptr,    packed_f16_multiply, no_scratch};

}  // namespace
}  // namespace lapidary::cpu
