// The query rows of one tile of prefill attention, shared by its kernels: how the heads of a group are packed into rows, what each row
// sees, the softmax over mma fragments, how results are written.
#pragma once

#include "cuda/api/attention_prefill.h"
#include "cuda/kernels/attention_blocks.cuh"
#include "cuda/kernels/kv_tile.cuh"
#include "cuda/kernels/online_softmax.cuh"
#include "cuda/primitives/warp.cuh"

namespace lapidary::cuda {

// What the launchers make of AttentionPrefillParams and AttentionFullParams.
struct PrefillParams {
  const uint16_t* q;         // bf16 [tokens, num_heads, head_dim], tokens q_stride elements apart
  const uint16_t* q_prefix;  // bf16, the same shape, or null
  const ImageBlock* images;  // [tokens] or null
  const AttentionTile* tiles;
  const AttentionSequence* sequences;
  const uint16_t* prefix_k;  // bf16 [num_kv_heads, prefix_tokens, head_dim]
  const uint16_t* prefix_v;
  const uint16_t* k;  // full attention alone: bf16 [tokens, num_kv_heads, head_dim], tokens kv_stride elements apart
  const uint16_t* v;
  void* out;  // [tokens, num_heads, head_dim] of out_type
  ScoreScale score;
  float out_inverse_scale;
  ActType out_type;
  int32_t num_heads, num_kv_heads, group, head_dim;
  int32_t q_stride, kv_stride;
  int32_t window, prefix_tokens;
};

// The packed rows of one tile and KV head. A block's threads all hold the same values.
struct PackedRows {
  int32_t first;            // packed row of the tile's row 0 within the sequence
  int32_t count;            // packed rows of the sequence
  int32_t group, head;      // head: first query head of the group
  int32_t token, position;  // of the sequence's first row: row in q, cache position
  const AttentionSequence* sequence;

  LAPIDARY_DEVICE bool exists(int row) const { return first + row < count; }
  LAPIDARY_DEVICE int token_of(int row) const { return token + (first + row) / group; }
  LAPIDARY_DEVICE int head_of(int row) const { return head + (first + row) % group; }
};

// Of this block: tile block_x(), KV head block_y(). Loads; not for use in a loop.
LAPIDARY_DEVICE PackedRows packed_rows(const PrefillParams& p) {
  const AttentionTile tile = bits_as<AttentionTile>(load_readonly(reinterpret_cast<const U32x2*>(p.tiles + block_x())));
  const AttentionSequence* sequence = p.sequences + tile.sequence;
  return {.first = tile.first_row,
          .count = load_readonly(&sequence->rows) * p.group,
          .group = p.group,
          .head = block_y() * p.group,
          .token = load_readonly(&sequence->first_row),
          .position = load_readonly(&sequence->first_pos),
          .sequence = sequence};
}

// Every query sees all keys [0, tokens) when `Full`.
template <bool Full>
LAPIDARY_DEVICE KeyRange keys_of_row(const PrefillParams& p, const PackedRows& rows, int row) {
  if constexpr (Full) return {0, rows.count};
  const int token = (rows.first + row) / rows.group;
  ImageBlock image = {0, 0};
  if (p.images != nullptr) image = bits_as<ImageBlock>(load_readonly(reinterpret_cast<const U32x2*>(p.images + rows.token + token)));
  return visible_keys(rows.position + token, p.window, image.first, image.end);
}

// What the rows of a tile of Rows see together.
struct TileKeys {
  KeyBlocks blocks;
  KeyRange keys;
};
template <bool Full, int Rows>
LAPIDARY_DEVICE TileKeys keys_of_tile(const PrefillParams& p, const PackedRows& rows, int keys_per_block) {
  const int last = (rows.count - rows.first < Rows ? rows.count - rows.first : Rows) - 1;
  const KeyRange first_keys = keys_of_row<Full>(p, rows, 0), last_keys = keys_of_row<Full>(p, rows, last);
  return {key_blocks(first_keys, last_keys, keys_per_block), {first_keys.begin, last_keys.end}};
}
// ranges[row] for every row of the tile, by the block's Threads threads; rows that do not exist see nothing.
template <bool Full, int Rows, int Threads>
LAPIDARY_DEVICE void store_ranges(KeyRange* ranges, const PrefillParams& p, const PackedRows& rows) {
  for (int row = thread_index(); row < Rows; row += Threads)
    store_shared(ranges + row, rows.exists(row) ? keys_of_row<Full>(p, rows, row) : KeyRange{0, 0});
}

// Rows [begin, begin + Rows) of the tile from q, by one warp: copies issued, not awaited. Rows that do not exist become zeros. Layout: the
// place of a row's 16-byte chunks, as TileLayout.
template <class Layout, int Rows>
LAPIDARY_DEVICE void load_query_rows(std::byte* q_smem, const uint16_t* q, const PrefillParams& p, const PackedRows& rows, int begin) {
  static_assert(Rows * Layout::kChunks % kWarp == 0);
  const int thread = not_hoisted(lane());
  LAPIDARY_UNROLL
  for (int n = 0; n < Rows * Layout::kChunks / kWarp; ++n) {
    const int i = thread + n * kWarp;
    const int row = begin + i / Layout::kChunks, chunk = i % Layout::kChunks;
    const bool valid = rows.exists(row) && chunk * 8 < p.head_dim;
    const uint16_t* from = q;
    if (valid) from += static_cast<int64_t>(rows.token_of(row)) * p.q_stride + rows.head_of(row) * p.head_dim + chunk * 8;
    copy_async_16(q_smem + Layout::offset(row, chunk), from, valid);
  }
}

// --- 16 rows in mma fragments: element 2h + e of group j is of row lane / 4 + 8h, column 8j + 2 (lane % 4) + e
// -----------------------------------

// Soft-cap, if there is one.
template <int Groups>
LAPIDARY_DEVICE void cap_scores(const ScoreScale& scale, float (&s)[Groups][4]) {
  if (scale.outer == 0) return;
  LAPIDARY_UNROLL
  for (int j = 0; j < Groups; ++j) {
    LAPIDARY_UNROLL
    for (int e = 0; e < 4; ++e) s[j][e] = scale.cap(s[j][e]);
  }
}

// Hides keys outside `keys` (positions) in the thread's row of half h; `first`: position of column 0.
template <int Groups>
LAPIDARY_DEVICE void hide_keys(KeyRange keys, int first, int h, float (&s)[Groups][4]) {
  const uint32_t begin = keys.begin - first - lane() % 4 * 2, count = keys.end - keys.begin;
  LAPIDARY_UNROLL
  for (int j = 0; j < Groups; ++j) {
    LAPIDARY_UNROLL
    for (int e = 0; e < 2; ++e) {
      if (j * 8 + e - begin >= count) s[j][2 * h + e] = kMaskedScore;
    }
  }
}

// Scores become weights and the state moves to the new maximum; rescale: what the output accumulated so far is to be multiplied by. row.l
// sums this thread's columns only.
template <int Groups>
LAPIDARY_DEVICE void scores_to_weights(float factor, float (&s)[Groups][4], SoftmaxRow (&row)[2], float (&rescale)[2]) {
  LAPIDARY_UNROLL
  for (int h = 0; h < 2; ++h) {
    float highest = s[0][2 * h];
    LAPIDARY_UNROLL
    for (int j = 0; j < Groups; ++j) highest = max_f32(highest, max_f32(s[j][2 * h], s[j][2 * h + 1]));
    highest = max_f32(highest, shuffle_xor(highest, 1));
    highest = max_f32(highest, shuffle_xor(highest, 2));
    rescale[h] = row[h].raise(highest * factor);
    LAPIDARY_UNROLL
    for (int j = 0; j < Groups; ++j) {
      LAPIDARY_UNROLL
      for (int e = 2 * h; e < 2 * h + 2; ++e) {
        s[j][e] = exp2_fast(fma(s[j][e], factor, -row[h].m));
        row[h].l += s[j][e];
      }
    }
  }
}
template <int Groups>
LAPIDARY_DEVICE void rescale_output(const float (&rescale)[2], float (&o)[Groups][4]) {
  if (!warp_any(rescale[0] != 1.0f || rescale[1] != 1.0f)) return;  // exact: a factor of 1 changes nothing
  LAPIDARY_UNROLL
  for (int n = 0; n < Groups; ++n) {
    LAPIDARY_UNROLL
    for (int e = 0; e < 4; ++e) o[n][e] *= rescale[e / 2];
  }
}
// As the A operand of the product with V.
template <int Groups>
LAPIDARY_DEVICE void pack_weights(const float (&s)[Groups][4], uint32_t (&weights)[Groups / 2][4]) {
  LAPIDARY_UNROLL
  for (int kk = 0; kk < Groups / 2; ++kk) {
    LAPIDARY_UNROLL
    for (int r = 0; r < 4; ++r) weights[kk][r] = pack_bf16(s[2 * kk + r / 2][r % 2 * 2], s[2 * kk + r / 2][r % 2 * 2 + 1]);
  }
}

// Rows [begin, begin + 16) of the tile, divided by their sums, to p.out. bf16 and int8 rows are put together in the same rows of `stage`,
// which this warp alone uses, in Layout, so that they leave in 16 (8) byte pieces.
template <class Layout, int Groups>
LAPIDARY_DEVICE void write_rows(std::byte* stage, const PrefillParams& p, const PackedRows& rows, int begin, SoftmaxRow (&row)[2],
                                float (&o)[Groups][4]) {
  LAPIDARY_UNROLL
  for (int h = 0; h < 2; ++h) {
    float sum = row[h].l;
    sum += shuffle_xor(sum, 1);
    sum += shuffle_xor(sum, 2);
    row[h].l = sum;
    const float inverse = row[h].inverse();
    const int at = begin + h * 8 + lane() / 4;
    float* to = static_cast<float*>(p.out) + (static_cast<int64_t>(rows.token_of(at)) * p.num_heads + rows.head_of(at)) * p.head_dim;
    LAPIDARY_UNROLL
    for (int n = 0; n < Groups; ++n) {
      const float x = o[n][2 * h] * inverse, y = o[n][2 * h + 1] * inverse;
      std::byte* chunk = stage + Layout::offset(at, n);
      if (p.out_type == ActType::bf16) {
        store_shared(reinterpret_cast<uint32_t*>(chunk) + lane() % 4, pack_bf16(x, y));
      } else if (p.out_type == ActType::int8) {
        store_shared(reinterpret_cast<Vec<int8_t, 2>*>(chunk) + lane() % 4,
                     {to_int8(x * p.out_inverse_scale), to_int8(y * p.out_inverse_scale)});
      } else if (rows.exists(at) && n * 8 < p.head_dim) {
        store_global(reinterpret_cast<F32x2*>(to + n * 8) + lane() % 4, {x, y});
      }
    }
  }
  if (p.out_type == ActType::f32) return;
  sync_warp();
  for (int i = lane(); i < 16 * Layout::kChunks; i += kWarp) {
    const int at = begin + i / Layout::kChunks, chunk = i % Layout::kChunks;
    if (!rows.exists(at) || chunk * 8 >= p.head_dim) continue;
    const int64_t to = (static_cast<int64_t>(rows.token_of(at)) * p.num_heads + rows.head_of(at)) * p.head_dim + chunk * 8;
    const std::byte* from = stage + Layout::offset(at, chunk);
    if (p.out_type == ActType::bf16) {
      store_global(reinterpret_cast<U32x4*>(static_cast<uint16_t*>(p.out) + to), load_shared(reinterpret_cast<const U32x4*>(from)));
    } else {
      store_global(reinterpret_cast<U32x2*>(static_cast<int8_t*>(p.out) + to), load_shared(reinterpret_cast<const U32x2*>(from)));
    }
  }
}

}  // namespace lapidary::cuda
