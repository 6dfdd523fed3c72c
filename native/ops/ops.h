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
#include <optional>
#include <span>
#include <string_view>
#include <vector>

#include "ops/sampling.h"
#include "tensor/tensor.h"

namespace lapidary {

inline constexpr int64_t kNoWindow = INT64_MAX;  // every earlier key is visible
inline constexpr int64_t kPageTokens = 64;       // positions per KV page
// Rows from which a span is long (ActScheme::long_spans): fewer do not repay turning the weights into int8 for them.
inline constexpr int64_t kLongSpan = 32;

// What a linear layer does with its input (docs/numerics.md, "int8"): one of int8 weights, but for the last.
enum class ActScheme : uint8_t {
  none,      // weight-only: the input stays f32 or bf16
  token,     // quantised with one scale per row, taken from the row
  fixed,     // quantised with one calibrated scale, `Linear::input_scale`
  sequence,  // quantised with one scale for all rows that a sequence has in the call, taken from them: depends on where chunks begin
  // GGUF blocks beside bf16 rows ("Blocks in int8"): rows of a span of kLongSpan or more as `token`, with weights rounded to int8 by
  // Linear::scale on the way; those of a shorter span as `none`. Beside f32 rows: as `none`.
  long_spans,
};

// The form a backend gave to a weight, where that is not the plain rows; known to that backend alone.
struct PackedWeight {
  virtual ~PackedWeight() = default;
};

// y = x · weightᵀ. The weight stays in its storage dtype (f32, bf16, f16, i8 or a block kind) and is computed on as such.
struct Linear {
  Tensor weight;                     // [out, in]
  std::shared_ptr<const void> keep;  // owns the memory behind `weight` (mapping or buffer)
  // i8: f32 [out], a row is its numbers times its scale. Blocks whose scheme is long_spans: the int8 scales of the rows, which make_linear
  // adds. Else empty.
  Tensor scale{};
  ActScheme activations = ActScheme::none;
  float input_scale = 0;                         // of ActScheme::fixed
  std::shared_ptr<const PackedWeight> packed{};  // may be null
  int64_t out() const { return weight.shape[0]; }
  int64_t in() const { return weight.shape[1]; }
};

// How make_linears lays weights of one input next to each other, so that a backend can compute them as one product.
enum class Stack : uint8_t {
  rows,         // one below the other: q, k, v
  interleaved,  // two weights, eight rows of each in turn: gate, up
};

// y = x * rsqrt(mean(x^2) + eps) * (offset + weight), in f32.
struct Norm {
  Tensor weight;     // f32 [dim]
  float offset = 1;  // 1 where weights are stored around 0 (safetensors), 0 where they are stored whole (GGUF)
  float eps = 1e-6f;
};

// Keys and values of one sequence in one layer. Position p lives in page (p / kPageTokens) % num_pages, row p % kPageTokens:
// a local layer has few pages and wraps (a ring), a global layer has as many as its context needs.
// A page: keys [num_kv_heads, kPageTokens, head_dim], then values of the same shape, in `dtype` (f32, bf16 or i8); for i8 then f32 scales
// of the keys and of the values, [num_kv_heads, kPageTokens] each: one per position and head. Keys are stored after QK-norm and RoPE.
struct KvView {
  DType dtype = DType::f32;
  void* const* pages = nullptr;  // [num_pages]
  int64_t num_pages = 0;
};

int64_t kv_page_bytes(DType dtype, int64_t num_kv_heads, int64_t head_dim);

// The consecutive rows of one sequence in this step.
struct AttentionSpan {
  int64_t first_row = 0;
  int64_t rows = 0;
  int64_t first_pos = 0;  // absolute position of first_row; row r has first_pos + (r - first_row)
  KvView kv;
};

// Positions [first, end) that see each other whatever the order and the window: the soft tokens of a picture. first == end: none.
struct ImageBlock {
  int32_t first = 0, end = 0;
};

// What some attention calls have besides the cache.
struct AttentionExtras {
  // Visible to every query, whatever its window unless prefix_in_window (docs/numerics.md, "prefix"). Not quantised; RoPE applied to the
  // keys as positions 0 .. prefix tokens - 1. f32 or bf16 [num_kv_heads, prefix tokens, head_dim]; empty: none.
  Tensor prefix_k, prefix_v;
  Tensor q_prefix;  // the queries as the prefix sees them, like q; empty: q itself
  // Slots leave the window like the ordinary tokens they were: slot j is visible iff prefix tokens + position - j < window.
  bool prefix_in_window = false;
  // Per row of the step: the block its token belongs to; its keys are in the cache. Empty: none.
  std::span<const ImageBlock> image_blocks;
};

struct AttentionShape {
  int64_t num_heads = 0, num_kv_heads = 0, head_dim = 0;
  float scale = 1;             // multiplies q·k
  float softcap = 0;           // s = softcap * tanh(s / softcap); 0 = none
  int64_t window = kNoWindow;  // keys visible to a query, itself included: key k is visible to query q iff q - window < k <= q
  const AttentionExtras* extras = nullptr;
};

// What attend() needs per layer besides the projections.
struct AttendParams {
  AttentionShape shape;
  const Norm* q_norm = nullptr;  // null: no QK-norm
  const Norm* k_norm = nullptr;
  Tensor cos, sin;  // f32 [tokens, head_dim / 2], from rope_angles, of this layer's kind
  std::span<const AttentionSpan> spans;
  // With a prefix: the angles of the query that the prefix sees, like cos and sin; empty: it sees the query itself.
  Tensor prefix_cos{}, prefix_sin{};
};

// Scratch of one forward step; every tensor has room for the step's tokens in its first dimension.
struct Workspace {
  Tensor normed;                           // act [tokens, hidden]
  Tensor q;                                // f32 [tokens, num_heads * head_dim]
  Tensor k, v;                             // f32 [tokens, num_kv_heads * head_dim]
  Tensor attended;                         // act [tokens, num_heads * head_dim]
  Tensor branch;                           // f32 [tokens, hidden]
  Tensor gate, up;                         // f32 [tokens, ffn]
  Tensor gated;                            // act [tokens, ffn]
  Tensor q_prefix;                         // like q; only where a step has prefix angles
  std::span<const AttentionSpan> spans{};  // the step's rows by sequence, for sequence and long_spans; empty: all are of one
};

// Neighbouring rows of a step whose spans are all long, or all short.
struct RowGroup {
  int64_t first = 0, rows = 0;
  bool is_long = false;
};

// fn(group) for the groups of a step of `rows` rows, in order; no spans: all rows are of one.
template <typename Fn>
void each_row_group(std::span<const AttentionSpan> spans, int64_t rows, const Fn& fn) {
  if (spans.empty()) return fn(RowGroup{0, rows, rows >= kLongSpan});
  for (size_t i = 0; i < spans.size();) {
    RowGroup group{spans[i].first_row, 0, spans[i].rows >= kLongSpan};
    for (; i < spans.size() && (spans[i].rows >= kLongSpan) == group.is_long; ++i) group.rows += spans[i].rows;
    fn(group);
  }
}

// A weight of the scheme long_spans as the rows of one group, f32 or bf16, meet it: `token` or `none`. Others as they are.
Linear for_rows(const Linear& w, DType act, bool is_long);

class TrainingOps;

class Backend {
 public:
  virtual ~Backend() = default;
  virtual std::string_view name() const = 0;  // "reference", "cpu", "cuda"

  // --- memory -----------------------------------------------------------------------------------------------------
  virtual Buffer allocate(size_t bytes);                         // on the device, uninitialised, 64-byte aligned
  virtual Buffer allocate_page(size_t bytes);                    // the same, for a KV page: pages of one size may share an allocation
  virtual void upload(const Tensor& dst, const void* host_src);  // dst.bytes() bytes
  virtual void download(void* host_dst, const Tensor& src);      // src.bytes() bytes; waits for the work before it
  virtual void copy(const Tensor& dst, const Tensor& src);       // both on the device, the same bytes
  virtual void zero(const Tensor& dst);
  // Takes a host weight (`weight` and `scale` in host memory, unaligned is fine) and gives it the form this backend computes on.
  virtual Linear make_linear(const Linear& host);
  // What make_linear would make of a host weight's int8 form (a scale per row by the int8 rule, inputs quantised per token), bit for bit,
  // without the int8 rows in between. Empty: this backend has no such way.
  virtual std::optional<Linear> make_int8(const Linear& host);
  // A weight that is on the device already, as plain rows; nothing is copied. For callers that bring their own matrices.
  virtual Linear wrap_linear(const Linear& on_device);
  // Whether it computes the scheme long_spans; where not, callers leave blocks at `none`.
  virtual bool has_long_spans() const { return false; }
  // The same as make_linear for weights that share their input, with equal `in` and the same scheme. Each result also works alone in
  // `linear`, except that interleaved ones are for feed_forward. Where they do not fit together, they are made one by one.
  virtual std::vector<Linear> make_linears(std::span<const Linear> host, Stack stack);

  // --- primitives -------------------------------------------------------------------------------------------------
  // out[t] = table[ids[t]] * scale. ids: i32 [tokens], each in [0, vocab) (the caller checks). table [vocab, hidden]; out f32 [tokens,
  // hidden].
  virtual void embed(std::span<const int32_t> ids, const Linear& table, float scale, const Tensor& out) = 0;
  // x f32 [rows, dim] -> out act [rows, dim]; may be in place when out is f32.
  virtual void rms_norm(const Tensor& x, const Norm& norm, const Tensor& out) = 0;
  // x act [tokens, in] -> out f32 [tokens, out]. int8 weights: quantises x as w.activations says, all rows being of one span; then as
  // matmul_int8. Blocks of the scheme `token` (for_rows) as the int8 weights that they are rounded to.
  virtual void linear(const Tensor& x, const Linear& w, const Tensor& out) = 0;
  // x act [rows, dim] -> q i8 [rows, dim], scales f32 [rows] by the int8 rule, a scale per row; `fixed_scale` > 0: that one for all.
  virtual void quantize_rows(const Tensor& x, float fixed_scale, const Tensor& q, const Tensor& scales) = 0;
  // out[m, n] = (Σ x[m, k] * w[n, k]) * (x_scales[m] * w.scale[n]), the sum exact in int32; x i8 [m, k], x_scales f32 [m], out f32 [m, n].
  virtual void matmul_int8(const Tensor& x, const Tensor& x_scales, const Linear& w, const Tensor& out) = 0;
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
  // attention_input, then attend: ws.attended from x.
  virtual void self_attention(const Tensor& x, const Norm& norm, const Linear& wq, const Linear& wk, const Linear& wv,
                              const AttendParams& params, Workspace& ws);
  // normed = norm(x); q, k, v = projections of normed.
  virtual void attention_input(const Tensor& x, const Norm& norm, const Linear& wq, const Linear& wk, const Linear& wv, Workspace& ws);
  // QK-norm, RoPE, append, attention: ws.q, ws.k, ws.v -> ws.attended.
  virtual void attend(const AttendParams& params, Workspace& ws);
  // x += post_norm(attended · woᵀ).
  virtual void attention_output(const Linear& wo, const Norm& post_norm, const Tensor& x, Workspace& ws);
  // x += post_norm((gelu(m · gateᵀ) * (m · upᵀ)) · downᵀ), m = pre_norm(x).
  virtual void feed_forward(const Tensor& x, const Norm& pre_norm, const Linear& gate, const Linear& up, const Linear& down,
                            const Norm& post_norm, Workspace& ws);
  // The product with the rows of a step: `linear`, span by span or group by group where the weight asks for that.
  void step_linear(const Tensor& x, const Linear& w, const Tensor& out, std::span<const AttentionSpan> spans);
  // logits [n, vocab] = soft_cap(norm(x) · headᵀ); x f32 [n, hidden], normed act [n, hidden]; softcap 0 = none. The head's inputs are not
  // quantised per sequence.
  virtual void logits(const Tensor& x, const Norm& norm, const Linear& head, float softcap, const Tensor& normed, const Tensor& out);

  // The backward passes and what else training needs, ops/training.h; owned by the backend. The default is Error(unsupported).
  virtual TrainingOps& training();

 protected:
  Backend() = default;
};

std::unique_ptr<Backend> make_reference_backend();

}  // namespace lapidary
