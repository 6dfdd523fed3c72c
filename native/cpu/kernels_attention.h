// Attention over V: one tile of queries, which share a KV head, over its keys block by block. Part of kernels_impl.h.
//
// Per query and 64-key block, the block aligned to absolute positions: scores by dot16, scale, soft-cap, maximum over the
// visible keys, rescale, p = exp(score - maximum); the sum of p by lanes (key % 16) and the tree of reduce_add; values added key
// by key with one rounding each. Keys that are not visible are never part of any sum: their memory may hold anything.
#pragma once

#include "cpu/kernels_linear.h"

namespace lapidary::cpu {
namespace {

constexpr int64_t kBlockKeys = 64;  // = kPageTokens
constexpr int kBlockVectors = kBlockKeys / 16;
constexpr float kInfinity = __builtin_inff();

// Keys of a block, or rows of a page: [begin, end) of 0 .. 64.
struct KeyRange {
  int64_t begin, end;
  bool empty() const { return begin >= end; }
  bool operator==(const KeyRange&) const = default;
};

int64_t first_visible(const AttentionTile& tile, int64_t pos) { return tile.window > pos ? 0 : pos - tile.window + 1; }

KeyRange visible_keys(const AttentionTile& tile, int64_t row, int64_t block) {
  const int64_t pos = tile.first_pos + row, base = block * kBlockKeys;
  const int64_t begin = first_visible(tile, pos) - base, end = pos + 1 - base;
  return {begin < 0 ? 0 : begin, end > kBlockKeys ? kBlockKeys : end};
}

// Scores of one query in a block -> their exponentials, in place; returns the factor that brings earlier sums to the new maximum.
float softmax_block(float* scores, KeyRange keys, float scale, float softcap, float& maximum, float& sum) {
  V s[kBlockVectors], highest = set1(-kInfinity);
  for (int j = 0; j < kBlockVectors; ++j) {
    const int64_t b = keys.begin - 16 * j, e = keys.end - 16 * j;
    s[j] = mul(load(scores + 16 * j), set1(scale));
    if (softcap != 0) s[j] = capped(s[j], set1(softcap));
    if (b > 0 || e < 16)
      s[j] = keep_range(s[j],
                        b < 0    ? 0
                        : b > 16 ? 16
                                 : static_cast<int>(b),
                        e < 0    ? 0
                        : e > 16 ? 16
                                 : static_cast<int>(e),
                        set1(-kInfinity));
    highest = max(highest, s[j]);
  }
  const float block_maximum = reduce_max(highest);
  const float now = block_maximum > maximum ? block_maximum : maximum;
  const float rescale = exp1(maximum - now);
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

// out[q] += p[q][key] * value[key] for the keys in order; Q queries whose p are kBlockKeys apart and out out_stride.
template <class W, int Q, int D>
LAPIDARY_INLINE void add_columns(const float* p, const uint8_t* values, int64_t row_bytes, KeyRange keys, int64_t d, float* out,
                                 int64_t out_stride) {
  V sums[Q][D];
  LAPIDARY_UNROLL for (int q = 0; q < Q; ++q) {
    LAPIDARY_UNROLL for (int j = 0; j < D; ++j) sums[q][j] = load(out + q * out_stride + d + 16 * j);
  }
  for (int64_t key = keys.begin; key < keys.end; ++key) {
    V v[D];
    LAPIDARY_UNROLL for (int j = 0; j < D; ++j) W::read(values + key * row_bytes, d + 16 * j, v + j);
    LAPIDARY_UNROLL for (int q = 0; q < Q; ++q) {
      const V weight = set1(p[q * kBlockKeys + key]);
      LAPIDARY_UNROLL for (int j = 0; j < D; ++j) sums[q][j] = fma(weight, v[j], sums[q][j]);
    }
  }
  LAPIDARY_UNROLL for (int q = 0; q < Q; ++q) {
    LAPIDARY_UNROLL for (int j = 0; j < D; ++j) store(out + q * out_stride + d + 16 * j, sums[q][j]);
  }
}

template <class W, int Q>
void add_values(const float* p, const uint8_t* values, int64_t head_dim, KeyRange keys, float* out, int64_t out_stride) {
  constexpr int D = value_vectors(Q);
  const int64_t row_bytes = head_dim * (sizeof(typename W::Element));
  int64_t d = 0;
  for (; d + 16 * D <= head_dim; d += 16 * D) add_columns<W, Q, D>(p, values, row_bytes, keys, d, out, out_stride);
  for (; d + 16 <= head_dim; d += 16) add_columns<W, Q, 1>(p, values, row_bytes, keys, d, out, out_stride);
  if (d == head_dim) return;
  for (int64_t key = keys.begin; key < keys.end; ++key) {
    const V v = W::read_part(values + key * row_bytes, d, head_dim - d);
    for (int q = 0; q < Q; ++q) {
      float* to = out + q * out_stride + d;
      store(to, fma(set1(p[q * kBlockKeys + key]), v, load(to)));
    }
  }
}

template <class W>
void add_values(int64_t queries, const float* p, const uint8_t* values, int64_t head_dim, KeyRange keys, float* out, int64_t out_stride) {
  for (; queries >= 4; queries -= 4, p += 4 * kBlockKeys, out += 4 * out_stride)
    add_values<W, 4>(p, values, head_dim, keys, out, out_stride);
  switch (queries) {
    case 3:
      return add_values<W, 3>(p, values, head_dim, keys, out, out_stride);
    case 2:
      return add_values<W, 2>(p, values, head_dim, keys, out, out_stride);
    case 1:
      return add_values<W, 1>(p, values, head_dim, keys, out, out_stride);
    default:
      return;
  }
}

struct AttentionScratch {
  float* q;       // [queries, head_dim]
  float* scores;  // [queries, kBlockKeys]
  float* linear;
};

// Keys `all`, which some query of the tile sees, against every query.
void score_block(const AttentionTile& tile, const uint8_t* keys, KeyRange all, const AttentionScratch& scratch) {
  const DType dtype = tile.kv_bf16 ? DType::bf16 : DType::f32;
  const int64_t row_bytes = tile.head_dim * (tile.kv_bf16 ? 2 : 4);
  const LinearTask task{scratch.q, tile.rows * tile.group, tile.head_dim,  keys,      row_bytes,
                        dtype,     tile.head_dim,          scratch.scores, kBlockKeys};
  for (int64_t n = all.begin; n < all.end; n += kLinearRows)
    linear(task, n, n + kLinearRows < all.end ? n + kLinearRows : all.end, scratch.linear);
}

template <class W>
void attend_block(const AttentionTile& tile, int64_t block, const AttentionState& state, const AttentionScratch& scratch) {
  const int64_t dim = tile.head_dim, stride = padded(dim), group = tile.group;
  const int64_t side = tile.num_kv_heads * kBlockKeys * dim, head = tile.kv_head * kBlockKeys * dim;
  const uint8_t* page = static_cast<const uint8_t*>(tile.pages[block % tile.num_pages]);
  const uint8_t* keys = page + head * static_cast<int64_t>(sizeof(typename W::Element));
  const uint8_t* values = page + (side + head) * static_cast<int64_t>(sizeof(typename W::Element));
  const KeyRange first = visible_keys(tile, 0, block), last = visible_keys(tile, tile.rows - 1, block);
  score_block(tile, keys, {first.begin, last.end}, scratch);

  for (int64_t row = 0; row < tile.rows;) {
    // Rows that see the same keys of this block, as most do, share the loads of its values.
    const KeyRange seen = visible_keys(tile, row, block);
    const int64_t begin = row * group;
    for (++row; row < tile.rows && visible_keys(tile, row, block) == seen;) ++row;
    if (seen.empty()) continue;
    for (int64_t i = begin; i < row * group; ++i) {
      const float rescale = softmax_block(scratch.scores + i * kBlockKeys, seen, tile.scale, tile.softcap, state.max[i], state.sum[i]);
      if (rescale != 1) ::lapidary::cpu::scale(state.out + i * stride, rescale, stride);
    }
    add_values<W>(row * group - begin, scratch.scores + begin * kBlockKeys, values, dim, seen, state.out + begin * stride, stride);
  }
}

void attend_partition(const AttentionTile& tile, int64_t partition, const AttentionState& state, const AttentionScratch& scratch) {
  const int64_t queries = tile.rows * tile.group, stride = padded(tile.head_dim);
  for (int64_t i = 0; i < queries; ++i) state.max[i] = -kInfinity, state.sum[i] = 0;
  std::memset(state.out, 0, static_cast<size_t>(queries * stride) * 4);
  constexpr int64_t kBlocks = kPartitionKeys / kBlockKeys;
  const int64_t lowest = first_visible(tile, tile.first_pos) / kBlockKeys, highest = (tile.first_pos + tile.rows - 1) / kBlockKeys;
  int64_t block = partition * kBlocks;
  const int64_t end = block + kBlocks <= highest ? block + kBlocks : highest + 1;
  for (block = block < lowest ? lowest : block; block < end; ++block) {
    if (tile.kv_bf16) {
      attend_block<LoadBf16>(tile, block, state, scratch);
    } else {
      attend_block<LoadF32>(tile, block, state, scratch);
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
  const int64_t own = queries * (head_dim + kBlockKeys) + attention_state_floats(queries, head_dim);
  return static_cast<size_t>(own) + linear_scratch_floats(queries, head_dim);
}

void attend(const AttentionTile& tile, int64_t p0, int64_t p1, const AttentionState& state, float* memory) {
  const int64_t queries = tile.rows * tile.group, dim = tile.head_dim;
  float* q = memory;
  float* scores = q + queries * dim;
  const AttentionState later = carve_state(scores + queries * kBlockKeys, queries);
  const AttentionScratch scratch{q, scores, later.out + queries * padded(dim)};
  for (int64_t row = 0; row < tile.rows; ++row) {
    std::memcpy(q + row * tile.group * dim, tile.q + row * tile.q_stride, static_cast<size_t>(tile.group * dim) * 4);
  }
  for (int64_t p = p0; p < p1; ++p) {
    attend_partition(tile, p, p == p0 ? state : later, scratch);
    if (p != p0) merge(state, later, queries, dim);
  }
}

void finish(const AttentionTile& tile, const AttentionState& state, void* out, int64_t out_stride, bool out_bf16) {
  const int64_t dim = tile.head_dim, stride = padded(dim);
  for (int64_t i = 0; i < tile.rows * tile.group; ++i) {
    const V sum = set1(state.sum[i]);
    const int64_t at = i / tile.group * out_stride + i % tile.group * dim;
    for (int64_t d = 0; d < dim; d += 16) store_act(out, out_bf16, at + d, div(load(state.out + i * stride + d), sum), lanes_left(d, dim));
  }
}

}  // namespace
}  // namespace lapidary::cpu
