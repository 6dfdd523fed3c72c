// What the attention launchers take. Positions here are cache positions: 0 is the first real token; the prefix (if any) does not count.
#pragma once

#include "cuda/api/rows.h"

namespace lapidary::cuda {

inline constexpr int kPageTokens = 64;
inline constexpr int32_t kNoWindow = 0x7fffffff;  // every earlier key is visible

// Keys and values of a page, in this order: keys [num_kv_heads, 64, head_dim], values the same, and for int8 then f32 scales of the keys
// [num_kv_heads, 64] and of the values [num_kv_heads, 64] (per token and head: x = q * scale). Keys after QK-norm and RoPE.
// Position p lives in page (p / 64) % num_pages, row p % 64: a ring for local layers, growing for global ones.
enum class KvType : int32_t { f32, bf16, int8 };

// The consecutive rows of one sequence in this step.
struct AttentionSequence {
  int32_t first_row, rows;
  int32_t first_pos;  // of first_row
  int32_t num_pages;
  const void* const* pages;  // device memory: [num_pages] pages
};

// What all attention kernels share.
struct AttentionCommon {
  int32_t num_heads, num_kv_heads, head_dim;  // query head n uses KV head n / (num_heads / num_kv_heads)
  float scale;                                // multiplies q·k
  float softcap;                              // s = softcap * tanh(s / softcap); 0 = none
  int32_t window;                             // keys visible to a query, itself included: k visible to q iff q - window < k <= q
  KvType kv_type;
  const AttentionSequence* sequences;  // device [num_sequences]
  int32_t num_sequences;
  // Visible to every query on every layer, whatever its window: keys after RoPE at positions 0..prefix_tokens-1. Never quantised.
  const uint16_t* prefix_k;  // bf16 [num_kv_heads, prefix_tokens, head_dim]
  const uint16_t* prefix_v;  // bf16, the same shape
  int32_t prefix_tokens;     // 0: none
};

}  // namespace lapidary::cuda
