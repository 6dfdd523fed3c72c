// Decode attention: 1 to 16 query tokens per sequence over a paged cache, split along the keys. Params, the rule of the splits, the plan.
//
// A query's bits depend on its own position, the window, the heads and the device alone: its keys are cut at absolute multiples of
// keys_per_split(its position), each piece is a softmax of its own over tiles of 64 keys in rising order, and the pieces are merged in
// rising order after the prefix. The other rows of its sequence, the other sequences and the size of the grid change nothing; neither does
// which block does the merge, or how.
#pragma once

#include <algorithm>

#include "cuda/api/qk_rope_append.h"

#ifdef __CUDACC__
#define LAPIDARY_DECODE_BOTH __host__ __device__ inline
#else
#define LAPIDARY_DECODE_BOTH inline
#endif

namespace lapidary::cuda {

inline constexpr int kDecodeMaxRows = 16;    // query tokens of one sequence
inline constexpr int kDecodeTileKeys = 64;   // one page
inline constexpr int kDecodeMaxCluster = 8;  // blocks of a cluster that every device with clusters can start

enum class DecodeMerge : int32_t { automatic, global_memory, cluster };  // who adds up the splits; the results have the same bits

struct AttentionDecodeParams {
  AttentionCommon common;  // kv_type bf16 or int8; head_dim 32, 64, 128 or 256
  // Either q, prepared and with its keys and values already in the cache (qk_rope_append) ...
  const uint16_t* q;         // bf16 [tokens, num_heads, head_dim]; null: rows
  const uint16_t* q_prefix;  // bf16, the same shape: the query as the prefix sees it (window mode B2); null: q
  // ... or the projections: the kernel does what qk_rope_append does, the append included, with the same bits.
  QkvRows rows;
  void* out;  // [tokens, num_heads, head_dim] of out_type
  ActType out_type;
  float out_inverse_scale;  // int8: q = to_int8(y * out_inverse_scale)
  int32_t max_rows;         // no sequence has more rows than this: 1..kDecodeMaxRows
  int32_t max_keys;         // first_pos + rows of no sequence exceeds this
  DecodeMerge merge;
  float* partials;    // attention_decode_workspace_bytes; any contents
  int32_t* counters;  // i32 [attention_decode_counters]: zeros, and zeros again afterwards
};

// How many keys one block takes, as a function of where the query stands.
struct DecodeSplitRule {
  int32_t min_keys;  // what fills the block's shared memory once
  int32_t num_kv_heads, sm_count;
  int32_t group;     // query heads per KV head
  int32_t kv_bytes;  // of one cached element
  int32_t window;

  // Positions are served in steps, an eighth of an octave and at least 64 wide: the end of the step that a query at `position` lies in, in
  // visible keys.
  LAPIDARY_DECODE_BOTH int32_t step_end(int32_t position) const {
    const int32_t visible = position + 1 < window ? position + 1 : window;
    int32_t width = kDecodeTileKeys;
    while (width * 8 < visible) width *= 2;
    return (visible + width - 1) & -width;
  }
  // A multiple of 64. One sequence alone should give every SM one block, but the merge reads a partial result per split on one SM: its
  // bytes may not exceed the keys and values that a split reads. A window that nearly fits one cluster's splits is made to fit.
  LAPIDARY_DECODE_BOTH int32_t keys_per_split(int32_t position) const {
    const uint32_t visible = static_cast<uint32_t>(step_end(position)), tile = kDecodeTileKeys;
    uint32_t keys = (visible * num_kv_heads + sm_count - 1) / static_cast<uint32_t>(sm_count);
    keys = keys < static_cast<uint32_t>(min_keys) ? static_cast<uint32_t>(min_keys) : (keys + tile - 1) / tile * tile;
    while (static_cast<uint64_t>(keys) * keys * kv_bytes < static_cast<uint64_t>(visible) * group * 2) keys += tile;
    if (window != kNoWindow) {
      // n splits of s keys cover any (n - 1) s + 1 neighbouring keys; one split is the prefix's.
      constexpr uint32_t kSplits = kDecodeMaxCluster - 2;
      const uint32_t fitting = (static_cast<uint32_t>(window) + kDecodeMaxRows - 1 + kSplits * tile - 1) / (kSplits * tile) * tile;
      if (fitting > keys && fitting <= 2 * keys) keys = fitting;
    }
    return static_cast<int32_t>(keys);
  }
  // How many of the rows at first_pos, first_pos + 1, ... have the split of the first one.
  LAPIDARY_DECODE_BOTH int32_t rows_of_first_split(int32_t first_pos, int32_t rows) const {
    const int32_t end = step_end(first_pos);
    if (end >= window || first_pos + rows <= end || keys_per_split(first_pos) == keys_per_split(first_pos + rows - 1)) return rows;
    return end - first_pos;
  }
};

struct AttentionDecodePlan {
  DecodeSplitRule rule;
  int32_t columns;       // a block works on 8 * columns packed query rows: a token's heads of one KV group are neighbours. 0: no kernel
  int32_t group_tokens;  // tokens in them: a row group
  int32_t row_groups;    // of a sequence, at most
  int32_t splits;        // of a row group, at most, the prefix's included
  bool cluster;          // the splits are one cluster and merge through distributed shared memory
};

// Keys whose keys and values fill the ring of a block: 64 KiB, at most four tiles of 64.
inline int32_t decode_ring_keys(int64_t head_dim, KvType type) {
  const int64_t tile_bytes = kDecodeTileKeys * head_dim * (type == KvType::int8 ? 1 : 2);
  return static_cast<int32_t>(kDecodeTileKeys * std::clamp<int64_t>(32 * 1024 / tile_bytes, 1, 4));
}

// Most packed rows / 8 of a block: the output of 32 rows takes 64 registers at head_dim 256, of 64 rows too many.
inline constexpr int kDecodeMaxColumns = 4;

// Pure. Reads of `p` what describes the problem: common (no pointers), max_rows, max_keys, merge.
inline AttentionDecodePlan attention_decode_plan(const AttentionDecodeParams& p, const DeviceFacts& device) {
  const AttentionCommon& c = p.common;
  AttentionDecodePlan plan = {};
  const int32_t group = c.num_heads / c.num_kv_heads;
  const int32_t wanted = (p.max_rows * group + 7) / 8;
  int32_t columns = 1;
  while (columns < wanted && columns < kDecodeMaxColumns) columns *= 2;
  if (group > 8 * columns) return plan;
  plan.columns = columns;
  plan.group_tokens = std::min(p.max_rows, 8 * columns / group);
  // Where rows of one sequence have different splits, two groups end early.
  plan.row_groups = (p.max_rows + plan.group_tokens - 1) / plan.group_tokens + (p.max_rows > 1 ? 1 : 0);
  plan.rule = {decode_ring_keys(c.head_dim, c.kv_type), c.num_kv_heads, std::max(device.sm_count, 1), group,
               c.kv_type == KvType::int8 ? 1 : 2,       c.window};
  for (int32_t position = 0; position < p.max_keys;) {
    const int32_t end = plan.rule.step_end(position), keys = plan.rule.keys_per_split(position);
    const int32_t last = end >= c.window ? p.max_keys - 1 : std::min(end, p.max_keys) - 1;  // the last position of the step
    const int64_t seen = std::min<int64_t>(last + 1, static_cast<int64_t>(c.window) + p.max_rows - 1);
    const int64_t from_zero = last / keys + 1;                      // splits up to the last key
    const int64_t anywhere = seen < 2 ? 1 : (seen - 2) / keys + 2;  // of `seen` neighbouring keys
    plan.splits = std::max(plan.splits, static_cast<int32_t>(std::min(from_zero, anywhere)));
    position = last + 1;
  }
  plan.splits += c.prefix_tokens > 0 ? 1 : 0;
  plan.cluster = p.merge != DecodeMerge::global_memory && device.has_clusters() && plan.splits > 1 && plan.splits <= kDecodeMaxCluster;
  return plan;
}

// Null if the launcher takes the problem, else the reason.
inline const char* why_not_attention_decode(const AttentionDecodeParams& p, const DeviceFacts& device) {
  const AttentionCommon& c = p.common;
  if (c.num_heads <= 0 || c.num_kv_heads <= 0 || c.num_heads % c.num_kv_heads != 0) return "num_heads must be a multiple of num_kv_heads";
  if (c.head_dim != 32 && c.head_dim != 64 && c.head_dim != 128 && c.head_dim != 256) return "head_dim must be 32, 64, 128 or 256";
  if (c.kv_type == KvType::f32) return "an f32 cache needs attention_f32";
  if (device.major < 8) return "needs compute capability 8.0";
  if (!(c.scale > 0) || !(c.softcap >= 0)) return "scale must be positive, softcap 0 (none) or positive";
  if (c.window < 1) return "window counts the query's own key: at least 1";
  if (c.prefix_tokens < 0) return "prefix_tokens must not be negative";
  if (p.max_rows < 1 || p.max_rows > kDecodeMaxRows) return "max_rows must be 1 to 16";
  if (p.max_keys < 1 || static_cast<int64_t>(p.max_keys) * c.num_kv_heads > 1 << 30)
    return "max_keys must be positive, times num_kv_heads at most 2^30";
  if (c.num_heads / c.num_kv_heads > 8 * kDecodeMaxColumns) return "too many query heads per KV head";
  const AttentionDecodePlan plan = attention_decode_plan(p, device);
  if (c.num_sequences > 65535 || static_cast<int64_t>(c.num_kv_heads) * plan.row_groups > 65535) return "the grid is too large";
  if (plan.splits > 1024) return "max_keys needs too many splits";
  if (p.merge == DecodeMerge::cluster && plan.splits > 1 && !plan.cluster) return "the splits do not fit one cluster";
  return nullptr;
}
inline bool supports_attention_decode(const AttentionDecodeParams& p, const DeviceFacts& device) {
  return !why_not_attention_decode(p, device);
}

// One for every sequence, KV head and row group.
inline int64_t attention_decode_counters(const AttentionDecodeParams& p, const DeviceFacts& device) {
  return static_cast<int64_t>(p.common.num_sequences) * p.common.num_kv_heads * attention_decode_plan(p, device).row_groups;
}

// Bytes of `partials`: of every split and packed row head_dim sums, a maximum and a total. 0 when one block or one cluster has all splits.
inline int64_t attention_decode_workspace_bytes(const AttentionDecodeParams& p, const DeviceFacts& device) {
  const AttentionDecodePlan plan = attention_decode_plan(p, device);
  if (plan.cluster || plan.splits <= 1) return 0;
  const int64_t rows = static_cast<int64_t>(plan.group_tokens) * (p.common.num_heads / p.common.num_kv_heads);
  return attention_decode_counters(p, device) * plan.splits * rows * (p.common.head_dim + 2) * 4;
}

}  // namespace lapidary::cuda

#undef LAPIDARY_DECODE_BOTH
