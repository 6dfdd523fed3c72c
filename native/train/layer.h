// One layer of the model forwards, keeping what its backward pass needs, and backwards. All tensors f32 [tokens, ...] on the backend.
#pragma once

#include <functional>
#include <span>
#include <vector>

#include "train/quantization.h"
#include "train/weights.h"

namespace lapidary {

// What a layer computes on the way, in order. A quantised input stands beside what it was made from.
struct LayerActivations {
  Tensor normed, normed_q;          // attn_in
  Tensor q_raw, k_raw, v;           // projections
  Tensor q, k, q_prefix;            // after QK-norm and RoPE
  Tensor attended, attended_q;      // o_in
  Tensor stats;                     // [tokens, num_heads, 2]
  Tensor attention_branch;          // before its norm
  Tensor middle;                    // the stream between the two branches
  Tensor ffn_normed, ffn_normed_q;  // mlp_in
  Tensor gate, up, gated, gated_q;  // down_in
  Tensor ffn_branch;                // before its norm
  PerSite<Tensor> scales;           // [tokens]
};

// Derivatives that live while a layer is differentiated.
struct LayerScratch {
  Tensor hidden, branch;               // [tokens, hidden]
  Tensor q, q_prefix, attended, k, v;  // like those of LayerActivations
  Tensor ffn, up;                      // [tokens, ffn]
};

// What all layers of a step share, and what this layer sees of the cushion.
struct LayerContext {
  const ModelConfig& config;
  std::span<const SequenceRows> sequences;
  std::vector<Tensor> cos, sin;   // per rope kind [tokens, head_dim / 2]
  Tensor prefix_k, prefix_v;      // [num_kv_heads, cushion tokens, head_dim], keys after RoPE; empty: no cushion
  bool prefix_in_window = false;  // CushionWindow::native in a local layer
  Tensor prefix_cos, prefix_sin;  // angles of the queries as the cushion sees them; empty: those of the text
  const QuantPlan* quant = nullptr;
};

struct LayerGradients {
  ParameterSet* weights = nullptr;  // added to; null: none wanted
  Tensor prefix_k, prefix_v;        // added to; empty: not wanted
  bool input = true;                // whether the derivative by the layer's input is wanted
  std::function<void(const Tensor& x, const Tensor& g)>
      gated;  // sees LayerActivations::gated and the derivative by it, and may add to that
};

class LayerPass {
 public:
  LayerPass(Backend& backend, WeightSource& weights, const LayerContext& context, int64_t layer)
      : backend_(backend), ops_(backend.training()), weights_(weights), context_(context), layer_(layer) {}

  // x, out [tokens, hidden], different memory. Returns Σ (x - q(x))² of each quantised site.
  PerSite<double> forward(const Tensor& x, LayerActivations& a, const Tensor& out);
  // g: the derivative by the layer's output, which becomes that by its input.
  void backward(const Tensor& x, const LayerActivations& a, LayerScratch& scratch, const LayerGradients& gradients, const Tensor& g);

 private:
  Tensor weight(TensorRole role) { return weights_.weight({role, layer_}); }
  Norm norm(TensorRole role) { return weights_.norm({role, layer_}); }
  // The derivative wanted of a weight; empty: none.
  static Tensor wanted(const LayerGradients& gradients, TensorRole role, int64_t layer) {
    return gradients.weights ? gradients.weights->find({role, layer}) : Tensor();
  }

  const FakeQuant* quant_of(QuantSite site) const;
  // x as the products see it: x itself, or rounded into `rounded`.
  Tensor enter_site(QuantSite site, const Tensor& x, const Tensor& rounded, LayerActivations& a, PerSite<double>& errors);
  Tensor input_of(QuantSite site, const Tensor& x, const Tensor& rounded) const;
  void leave_site(QuantSite site, const Tensor& x, const LayerActivations& a, const Tensor& g);
  void project(const Tensor& x, TensorRole role, const Tensor& out);
  void project_backward(const Tensor& gy, const Tensor& x, TensorRole role, const LayerGradients& gradients, const Tensor& gx, bool add);
  void norm_backward(const Tensor& x, TensorRole role, const Tensor& gy, const LayerGradients& gradients, const Tensor& gx, bool add);
  TrainingAttention attention(const LayerActivations& a) const;
  void attention_backward(const Tensor& x, const LayerActivations& a, LayerScratch& scratch, const LayerGradients& gradients,
                          const Tensor& g);
  bool has_own_prefix_queries() const { return static_cast<bool>(context_.prefix_cos); }
  Tensor cos() const { return context_.cos[rope_kind()]; }
  Tensor sin() const { return context_.sin[rope_kind()]; }
  size_t rope_kind() const { return static_cast<size_t>(context_.config.layers[static_cast<size_t>(layer_)].rope); }

  Backend& backend_;
  TrainingOps& ops_;
  WeightSource& weights_;
  const LayerContext& context_;
  const int64_t layer_;
};

}  // namespace lapidary
