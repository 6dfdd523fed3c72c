// One step of the model, top to bottom: embed, layers, logits. What differs between models and layers is data in the config.
#include "model/forward.h"

#include <algorithm>
#include <cassert>
#include <cmath>

#include "base/error.h"
#include "base/float16.h"

namespace lapidary {

namespace {

DType act_dtype(Precision precision) { return precision == Precision::f32 ? DType::f32 : DType::bf16; }

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
      {nullptr, &Workspace::attended, f32, tokens, c.q_width()},  // or act: attention_workspace
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

// What one layer's attention sees of the cushion. The clamped angles are made when the window or the kind of angles changes from one local
// layer to the next, in models at hand once a step.
class CushionStep {
 public:
  CushionStep(Backend& backend, const ModelConfig& config, std::span<const int32_t> text_positions, StepScratch& scratch)
      : backend_(backend), config_(config), scratch_(scratch), cushion_(scratch.cushion.get()) {
    if (!cushion_) return;
    positions_.assign(text_positions.begin(), text_positions.end());
    for (int32_t& p : positions_) p += static_cast<int32_t>(cushion_->tokens);
  }

  // Where the text's tokens stand.
  std::span<const int32_t> positions(std::span<const int32_t> text_positions) const { return cushion_ ? positions_ : text_positions; }

  // Adds the cushion to a layer's parameters, which then point into this object.
  void add_to(AttendParams& params, size_t layer) {
    if (!cushion_) return;
    const LayerConfig& kind = config_.layers[layer];
    extras_ = {};
    extras_.prefix_k = cushion_->k[layer];
    extras_.prefix_v = cushion_->v[layer];
    extras_.prefix_in_window = cushion_->window == CushionWindow::native && kind.is_local();
    params.shape.extras = &extras_;
    if (cushion_->window == CushionWindow::native || !kind.is_local()) return;
    const int64_t farthest = cushion_->tokens + kind.window - 1;
    if (*std::max_element(positions_.begin(), positions_.end()) <= farthest) return;
    const int64_t tokens = static_cast<int64_t>(positions_.size());
    params.prefix_cos = scratch_.prefix_cos.rows(0, tokens);
    params.prefix_sin = scratch_.prefix_sin.rows(0, tokens);
    if (made_window_ == kind.window && made_rope_ == kind.rope) return;
    std::vector<int32_t> clamped = positions_;
    for (int32_t& p : clamped) p = static_cast<int32_t>(std::min<int64_t>(p, farthest));
    backend_.rope_angles(clamped, scratch_.inv_freq[static_cast<size_t>(kind.rope)], params.prefix_cos, params.prefix_sin);
    made_window_ = kind.window;
    made_rope_ = kind.rope;
  }

 private:
  Backend& backend_;
  const ModelConfig& config_;
  StepScratch& scratch_;
  const PlacedCushion* cushion_;
  std::vector<int32_t> positions_;
  AttentionExtras extras_;
  int64_t made_window_ = 0;
  int made_rope_ = -1;
};

bool quantises_input(const Linear& w) { return w.weight.dtype == DType::i8 && w.activations != ActScheme::none; }

// The workspace of a layer's attention and of its feed-forward. Products that quantise their input get it in f32, so that it is rounded
// once; normed and gated rows then stand where later products write their results.
Workspace attention_workspace(const LayerWeights& w, Workspace ws) {
  const Tensor& attended = ws.attended;
  const DType type = quantises_input(w.o) ? DType::f32 : ws.normed.dtype;
  ws.attended = Tensor(attended.data, type, {attended.shape[0], attended.shape[1]}, attended.device);
  if (quantises_input(w.q) && quantises_input(w.k) && quantises_input(w.v)) ws.normed = ws.branch;
  return ws;
}
Workspace feed_forward_workspace(const LayerWeights& w, Workspace ws) {
  if (quantises_input(w.gate) && quantises_input(w.up)) ws.normed = ws.branch;
  if (quantises_input(w.down)) ws.gated = ws.gate;
  return ws;
}

// x: f32 [tokens, hidden], in place.
void layer_step(Backend& backend, const LayerWeights& w, const AttendParams& attend, const Tensor& x, const Workspace& memory) {
  Workspace ws = attention_workspace(w, memory);
  backend.self_attention(x, w.input_norm, w.q, w.k, w.v, attend, ws);
  backend.attention_output(w.o, w.post_attention_norm, x, ws);
  ws = feed_forward_workspace(w, memory);
  backend.feed_forward(x, w.pre_ffn_norm, w.gate, w.up, w.down, w.post_ffn_norm, ws);
}

// The same with the sites shown to the hook: the stages' default bodies (ops.cc), opened up.
void watched_layer_step(Backend& backend, const LayerWeights& w, const AttendParams& attend, const Tensor& x, const Workspace& memory,
                        int64_t layer, const SiteHook& hook) {
  Workspace ws = attention_workspace(w, memory);
  const int64_t tokens = x.shape[0];
  const auto rows = [&](const Tensor& t) { return t.rows(0, tokens); };
  const auto product = [&](const Tensor& in, const Linear& weight, const Tensor& out) {
    backend.step_linear(in, weight, rows(out), attend.spans);
  };
  const auto close_branch = [&](const Norm& norm) {
    backend.rms_norm(rows(ws.branch), norm, rows(ws.branch));
    backend.add(x, rows(ws.branch));
  };
  backend.rms_norm(x, w.input_norm, rows(ws.normed));
  hook(layer, Site::attn_in, rows(ws.normed));
  product(rows(ws.normed), w.q, ws.q);
  product(rows(ws.normed), w.k, ws.k);
  product(rows(ws.normed), w.v, ws.v);
  backend.attend(attend, ws);
  hook(layer, Site::o_in, rows(ws.attended));
  product(rows(ws.attended), w.o, ws.branch);
  close_branch(w.post_attention_norm);
  ws = feed_forward_workspace(w, memory);
  backend.rms_norm(x, w.pre_ffn_norm, rows(ws.normed));
  hook(layer, Site::mlp_in, rows(ws.normed));
  product(rows(ws.normed), w.gate, ws.gate);
  product(rows(ws.normed), w.up, ws.up);
  backend.geglu(rows(ws.gate), rows(ws.up), rows(ws.gated));
  hook(layer, Site::down_in, rows(ws.gated));
  product(rows(ws.gated), w.down, ws.branch);
  close_branch(w.post_ffn_norm);
}

void observe_final(Backend& backend, const ModelWeights& weights, const Tensor& x, const HiddenObserver& observe) {
  const Buffer memory = backend.allocate(static_cast<size_t>(x.bytes()));
  const Tensor normed = memory.tensor(DType::f32, {x.shape[0], x.shape[1]});
  backend.rms_norm(x, weights.final_norm, normed);
  observe(weights.config.num_layers, normed);
}

}  // namespace

const char* site_name(Site site) {
  constexpr const char* kNames[kNumSites] = {"attn_in", "o_in", "mlp_in", "down_in"};
  return kNames[static_cast<int>(site)];
}

const char* precision_name(Precision precision) {
  constexpr const char* kNames[] = {"f32", "bf16", "int8"};
  return kNames[static_cast<int>(precision)];
}

std::vector<float> inverse_frequencies(const RopeConfig& rope, int64_t head_dim) {
  std::vector<float> inv_freq(static_cast<size_t>(head_dim / 2));
  for (size_t j = 0; j < inv_freq.size(); ++j) {
    const float exponent = static_cast<float>(2 * j) / static_cast<float>(head_dim);
    inv_freq[j] = 1.0f / std::pow(static_cast<float>(rope.base), exponent) / static_cast<float>(rope.factor);
  }
  return inv_freq;
}

float embedding_scale(int64_t hidden, Precision precision) {
  const float scale = std::sqrt(static_cast<float>(hidden));
  return precision == Precision::f32 ? scale : round_to_bf16(scale);
}

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

void StepScratch::use_cushion(Backend& backend, const ModelConfig& config, const Cushion* the_cushion) {
  cushion = nullptr;
  cushion_owned_.clear();
  prefix_cos = prefix_sin = ws.q_prefix = {};
  if (!the_cushion) return;
  const auto take = [&](int64_t columns) {
    const int64_t rows = std::max<int64_t>(max_tokens, 1);
    return cushion_owned_.emplace_back(backend.allocate(static_cast<size_t>(rows * columns) * sizeof(float)))
        .tensor(DType::f32, {rows, columns});
  };
  prefix_cos = take(config.head_dim / 2);
  prefix_sin = take(config.head_dim / 2);
  ws.q_prefix = take(config.q_width());
  cushion = place_cushion(backend, config, *the_cushion, act_dtype(precision), inv_freq);
}

int64_t StepScratch::bytes(const ModelConfig& config, Precision precision, int64_t max_tokens, int64_t max_logit_rows) {
  int64_t sum = 2 * static_cast<int64_t>(config.ropes.size()) * rope_table_bytes(config, max_tokens);
  for (const Plan& plan : plan_scratch(config, precision, max_tokens, max_logit_rows)) sum += plan.bytes();
  return sum;
}

Tensor forward(Backend& backend, const ModelWeights& weights, const StepBatch& batch, StepScratch& scratch, const StepWatch& watch) {
  const ModelConfig& config = weights.config;
  const auto tokens = static_cast<int64_t>(batch.ids.size());
  assert(tokens <= scratch.max_tokens && batch.positions.size() == batch.ids.size());

  scratch.step_tokens = tokens;
  CushionStep cushion(backend, config, batch.positions, scratch);
  const std::span<const int32_t> positions = cushion.positions(batch.positions);
  for (size_t kind = 0; kind < config.ropes.size(); ++kind) {
    backend.rope_angles(positions, scratch.inv_freq[kind], scratch.cos[kind].rows(0, tokens), scratch.sin[kind].rows(0, tokens));
  }
  const Tensor x = scratch.x.rows(0, tokens);
  backend.embed(batch.ids, weights.embedding, embedding_scale(config.hidden, scratch.precision), x);
  if (watch.hidden) watch.hidden(0, x);

  std::vector<AttentionSpan> spans;
  for (const StepSpan& span : batch.spans) spans.push_back({span.first_row, span.rows, span.first_pos, {}});
  scratch.ws.spans = spans;
  for (size_t l = 0; l < weights.layers.size(); ++l) {
    if (watch.stop && watch.stop()) fail(ErrorCode::aborted, "the step was stopped before layer ", l);
    for (size_t s = 0; s < spans.size(); ++s) spans[s].kv = batch.spans[s].layers[l];
    AttendParams attend = attend_params(config, config.layers[l], weights.layers[l], scratch, tokens, spans);
    cushion.add_to(attend, l);
    if (watch.sites) {
      watched_layer_step(backend, weights.layers[l], attend, x, scratch.ws, static_cast<int64_t>(l), watch.sites);
    } else {
      layer_step(backend, weights.layers[l], attend, x, scratch.ws);
    }
    if (watch.hidden && l + 1 < weights.layers.size()) watch.hidden(static_cast<int64_t>(l) + 1, x);
  }
  if (watch.hidden) observe_final(backend, weights, x, watch.hidden);

  return step_logits(backend, weights, batch.logit_rows, scratch);
}

Tensor step_logits(Backend& backend, const ModelWeights& weights, std::span<const int32_t> rows, StepScratch& scratch) {
  const auto count = static_cast<int64_t>(rows.size());
  assert(count <= scratch.max_logit_rows);
  const Tensor logits = scratch.logits.rows(0, count);
  if (count == 0) return logits;
  const Tensor selected = scratch.selected.rows(0, count);
  backend.gather_rows(scratch.x.rows(0, scratch.step_tokens), rows, selected);
  const Tensor normed = quantises_input(weights.head) ? selected : scratch.selected_normed.rows(0, count);
  backend.logits(selected, weights.final_norm, weights.head, static_cast<float>(weights.config.final_softcap), normed, logits);
  return logits;
}

}  // namespace lapidary
