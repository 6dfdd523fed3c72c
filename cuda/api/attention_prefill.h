// Prefill attention: many query rows of many sequences at once, and the vision tower's attention. Params, tile table, work list.
#pragma once

#include <algorithm>
#include <cstdint>
#include <span>
#include <vector>

#include "cuda/api/attention.h"

namespace lapidary::cuda {

// Positions of an image's keys [first, end); first >= end: the token is in no image.
struct ImageBlock {
  int32_t first, end;
};

// What one block of threads does for one KV head: packed rows [first_row, first_row + tile rows) of a sequence. Packed row r of a sequence
// and KV head is the sequence's token r / group and the head's query head r % group, where group = num_heads / num_kv_heads.
struct AttentionTile {
  int32_t sequence, first_row;
};

// Shape of a tile and which kernel takes it. `keys` depends on head_dim, kv_type and device alone, never on the batch or on the window: it
// is part of the order in which a query adds up its keys.
struct AttentionTileShape {
  int32_t rows, keys;  // 0: no kernel
  bool wgmma;
};

struct AttentionPrefillParams {
  AttentionCommon common;      // kv_type bf16 or int8
  const uint16_t* q;           // bf16 [tokens, num_heads, head_dim], after QK-norm and RoPE
  const uint16_t* q_prefix;    // bf16, the same shape: the query as the prefix sees it (rotated at a clamped position); null: q
  const ImageBlock* images;    // device [tokens]: of each row's image; null: none. The keys of a row's image are in the cache
  const AttentionTile* tiles;  // device [num_tiles], from plan_attention_tiles with `shape`
  int32_t num_tiles;
  AttentionTileShape shape;  // from attention_tile
  void* out;                 // [tokens, num_heads * head_dim] of out_type
  ActType out_type;
  float out_inverse_scale;  // int8: q = to_int8(x * out_inverse_scale)

  // Memory that all pages lie in, for the kernel that loads through a tensor map; every page begins at a multiple of 2 * head_dim bytes
  // from `pool` (16-byte aligned). Null: pages lie anywhere and the mma.sync kernel is taken.
  const void* pool;
  int64_t pool_bytes;
};

// Attention without cache, causal rule or window: every row of a sequence sees every row of it (the vision tower). Rows of k and v are
// those of q.
struct AttentionFullParams {
  const uint16_t* q;            // bf16 [tokens, num_heads, head_dim], rows q_stride elements apart
  const uint16_t* k;            // bf16, the same shape, rows kv_stride elements apart
  const uint16_t* v;            // bf16, as k
  int32_t q_stride, kv_stride;  // elements, multiples of 8
  int32_t num_heads, head_dim;
  float scale;
  const AttentionSequence* sequences;  // device [num_sequences]; first_row and rows alone are read
  int32_t num_sequences;
  const AttentionTile* tiles;  // device [num_tiles], from plan_attention_tiles with `shape`, group 1
  int32_t num_tiles;
  AttentionTileShape shape;  // from attention_full_tile
  void* out;                 // [tokens, num_heads * head_dim] of out_type
  ActType out_type;
  float out_inverse_scale;
};

// Attention in f32 over an f32 cache: for precision f32, prefill and decode alike. One order of operations per query, whatever is beside
// it.
struct AttentionF32Params {
  AttentionCommon common;     // kv_type f32; prefix_k and prefix_v are used when prefix_k_f32 is null
  const float* q;             // [tokens, num_heads, head_dim], after QK-norm and RoPE
  const float* q_prefix;      // the same shape, or null: q
  const ImageBlock* images;   // device [tokens] or null
  const float* prefix_k_f32;  // [num_kv_heads, prefix_tokens, head_dim] or null
  const float* prefix_v_f32;  // the same shape
  int32_t tokens;             // rows of q in all
  void* out;                  // [tokens, num_heads * head_dim], f32 or bf16
  ActType out_type;
};

// Bytes of one page, as AttentionCommon describes it.
inline int64_t attention_page_bytes(KvType type, int64_t num_kv_heads, int64_t head_dim) {
  const int64_t elements = 2 * num_kv_heads * kPageTokens * head_dim;
  if (type == KvType::f32) return elements * 4;
  if (type == KvType::bf16) return elements * 2;
  return elements + 2 * num_kv_heads * kPageTokens * 4;
}

// Tile table. Shared memory decides: at head_dim 256 a 128-row tile needs 128 KiB (int8: 160 KiB, the staged bytes come on top), which
// compute capability 8.0 and 9.0 have and 8.6, 8.9, 12.0 (99 KiB) do not.
inline AttentionTileShape attention_tile(int64_t head_dim, KvType type, const DeviceFacts& device, bool has_pool = false) {
  if (head_dim <= 0 || head_dim > 256 || head_dim % 8 != 0 || device.major < 8) return {0, 0, false};
  if (type == KvType::f32 || (type == KvType::int8 && head_dim % 16 != 0)) return {0, 0, false};
  if (has_pool && device.has_wgmma() && type == KvType::bf16 && (head_dim == 128 || head_dim == 256)) return {128, 64, true};
  if (head_dim <= 32) return {64, 64, false};
  if (head_dim <= 128) return {128, 64, false};
  if (device.smem_per_block >= 163 * 1024) return {128, 64, false};
  return {64, type == KvType::int8 ? 32 : 64, false};
}

inline AttentionTileShape attention_full_tile(int64_t head_dim, const DeviceFacts& device) {
  if (head_dim <= 0 || head_dim > 80 || head_dim % 8 != 0 || device.major < 8) return {0, 0, false};
  return {128, 64, false};
}

// The work list of one step, longest first so that the last blocks to start are short. sequences: on the host. `group`: num_heads /
// num_kv_heads. One list serves every layer with the same window and shape.
inline std::vector<AttentionTile> plan_attention_tiles(std::span<const AttentionSequence> sequences, int64_t group, int64_t window,
                                                       const AttentionTileShape& shape) {
  struct Piece {
    int64_t keys;
    AttentionTile tile;
  };
  std::vector<Piece> pieces;
  for (size_t s = 0; s < sequences.size(); ++s) {
    const int64_t packed = sequences[s].rows * group;
    for (int64_t first = 0; first < packed; first += shape.rows) {
      const int64_t oldest = sequences[s].first_pos + first / group,
                    newest = sequences[s].first_pos + (std::min(packed, first + shape.rows) - 1) / group;
      const int64_t keys = newest - std::max<int64_t>(0, oldest - window + 1);
      pieces.push_back({keys / shape.keys, {static_cast<int32_t>(s), static_cast<int32_t>(first)}});
    }
  }
  std::stable_sort(pieces.begin(), pieces.end(), [](const Piece& a, const Piece& b) { return a.keys > b.keys; });
  std::vector<AttentionTile> tiles;
  tiles.reserve(pieces.size());
  for (const Piece& piece : pieces) tiles.push_back(piece.tile);
  return tiles;
}

// Null if the launcher takes the problem, else the reason.
inline const char* why_not_attention(const AttentionCommon& c) {
  if (c.num_heads <= 0 || c.num_kv_heads <= 0 || c.num_heads % c.num_kv_heads != 0) return "num_heads must be a multiple of num_kv_heads";
  if (!(c.scale > 0)) return "scale must be positive";
  if (!(c.softcap >= 0)) return "softcap must not be negative";
  if (c.window < 1) return "window counts the query's own key: at least 1";
  if (c.prefix_tokens < 0) return "prefix_tokens must not be negative";
  return nullptr;
}

inline const char* why_not_attention_prefill(const AttentionPrefillParams& p, const DeviceFacts& device) {
  if (const char* reason = why_not_attention(p.common)) return reason;
  if (p.common.prefix_tokens > 0 && (p.common.prefix_k == nullptr || p.common.prefix_v == nullptr))
    return "prefix_k and prefix_v are missing";
  const AttentionTileShape shape = attention_tile(p.common.head_dim, p.common.kv_type, device, p.pool != nullptr);
  if (shape.rows == 0)
    return "head_dim must be a multiple of 8 (int8 cache: 16) up to 256, the cache bf16 or int8, the device compute capability 8.0 or "
           "later";
  if (p.shape.rows != shape.rows || p.shape.keys != shape.keys || p.shape.wgmma != shape.wgmma)
    return "shape is not attention_tile's for this problem";
  return nullptr;
}
inline bool supports_attention_prefill(const AttentionPrefillParams& p, const DeviceFacts& device) {
  return !why_not_attention_prefill(p, device);
}

inline const char* why_not_attention_full(const AttentionFullParams& p, const DeviceFacts& device) {
  if (attention_full_tile(p.head_dim, device).rows == 0)
    return "head_dim must be a multiple of 8 up to 80, the device compute capability 8.0 or later";
  if (p.q_stride % 8 != 0 || p.kv_stride % 8 != 0) return "rows must begin on 16 bytes";
  if (!(p.scale > 0)) return "scale must be positive";
  return nullptr;
}
inline bool supports_attention_full(const AttentionFullParams& p, const DeviceFacts& device) { return !why_not_attention_full(p, device); }

inline const char* why_not_attention_f32(const AttentionF32Params& p, const DeviceFacts&) {
  if (const char* reason = why_not_attention(p.common)) return reason;
  if (p.common.kv_type != KvType::f32) return "the cache must be f32";
  const bool prefix =
      (p.prefix_k_f32 != nullptr && p.prefix_v_f32 != nullptr) || (p.common.prefix_k != nullptr && p.common.prefix_v != nullptr);
  if (p.common.prefix_tokens > 0 && !prefix) return "prefix_k and prefix_v are missing";
  if (p.common.head_dim <= 0 || p.common.head_dim % 4 != 0 || p.common.head_dim > 512) return "head_dim must be a multiple of 4 up to 512";
  if (p.out_type == ActType::int8) return "the output is f32 or bf16";
  return nullptr;
}
inline bool supports_attention_f32(const AttentionF32Params& p, const DeviceFacts& device) { return !why_not_attention_f32(p, device); }

}  // namespace lapidary::cuda
