// What one block of decode attention works on, and how its queries, keys and values get into shared memory.
#pragma once

#include "cuda/api/attention_decode.h"
#include "cuda/kernels/attention_blocks.cuh"
#include "cuda/kernels/head_row.cuh"
#include "cuda/kernels/kv_tile.cuh"
#include "cuda/kernels/online_softmax.cuh"

namespace lapidary::cuda {

struct DecodeParams {
  AttentionDecodeParams problem;
  AttentionDecodePlan plan;
  ScoreScale score;
};

inline constexpr int kDecodeWarps = 4, kDecodeThreads = kDecodeWarps * kWarp;
static_assert(kDecodeTileKeys == kPageTokens && kDecodeTileKeys == kDecodeWarps * 16, "a tile is a page; a warp owns 16 of its keys");

// Shared memory. Keys and values have a ring of stages each; with a bf16 prefix before an int8 cache the same bytes are fewer, larger
// stages.
template <int HeadDim, KvType Kv, int Columns>
struct DecodeLayout {
  static constexpr int kRows = 8 * Columns;  // packed query rows

  // Tiles of 64 keys or values as they are stored in the cache.
  template <KvType Tile>
  using Rows = TileLayout<Tile == KvType::int8 ? HeadDim / 2 : HeadDim>;
  template <KvType Tile>
  static constexpr int kTileBytes = kDecodeTileKeys * Rows<Tile>::kRowBytes;
  static constexpr int kStages = 32 * 1024 / (kDecodeTileKeys * HeadDim * kKvBytes<Kv>) > 4
                                     ? 4
                                     : 32 * 1024 / (kDecodeTileKeys * HeadDim * kKvBytes<Kv>);
  static constexpr int kRingBytes = kStages * kTileBytes<Kv>;
  template <KvType Tile>
  static constexpr int kStagesOf = kRingBytes / kTileBytes<Tile> > 4 ? 4 : kRingBytes / kTileBytes<Tile>;

  static constexpr int kScaleBytes = Kv == KvType::int8 ? kStages * kDecodeTileKeys * 4 : 0;
  static constexpr int kK = 0, kV = kK + kRingBytes;
  static constexpr int kScaleK = kV + kRingBytes, kScaleV = kScaleK + kScaleBytes;      // f32 [stages][64]
  static constexpr int kQ = kScaleV + kScaleBytes;                                      // bf16 [rows][HeadDim]
  static constexpr int kP = kQ + kRows * TileLayout<HeadDim>::kRowBytes;                // bf16 [rows][64 keys]: the tile's weights
  static constexpr int kTileMax = kP + kRows * TileLayout<kDecodeTileKeys>::kRowBytes;  // f32 [warps][rows]
  static constexpr int kTileSum = kTileMax + kDecodeWarps * kRows * 4;                  // f32 [warps][rows]
  static constexpr int kState = kTileSum + kDecodeWarps * kRows * 4;                    // {m, l} [rows], at the end
  static constexpr int kLast = kState + kRows * 8;                                      // i32 [rows]: the newest key that a row sees
  static constexpr int kFlag = kLast + kRows * 4;
  static constexpr size_t kBytes = kFlag + 16;

  // The rows' sums f32 [rows][HeadDim] take the rings' place at the end. Groups of eight dims are permuted so that the threads of a
  // fragment store to different banks.
  static LAPIDARY_HOST_DEVICE constexpr int sum(int row, int dim) { return row * HeadDim + (dim ^ (row >> 1 & 3) << 3); }
  static_assert(kRows * HeadDim * 4 <= 2 * kRingBytes, "the sums fit the rings");
  static_assert(kStagesOf<KvType::bf16> >= 1, "a tile of the prefix fits the ring");
};

// Uniform over the block: one KV head, one row group of one sequence, one split of its keys.
struct DecodeBlock {
  const DecodeParams& params;
  std::byte* smem;
  AttentionSequence sequence;
  int32_t kv_head, group;       // group: query heads per KV head
  int32_t first_token, tokens;  // the row group, of the sequence's tokens
  int32_t keys_per_split;
  KeyRange keys;                // that any row of the group sees
  int32_t first_split, splits;  // splits: of this group, the prefix's included; first_split: the first one with visible keys
  int32_t split;                // 0..splits - 1 in the order of the merge; beyond: nothing to do

  LAPIDARY_DEVICE int rows() const { return tokens * group; }
  LAPIDARY_DEVICE int oldest_query() const { return sequence.first_pos + first_token; }
  LAPIDARY_DEVICE int newest_query() const { return sequence.first_pos + first_token + tokens - 1; }
  LAPIDARY_DEVICE bool has_prefix() const { return params.problem.common.prefix_tokens > 0; }
  LAPIDARY_DEVICE bool is_prefix() const { return has_prefix() && split == 0; }
  LAPIDARY_DEVICE bool is_fused() const { return params.problem.q == nullptr; }
  // Tiles of the split: [begin, end), of the cache or of the prefix.
  LAPIDARY_DEVICE KeyRange tiles() const {
    if (is_prefix()) return {0, ceil_div(params.problem.common.prefix_tokens, kDecodeTileKeys)};
    const int first = (first_split + split - has_prefix()) * keys_per_split, end = first + keys_per_split;
    return {(first > keys.begin ? first : keys.begin) / kDecodeTileKeys, ((end < keys.end ? end : keys.end) - 1) / kDecodeTileKeys + 1};
  }
  // Row r is head r % group of token r / group.
  LAPIDARY_DEVICE int64_t query_row(int row) const {
    const int token = sequence.first_row + first_token + row / group;
    return static_cast<int64_t>(token) * params.problem.common.num_heads + kv_head * group + row % group;
  }
};

LAPIDARY_DEVICE DecodeBlock decode_block(const DecodeParams& p, std::byte* smem) {
  const AttentionCommon& c = p.problem.common;
  DecodeBlock b = {
      p, smem,     load_sequence(c.sequences + block_z()), block_y() / p.plan.row_groups, c.num_heads / c.num_kv_heads, 0, 0, 0, {0, 0}, 0,
      0, block_x()};
  // Row groups: the rows that share the first row's split in steps of group_tokens, then the others.
  const int index = block_y() % p.plan.row_groups, step = p.plan.group_tokens;
  const int same = p.plan.rule.rows_of_first_split(b.sequence.first_pos, b.sequence.rows);
  const int groups = ceil_div(same, step);
  b.first_token = index < groups ? index * step : same + (index - groups) * step;
  const int end = index < groups ? same : b.sequence.rows;
  b.tokens = b.first_token >= end ? 0 : end - b.first_token < step ? end - b.first_token : step;
  if (b.tokens == 0) return b;
  b.keys = {visible_keys(b.oldest_query(), c.window).begin, visible_keys(b.newest_query(), c.window).end};
  b.keys_per_split = p.plan.rule.keys_per_split(b.newest_query());
  b.first_split = b.keys.begin / b.keys_per_split;
  b.splits = (b.keys.end - 1) / b.keys_per_split - b.first_split + 1 + b.has_prefix();
  return b;
}

// --- keys and values --------------------------------------------------------------------------------------------------------
// Loads tiles of the block into the rings. A tile's page is looked up one tile before it is needed.
template <int HeadDim, KvType Kv, int Columns, KvType Tile>
struct DecodeLoader {
  using Layout = DecodeLayout<HeadDim, Kv, Columns>;
  using Rows = typename Layout::template Rows<Tile>;
  static constexpr int kTileBytes = Layout::template kTileBytes<Tile>, kStages = Layout::template kStagesOf<Tile>;
  static constexpr bool kInt8 = Tile == KvType::int8;

  const DecodeBlock& b;
  KeyRange tiles;
  std::byte* next_page;  // of the tile whose keys are loaded next; not used by the prefix
  std::byte* this_page;  // of the tile whose keys were loaded last

  LAPIDARY_DEVICE DecodeLoader(const DecodeBlock& block)
      : b(block), tiles(block.tiles()), next_page(page(tiles.begin)), this_page(nullptr) {}

  LAPIDARY_DEVICE std::byte* page(int tile) const { return b.is_prefix() || tile >= tiles.end ? nullptr : page_of_block(b.sequence, tile); }

  static LAPIDARY_DEVICE std::byte* stage(const DecodeBlock& b, int offset, int tile_of_split) {
    return b.smem + offset + tile_of_split % kStages * kTileBytes;
  }
  static LAPIDARY_DEVICE float* scales(const DecodeBlock& b, int offset, int tile_of_split) {
    return reinterpret_cast<float*>(b.smem + offset) + tile_of_split % kStages * kDecodeTileKeys;
  }

  // Issues the copies of the split's n-th tile, keys and then values in turn, n rising; closes the group (empty behind the last tile).
  LAPIDARY_DEVICE void load_keys(int n) {
    this_page = next_page;
    if (tiles.begin + n < tiles.end) {
      next_page = page(tiles.begin + n + 1);
      load<false>(n);
    }
    copy_async_commit();
  }
  LAPIDARY_DEVICE void load_values(int n) {
    if (tiles.begin + n < tiles.end) load<true>(n);
    copy_async_commit();
  }

 private:
  template <bool Value>
  LAPIDARY_DEVICE void load(int n) {
    const AttentionCommon& c = b.params.problem.common;
    const int first = (tiles.begin + n) * kDecodeTileKeys;  // position of the tile's row 0
    const KvPage<Kv> layout = {c.num_kv_heads, HeadDim};
    std::byte* to = stage(b, Value ? Layout::kV : Layout::kK, n);
    if (b.is_prefix()) {
      const uint16_t* from = (Value ? c.prefix_v : c.prefix_k) + (static_cast<int64_t>(b.kv_head) * c.prefix_tokens + first) * HeadDim;
      copy_rows(to, reinterpret_cast<const std::byte*>(from), {0, c.prefix_tokens - first}, c.prefix_tokens - first);
      return;
    }
    // Rows that no query sees are not read: they are uninitialised, or being overwritten by another block. They become zeros. Rows that
    // this launch appends come from the projections.
    const int fresh = b.is_fused() && b.sequence.first_pos < b.keys.end ? b.sequence.first_pos : b.keys.end;
    const KeyRange cached = {b.keys.begin - first, fresh - first};
    copy_rows(to, this_page + (Value ? layout.values(b.kv_head) : layout.keys(b.kv_head)), cached, b.keys.end - first);
    if constexpr (kInt8 && !Value) copy_scales(n, cached, b.keys.end - first);
    if (b.is_fused()) append<Value>(n);
  }

  // Rows [copied.begin, copied.end) are copied, rows [copied.end, end) left alone, the others zeroed.
  static LAPIDARY_DEVICE void copy_rows(std::byte* to, const std::byte* from, KeyRange copied, int end) {
    constexpr int kRowBytes = HeadDim * kKvBytes<Tile>, kChunks = kRowBytes / 16, kTotal = kDecodeTileKeys * kChunks;
    static_assert(kTotal % kDecodeThreads == 0);
    static_assert(kDecodeThreads % kChunks == 0 && (kDecodeThreads / kChunks) % 4 == 0, "a thread keeps its chunk");
    constexpr int kStep = kDecodeThreads / kChunks;
    const int first = thread_index() / kChunks, place = Rows::offset(first, thread_index() % kChunks);
    LAPIDARY_UNROLL
    for (int n = 0; n < kTotal / kDecodeThreads; ++n) {
      const int row = first + n * kStep;
      const bool valid = row >= copied.begin && row < copied.end;
      if (valid || row < copied.begin || row >= end)
        copy_async_16(to + Rows::shift(place, n * kStep, 0), valid ? from + (thread_index() + n * kDecodeThreads) * 16 : from, valid);
    }
  }

  // Of keys and values alike, half of the threads each; with the keys, because weights are scaled before the values are there.
  LAPIDARY_DEVICE void copy_scales(int n, KeyRange copied, int end) const {
    static_assert(kDecodeThreads == 2 * kDecodeTileKeys);
    const KvPage<Kv> layout = {b.params.problem.common.num_kv_heads, HeadDim};
    const int row = thread_index() % kDecodeTileKeys;
    const bool value = thread_index() >= kDecodeTileKeys, valid = row >= copied.begin && row < copied.end;
    const std::byte* from = this_page + (value ? layout.value_scales(b.kv_head) : layout.key_scales(b.kv_head));
    float* to = scales(b, value ? Layout::kScaleV : Layout::kScaleK, n) + row;
    if (valid || row < copied.begin || row >= end) copy_async_small<4>(to, valid ? from + row * 4 : from, valid);
  }

  // Fused: the split's rows that are new in this step, straight from the projections into the stage, in the cache's type. The row group
  // whose token it is also writes the row to the cache: nobody reads it there in this launch.
  template <bool Value>
  LAPIDARY_DEVICE void append(int n) const {
    const QkvRows& in = b.params.problem.rows;
    const KvPage<Kv> layout = {b.params.problem.common.num_kv_heads, HeadDim};
    const int first = (tiles.begin + n) * kDecodeTileKeys, seq = b.sequence.first_pos;
    const int begin = b.keys.begin > seq ? b.keys.begin : seq;
    const int from = first > begin ? first : begin, end = first + kDecodeTileKeys < b.keys.end ? first + kDecodeTileKeys : b.keys.end;
    // Values begin at another warp, so that one new row's key and value are prepared side by side.
    for (int position = from + (warp() + (Value ? kDecodeWarps - 1 : 0)) % kDecodeWarps; position < end; position += kDecodeWarps) {
      const int64_t token = b.sequence.first_row + position - seq;
      HeadRow<true> row =
          HeadRow<true>::load((Value ? in.v + token * in.v_stride : in.k + token * in.k_stride) + b.kv_head * HeadDim, HeadDim);
      if constexpr (!Value) {
        row.norm(in.k_norm, HeadDim);
        if (in.cos != nullptr) row = row.rotated(in.cos + token * (HeadDim / 2), in.sin + token * (HeadDim / 2), HeadDim);
      }
      const int slot = position - first;
      std::byte* to = stage(b, Value ? Layout::kV : Layout::kK, n);
      if constexpr (kInt8) {
        const float scale = row.scale(), inverse = int8_inverse(scale);
        row.each(HeadDim, [&](int at, const F32x4& v) { put_shared(to + Rows::offset(slot, at / 16) + at % 16, quantized(v, inverse)); });
        if (lane() == 0) store_shared(scales(b, Value ? Layout::kScaleV : Layout::kScaleK, n) + slot, scale);
      } else {
        row.each(HeadDim, [&](int at, const F32x4& v) { put_shared(to + Rows::offset(slot, at / 8) + at % 8 * 2, rounded(v)); });
      }
      if (position >= b.oldest_query())
        store_row<Kv>(row, this_page + (Value ? layout.values(b.kv_head, slot) : layout.keys(b.kv_head, slot)),
                      this_page + (Value ? layout.value_scales(b.kv_head, slot) : layout.key_scales(b.kv_head, slot)), HeadDim);
    }
  }
};

// --- queries ----------------------------------------------------------------------------------------------------------------
// Queries to shared memory as bf16 [rows][HeadDim]. Permuted (for int8 keys, see the kernel): of each 16 dims, pair p of two stands at
// 4 (p % 2) + p / 2. Rows that do not exist become zeros. Also the newest key that each row sees.
template <class Layout, int HeadDim, bool Permuted>
LAPIDARY_DEVICE void prepare_queries(const DecodeBlock& b) {
  using Rows = TileLayout<HeadDim>;
  std::byte* q = b.smem + Layout::kQ;
  if (thread_index() < Layout::kRows) {
    const int newest = b.is_prefix() ? b.params.problem.common.prefix_tokens - 1 : b.oldest_query() + thread_index() / b.group;
    store_shared(reinterpret_cast<int32_t*>(b.smem + Layout::kLast) + thread_index(), newest);
  }
  if (!b.is_fused()) {
    const uint16_t* from = b.is_prefix() && b.params.problem.q_prefix != nullptr ? b.params.problem.q_prefix : b.params.problem.q;
    for (int i = thread_index(); i < Layout::kRows * (HeadDim / 16); i += kDecodeThreads) {
      const int row = i / (HeadDim / 16), part = i % (HeadDim / 16);
      U32x4 low = {}, high = {};
      if (row < b.rows()) {
        const U32x4* at = reinterpret_cast<const U32x4*>(from + b.query_row(row) * HeadDim + part * 16);
        low = load_global(at), high = load_global(at + 1);
      }
      if constexpr (Permuted) {
        const U32x4 even = {{low[0], low[2], high[0], high[2]}}, odd = {{low[1], low[3], high[1], high[3]}};
        low = even, high = odd;
      }
      store_shared(reinterpret_cast<U32x4*>(q + Rows::offset(row, 2 * part)), low);
      store_shared(reinterpret_cast<U32x4*>(q + Rows::offset(row, 2 * part + 1)), high);
    }
    return;
  }
  const QkvRows& in = b.params.problem.rows;
  const bool clamped = b.is_prefix() && in.prefix_cos != nullptr;
  const float* cos = clamped ? in.prefix_cos : in.cos;
  const float* sin = clamped ? in.prefix_sin : in.sin;
  for (int r = warp(); r < Layout::kRows; r += kDecodeWarps) {
    HeadRow<true> row = {};
    if (r < b.rows()) {
      const int64_t token = b.sequence.first_row + b.first_token + r / b.group;
      row = HeadRow<true>::load(in.q + token * in.q_stride + (b.kv_head * b.group + r % b.group) * HeadDim, HeadDim);
      row.norm(in.q_norm, HeadDim);
      if (cos != nullptr) row = row.rotated(cos + token * (HeadDim / 2), sin + token * (HeadDim / 2), HeadDim);
    }
    row.each(HeadDim, [&](int at, const F32x4& v) {
      LAPIDARY_UNROLL
      for (int e = 0; e < 2; ++e) {
        const int pair = (at % 16) / 2 + e, place = Permuted ? 4 * (pair % 2) + pair / 2 : pair;
        store_shared(reinterpret_cast<uint32_t*>(q + Rows::offset(r, at / 16 * 2 + place / 4)) + place % 4,
                     pack_bf16(v[2 * e], v[2 * e + 1]));
      }
    });
  }
}

}  // namespace lapidary::cuda
