// One step of the model, top to bottom: embed, layers, logits. What differs between models and layers is data in the config.
#include "model/forward.h"

#include <algorithm>
#include <cassert>
#include <cmath>

#include "base/error.h"
#include "base/float16.h"

namespace lapidary {

namespace {

DType act_dtype(Precision precision) { return precision == Precision::bf16 ? DType::bf16 : DType::f32; }

// The frequencies of one rope kind, in f32 as the models were trained: 1 / base^(2j / head_dim), divided by the linear factor.
std::vector<float> inverse_frequencies(const RopeConfig& rope, int64_t head_dim) {
  std::vector<float> inv_freq(static_cast<size_t>(head_dim / 2));
  for (size_t j = 0; j < inv_freq.size(); ++j) {
    const float exponent = static_cast<float>(2 * j) / static_cast<float>(head_dim);
    inv_freq[j] = 1.0f / std::pow(static_cast<float>(rope.base), exponent) / static_cast<float>(rope.factor);
  }
  return inv_freq;
}

// sqrt(hidden); in bf16 the factor itself is rounded, the product is not.
float embedding_scale(int64_t hidden, Precision precision) {
  const float scale = std::sqrt(static_cast<float>(hidden));
  return precision == Precision::bf16 ? round_to_bf16(scale) : scale;
}

// One tensor of the scratch: `rows` rows of `columns`.
struct Plan {
  Tensor StepScratch::* tensor;
  Tensor Workspace::* workspace;  // set instead of `tensor` for the members of `ws`
  DType dtype;
  int64_t rows, columns;

  int64_t bytes() const { return dtype_bytes(dtype, std::max<int64_t>(rows, 1) * columns); }
};

std::vector<Plan> plan_scratch(const ModelConfig& c, Precision precision, int64_t tokens, int64_t logit_rows) {
  const DType f32 = DType::f32, act = act_dtype(precision);
  return {
      {&StepScratch::x, nullptr, f32, tokens, c.hidden},
      {nullptr, &Workspace::normed, act, tokens, c.hidden},
      {nullptr, &Workspace::q, f32, tokens, c.q_width()},
      {nullptr, &Workspace::k, f32, tokens, c.kv_width()},
      {nullptr, &Workspace::v, f32, tokens, c.kv_width()},
      {nullptr, &Workspace::attended, act, tokens, c.q_width()},
      {nullptr, &Workspace::branch, f32, tokens, c.hidden},
      {nullptr, &Workspace::gate, f32, tokens, c.ffn},
      {nullptr, &Workspace::up, f32, tokens, c.ffn},
      {nullptr, &Workspace::gated, act, tokens, c.ffn},
      {&StepScratch::selected, nullptr, f32, logit_rows, c.hidden},
      {&StepScratch::selected_normed, nullptr, act, logit_rows, c.hidden},
      {&StepScratch::logits, nullptr, f32, logit_rows, c.vocab},
  };
}

int64_t rope_table_bytes(const ModelConfig& c, int64_t tokens) {
  return dtype_bytes(DType::f32, std::max<int64_t>(tokens, 1) * (c.head_dim / 2));
}

AttendParams attend_params(const ModelConfig& config, const LayerConfig& layer, const LayerWeights& w, const StepScratch& scratch,
                           int64_t tokens, std::span<const AttentionSpan> spans) {
  AttendParams params;
  params.shape = {config.num_heads,
                  config.num_kv_heads,
                  config.head_dim,
                  static_cast<float>(config.query_scale),
                  static_cast<float>(config.attention_softcap),
                  layer.window};
  params.q_norm = config.qk_norm ? &w.q_norm : nullptr;
  params.k_norm = config.qk_norm ? &w.k_norm : nullptr;
  params.cos = scratch.cos[static_cast<size_t>(layer.rope)].rows(0, tokens);
  params.sin = scratch.sin[static_cast<size_t>(layer.rope)].rows(0, tokens);
  params.spans = spans;
  return params;
}

// x: f32 [tokens, hidden], in place.
void layer_step(Backend& backend, const LayerWeights& w, const AttendParams& attend, const Tensor& x, Workspace& ws) {
  backend.self_attention(x, w.input_norm, w.q, w.k, w.v, attend, ws);
  backend.attention_output(w.o, w.post_attention_norm, x, ws);
  backend.feed_forward(x, w.pre_ffn_norm, w.gate, w.up, w.down, w.post_ffn_norm, ws);
}

void observe_final(Backend& backend, const ModelWeights& weights, const Tensor& x, const HiddenObserver& observe) {
  const Buffer memory = backend.allocate(static_cast<size_t>(x.bytes()));
  const Tensor normed = memory.tensor(DType::f32, {x.shape[0], x.shape[1]});
  backend.rms_norm(x, weights.final_norm, normed);
  observe(weights.config.num_layers, normed);
}

}  // namespace

StepScratch::StepScratch(Backend& backend, const ModelConfig& config, Precision the_precision, int64_t most_tokens, int64_t most_logit_rows)
    : max_tokens(most_tokens), max_logit_rows(most_logit_rows), precision(the_precision) {
  const auto take = [&](DType dtype, int64_t rows, int64_t columns, int64_t bytes) {
    return owned_.emplace_back(backend.allocate(static_cast<size_t>(bytes))).tensor(dtype, {rows, columns});
  };
  for (const Plan& plan : plan_scratch(config, precision, max_tokens, max_logit_rows)) {
    (plan.tensor ? this->*plan.tensor : ws.*plan.workspace) = take(plan.dtype, plan.rows, plan.columns, plan.bytes());
  }
  for (const RopeConfig& rope : config.ropes) {
    cos.push_back(take(DType::f32, max_tokens, config.head_dim / 2, rope_table_bytes(config, max_tokens)));
    sin.push_back(take(DType::f32, max_tokens, config.head_dim / 2, rope_table_bytes(config, max_tokens)));
    inv_freq.push_back(inverse_frequencies(rope, config.head_dim));
  }
}

int64_t StepScratch::bytes(const ModelConfig& config, Precision precision, int64_t max_tokens, int64_t max_logit_rows) {
  int64_t sum = 2 * static_cast<int64_t>(config.ropes.size()) * rope_table_bytes(config, max_tokens);
  for (const Plan& plan : plan_scratch(config, precision, max_tokens, max_logit_rows)) sum += plan.bytes();
  return sum;
}

Tensor forward(Backend& backend, const ModelWeights& weights, const StepBatch& batch, StepScratch& scratch, const HiddenObserver& observe,
               const std::function<bool()>& stop) {
  const ModelConfig& config = weights.config;
  const auto tokens = static_cast<int64_t>(batch.ids.size()), logit_rows = static_cast<int64_t>(batch.logit_rows.size());
  assert(tokens <= scratch.max_tokens && logit_rows <= scratch.max_logit_rows && batch.positions.size() == batch.ids.size());

  for (size_t kind = 0; kind < config.ropes.size(); ++kind) {
    backend.rope_angles(batch.positions, scratch.inv_freq[kind], scratch.cos[kind].rows(0, tokens), scratch.sin[kind].rows(0, tokens));
  }
  const Tensor x = scratch.x.rows(0, tokens);
  backend.embed(batch.ids, weights.embedding, embedding_scale(config.hidden, scratch.precision), x);
  if (observe) observe(0, x);

  std::vector<AttentionSpan> spans;
  for (const StepSpan& span : batch.spans) spans.push_back({span.first_row, span.rows, span.first_pos, {}});
  for (size_t l = 0; l < weights.layers.size(); ++l) {
    if (stop && stop()) fail(ErrorCode::aborted, "the step was stopped before layer ", l);
    for (size_t s = 0; s < spans.size(); ++s) spans[s].kv = batch.spans[s].layers[l];
    layer_step(backend, weights.layers[l], attend_params(config, config.layers[l], weights.layers[l], scratch, tokens, spans), x,
               scratch.ws);
    if (observe && l + 1 < weights.layers.size()) observe(static_cast<int64_t>(l) + 1, x);
  }
  if (observe) observe_final(backend, weights, x, observe);

  const Tensor logits = scratch.logits.rows(0, logit_rows);
  if (logit_rows == 0) return logits;
  const Tensor selected = scratch.selected.rows(0, logit_rows);
  backend.gather_rows(x, batch.logit_rows, selected);
  backend.logits(selected, weights.final_norm, weights.head, static_cast<float>(config.final_softcap),
                 scratch.selected_normed.rows(0, logit_rows), logits);
  return logits;
}

}  // namespace lapidary
