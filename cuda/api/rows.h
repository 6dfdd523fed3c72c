// Row and elementwise kernels: params and what they take. Rows are contiguous, one after another; any dim, any alignment of f32 data (whole
// rows of 16-byte aligned multiples of four elements are the fast case).
#pragma once

#include "cuda/api/status.h"

namespace lapidary::cuda {

enum class ActType : int32_t { f32, bf16, int8 };  // of a tensor that feeds a matrix product

inline constexpr float kInt8MinAbsmax = 1e-8f;  // int8 scale = max(largest magnitude, this) / 127

// Where the scale of an int8 row comes from: its own largest magnitude (written), row_scales as given, or one fixed scale of the tensor.
enum class ActScaling : int32_t { per_row, given, fixed };

// Where a kernel writes an act tensor, and as what.
struct ActOut {
  void* data;  // [rows, dim] of `type`
  ActType type;
  ActScaling scaling;   // int8 only
  float* row_scales;    // f32 [rows]: written (per_row) or read (given); else null
  float inverse_scale;  // 1 / scale, rounded to f32 (fixed)
};
inline ActOut act_f32(float* data) { return {data, ActType::f32, ActScaling::fixed, nullptr, 0}; }
inline ActOut act_bf16(void* data) { return {data, ActType::bf16, ActScaling::fixed, nullptr, 0}; }
inline ActOut act_int8_per_row(int8_t* data, float* row_scales) { return {data, ActType::int8, ActScaling::per_row, row_scales, 0}; }
inline ActOut act_int8_given(int8_t* data, float* row_scales) { return {data, ActType::int8, ActScaling::given, row_scales, 0}; }
inline ActOut act_int8_fixed(int8_t* data, float scale) { return {data, ActType::int8, ActScaling::fixed, nullptr, 1.0f / scale}; }

inline bool supports_act_out(const ActOut& out) {
  if (out.type != ActType::int8) return true;
  return out.scaling == ActScaling::fixed ? out.inverse_scale > 0 : out.row_scales != nullptr;
}

// y = x * (1 / sqrt(mean(x^2) + eps)) * (offset + weight).
struct RmsNormParams {
  const float* x;       // f32 [rows, dim]
  const float* weight;  // f32 [dim]
  ActOut out;           // [rows, dim]; may be x when f32
  int32_t rows, dim;
  float offset, eps;
};

// x += post_norm(branch), then out = next_norm(x): the seam between two branches of Gemma's layers, in one pass over the rows.
struct AddNormParams {
  float* x;                  // f32 [rows, dim], read and written
  const float* branch;       // f32 [rows, dim]
  const float* post_weight;  // f32 [dim]; null: the branch is added as it is
  const float* next_weight;  // f32 [dim]; null: x is written, no normed row
  ActOut out;                // [rows, dim]
  int32_t rows, dim;
  float offset, eps;  // of both norms
};

// out = gelu_tanh(gate) * up.
struct GegluParams {
  const float*
      gate;         // f32 [rows, ffn]; with `interleaved`: [rows, 2 ffn], gate and up of 8 channels in turn: g0-7, u0-7, g8-15, u8-15, ...
  const float* up;  // f32 [rows, ffn]; null with `interleaved`
  ActOut out;       // [rows, ffn]
  int32_t rows, ffn;  // ffn a multiple of 8 when interleaved
  bool interleaved;
};

// out = x, rounded or quantised.
struct QuantizeParams {
  const void* x;    // [rows, dim] of in_type
  ActType in_type;  // f32 or bf16
  ActOut out;       // [rows, dim]
  int32_t rows, dim;
};

// The largest magnitude of each row.
struct RowAbsmaxParams {
  const void* x;    // [rows, dim] of in_type
  ActType in_type;  // f32 or bf16
  float* absmax;    // f32 [rows]
  int32_t rows, dim;
};

// Per-tensor scales over one sequence each: every row of a sequence gets the scale of the sequence's largest magnitude.
struct SequenceScalesParams {
  const float* absmax;        // f32 [rows], of row_absmax
  const int32_t* row_starts;  // i32 [sequences + 1], ascending; sequence s has rows row_starts[s] .. row_starts[s + 1] - 1
  float* row_scales;          // f32 [rows]
  int32_t sequences;
};

// x += y.
struct AddParams {
  float* x;        // f32 [count]
  const float* y;  // f32 [count]
  int64_t count;
};

// x = cap * tanh(x / cap).
struct SoftCapParams {
  float* x;  // f32 [count]
  int64_t count;
  float cap;
};

// out[i] = x[rows[i]].
struct GatherRowsParams {
  const float* x;       // f32 [any, dim]
  const int32_t* rows;  // i32 [count]
  float* out;           // f32 [count, dim]
  int32_t count, dim;
};

// cos and sin of the f32 product position * inv_freq[j], within one unit of the last place for angles up to 10^7.
struct RopeAnglesParams {
  const int32_t* positions;  // i32 [tokens]
  const float* inv_freq;     // f32 [half]
  float* cos;                // f32 [tokens, half]
  float* sin;                // f32 [tokens, half]
  int32_t tokens, half;
};

// Rotates pairs (j, j + half) of every head in place: two products and a sum, unfused.
struct RopeParams {
  float* x;          // f32 [tokens, heads, 2 half]
  const float* cos;  // f32 [tokens, half]
  const float* sin;  // f32 [tokens, half]
  int32_t tokens, heads, half;
};

struct FillParams {
  float* x;  // f32 [count]
  int64_t count;
  float value;
};

inline bool supports_rms_norm(const RmsNormParams& p, const DeviceFacts&) { return p.dim > 0 && supports_act_out(p.out); }
inline bool supports_add_norm(const AddNormParams& p, const DeviceFacts&) {
  return p.dim > 0 && (!p.next_weight || supports_act_out(p.out));
}
inline bool supports_geglu(const GegluParams& p, const DeviceFacts&) {
  return p.ffn > 0 && supports_act_out(p.out) && (p.interleaved ? p.ffn % 8 == 0 && !p.up : p.up != nullptr);
}
inline bool supports_quantize(const QuantizeParams& p, const DeviceFacts&) {
  return p.dim > 0 && p.in_type != ActType::int8 && supports_act_out(p.out);
}
inline bool supports_row_absmax(const RowAbsmaxParams& p, const DeviceFacts&) { return p.dim > 0 && p.in_type != ActType::int8; }
inline bool supports_soft_cap(const SoftCapParams& p, const DeviceFacts&) { return p.cap > 0; }

}  // namespace lapidary::cuda
