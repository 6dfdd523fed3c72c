// What turns the f32 projections of a step into attention's inputs: QK-norm, RoPE, rounding, append to the cache. A launch of its own
// before prefill attention; the prologue of the fused decode attention.
#pragma once

#include "cuda/api/attention.h"

namespace lapidary::cuda {

// y = x * (1 / sqrt(mean(x^2) + eps)) * (offset + weight), over one head.
struct HeadNorm {
  const float* weight;  // f32 [head_dim]; null: no norm
  float offset, eps;
};

// The projections of a step's tokens, as the matrix products left them (of one stacked qkv buffer, or of three), and how they are rotated.
struct QkvRows {
  const float* q;  // f32 [tokens, num_heads * head_dim], rows q_stride elements apart; null: no queries
  const float* k;  // f32 [tokens, num_kv_heads * head_dim], rows k_stride elements apart; null, like v: nothing is appended
  const float* v;  // f32, the shape of k, rows v_stride elements apart
  int64_t q_stride, k_stride, v_stride;
  HeadNorm q_norm, k_norm;
  const float* cos;         // f32 [tokens, head_dim / 2], pairs (j, j + head_dim / 2); null: no rotation
  const float* sin;         // f32, the same shape
  const float* prefix_cos;  // f32, the same shape: the angles under which the prefix sees the query (window mode B2); null: cos and sin
  const float* prefix_sin;
};

struct QkRopeAppendParams {
  QkvRows rows;
  int32_t tokens, num_heads, num_kv_heads, head_dim;
  void* q_out;         // [tokens, num_heads, head_dim] of q_type; may be rows.q when f32 and q_stride = num_heads * head_dim
  void* q_prefix_out;  // the same shape and type, rotated by prefix_cos and prefix_sin; null: not wanted
  ActType q_type;      // f32 or bf16
  KvType kv_type;
  const AttentionSequence* sequences;  // device [num_sequences]: where each token's k and v go; rows of no sequence are not appended
  int32_t num_sequences;
};

// Stores k and v as they are at the positions of the sequences, rounded or quantised to the cache's type.
struct AppendKvParams {
  const float* k;  // f32 [tokens, num_kv_heads, head_dim]
  const float* v;  // f32, the same shape
  int32_t tokens, num_kv_heads, head_dim;
  KvType kv_type;
  const AttentionSequence* sequences;  // device [num_sequences]
  int32_t num_sequences;
};

// Null if the launcher takes the problem, else the reason.
inline const char* why_not_qk_rope_append(const QkRopeAppendParams& p) {
  if (p.tokens < 0 || p.num_sequences < 0) return "tokens and num_sequences must not be negative";
  if (p.head_dim <= 0 || p.head_dim > 256 || p.head_dim % 2 != 0) return "head_dim must be even and at most 256";
  if (p.rows.q && (!p.q_out || p.num_heads <= 0)) return "q needs q_out and num_heads";
  if (p.q_type == ActType::int8) return "q is written as f32 or bf16";
  if (!p.rows.k != !p.rows.v) return "k and v come together";
  if (p.rows.k && (p.num_kv_heads <= 0 || !p.sequences)) return "k and v need num_kv_heads and sequences";
  if (!p.rows.cos != !p.rows.sin || !p.rows.prefix_cos != !p.rows.prefix_sin) return "cos and sin come together";
  if (p.q_prefix_out && !p.rows.prefix_cos) return "q_prefix_out needs prefix_cos and prefix_sin";
  return nullptr;
}
inline bool supports_qk_rope_append(const QkRopeAppendParams& p, const DeviceFacts&) { return !why_not_qk_rope_append(p); }

}  // namespace lapidary::cuda
