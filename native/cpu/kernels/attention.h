// Attention over V: one tile of queries, which share a KV head, over its keys block by block. Part of kernels/impl.h.
//
// Per query and 64-key block, the block aligned to absolute positions: scores by one chain of fused multiply-adds in rising element, scale,
// soft-cap, maximum over the visible keys, p = exp(score - maximum); the sum of p by lanes (key % 16) and the tree of reduce_add; values
// added key by key with one rounding each. A key that a query does not see has p = 0 there, which leaves its sums as they are as long as
// values are finite; where they are not, rows are taken one by one. Memory of keys that no row of the tile sees is not read as values.
#pragma once

#include "cpu/kernels/attention_pack.h"

namespace lapidary::cpu {
namespace {

constexpr int kBlockVectors = kBlockKeys / 16;
constexpr float kInfinity = __builtin_inff();

// Keys of a block.
struct BlockRange {
  int32_t begin, end;  // of 0 .. 64
  bool empty() const { return begin >= end; }
};

BlockRange in_block(const KeySpan& seen, int64_t block) {
  const int64_t base = block * kBlockKeys, begin = seen.begin - base, end = seen.end - base;
  if (begin >= kBlockKeys || end <= 0 || begin >= end) return {0, 0};
  return {begin < 0 ? 0 : static_cast<int32_t>(begin), end > kBlockKeys ? static_cast<int32_t>(kBlockKeys) : static_cast<int32_t>(end)};
}

BlockRange together(BlockRange a, BlockRange b) {
  if (a.empty()) return b;
  if (b.empty()) return a;
  return {a.begin < b.begin ? a.begin : b.begin, a.end > b.end ? a.end : b.end};
}

// Up to kAttendQueries consecutive queries, in one register tile.
struct QueryGroup {
  int32_t first, count;
  BlockRange seen;  // by some of them, of the block at hand
};

struct AttentionScratch {
  float* q;            // [queries, head_dim]
  float* scores;       // [queries, kBlockKeys]
  float* rescale;      // [queries]
  float* panel;        // [kSlab, kBlockKeys] or [kBlockKeys, kSlab]
  BlockRange* row;     // [rows] what a row sees of the block
  QueryGroup* groups;  // [group_count], which see something of it
  int64_t group_count;
};

int64_t group_limit(int64_t queries) { return (queries + kAttendQueries - 1) / kAttendQueries; }

// What the tile sees of a block: by row, by group, and together.
BlockRange look_at_block(const AttentionTile& tile, int64_t block, AttentionScratch& scratch) {
  BlockRange all{0, 0};
  for (int64_t r = 0; r < tile.rows; ++r) all = together(all, scratch.row[r] = in_block(tile.visible[r], block));
  const int64_t queries = tile.rows * tile.group, limit = group_limit(queries);
  scratch.group_count = 0;
  int64_t first = 0, row = 0, row_end = tile.group;  // the row of `first`, and the query behind that row
  for (int64_t g = 0; g < limit; ++g) {
    const int64_t count = queries / limit + (g < queries % limit ? 1 : 0), end = first + count;
    BlockRange seen = scratch.row[row];
    while (row_end < end) seen = together(seen, scratch.row[++row]), row_end += tile.group;
    if (!seen.empty()) scratch.groups[scratch.group_count++] = {static_cast<int32_t>(first), static_cast<int32_t>(count), seen};
    first = end;
    if (row_end == end) ++row, row_end += tile.group;
  }
  return all;
}

// --- scores ---------------------------------------------------------------------------------------------------------

// scores[q][key] (+)= Σ q[d] * panel[d][key] for d in [0, n), for 16 * N keys.
template <int Q, int N>
void score_tile(const float* q, int64_t q_stride, const float* panel, int64_t n, bool fresh, float* scores) {
  V s[Q][N];
  LAPIDARY_UNROLL for (int i = 0; i < Q; ++i) {
    LAPIDARY_UNROLL for (int j = 0; j < N; ++j) s[i][j] = fresh ? zero() : load(scores + i * kBlockKeys + 16 * j);
  }
  for (int64_t d = 0; d < n; ++d, panel += kBlockKeys) {
    V k[N];
    LAPIDARY_UNROLL for (int j = 0; j < N; ++j) k[j] = load(panel + 16 * j);
    LAPIDARY_UNROLL for (int i = 0; i < Q; ++i) {
      const V x = set1(q[i * q_stride + d]);
      LAPIDARY_UNROLL for (int j = 0; j < N; ++j) s[i][j] = fma(x, k[j], s[i][j]);
    }
  }
  LAPIDARY_UNROLL for (int i = 0; i < Q; ++i) {
    LAPIDARY_UNROLL for (int j = 0; j < N; ++j) store(scores + i * kBlockKeys + 16 * j, s[i][j]);
  }
}

template <int Q>
void score_group(const float* q, int64_t q_stride, const float* panel, int64_t n, bool fresh, float* scores, int64_t v, int64_t vectors) {
  for (int64_t left = vectors - v; left > 0; left = vectors - v) {
    const float* keys = panel + 16 * v;
    float* to = scores + 16 * v;
    if constexpr (kAttendVectors >= 4) {
      if (left >= 4) {
        score_tile<Q, 4>(q, q_stride, keys, n, fresh, to), v += 4;
        continue;
      }
      if (left == 3) return score_tile<Q, 3>(q, q_stride, keys, n, fresh, to);
    }
    if constexpr (kAttendVectors >= 2) {
      if (left >= 2) {
        score_tile<Q, 2>(q, q_stride, keys, n, fresh, to), v += 2;
        continue;
      }
    }
    score_tile<Q, 1>(q, q_stride, keys, n, fresh, to), v += 1;
  }
}

// fn(std::integral_constant-like) for a count of 1 .. kAttendQueries.
template <int N>
struct Count {
  static constexpr int value = N;
};
template <int N = kAttendQueries, typename Fn>
LAPIDARY_INLINE void with_count(int64_t count, const Fn& fn) {
  if constexpr (N == 1) {
    fn(Count<1>{});
  } else {
    if (count == N) return fn(Count<N>{});
    with_count<N - 1>(count, fn);
  }
}

template <class W>
void score_block(const AttentionTile& tile, const BlockSide& keys, BlockRange all, const AttentionScratch& scratch) {
  const int64_t dim = tile.head_dim;
  for (int64_t d = 0; d < dim; d += kSlab) {
    const int64_t n = dim - d < kSlab ? dim - d : kSlab;
    for (int64_t v = all.begin / 16; v < (all.end + 15) / 16; ++v) turn_keys<W>(keys, dim, d, n, v, scratch.panel);
    for (int64_t g = 0; g < scratch.group_count; ++g) {
      const QueryGroup group = scratch.groups[g];
      with_count(group.count, [&](auto count) {
        score_group<decltype(count)::value>(scratch.q + group.first * dim + d, dim, scratch.panel, n, d == 0,
                                            scratch.scores + group.first * kBlockKeys, group.seen.begin / 16, (group.seen.end + 15) / 16);
      });
    }
  }
}

// --- softmax --------------------------------------------------------------------------------------------------------

// Scores of one query in a block -> their exponentials, in place; returns the factor that brings earlier sums to the new maximum.
float softmax_block(float* scores, BlockRange keys, float scale, float softcap, float& maximum, float& sum) {
  V s[kBlockVectors], highest = set1(-kInfinity);
  for (int j = 0; j < kBlockVectors; ++j) {
    const int b = keys.begin - 16 * j, e = keys.end - 16 * j;
    if (b >= 16 || e <= 0) {
      s[j] = set1(-kInfinity);
      continue;
    }
    s[j] = mul(load(scores + 16 * j), set1(scale));
    if (softcap != 0) s[j] = capped(s[j], set1(softcap));
    if (b > 0 || e < 16) s[j] = keep_range(s[j], b < 0 ? 0 : b, e > 16 ? 16 : e, set1(-kInfinity));
    highest = max(highest, s[j]);
  }
  const float block_maximum = reduce_max(highest);
  const float now = block_maximum > maximum ? block_maximum : maximum;
  const float rescale = now == maximum ? 1.0f : exp1(maximum - now);
  V total = zero();
  for (int j = 0; j < kBlockVectors; ++j) {
    const V p = exp(sub(s[j], set1(now)));  // exactly 0 where the score is -inf
    store(scores + 16 * j, p);
    total = add(total, p);
  }
  maximum = now;
  sum = __builtin_fmaf(sum, rescale, reduce_add(total));
  return rescale;
}

void softmax_rows(const AttentionTile& tile, const AttentionState& state, const AttentionScratch& scratch) {
  for (int64_t r = 0, i = 0; r < tile.rows; ++r) {
    const BlockRange seen = scratch.row[r];
    for (int64_t h = 0; h < tile.group; ++h, ++i) {
      float* scores = scratch.scores + i * kBlockKeys;
      if (seen.empty()) {
        scratch.rescale[i] = 1;
        for (int j = 0; j < kBlockVectors; ++j) store(scores + 16 * j, zero());
      } else {
        scratch.rescale[i] = softmax_block(scores, seen, tile.scale, tile.softcap, state.max[i], state.sum[i]);
      }
    }
  }
}

// --- values ---------------------------------------------------------------------------------------------------------

// out[q] = out[q] * rescale[q] + Σ p[q][key] * value[key] for the keys in order; read(key, j) is vector j < D of a value.
template <int Q, int D, typename Read>
LAPIDARY_INLINE void value_tile(const float* p, const float* rescale, BlockRange keys, const Read& read, float* out, int64_t out_stride) {
  V sums[Q][D];
  LAPIDARY_UNROLL for (int i = 0; i < Q; ++i) {
    const V factor = set1(rescale[i]);
    LAPIDARY_UNROLL for (int j = 0; j < D; ++j) sums[i][j] = mul(load(out + i * out_stride + 16 * j), factor);
  }
  for (int64_t key = keys.begin; key < keys.end; ++key) {
    V v[D];
    read(key, v);
    LAPIDARY_UNROLL for (int i = 0; i < Q; ++i) {
      const V weight = set1(p[i * kBlockKeys + key]);
      LAPIDARY_UNROLL for (int j = 0; j < D; ++j) sums[i][j] = fma(weight, v[j], sums[i][j]);
    }
  }
  LAPIDARY_UNROLL for (int i = 0; i < Q; ++i) {
    LAPIDARY_UNROLL for (int j = 0; j < D; ++j) store(out + i * out_stride + 16 * j, sums[i][j]);
  }
}

template <int Q, int D>
void value_panel_tile(const float* p, const float* rescale, BlockRange keys, const float* panel, float* out, int64_t out_stride) {
  value_tile<Q, D>(
      p, rescale, keys,
      [panel](int64_t key, V(&v)[D]) { LAPIDARY_UNROLL for (int j = 0; j < D; ++j) v[j] = load(panel + key * kSlab + 16 * j); }, out,
      out_stride);
}

// Rows of values as the cache holds them, for the few queries of one row; n elements from d on.
template <class W, int Q, int D>
void value_row_tile(const float* p, const float* rescale, BlockRange keys, const BlockSide& side, int64_t head_dim, int64_t d, int64_t n,
                    float* out, int64_t out_stride) {
  const int64_t row_bytes = head_dim * (4 / W::kWord);
  value_tile<Q, D>(
      p, rescale, keys,
      [&](int64_t key, V(&v)[D]) {
        const V scale = row_scale<W>(side, key);
        const uint8_t* row = side.data + key * row_bytes;
        constexpr int64_t kBytes = 64 * D / W::kWord;
        if (side.next) ask_for<kBytes>(side.next + (d / (16 * D) * kBlockKeys + key) * kBytes);
        LAPIDARY_UNROLL for (int j = 0; j < D; ++j) v[j] = read_row<W>(row, d + 16 * j, n - 16 * j, scale);
      },
      out, out_stride);
}

// Vectors of a slab from the j-th, as many as a register tile takes: fn(Count<D>, j).
template <typename Fn>
LAPIDARY_INLINE void each_columns(int64_t vectors, const Fn& fn) {
  int64_t j = 0;
  for (; j + kAttendVectors <= vectors; j += kAttendVectors) fn(Count<kAttendVectors>{}, j);
  for (; j < vectors; ++j) fn(Count<1>{}, j);
}

template <class W>
void add_values(const AttentionTile& tile, const BlockSide& values, BlockRange all, const AttentionState& state,
                const AttentionScratch& scratch) {
  const int64_t dim = tile.head_dim, stride = padded(dim), queries = tile.rows * tile.group;
  const bool direct = tile.rows == 1;
  for (int64_t d = 0; d < dim; d += kSlab) {
    const int64_t n = dim - d < kSlab ? dim - d : kSlab, vectors = (n + 15) / 16;
    const bool finite = direct || copy_values<W>(values, dim, d, n, all.begin, all.end, scratch.panel);
    const auto add_group = [&](const QueryGroup& group) {
      const float *p = scratch.scores + group.first * kBlockKeys, *rescale = scratch.rescale + group.first;
      float* out = state.out + group.first * stride + d;
      with_count(group.count, [&](auto count) {
        each_columns(vectors, [&](auto width, int64_t j) {
          constexpr int Q = decltype(count)::value, D = decltype(width)::value;
          if (direct) {
            value_row_tile<W, Q, D>(p, rescale, group.seen, values, dim, d + 16 * j, n - 16 * j, out + 16 * j, stride);
          } else {
            value_panel_tile<Q, D>(p, rescale, group.seen, scratch.panel + 16 * j, out + 16 * j, stride);
          }
        });
      });
    };
    if (finite) {
      for (int64_t g = 0; g < scratch.group_count; ++g) add_group(scratch.groups[g]);
    } else {
      for (int64_t i = 0; i < queries; ++i) {
        const BlockRange seen = scratch.row[i / tile.group];
        if (!seen.empty()) add_group({static_cast<int32_t>(i), 1, seen});
      }
    }
  }
}

// --- a tile over its keys ---------------------------------------------------------------------------------------------

struct Block {
  BlockSide keys, values;
};

// Block `block` of the tile's keys; `next`: the one after it is wanted too. Values follow keys, the next block's keys follow values.
Block find_block(const AttentionTile& tile, int64_t block, bool next) {
  const int64_t element = tile.dtype == DType::f32 ? 4 : tile.dtype == DType::bf16 ? 2 : 1;
  if (tile.pages == nullptr) {
    const int64_t rows = tile.visible[0].end, first = tile.kv_head * rows + block * kBlockKeys, at = first * tile.head_dim * element;
    const int64_t left = rows - block * kBlockKeys < kBlockKeys ? rows - block * kBlockKeys : kBlockKeys;
    return {{static_cast<const uint8_t*>(tile.prefix_k) + at, nullptr, left, nullptr},
            {static_cast<const uint8_t*>(tile.prefix_v) + at, nullptr, left, nullptr}};
  }
  const int64_t rows = tile.num_kv_heads * kBlockKeys, side = rows * tile.head_dim * element, first = tile.kv_head * kBlockKeys;
  const int64_t at = first * tile.head_dim * element;
  const uint8_t* page = static_cast<const uint8_t*>(tile.pages[block % tile.num_pages]);
  const uint8_t* following = next ? static_cast<const uint8_t*>(tile.pages[(block + 1) % tile.num_pages]) + at : nullptr;
  const float* scales = tile.dtype == DType::i8 ? reinterpret_cast<const float*>(page + 2 * side) + first : nullptr;
  const uint8_t* values = page + side + at;
  return {{page + at, scales, kBlockKeys, values}, {values, scales ? scales + rows : nullptr, kBlockKeys, following}};
}

template <class W>
void attend_block(const AttentionTile& tile, const Block& block, BlockRange all, const AttentionState& state,
                  const AttentionScratch& scratch) {
  score_block<W>(tile, block.keys, all, scratch);
  softmax_rows(tile, state, scratch);
  add_values<W>(tile, block.values, all, state, scratch);
}

// The partition's blocks, of those that hold keys of `whole`.
void attend_partition(const AttentionTile& tile, int64_t partition, KeySpan whole, const AttentionState& state, AttentionScratch& scratch) {
  const int64_t queries = tile.rows * tile.group;
  for (int64_t i = 0; i < queries; ++i) state.max[i] = -kInfinity, state.sum[i] = 0;
  std::memset(state.out, 0, static_cast<size_t>(queries * padded(tile.head_dim)) * 4);
  constexpr int64_t kBlocks = kPartitionKeys / kBlockKeys;
  const int64_t lowest = whole.begin / kBlockKeys, behind = (whole.end - 1) / kBlockKeys + 1;
  const int64_t first = partition * kBlocks < lowest ? lowest : partition * kBlocks;
  const int64_t end = (partition + 1) * kBlocks < behind ? (partition + 1) * kBlocks : behind;
  for (int64_t block = first; block < end; ++block) {
    const BlockRange all = look_at_block(tile, block, scratch);
    if (all.empty()) continue;
    const Block found = find_block(tile, block, block + 1 < behind);
    if (tile.dtype == DType::bf16) {
      attend_block<RowsBf16>(tile, found, all, state, scratch);
    } else if (tile.dtype == DType::i8) {
      attend_block<RowsI8>(tile, found, all, state, scratch);
    } else {
      attend_block<RowsF32>(tile, found, all, state, scratch);
    }
  }
}

void merge(const AttentionState& total, const AttentionState& later, int64_t queries, int64_t head_dim) {
  const int64_t stride = padded(head_dim);
  for (int64_t i = 0; i < queries; ++i) {
    if (later.sum[i] == 0) continue;
    const float* from = later.out + i * stride;
    float* to = total.out + i * stride;
    if (total.sum[i] == 0) {
      total.max[i] = later.max[i];
      total.sum[i] = later.sum[i];
      std::memcpy(to, from, static_cast<size_t>(stride) * 4);
      continue;
    }
    const float now = later.max[i] > total.max[i] ? later.max[i] : total.max[i];
    const float a = exp1(total.max[i] - now), b = exp1(later.max[i] - now);
    total.max[i] = now;
    total.sum[i] = __builtin_fmaf(total.sum[i], a, later.sum[i] * b);
    for (int64_t d = 0; d < stride; d += 16) store(to + d, fma(load(to + d), set1(a), mul(load(from + d), set1(b))));
  }
}

AttentionState carve_state(float* memory, int64_t queries) { return {memory, memory + queries, memory + 2 * queries}; }

size_t attend_scratch_floats(int64_t queries, int64_t head_dim) {
  // A row of the tile has a BlockRange, and at least one query.
  const int64_t ranges =
      (queries * static_cast<int64_t>(sizeof(BlockRange)) + group_limit(queries) * static_cast<int64_t>(sizeof(QueryGroup))) / 4;
  return static_cast<size_t>(kSlab * kBlockKeys + queries * (head_dim + kBlockKeys + 1) + ranges +
                             attention_state_floats(queries, head_dim));
}

void attend(const AttentionTile& tile, int64_t p0, int64_t p1, bool fresh, const AttentionState& state, float* memory) {
  const int64_t queries = tile.rows * tile.group, dim = tile.head_dim;
  float* panel = memory;
  float* scores = panel + kSlab * kBlockKeys;
  float* q = scores + queries * kBlockKeys;
  float* rescale = q + queries * dim;
  BlockRange* row = reinterpret_cast<BlockRange*>(rescale + queries);
  QueryGroup* query_groups = reinterpret_cast<QueryGroup*>(row + queries);
  const AttentionState later = carve_state(reinterpret_cast<float*>(query_groups + group_limit(queries)), queries);
  AttentionScratch scratch{q, scores, rescale, panel, row, query_groups, 0};
  KeySpan whole = tile.visible[0];
  for (int64_t r = 0; r < tile.rows; ++r) {
    std::memcpy(q + r * tile.group * dim, tile.q + r * tile.q_stride, static_cast<size_t>(tile.group * dim) * 4);
    if (tile.visible[r].begin < whole.begin) whole.begin = tile.visible[r].begin;
    if (tile.visible[r].end > whole.end) whole.end = tile.visible[r].end;
  }
  for (int64_t p = p0; p < p1; ++p, fresh = false) {
    attend_partition(tile, p, whole, fresh ? state : later, scratch);
    if (!fresh) merge(state, later, queries, dim);
  }
}

// Adding 0 makes -0 and 0 one: which of them a sum that vanishes is may depend on the tile.
void finish(const AttentionTile& tile, const AttentionState& state, void* out, int64_t out_stride, bool out_bf16) {
  const int64_t dim = tile.head_dim, stride = padded(dim);
  for (int64_t i = 0; i < tile.rows * tile.group; ++i) {
    const V sum = set1(state.sum[i]);
    const int64_t at = i / tile.group * out_stride + i % tile.group * dim;
    for (int64_t d = 0; d < dim; d += 16)
      store_act(out, out_bf16, at + d, add(div(load(state.out + i * stride + d), sum), zero()), lanes_left(d, dim));
  }
}

}  // namespace
}  // namespace lapidary::cpu
