// The layer of forward.cc once more, with everything kept, and its derivative read from the bottom up.
#include "train/layer.h"

namespace lapidary {

namespace {

Tensor heads_of(const Tensor& t, int64_t head_dim) {
  return Tensor(t.data, t.dtype, {t.shape[0], t.row_elements() / head_dim, head_dim}, t.device);
}
// A row per token and head, as QK-norm takes them.
Tensor head_rows(const Tensor& t, int64_t head_dim) { return Tensor(t.data, t.dtype, {t.elements() / head_dim, head_dim}, t.device); }

}  // namespace

const FakeQuant* LayerPass::quant_of(QuantSite site) const {
  if (!context_.quant) return nullptr;
  const FakeQuant& quant = context_.quant->sites[static_cast<size_t>(layer_)][static_cast<size_t>(site)];
  return quant.scope == QuantScope::none ? nullptr : &quant;
}

Tensor LayerPass::input_of(QuantSite site, const Tensor& x, const Tensor& rounded) const {
  return quant_of(site) && context_.quant->rounds ? rounded : x;
}

Tensor LayerPass::enter_site(QuantSite site, const Tensor& x, const Tensor& rounded, LayerActivations& a, PerSite<double>& errors) {
  const auto index = static_cast<size_t>(site);
  if (const FakeQuant* quant = quant_of(site)) errors[index] = ops_.fake_quantize(x, *quant, context_.sequences, rounded, a.scales[index]);
  return input_of(site, x, rounded);
}

void LayerPass::leave_site(QuantSite site, const Tensor& x, const LayerActivations& a, const Tensor& g) {
  const FakeQuant* quant = quant_of(site);
  if (!quant) return;
  const QuantPlan& plan = *context_.quant;
  const auto index = static_cast<size_t>(site);
  const float weight = plan.error_weights.empty() ? 0 : plan.error_weights[static_cast<size_t>(layer_)][index];
  if (plan.rounds) return ops_.fake_quantize_backward(x, *quant, context_.sequences, a.scales[index], weight, plan.gradient, g);
  if (weight == 0) return;
  // The error's derivative alone: the layer's own passes unrounded inputs.
  const Buffer memory = backend_.allocate(static_cast<size_t>(g.bytes()));
  const Tensor pull = memory.tensor(DType::f32, {g.shape[0], g.row_elements()});
  backend_.zero(pull);
  ops_.fake_quantize_backward(x, *quant, context_.sequences, a.scales[index], weight, plan.gradient, pull);
  backend_.add(g, pull);
}

void LayerPass::project(const Tensor& x, TensorRole role, const Tensor& out) { ops_.matmul(MatmulForm::nt, x, weight(role), out, false); }

void LayerPass::project_backward(const Tensor& gy, const Tensor& x, TensorRole role, const LayerGradients& gradients, const Tensor& gx,
                                 bool add) {
  if (const Tensor gw = wanted(gradients, role, layer_)) ops_.matmul(MatmulForm::tn, gy, x, gw, true);
  if (gx) ops_.matmul(MatmulForm::nn, gy, weight(role), gx, add);
}

void LayerPass::norm_backward(const Tensor& x, TensorRole role, const Tensor& gy, const LayerGradients& gradients, const Tensor& gx,
                              bool add) {
  ops_.rms_norm_backward(x, norm(role), gy, gx, add, wanted(gradients, role, layer_));
}

TrainingAttention LayerPass::attention(const LayerActivations& a) const {
  const ModelConfig& c = context_.config;
  TrainingAttention attention;
  attention.shape = {c.num_heads,
                     c.num_kv_heads,
                     c.head_dim,
                     static_cast<float>(c.query_scale),
                     static_cast<float>(c.attention_softcap),
                     c.layers[static_cast<size_t>(layer_)].window};
  attention.sequences = context_.sequences;
  attention.q = heads_of(a.q, c.head_dim);
  attention.k = heads_of(a.k, c.head_dim);
  attention.v = heads_of(a.v, c.head_dim);
  attention.prefix_k = context_.prefix_k;
  attention.prefix_v = context_.prefix_v;
  attention.prefix_in_window = context_.prefix_in_window;
  if (has_own_prefix_queries()) attention.q_prefix = heads_of(a.q_prefix, c.head_dim);
  return attention;
}

PerSite<double> LayerPass::forward(const Tensor& x, LayerActivations& a, const Tensor& out) {
  const int64_t dim = context_.config.head_dim;
  PerSite<double> errors{};
  backend_.rms_norm(x, norm(TensorRole::input_norm), a.normed);
  const Tensor input = enter_site(QuantSite::attn_in, a.normed, a.normed_q, a, errors);
  project(input, TensorRole::q, a.q_raw);
  project(input, TensorRole::k, a.k_raw);
  project(input, TensorRole::v, a.v);
  if (context_.config.qk_norm) {
    backend_.rms_norm(head_rows(a.q_raw, dim), norm(TensorRole::q_norm), head_rows(a.q, dim));
    backend_.rms_norm(head_rows(a.k_raw, dim), norm(TensorRole::k_norm), head_rows(a.k, dim));
  } else {
    backend_.copy(a.q, a.q_raw);
    backend_.copy(a.k, a.k_raw);
  }
  if (has_own_prefix_queries()) {
    backend_.copy(a.q_prefix, a.q);
    backend_.rope(heads_of(a.q_prefix, dim), context_.prefix_cos, context_.prefix_sin);
  }
  backend_.rope(heads_of(a.q, dim), cos(), sin());
  backend_.rope(heads_of(a.k, dim), cos(), sin());
  ops_.attention_forward(attention(a), a.attended, a.stats);
  project(enter_site(QuantSite::o_in, a.attended, a.attended_q, a, errors), TensorRole::o, a.attention_branch);
  backend_.rms_norm(a.attention_branch, norm(TensorRole::post_attention_norm), a.middle);
  backend_.add(a.middle, x);

  backend_.rms_norm(a.middle, norm(TensorRole::pre_ffn_norm), a.ffn_normed);
  const Tensor ffn_input = enter_site(QuantSite::mlp_in, a.ffn_normed, a.ffn_normed_q, a, errors);
  project(ffn_input, TensorRole::gate, a.gate);
  project(ffn_input, TensorRole::up, a.up);
  backend_.geglu(a.gate, a.up, a.gated);
  project(enter_site(QuantSite::down_in, a.gated, a.gated_q, a, errors), TensorRole::down, a.ffn_branch);
  backend_.rms_norm(a.ffn_branch, norm(TensorRole::post_ffn_norm), out);
  backend_.add(out, a.middle);
  return errors;
}

void LayerPass::backward(const Tensor& x, const LayerActivations& a, LayerScratch& s, const LayerGradients& gradients, const Tensor& g) {
  norm_backward(a.ffn_branch, TensorRole::post_ffn_norm, g, gradients, s.branch, false);
  project_backward(s.branch, input_of(QuantSite::down_in, a.gated, a.gated_q), TensorRole::down, gradients, s.ffn, false);
  leave_site(QuantSite::down_in, a.gated, a, s.ffn);
  if (gradients.gated) gradients.gated(a.gated, s.ffn);
  ops_.geglu_backward(a.gate, a.up, s.ffn, s.ffn, s.up);
  const Tensor ffn_input = input_of(QuantSite::mlp_in, a.ffn_normed, a.ffn_normed_q);
  project_backward(s.ffn, ffn_input, TensorRole::gate, gradients, s.hidden, false);
  project_backward(s.up, ffn_input, TensorRole::up, gradients, s.hidden, true);
  leave_site(QuantSite::mlp_in, a.ffn_normed, a, s.hidden);
  norm_backward(a.middle, TensorRole::pre_ffn_norm, s.hidden, gradients, g, true);

  norm_backward(a.attention_branch, TensorRole::post_attention_norm, g, gradients, s.branch, false);
  project_backward(s.branch, input_of(QuantSite::o_in, a.attended, a.attended_q), TensorRole::o, gradients, s.attended, false);
  leave_site(QuantSite::o_in, a.attended, a, s.attended);
  attention_backward(x, a, s, gradients, g);
}

void LayerPass::attention_backward(const Tensor& x, const LayerActivations& a, LayerScratch& s, const LayerGradients& gradients,
                                   const Tensor& g) {
  const int64_t dim = context_.config.head_dim;
  const Tensor q = heads_of(s.q, dim), k = heads_of(s.k, dim);
  AttentionGradients to{q, k, heads_of(s.v, dim), {}, gradients.prefix_k, gradients.prefix_v};
  if (has_own_prefix_queries()) to.q_prefix = heads_of(s.q_prefix, dim);
  ops_.attention_backward(attention(a), a.attended, a.stats, s.attended, to);
  if (!gradients.weights && !gradients.input) return;
  ops_.rope_backward(q, cos(), sin());
  ops_.rope_backward(k, cos(), sin());
  if (has_own_prefix_queries()) {
    ops_.rope_backward(to.q_prefix, context_.prefix_cos, context_.prefix_sin);
    backend_.add(s.q, s.q_prefix);
  }
  if (context_.config.qk_norm) {
    norm_backward(head_rows(a.q_raw, dim), TensorRole::q_norm, head_rows(q, dim), gradients, head_rows(q, dim), false);
    norm_backward(head_rows(a.k_raw, dim), TensorRole::k_norm, head_rows(k, dim), gradients, head_rows(k, dim), false);
  }
  const Tensor input = input_of(QuantSite::attn_in, a.normed, a.normed_q);
  project_backward(s.q, input, TensorRole::q, gradients, s.hidden, false);
  project_backward(s.k, input, TensorRole::k, gradients, s.hidden, true);
  project_backward(s.v, input, TensorRole::v, gradients, s.hidden, true);
  leave_site(QuantSite::attn_in, a.normed, a, s.hidden);
  norm_backward(x, TensorRole::input_norm, s.hidden, gradients, g, true);
}

}  // namespace lapidary
