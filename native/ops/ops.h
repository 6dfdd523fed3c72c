// The waist: every operation a Gemma model is made of, once, with shapes. The model above knows no device; the backends
// below know no Gemma. Primitives are what a backend must provide; stages are the natural pieces of a layer, each with a
// default body made of primitives, which a backend may override to fuse.
//
// Conventions: activations are row-major, one row per token of the step, tokens of all sequences one after another.
// Residual stream, projections and logits are f32. A tensor that feeds a `linear` (marked "act") is f32 or bf16; its dtype says
// whether the producer rounds (docs/numerics.md). No result may depend on how many other rows are in the call, on the thread
// count, or on where a chunk of a prompt begins: each output element has one fixed order of operations.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string_view>
#include <vector>

#include "ops/sampling.h"
#include "tensor/tensor.h"

namespace lapidary {

inline constexpr int64_t kNoWindow = INT64_MAX;  // every earlier key is visible
inline constexpr int64_t kPageTokens = 64;       // positions per KV page

// y = x · weightᵀ. The weight stays in its storage dtype (f32, bf16, f16 or a block kind) and is computed on as such.
struct Linear {
  Tensor weight;                     // [out, in]
  std::shared_ptr<const void> keep;  // owns the memory behind `weight` (mapping or buffer)
  int64_t out() const { return weight.shape[0]; }
  int64_t in() const { return weight.shape[1]; }
};

// y = x * rsqrt(mean(x^2) + eps) * (offset + weight), in f32.
struct Norm {
  Tensor weight;     // f32 [dim]
  float offset = 1;  // 1 where weights are stored around 0 (safetensors), 0 where they are stored whole (GGUF)
  float eps = 1e-6f;
};

// Keys and values of one sequence in one layer. Position p lives in page (p / kPageTokens) % num_pages, row p % kPageTokens:
// a local layer has few pages and wraps (a ring), a global layer has as many as its context needs.
// A page: keys [num_kv_heads, kPageTokens, head_dim], then values of the same shape, in `dtype` (f32 or bf16). Keys are stored
// after QK-norm and RoPE.
struct KvView {
  DType dtype = DType::f32;
  void* const* pages = nullptr;  // [num_pages]
  int64_t num_pages = 0;
};

// The consecutive rows of one sequence in this step.
struct AttentionSpan {
  int64_t first_row = 0;
  int64_t rows = 0;
  int64_t first_pos = 0;  // absolute position of first_row; row r has first_pos + (r - first_row)
  KvView kv;
};

struct AttentionShape {
  int64_t num_heads = 0, num_kv_heads = 0, head_dim = 0;
  float scale = 1;             // multiplies q·k
  float softcap = 0;           // s = softcap * tanh(s / softcap); 0 = none
  int64_t window = kNoWindow;  // keys visible to a query, itself included: key k is visible to query q iff q - window < k <= q
};

// What attend() needs per layer besides the projections.
struct AttendParams {
  AttentionShape shape;
  const Norm* q_norm = nullptr;  // null: no QK-norm
  const Norm* k_norm = nullptr;
  Tensor cos, sin;  // f32 [tokens, head_dim / 2], from rope_angles, of this layer's kind
  std::span<const AttentionSpan> spans;
};

// Scratch of one forward step; every tensor has room for the step's tokens in its first dimension.
struct Workspace {
  Tensor normed;    // act [tokens, hidden]
  Tensor q;         // f32 [tokens, num_heads * head_dim]
  Tensor k, v;      // f32 [tokens, num_kv_heads * head_dim]
  Tensor attended;  // act [tokens, num_heads * head_dim]
  Tensor branch;    // f32 [tokens, hidden]
  Tensor gate, up;  // f32 [tokens, ffn]
  Tensor gated;     // act [tokens, ffn]
};

class Backend {
 public:
  virtual ~Backend() = default;
  virtual std::string_view name() const = 0;  // "reference", "cpu", "cuda"

  // --- memory -----------------------------------------------------------------------------------------------------
  virtual Buffer allocate(size_t bytes);                         // on the device, uninitialised, 64-byte aligned
  virtual void upload(const Tensor& dst, const void* host_src);  // dst.bytes() bytes
  virtual void download(void* host_dst, const Tensor& src);      // src.bytes() bytes; waits for the work before it
  // Takes a host weight [out, in] (unaligned is fine) and gives it the form this backend computes on. `keep` owns its memory.
  virtual Linear make_linear(const Tensor& host_weight, std::shared_ptr<const void> keep);

  // --- primitives -------------------------------------------------------------------------------------------------
  // out[t] = table[ids[t]] * scale. ids: i32 [tokens], each in [0, vocab) (the caller checks). table [vocab, hidden]; out f32 [tokens,
  // hidden].
  virtual void embed(std::span<const int32_t> ids, const Linear& table, float scale, const Tensor& out) = 0;
  // x f32 [rows, dim] -> out act [rows, dim]; may be in place when out is f32.
  virtual void rms_norm(const Tensor& x, const Norm& norm, const Tensor& out) = 0;
  // x act [tokens, in] -> out f32 [tokens, out].
  virtual void linear(const Tensor& x, const Linear& w, const Tensor& out) = 0;
  // Angles positions[t] * inv_freq[j] in f32; cos, sin f32 [tokens, head_dim / 2]. inv_freq: f32 [head_dim / 2].
  virtual void rope_angles(std::span<const int32_t> positions, std::span<const float> inv_freq, const Tensor& cos, const Tensor& sin) = 0;
  // Rotates x f32 [tokens, heads, head_dim] in place, pairs (j, j + head_dim / 2).
  virtual void rope(const Tensor& x, const Tensor& cos, const Tensor& sin) = 0;
  // Stores k, v f32 [tokens, num_kv_heads, head_dim] at the spans' positions, rounded to the cache's dtype.
  virtual void append_kv(const Tensor& k, const Tensor& v, std::span<const AttentionSpan> spans, const AttentionShape& shape) = 0;
  // q f32 [tokens, num_heads, head_dim] over the cache, whose rows up to each query's position are filled -> out act [tokens, num_heads *
  // head_dim]. Query head n uses KV head n / (num_heads / num_kv_heads). Softmax in f32.
  virtual void attention(const Tensor& q, std::span<const AttentionSpan> spans, const AttentionShape& shape, const Tensor& out) = 0;
  // out = gelu_tanh(gate) * up, elementwise: f32, f32 -> act.
  virtual void geglu(const Tensor& gate, const Tensor& up, const Tensor& out) = 0;
  // x += y, f32.
  virtual void add(const Tensor& x, const Tensor& y) = 0;
  // x = cap * tanh(x / cap), f32 in place.
  virtual void soft_cap(const Tensor& x, float cap) = 0;
  // out[i] = x[rows[i]], f32.
  virtual void gather_rows(const Tensor& x, std::span<const int32_t> rows, const Tensor& out) = 0;
  // One token per request from logits f32 [n, vocab]; see ops/sampling.h. The default downloads and runs the reference.
  virtual void sample(const Tensor& logits, std::span<const SampleRequest> requests, std::span<SampleResult> results);

  // --- stages -----------------------------------------------------------------------------------------------------
  // normed = norm(x); q, k, v = projections of normed.
  virtual void attention_input(const Tensor& x, const Norm& norm, const Linear& wq, const Linear& wk, const Linear& wv, Workspace& ws);
  // QK-norm, RoPE, append, attention: ws.q, ws.k, ws.v -> ws.attended.
  virtual void attend(const AttendParams& params, Workspace& ws);
  // x += post_norm(attended · woᵀ).
  virtual void attention_output(const Linear& wo, const Norm& post_norm, const Tensor& x, Workspace& ws);
  // x += post_norm((gelu(m · gateᵀ) * (m · upᵀ)) · downᵀ), m = pre_norm(x).
  virtual void feed_forward(const Tensor& x, const Norm& pre_norm, const Linear& gate, const Linear& up, const Linear& down,
                            const Norm& post_norm, Workspace& ws);
  // logits [n, vocab] = soft_cap(norm(x) · headᵀ); x f32 [n, hidden], normed act [n, hidden]; softcap 0 = none.
  virtual void logits(const Tensor& x, const Norm& norm, const Linear& head, float softcap, const Tensor& normed, const Tensor& out);

 protected:
  Backend() = default;
};

std::unique_ptr<Backend> make_reference_backend();

}  // namespace lapidary
