// The whole model forwards and backwards: embedding, layers, head in chunks, and back.
#include "train/step.h"

#include <algorithm>
#include <numeric>

#include "base/error.h"
#include "model/forward.h"
#include "train/cushion_pass.h"

namespace lapidary {

namespace {

struct Plan {
  Tensor* tensor;
  int64_t rows, columns;
};

// Every tensor of a layer's activations with its columns.
std::vector<Plan> plan_layer(const ModelConfig& c, int64_t tokens, LayerActivations& a) {
  std::vector<Plan> plans;
  for (Tensor* t : {&a.normed, &a.normed_q, &a.attention_branch, &a.middle, &a.ffn_normed, &a.ffn_normed_q, &a.ffn_branch})
    plans.push_back({t, tokens, c.hidden});
  for (Tensor* t : {&a.q_raw, &a.q, &a.q_prefix, &a.attended, &a.attended_q}) plans.push_back({t, tokens, c.q_width()});
  for (Tensor* t : {&a.k_raw, &a.v, &a.k}) plans.push_back({t, tokens, c.kv_width()});
  for (Tensor* t : {&a.gate, &a.up, &a.gated, &a.gated_q}) plans.push_back({t, tokens, c.ffn});
  plans.push_back({&a.stats, tokens, 2 * c.num_heads});
  for (Tensor& t : a.scales) plans.push_back({&t, tokens, 1});
  return plans;
}

std::vector<Plan> plan_scratch(const ModelConfig& c, int64_t tokens, LayerScratch& s) {
  return {{&s.hidden, tokens, c.hidden},
          {&s.branch, tokens, c.hidden},
          {&s.q, tokens, c.q_width()},
          {&s.q_prefix, tokens, c.q_width()},
          {&s.attended, tokens, c.q_width()},
          {&s.k, tokens, c.kv_width()},
          {&s.v, tokens, c.kv_width()},
          {&s.ffn, tokens, c.ffn},
          {&s.up, tokens, c.ffn}};
}

int64_t chunk_rows(const ModelConfig& c, const StepShape& shape) {
  return std::clamp<int64_t>(shape.logit_floats / c.vocab, 1, std::max<int64_t>(shape.max_tokens, 1));
}

LayerActivations first_rows(LayerActivations a, const ModelConfig& c, int64_t tokens) {
  for (const Plan& plan : plan_layer(c, tokens, a)) *plan.tensor = plan.tensor->rows(0, tokens);
  return a;
}

LayerScratch first_rows(LayerScratch s, const ModelConfig& c, int64_t tokens) {
  for (const Plan& plan : plan_scratch(c, tokens, s)) *plan.tensor = plan.tensor->rows(0, tokens);
  return s;
}

void check_batch(const ModelConfig& c, const StepShape& shape, const StepInput& input) {
  const auto tokens = static_cast<int64_t>(input.batch.ids.size());
  expect(tokens >= 1 && tokens <= shape.max_tokens, ErrorCode::invalid_argument, "a batch of ", tokens, " tokens, room for ",
         shape.max_tokens);
  int64_t sum = 0;
  for (int64_t length : input.batch.lengths) {
    expect(length >= 1, ErrorCode::invalid_argument, "a sequence of ", length, " tokens");
    sum += length;
  }
  expect(sum == tokens, ErrorCode::invalid_argument, "sequences of ", sum, " tokens in all, but ", tokens, " ids");
  for (int32_t id : input.batch.ids)
    expect(id >= 0 && id < c.vocab, ErrorCode::invalid_argument, "id ", id, " is not in a vocabulary of ", c.vocab);
  if (input.loss) {
    for (int32_t row : input.loss->rows)
      expect(row >= 0 && row < tokens, ErrorCode::invalid_argument, "the loss wants row ", row, " of ", tokens);
  }
  const auto layers = static_cast<size_t>(c.num_layers);
  expect(!input.quant ||
             (input.quant->sites.size() == layers && (input.quant->error_weights.empty() || input.quant->error_weights.size() == layers)),
         ErrorCode::invalid_argument, "a quantisation plan for another number of layers");
}

void check_cushion(const ModelConfig& c, const Cushion& cushion) {
  const auto fits = [&](const std::vector<Tensor>& side) {
    return static_cast<int64_t>(side.size()) == c.num_layers &&
           std::all_of(side.begin(), side.end(), [&](const Tensor& t) { return t.elements() == cushion.size() * c.kv_width(); });
  };
  expect(cushion.size() >= 1 && fits(cushion.k) && fits(cushion.v), ErrorCode::invalid_argument, "a cushion of another model's shape");
}

}  // namespace

TrainingStep::TrainingStep(Backend& backend, const ModelConfig& config, const StepShape& shape)
    : backend_(backend), config_(config), shape_(shape) {
  const auto take = [&](int64_t rows, int64_t columns) {
    const size_t bytes = static_cast<size_t>(rows * columns) * sizeof(float);
    return owned_.emplace_back(backend.allocate(bytes)).tensor(DType::f32, {rows, columns});
  };
  const int64_t tokens = shape.max_tokens, half = config.head_dim / 2;
  layers_.resize(shape.checkpoint ? 1 : static_cast<size_t>(config.num_layers));
  for (LayerActivations& layer : layers_) {
    for (const Plan& plan : plan_layer(config, tokens, layer)) *plan.tensor = take(plan.rows, plan.columns);
  }
  for (const Plan& plan : plan_scratch(config, tokens, scratch_)) *plan.tensor = take(plan.rows, plan.columns);
  for (int64_t l = 0; l <= config.num_layers; ++l) streams_.push_back(take(tokens, config.hidden));
  g_ = take(tokens, config.hidden);
  for (const RopeConfig& rope : config.ropes) {
    cos_.push_back(take(tokens, half));
    sin_.push_back(take(tokens, half));
    inv_freq_.push_back(inverse_frequencies(rope, config.head_dim));
  }
  selected_ = take(tokens, config.hidden);
  selected_normed_ = take(tokens, config.hidden);
  selected_g_ = take(tokens, config.hidden);
  logits_ = take(chunk_rows(config, shape), config.vocab);
}

int64_t TrainingStep::bytes(const ModelConfig& config, const StepShape& shape) {
  LayerActivations layer;
  LayerScratch scratch;
  int64_t one_layer = 0, floats = 0;
  for (const Plan& plan : plan_layer(config, shape.max_tokens, layer)) one_layer += plan.rows * plan.columns;
  floats += one_layer * (shape.checkpoint ? 1 : config.num_layers);
  for (const Plan& plan : plan_scratch(config, shape.max_tokens, scratch)) floats += plan.rows * plan.columns;
  floats += (config.num_layers + 1 + 4) * shape.max_tokens * config.hidden;
  floats += static_cast<int64_t>(config.ropes.size()) * shape.max_tokens * (config.head_dim / 2) * 2;
  floats += chunk_rows(config, shape) * config.vocab;
  return floats * static_cast<int64_t>(sizeof(float));
}

// What one call of run() has at hand.
struct TrainingStep::Pass {
  TrainingStep& step;
  WeightSource& weights;
  const StepInput& input;
  const StepGradients& gradients;
  Backend& backend = step.backend_;
  TrainingOps& ops = step.backend_.training();
  const ModelConfig& config = step.config_;
  int64_t tokens = static_cast<int64_t>(input.batch.ids.size());
  std::vector<SequenceRows> sequences{};
  std::unique_ptr<CushionPass> cushion{};
  LayerContext context{config, {}, {}, {}, {}, {}, false, {}, {}, input.quant};
  StepResult result{};

  bool differentiates() const { return gradients.weights || gradients.cushion; }
  Tensor stream(int64_t l) const { return step.streams_[static_cast<size_t>(l)].rows(0, tokens); }
  Tensor g() const { return step.g_.rows(0, tokens); }
  Tensor wanted(const TensorSlot& slot) const { return gradients.weights ? gradients.weights->find(slot) : Tensor(); }

  void prepare();
  void forward_layer(int64_t l, bool again);
  void backward_layer(int64_t l);
  void head();
  void head_chunk(const Tensor& head, const Tensor& ghead, int64_t first, int64_t rows);
  void call_stream(int64_t l) {
    if (input.stream) result.loss += input.stream(l, stream(l), g());
  }
};

void TrainingStep::Pass::prepare() {
  const int64_t slots = input.cushion ? input.cushion->size() : 0;
  std::vector<int32_t> positions;
  int64_t row = 0;
  for (int64_t length : input.batch.lengths) {
    sequences.push_back({row, length, slots});
    for (int64_t i = 0; i < length; ++i) positions.push_back(static_cast<int32_t>(slots + i));
    row += length;
  }
  context.sequences = sequences;
  for (size_t kind = 0; kind < config.ropes.size(); ++kind) {
    context.cos.push_back(step.cos_[kind].rows(0, tokens));
    context.sin.push_back(step.sin_[kind].rows(0, tokens));
    backend.rope_angles(positions, step.inv_freq_[kind], context.cos[kind], context.sin[kind]);
  }
  if (input.cushion) cushion = std::make_unique<CushionPass>(backend, config, *input.cushion, positions, step.inv_freq_);
  if (input.quant) result.quant_error.resize(static_cast<size_t>(config.num_layers));
}

void TrainingStep::Pass::forward_layer(int64_t l, bool again) {
  if (input.stop && input.stop()) fail(ErrorCode::aborted, "the training step was stopped in layer ", l);
  if (cushion) cushion->add_to(context, l);
  LayerActivations a = first_rows(step.activations(l), config, tokens);
  const PerSite<double> errors = LayerPass(backend, weights, context, l).forward(stream(l), a, stream(l + 1));
  if (!input.quant || again) return;
  result.quant_error[static_cast<size_t>(l)] = errors;
  for (size_t site = 0; site < kQuantSites && !input.quant->error_weights.empty(); ++site)
    result.quant_loss += static_cast<double>(input.quant->error_weights[static_cast<size_t>(l)][site]) * errors[site];
}

void TrainingStep::Pass::backward_layer(int64_t l) {
  // The last layer's activations are still there.
  if (step.shape_.checkpoint && l + 1 < config.num_layers) forward_layer(l, /*again=*/true);
  if (cushion) cushion->add_to(context, l);
  LayerGradients to;
  to.weights = gradients.weights;
  if (input.gated) to.gated = [&](const Tensor& x, const Tensor& g) { result.loss += input.gated(l, x, g); };
  to.input = l > 0 || gradients.weights || input.stream;
  if (gradients.cushion) cushion->begin_gradients(to);
  LayerActivations a = first_rows(step.activations(l), config, tokens);
  LayerScratch scratch = first_rows(step.scratch_, config, tokens);
  LayerPass(backend, weights, context, l).backward(stream(l), a, scratch, to, g());
  if (gradients.cushion) cushion->collect(to, l, *gradients.cushion);
}

void TrainingStep::Pass::head_chunk(const Tensor& head, const Tensor& ghead, int64_t first, int64_t rows) {
  const Tensor logits = step.logits_.rows(0, rows), normed = step.selected_normed_.rows(first, rows);
  ops.matmul(MatmulForm::nt, normed, head, logits, false);
  result.loss += input.loss->differentiate(ops, first, static_cast<float>(config.final_softcap), logits);
  if (!differentiates()) return;
  ops.matmul(MatmulForm::nn, logits, head, step.selected_g_.rows(first, rows), false);
  if (ghead) ops.matmul(MatmulForm::tn, logits, normed, ghead, true);
}

// The loss from the last stream, and the derivative by that stream.
void TrainingStep::Pass::head() {
  backend.zero(g());
  const int64_t rows = input.loss ? static_cast<int64_t>(input.loss->rows.size()) : 0;
  if (rows == 0) return;
  const TensorSlot norm_slot{TensorRole::final_norm, -1};
  const Tensor selected = step.selected_.rows(0, rows), head = weights.weight(weights.head_slot()), ghead = wanted(weights.head_slot());
  backend.gather_rows(stream(config.num_layers), input.loss->rows, selected);
  backend.rms_norm(selected, weights.norm(norm_slot), step.selected_normed_.rows(0, rows));
  const int64_t chunk = step.logits_.shape[0];
  for (int64_t first = 0; first < rows; first += chunk) head_chunk(head, ghead, first, std::min(chunk, rows - first));
  if (!differentiates()) return;
  const Tensor selected_g = step.selected_g_.rows(0, rows);
  ops.rms_norm_backward(selected, weights.norm(norm_slot), selected_g, selected_g, false, wanted(norm_slot));
  ops.embed_backward(input.loss->rows, 1, selected_g, g());
}

StepResult TrainingStep::run(WeightSource& weights, const StepInput& input, const StepGradients& gradients) {
  check_batch(config_, shape_, input);
  if (input.cushion) check_cushion(config_, *input.cushion);
  if (gradients.cushion) {
    expect(input.cushion != nullptr, ErrorCode::invalid_argument, "derivatives of a cushion are wanted, but there is none");
    expect(gradients.cushion->size() == input.cushion->size(), ErrorCode::invalid_argument, "the cushion's derivatives have another size");
    check_cushion(config_, *gradients.cushion);
  }
  Pass pass{*this, weights, input, gradients};
  pass.prepare();
  const TensorSlot embedding{TensorRole::embedding, -1};
  const float scale = embedding_scale(config_.hidden, Precision::f32);
  backend_.embed(input.batch.ids, {weights.weight(embedding), nullptr}, scale, pass.stream(0));
  for (int64_t l = 0; l < config_.num_layers; ++l) pass.forward_layer(l, /*again=*/false);
  pass.head();
  if (!pass.differentiates()) return pass.result;
  for (int64_t l = config_.num_layers; l > 0; --l) {
    pass.call_stream(l);
    pass.backward_layer(l - 1);
  }
  pass.call_stream(0);
  if (const Tensor gtable = pass.wanted(embedding)) backend_.training().embed_backward(input.batch.ids, scale, pass.g(), gtable);
  return pass.result;
}

}  // namespace lapidary
