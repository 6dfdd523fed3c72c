// Products of GGUF block panels with inputs that are quantised to 15 bits per 32 columns (kernels/packed_blocks_input.h): exact in integers
// within 32 columns, one f32 step per block (docs/numerics.md, "Blocks"). Over W of simd/words_*.h and V.
//
// Few tokens read the numbers from the panel into registers; more share a slice of the panel that is unpacked to i16 once.
#pragma once

#ifndef LAPIDARY_SIMD_WORDS_HEADER
#define LAPIDARY_SIMD_WORDS_HEADER "cpu/simd/words_plain.h"
#endif
#include LAPIDARY_SIMD_WORDS_HEADER

#include "cpu/kernels/packed_blocks_input.h"

namespace lapidary::cpu {
namespace {

// Pair kPair of the 32 columns at `numbers`, as unsigned numbers.
template <class Form, int kPair>
LAPIDARY_INLINE W pair_of(const std::byte* numbers) {
  if constexpr (Form::kBits == 8) {
    return keep(shift<8 * (kPair % 2)>(load_words(numbers + kPair / 2 * 64)), 0x00ff00ff);
  } else {
    const W nibbles = keep(shift<8 * (kPair % 2) + 4 * (kPair / 8)>(load_words(numbers + kPair / 2 % 4 * 64)), 0x000f000f);
    if constexpr (Form::kBits == 4) return nibbles;
    if constexpr (Form::kBits == 5) return merge(nibbles, shift<kPair - 4>(load_words(numbers + 256)), 0x00100010);
    if constexpr (Form::kBits == 6)
      return merge(nibbles, shift<2 * (kPair % 8) - 4>(load_words(numbers + 256 + kPair / 8 * 64)), 0x00300030);
  }
}

template <int kValue>
struct Constant {
  static constexpr int value = kValue;
};

// fn(Constant<s>) for every pair s.
template <int kFirst = 0, typename Fn>
LAPIDARY_INLINE void each_pair(const Fn& fn) {
  if constexpr (kFirst < kPairs) {
    fn(Constant<kFirst>{});
    each_pair<kFirst + 1>(fn);
  }
}

// The f32 scale and minimum of block b of a chunk; the signs are those of InputBlock.
template <class Form>
LAPIDARY_INLINE V block_scale(const std::byte* chunk, int64_t b) {
  if constexpr (!Form::kSuper) return load_f16(chunk + b * 32);
  if constexpr (Form::kGroupsOf16) return load_f16(chunk);  // its sub-scales are multiplied as integers
  if constexpr (Form::kSuper && !Form::kGroupsOf16) return mul(load_f16(chunk), to_f32(widen_u8(chunk + 64 + b * 16)));
}
template <class Form>
LAPIDARY_INLINE V block_minimum(const std::byte* chunk, int64_t b) {
  if constexpr (!Form::kSuper) return load_f16(chunk + 64 + b * 32);
  if constexpr (Form::kSuper) return mul(load_f16(chunk + 32), to_f32(widen_u8(chunk + 192 + b * 16)));
}

// --- few tokens ----------------------------------------------------------------------------------------------------------

constexpr int kBlockDirectTokens = 4;
// How far ahead panels are fetched that are read once.
constexpr int64_t kBlockAheadBytes = 4096;

template <class Form, int T>
LAPIDARY_NOINLINE void blocks_direct(const PackedTask& task, int64_t p) {
  // Sums of the first and the last 16 columns, where those have scales of their own or where one chain would wait for itself.
  constexpr int kSums = Form::kGroupsOf16 || T == 1 ? 2 : 1;
  const int64_t stride = blocks_input_bytes<Form>(task.k), blocks = blocks_padded<Form>(task.k);
  const std::byte* chunk = task.panels + p * task.panel_bytes;
  const std::byte* pairs = task.input;
  const InputBlock* input = reinterpret_cast<const InputBlock*>(task.input + blocks * kInputPairBytes);
  const auto input_of = [&](int t) { return reinterpret_cast<const InputBlock*>(reinterpret_cast<const std::byte*>(input) + t * stride); };
  V total[T];
  LAPIDARY_UNROLL for (int t = 0; t < T; ++t) total[t] = zero();
  for (int64_t c = 0; c < blocks; c += Form::kBlocks, chunk += Form::kChunkBytes) {
    for (int64_t b = 0; b < Form::kBlocks; ++b, ++input, pairs += kInputPairBytes) {
      const std::byte* numbers = chunk + Form::kScaleBytes + b * Form::kNumberBytes;
      LAPIDARY_UNROLL for (int i = 0; i < Form::kBits; ++i) LAPIDARY_PREFETCH(numbers + kBlockAheadBytes + i * 64);
      W sums[T][kSums];
      LAPIDARY_UNROLL for (int t = 0; t < T; ++t) {
        if constexpr (kSums == 2) {
          sums[t][0] = broadcast_word(&input_of(t)->start[0]);
          sums[t][1] = broadcast_word(&input_of(t)->start[1]);
        } else {
          sums[t][0] = set_words(static_cast<uint32_t>(input_of(t)->start[0] + input_of(t)->start[1]));
        }
      }
      each_pair([&](auto pair) {
        constexpr int s = decltype(pair)::value;
        const W w = pair_of<Form, s>(numbers);
        LAPIDARY_UNROLL for (int t = 0; t < T; ++t) {
          W& sum = sums[t][s / 8 % kSums];
          sum = dot_pairs_at(sum, w, pairs + t * stride + s * 4);
        }
      });
      const V scale = block_scale<Form>(chunk, b);
      LAPIDARY_UNROLL for (int t = 0; t < T; ++t) {
        W sum = sums[t][0];
        if constexpr (Form::kGroupsOf16) {
          sum = add(mul(sum, widen_i8(chunk + 64 + b * 32)), mul(sums[t][1], widen_i8(chunk + 80 + b * 32)));
        } else if constexpr (kSums == 2) {
          sum = add(sum, sums[t][1]);
        }
        total[t] = fma(to_f32(sum), mul(scale, set1(input_of(t)->scale)), total[t]);
        if constexpr (Form::kMinimum) total[t] = fma(block_minimum<Form>(chunk, b), set1(input_of(t)->sum), total[t]);
      }
    }
  }
  const int64_t first = p * kPackedRows;
  LAPIDARY_UNROLL for (int t = 0; t < T; ++t)
      store_lanes(task.out + t * task.out_stride + first - task.out_first, total[t], lanes_left(first, task.n));
}

// --- more tokens ---------------------------------------------------------------------------------------------------------

constexpr int64_t kSliceBlocks = 8;

// Up to kSliceBlocks blocks of P panels, unpacked.
struct alignas(64) BlockSlice {
  uint32_t pairs[kSliceBlocks * kPairs * kBlockPanels * 16];  // [block][pair][P panels][16 rows], moved down; Q6_K: times their scale
  float scales[kSliceBlocks * kBlockPanels * 16];             // [block][P panels][16 rows]
  float minimums[kSliceBlocks * kBlockPanels * 16];
};

template <class Form, int P>
LAPIDARY_NOINLINE void unpack_blocks(const std::byte* panel, int64_t b0, int64_t blocks, int p, BlockSlice& slice) {
  for (int64_t i = 0; i < blocks; ++i) {
    const std::byte* chunk = panel + (b0 + i) / Form::kBlocks * Form::kChunkBytes;
    const int64_t b = (b0 + i) % Form::kBlocks;
    const std::byte* numbers = chunk + Form::kScaleBytes + b * Form::kNumberBytes;
    W scales[2];
    if constexpr (Form::kGroupsOf16) {
      LAPIDARY_UNROLL for (int g = 0; g < 2; ++g) {
        const W scale = widen_i8(chunk + 64 + b * 32 + g * 16);
        scales[g] = merge(shift<-16>(scale), scale, 0xffff);
      }
    }
    uint32_t* to = slice.pairs + (i * kPairs * P + p) * 16;
    each_pair([&](auto pair) {
      constexpr int s = decltype(pair)::value;
      W w = pair_of<Form, s>(numbers);
      if constexpr (Form::kOffset != 0) w = sub_pairs(w, set_words(Form::kOffset * 0x10001u));
      if constexpr (Form::kGroupsOf16) w = mul_pairs(w, scales[s / 8]);
      store_words(to + s * P * 16, w);
    });
    store(slice.scales + (i * P + p) * 16, block_scale<Form>(chunk, b));
    if constexpr (Form::kMinimum) store(slice.minimums + (i * P + p) * 16, block_minimum<Form>(chunk, b));
  }
}

// What one slice does to the sums of all tokens.
struct SliceTask {
  const BlockSlice* slice;
  int64_t blocks;
  const std::byte* pairs;         // the slice's first, of token 0
  const std::byte* input_blocks;  // likewise
  int64_t input_stride;
  float* totals;  // [tokens][P panels][16 rows]
  bool first;
};

template <bool kMinimum, int P, int T>
LAPIDARY_NOINLINE void slice_tile(const SliceTask& task, int64_t token) {
  const int64_t stride = task.input_stride;
  const std::byte* pairs = task.pairs + token * stride;
  const std::byte* input = task.input_blocks + token * stride;
  float* totals = task.totals + token * P * 16;
  const uint32_t* words = task.slice->pairs;
  V total[T][P];
  LAPIDARY_UNROLL for (int t = 0; t < T; ++t) {
    LAPIDARY_UNROLL for (int p = 0; p < P; ++p) total[t][p] = task.first ? zero() : load(totals + (t * P + p) * 16);
  }
  for (int64_t b = 0; b < task.blocks; ++b, input += sizeof(InputBlock)) {
    W sums[T][P];
    LAPIDARY_UNROLL for (int t = 0; t < T; ++t) { LAPIDARY_UNROLL for (int p = 0; p < P; ++p) sums[t][p] = set_words(0); }
    LAPIDARY_UNROLL for (int t = T; t < 2 * T; ++t) {  // the next tile's
      LAPIDARY_PREFETCH_NEAR(pairs + t * stride);
      LAPIDARY_PREFETCH_NEAR(input + t * stride);
    }
    for (int s = 0; s < kPairs; s += kPairUnroll, pairs += 4 * kPairUnroll, words += kPairUnroll * P * 16) {
      LAPIDARY_UNROLL for (int i = 0; i < kPairUnroll; ++i) {
        W w[P];
        LAPIDARY_UNROLL for (int p = 0; p < P; ++p) w[p] = load_words(words + (i * P + p) * 16);
        LAPIDARY_UNROLL for (int t = 0; t < T; ++t) {
          const W x = broadcast_word(pairs + t * stride + i * 4);
          LAPIDARY_UNROLL for (int p = 0; p < P; ++p) sums[t][p] = dot_pairs(sums[t][p], w[p], x);
        }
      }
    }
    V scales[P];
    LAPIDARY_UNROLL for (int p = 0; p < P; ++p) scales[p] = load(task.slice->scales + (b * P + p) * 16);
    LAPIDARY_UNROLL for (int t = 0; t < T; ++t) {
      const InputBlock* block = reinterpret_cast<const InputBlock*>(input + t * stride);
      LAPIDARY_UNROLL for (int p = 0; p < P; ++p) {
        total[t][p] = fma(to_f32(sums[t][p]), mul(scales[p], set1(block->scale)), total[t][p]);
        if constexpr (kMinimum) total[t][p] = fma(load(task.slice->minimums + (b * P + p) * 16), set1(block->sum), total[t][p]);
      }
    }
  }
  LAPIDARY_UNROLL for (int t = 0; t < T; ++t) { LAPIDARY_UNROLL for (int p = 0; p < P; ++p) store(totals + (t * P + p) * 16, total[t][p]); }
}

template <bool kMinimum, int P, int T>
LAPIDARY_INLINE void slice_tile_of(int64_t tokens, const SliceTask& task, int64_t token) {
  if constexpr (T > 0) {
    if (tokens == T) return slice_tile<kMinimum, P, T>(task, token);
    slice_tile_of<kMinimum, P, T - 1>(tokens, task, token);
  }
}

// P panels from p on: what blocks [b, b + count) add to the totals of all tokens.
template <class Form, int P>
void add_slice(const PackedTask& task, int64_t p, int64_t b, int64_t count, BlockSlice& slice, float* totals) {
  const int64_t blocks = blocks_padded<Form>(task.k), stride = blocks_input_bytes<Form>(task.k);
  for (int i = 0; i < P; ++i) unpack_blocks<Form, P>(task.panels + (p + i) * task.panel_bytes, b, count, i, slice);
  const std::byte* input_blocks = task.input + blocks * kInputPairBytes + b * static_cast<int64_t>(sizeof(InputBlock));
  const SliceTask part{&slice, count, task.input + b * kInputPairBytes, input_blocks, stride, totals, b == 0};
  // Tiles of about equal size: a chain alone waits for its own sums.
  const int64_t tiles = (task.tokens + kBlockTokens - 1) / kBlockTokens, least = task.tokens / tiles, larger = task.tokens % tiles;
  for (int64_t i = 0, token = 0; i < tiles; ++i) {
    const int64_t tokens = least + (i < larger);
    slice_tile_of<Form::kMinimum, P, kBlockTokens>(tokens, part, token);
    token += tokens;
  }
}

// Panels that meet a slice of the inputs one after another, while it stays in the second-level cache.
constexpr int64_t kJoinedPanels = 8;

// Panels [p, p + count), at most kJoinedPanels, all tokens. scratch: a slice, then the totals, [count][tokens][16 rows] but for neighbours
// that are multiplied at once: [tokens][kBlockPanels][16 rows].
template <class Form>
void blocks_sliced(const PackedTask& task, int64_t p, int64_t count, float* scratch) {
  BlockSlice& slice = *reinterpret_cast<BlockSlice*>(scratch);
  float* totals = scratch + sizeof(BlockSlice) / sizeof(float);
  const int64_t blocks = blocks_padded<Form>(task.k), paired = count / kBlockPanels * kBlockPanels, panel_floats = task.tokens * 16;
  for (int64_t b = 0; b < blocks; b += kSliceBlocks) {
    const int64_t several = blocks - b < kSliceBlocks ? blocks - b : kSliceBlocks;
    for (int64_t i = 0; i < paired; i += kBlockPanels)
      add_slice<Form, kBlockPanels>(task, p + i, b, several, slice, totals + i * panel_floats);
    for (int64_t i = paired; i < count; ++i) add_slice<Form, 1>(task, p + i, b, several, slice, totals + i * panel_floats);
  }
  const int64_t first = p * kPackedRows;
  for (int64_t t = 0; t < task.tokens; ++t) {
    float* out = task.out + t * task.out_stride + first - task.out_first;
    for (int64_t i = 0; i < count; ++i) {
      const float* from = i < paired ? totals + (i - i % kBlockPanels) * panel_floats + (t * kBlockPanels + i % kBlockPanels) * 16
                                     : totals + i * panel_floats + t * 16;
      store_lanes(out + i * 16, load(from), lanes_left(first + i * kPackedRows, task.n));
    }
  }
}

template <class Form, int T>
LAPIDARY_INLINE void blocks_direct_of(const PackedTask& task, int64_t p) {
  if constexpr (T > 0) {
    if (task.tokens == T) return blocks_direct<Form, T>(task, p);
    blocks_direct_of<Form, T - 1>(task, p);
  }
}

template <class Form>
void blocks_multiply(const PackedTask& task, int64_t p0, int64_t p1, float* scratch) {
  int64_t p = p0;
  if (task.tokens <= kBlockDirectTokens) {
    for (; p < p1; ++p) blocks_direct_of<Form, kBlockDirectTokens>(task, p);
  }
  for (; p < p1; p += kJoinedPanels) blocks_sliced<Form>(task, p, p1 - p < kJoinedPanels ? p1 - p : kJoinedPanels, scratch);
}

size_t blocks_scratch(int64_t tokens, int64_t) {
  return sizeof(BlockSlice) / sizeof(float) + static_cast<size_t>(tokens * kJoinedPanels * 16);
}

}  // namespace
}  // namespace lapidary::cpu
