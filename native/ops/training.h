// What training needs beyond the inference operations of ops.h: their backward passes, attention that keeps what its backward wants,
// losses over logits, fake quantisation, optimiser steps. A Backend hands its own out through Backend::training(); the bodies of this class
// itself are plain loops on host memory with sums in double, the truth in tests.
//
// Conventions: everything is f32, row-major, on the backend's device. "g" before a name is the derivative of the loss by it. An output is
// overwritten unless the comment says "added to". As in ops.h an element has one order of operations, whatever the thread count: equal
// inputs give equal bits.
#pragma once

#include <cstdint>
#include <span>

#include "ops/ops.h"

namespace lapidary {

// c = a · b over the last but one and the first dimension, with one side transposed in memory.
enum class MatmulForm : uint8_t {
  nn,  // a [m, k], b [k, n]: gx = gy · w
  nt,  // a [m, k], b [n, k]: y = x · wᵀ
  tn,  // a [k, m], b [k, n]: gw = gyᵀ · x
};

// The consecutive rows of one sequence; its first row stands at position first_pos (the prefix tokens before it).
struct SequenceRows {
  int64_t first_row = 0, rows = 0, first_pos = 0;
};

// Attention of whole sequences: a query sees the keys of its own sequence as `shape` says, and the prefix.
struct TrainingAttention {
  AttentionShape shape;  // `extras` is not read
  std::span<const SequenceRows> sequences;
  Tensor q;     // [tokens, num_heads, head_dim], after RoPE
  Tensor k, v;  // [tokens, num_kv_heads, head_dim], k after RoPE
  // As in AttentionExtras: [num_kv_heads, prefix tokens, head_dim], keys after RoPE; q_prefix like q, empty: q itself.
  Tensor prefix_k, prefix_v, q_prefix;
  // The prefix tokens are ordinary keys at positions 0 .. prefix tokens - 1 and leave the window like any other; false: always visible.
  bool prefix_in_window = false;

  int64_t prefix_tokens() const { return prefix_k ? prefix_k.shape[1] : 0; }
};

struct AttentionGradients {
  Tensor q, k, v;             // like those of TrainingAttention
  Tensor q_prefix;            // there iff the attention has a q_prefix
  Tensor prefix_k, prefix_v;  // added to; both empty: not wanted
};

// How the inputs of a site share scales. The number itself follows the int8 rule (docs/numerics.md).
enum class QuantScope : uint8_t {
  none,
  fixed,     // one calibrated scale
  token,     // a scale per row, from the row
  sequence,  // a scale per sequence, from its rows
};

struct FakeQuant {
  QuantScope scope = QuantScope::none;
  float scale = 0;  // of `fixed`
};

// The derivative of the quantisation error Σ (x - q(x))² by x. Scales are constants to all but the last.
enum class QuantErrorGradient : uint8_t {
  literal,           // 2 (x - q(x)): rounding is flat. Pulls each element to its nearest grid point
  straight_through,  // rounding passes the derivative on: 0 in range, 2 (x - clip(x)) outside
  through_scale,     // straight_through, and the scale's own derivative lands on the element that set it, the first of equal ones
};

// What the rows of some logits should have been: the loss of row r is weights[r] · Σ_j p[r, j] · -log softmax(logits)[ids[r, j]].
struct TokenTargets {
  std::span<const int32_t> ids;          // [rows, per_row], each in [0, vocab) (the caller checks)
  std::span<const float> probabilities;  // [rows, per_row]; empty: 1 on each id
  int64_t per_row = 1;
  std::span<const float> weights;  // [rows]; a row of weight 0 has loss and derivative 0
};

struct AdamWStep {
  float learning_rate = 0, beta1 = 0.9f, beta2 = 0.999f, eps = 1e-8f, weight_decay = 0;
  int64_t step = 1;          // counted from 1
  float gradient_scale = 1;  // multiplies the gradient first: clipping
};

struct SgdStep {
  float learning_rate = 0, momentum = 0, weight_decay = 0;
  bool first = false;  // the momentum starts as the gradient
  float gradient_scale = 1;
};

class TrainingOps {
 public:
  virtual ~TrainingOps() = default;

  // c [m, n] = a · b, or added to c. A frozen weight that is not f32 is widened first (train/weights.h).
  virtual void matmul(MatmulForm form, const Tensor& a, const Tensor& b, const Tensor& c, bool add_to_c);

  // y = rms_norm(x): x, gy [rows, dim]. gx: overwritten, or added to; may be gy's memory when overwritten. gw [dim]: added to; empty: not
  // wanted.
  virtual void rms_norm_backward(const Tensor& x, const Norm& norm, const Tensor& gy, const Tensor& gx, bool add_to_gx, const Tensor& gw);
  // The rotation by the negative angles, in place: g [tokens, heads, head_dim], cos and sin as in Backend::rope.
  virtual void rope_backward(const Tensor& g, const Tensor& cos, const Tensor& sin);
  // out = gelu_tanh(gate) * up. ggate or gup may be gout's memory.
  virtual void geglu_backward(const Tensor& gate, const Tensor& up, const Tensor& gout, const Tensor& ggate, const Tensor& gup);
  // y = cap * tanh(x / cap): g *= 1 - (y / cap)².
  virtual void soft_cap_backward(const Tensor& y, float cap, const Tensor& g);
  // gtable[ids[t]] += scale * gx[t]; gtable [vocab, hidden].
  virtual void embed_backward(std::span<const int32_t> ids, float scale, const Tensor& gx, const Tensor& gtable);

  // out [tokens, num_heads * head_dim]; stats [tokens, num_heads, 2]: the largest score of each query and the sum of exp(score - largest).
  virtual void attention_forward(const TrainingAttention& attention, const Tensor& out, const Tensor& stats);
  // out and stats are those of attention_forward.
  virtual void attention_backward(const TrainingAttention& attention, const Tensor& out, const Tensor& stats, const Tensor& gout,
                                  const AttentionGradients& gradients);

  // logits [rows, vocab] before the soft-cap (0: none) -> the derivative of the losses by them, in place. losses [rows].
  virtual void cross_entropy(const Tensor& logits, float softcap, const TokenTargets& targets, std::span<double> losses);
  // The same for losses[r] = weights[r] · t² · KL(softmax(teacher / t) ‖ softmax(capped logits / t)); teacher [rows, vocab] after its own
  // cap.
  virtual void distillation(const Tensor& logits, float softcap, const Tensor& teacher, float temperature, std::span<const float> weights,
                            std::span<double> losses);

  // out = q(x), the values that the integers stand for, x [rows, dim]; scales [rows]. Returns Σ (x - q(x))². The scope is not `none`.
  virtual double fake_quantize(const Tensor& x, const FakeQuant& quant, std::span<const SequenceRows> sequences, const Tensor& out,
                               const Tensor& scales);
  // g, the derivative by q(x), becomes that by x: straight through where |x| <= 127 · scale (for a scale taken from x: everywhere), plus
  // error_weight times the derivative of the quantisation error.
  virtual void fake_quantize_backward(const Tensor& x, const FakeQuant& quant, std::span<const SequenceRows> sequences,
                                      const Tensor& scales, float error_weight, QuantErrorGradient kind, const Tensor& g);

  // Σ x².
  virtual double sum_of_squares(const Tensor& x);
  // x *= mask, elementwise, of f32.
  virtual void multiply(const Tensor& x, const Tensor& mask);
  // p -= lr · weight_decay · p; then m = β1 m + (1 - β1) g, v = β2 v + (1 - β2) g², p -= lr · (m / (1 - β1^t)) / (√(v / (1 - β2^t)) + eps).
  virtual void adamw(const Tensor& p, const Tensor& g, const Tensor& m, const Tensor& v, const AdamWStep& step);
  // g' = g + weight_decay · p; momentum = momentum · μ + g'; p -= lr · momentum. Without momentum (μ = 0): p -= lr · g', the tensor unread.
  virtual void sgd(const Tensor& p, const Tensor& g, const Tensor& momentum, const SgdStep& step);
};

// The checks that every implementation makes; Error(internal) names what does not fit.
void check_matmul(MatmulForm form, const Tensor& a, const Tensor& b, const Tensor& c);
void check_attention(const TrainingAttention& attention);

// Whether the query at `pos` sees prefix slot j.
inline bool sees_prefix(const TrainingAttention& a, int64_t pos, int64_t slot) {
  return !a.prefix_in_window || pos - slot < a.shape.window;
}

}  // namespace lapidary
