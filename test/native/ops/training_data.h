// Data for tests of training: numbers without the outliers of ops_data.h, whose derivatives are not all of one size, and attention of whole
// sequences in all its cases.
#pragma once

#include "ops/ops_data.h"
#include "ops/training.h"

namespace lapidary::test {

inline Owned plain_numbers(std::initializer_list<int64_t> dims, uint64_t seed) {
  Owned a(DType::f32, dims);
  Random random(seed);
  for (int64_t i = 0; i < a.t.elements(); ++i) a.t.as<float>()[i] = random.bell();
  return a;
}

struct TrainingAttentionProblem {
  int64_t heads = 2, kv_heads = 1, dim = 8;
  std::vector<int64_t> lengths = {5};
  int64_t window = kNoWindow;
  float softcap = 0;
  int64_t prefix = 0;
  bool own_prefix_queries = false, prefix_in_window = false;

  int64_t tokens() const {
    int64_t sum = 0;
    for (int64_t length : lengths) sum += length;
    return sum;
  }
  std::string text() const {
    return "heads " + std::to_string(heads) + "/" + std::to_string(kv_heads) + ", dim " + std::to_string(dim) + ", tokens " +
           std::to_string(tokens()) + ", window " + std::to_string(window) + ", cap " + std::to_string(softcap) + ", prefix " +
           std::to_string(prefix) + (own_prefix_queries ? " with queries of its own" : "") + (prefix_in_window ? " in the window" : "");
  }
};

// The inputs of a problem, its results and derivatives, all owned.
struct TrainingAttentionCase {
  std::vector<SequenceRows> sequences;
  Owned q, k, v, q_prefix, prefix_k, prefix_v, gout;
  TrainingAttention attention;

  explicit TrainingAttentionCase(const TrainingAttentionProblem& p)
      : q(plain_numbers({p.tokens(), p.heads, p.dim}, 1)),
        k(plain_numbers({p.tokens(), p.kv_heads, p.dim}, 2)),
        v(plain_numbers({p.tokens(), p.kv_heads, p.dim}, 3)),
        q_prefix(plain_numbers({p.tokens(), p.heads, p.dim}, 4)),
        prefix_k(plain_numbers({p.kv_heads, p.prefix, p.dim}, 5)),
        prefix_v(plain_numbers({p.kv_heads, p.prefix, p.dim}, 6)),
        gout(plain_numbers({p.tokens(), p.heads * p.dim}, 7)) {
    int64_t row = 0;
    for (int64_t length : p.lengths) sequences.push_back({row, length, p.prefix}), row += length;
    attention.shape = {p.heads, p.kv_heads, p.dim, 0.6f / std::sqrt(static_cast<float>(p.dim)), p.softcap, p.window};
    attention.sequences = sequences;
    attention.q = q.t, attention.k = k.t, attention.v = v.t;
    if (p.prefix > 0) attention.prefix_k = prefix_k.t, attention.prefix_v = prefix_v.t;
    if (p.own_prefix_queries) attention.q_prefix = q_prefix.t;
    attention.prefix_in_window = p.prefix_in_window;
  }
  TrainingAttentionCase(const TrainingAttentionCase&) = delete;
  TrainingAttentionCase& operator=(const TrainingAttentionCase&) = delete;
};

struct TrainingAttentionResult {
  Owned out, stats, q, k, v, q_prefix, prefix_k, prefix_v;

  TrainingAttentionResult(Backend& backend, const TrainingAttentionProblem& p, const TrainingAttentionCase& c)
      : out(DType::f32, {p.tokens(), p.heads * p.dim}),
        stats(DType::f32, {p.tokens(), p.heads, 2}),
        q(DType::f32, {p.tokens(), p.heads, p.dim}),
        k(DType::f32, {p.tokens(), p.kv_heads, p.dim}),
        v(DType::f32, {p.tokens(), p.kv_heads, p.dim}),
        q_prefix(DType::f32, {p.tokens(), p.heads, p.dim}),
        prefix_k(DType::f32, {p.kv_heads, p.prefix, p.dim}),
        prefix_v(DType::f32, {p.kv_heads, p.prefix, p.dim}) {
    TrainingOps& ops = backend.training();
    ops.attention_forward(c.attention, out.t, stats.t);
    AttentionGradients g{q.t, k.t, v.t, {}, {}, {}};
    if (c.attention.q_prefix) g.q_prefix = q_prefix.t;
    if (p.prefix > 0) {
      std::memset(prefix_k.t.data, 0, static_cast<size_t>(prefix_k.t.bytes()));
      std::memset(prefix_v.t.data, 0, static_cast<size_t>(prefix_v.t.bytes()));
      g.prefix_k = prefix_k.t, g.prefix_v = prefix_v.t;
    }
    ops.attention_backward(c.attention, out.t, stats.t, c.gout.t, g);
  }
};

}  // namespace lapidary::test
