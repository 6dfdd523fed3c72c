// Whole steps against central differences along a direction, for what has no golden values: cushions, quantisation errors, distillation,
// losses on hidden states.
#include <algorithm>
#include <cmath>

#include "ops/training_data.h"
#include "train/train_data.h"

namespace lapidary::test {
namespace {

struct Model {
  std::shared_ptr<const ModelWeights> host;
  std::unique_ptr<Backend> backend;
  ParameterSet parameters;
  const ModelConfig& config;

  Model(const std::string& name, const std::string& backend_name)
      : host(host_weights(name)),
        backend(training_backend(backend_name)),
        parameters(copy_parameters(*backend, *host)),
        config(host->config) {}
};

struct Text {
  std::vector<int32_t> ids;
  std::vector<int64_t> lengths;
  Text(const ModelConfig& config, std::vector<int64_t> of) : lengths(std::move(of)) {
    int64_t tokens = 0;
    for (int64_t length : lengths) tokens += length;
    for (int64_t i = 0; i < tokens; ++i) ids.push_back(static_cast<int32_t>((11 + 37 * i + i * i) % config.vocab));
  }
  TrainingBatch batch() const { return {ids, lengths}; }
};

Cushion random_cushion(const ModelConfig& config, int64_t tokens, CushionWindow window) {
  Cushion cushion = make_cushion(config, std::vector<int32_t>(static_cast<size_t>(tokens), 5), window);
  Random random(9);
  for (auto* side : {&cushion.k, &cushion.v}) {
    for (const Tensor& t : *side) {
      for (int64_t i = 0; i < t.elements(); ++i) t.as<float>()[i] = random.bell();
    }
  }
  return cushion;
}

std::vector<Tensor> sides(const Cushion& c) {
  std::vector<Tensor> all = c.k;
  all.insert(all.end(), c.v.begin(), c.v.end());
  return all;
}

// Moves `values` by ±step along `direction`, of norm `norm`; the difference quotient of `loss` should be the derivative's product with the
// direction, which is `norm` where the direction is the derivative itself.
void check_along(const std::string& what, const std::vector<Tensor>& values, const std::vector<Tensor>& gradients, double step,
                 double tolerance, const std::function<double()>& loss) {
  double squares = 0;
  for (const Tensor& g : gradients) {
    for (int64_t i = 0; i < g.elements(); ++i) squares += std::pow(double{g.as<float>()[i]}, 2);
  }
  const double norm = std::sqrt(squares);
  REQUIRE(norm > 0 && std::isfinite(norm));
  std::vector<std::vector<float>> before;
  for (const Tensor& v : values) before.emplace_back(v.as<float>(), v.as<float>() + v.elements());
  const auto at = [&](double distance) {
    for (size_t t = 0; t < values.size(); ++t) {
      for (int64_t i = 0; i < values[t].elements(); ++i)
        values[t].as<float>()[i] = static_cast<float>(before[t][static_cast<size_t>(i)] + distance * gradients[t].as<float>()[i] / norm);
    }
    return loss();
  };
  const double slope = (at(step) - at(-step)) / (2 * step);
  at(0);
  CHECK_MSG(std::abs(slope - norm) <= tolerance * norm, what << ": difference quotient " << slope << ", norm of the derivative " << norm);
}

TEST("train: every kind of weight along its own derivative, head_dim 256") {
  Model m("gemma3-head256", "cpu");
  const Text text(m.config, {40, 9});
  ParameterSet gradients(*m.backend, m.config);
  TrainingStep step(*m.backend, m.config, {49});
  StepInput input;
  input.batch = text.batch();
  const Loss loss = token_loss(next_tokens(input.batch));
  input.loss = &loss;
  step.run(m.parameters, input, {&gradients, nullptr});
  for (const ParameterSet::Entry& entry : gradients.entries()) {
    if (entry.slot.layer > 0) continue;
    double squares = 0;
    for (float g : values_on(*m.backend, entry.tensor)) squares += double{g} * g;
    // The loss moves by about 4e-2: far above its rounding, and its third derivative still small.
    check_along(entry.name, {m.parameters.find(entry.slot)}, {entry.tensor}, std::min(0.02 / std::sqrt(squares), 0.05), 5e-3,
                [&] { return step.run(m.parameters, input, {}).loss; });
  }
}

TEST("train: cushions along their derivative, in both windows") {
  for (const char* name : {"gemma2-tiny", "gemma3-tiny"}) {
    for (const CushionWindow window : {CushionWindow::native, CushionWindow::pinned}) {
      Model m(name, "cpu");
      const Text text(m.config, {40, 1, 13});  // the window is 16
      Cushion cushion = random_cushion(m.config, 3, window), gradients = make_cushion(m.config, cushion.tokens, window);
      TrainingStep step(*m.backend, m.config, {54});
      StepInput input;
      input.batch = text.batch();
      input.cushion = &cushion;
      const Loss loss = token_loss(next_tokens(input.batch));
      input.loss = &loss;
      const double first = step.run(m.parameters, input, {nullptr, &gradients}).loss;
      CHECK(first == step.run(m.parameters, input, {}).loss);
      const std::string what = std::string(name) + ", window " + std::to_string(static_cast<int>(window));
      check_along(what, sides(cushion), sides(gradients), 0.05, 5e-3, [&] { return step.run(m.parameters, input, {}).loss; });
      check_along(what + ", first layer's keys", {cushion.k[0]}, {gradients.k[0]}, 0.05, 1e-2,
                  [&] { return step.run(m.parameters, input, {}).loss; });

      // The same with the weights' derivatives beside, without checkpointing, and on the reference.
      Cushion beside = make_cushion(m.config, cushion.tokens, window);
      ParameterSet weights(*m.backend, m.config);
      TrainingStep(*m.backend, m.config, {54, false}).run(m.parameters, input, {&weights, &beside});
      for (size_t i = 0; i < sides(beside).size(); ++i) CHECK(bits_of(sides(beside)[i]) == bits_of(sides(gradients)[i]));
      Model plain(name, "reference");
      Cushion want = make_cushion(m.config, cushion.tokens, window);
      TrainingStep(*plain.backend, plain.config, {54}).run(plain.parameters, input, {nullptr, &want});
      for (size_t i = 0; i < sides(want).size(); ++i)
        CHECK_MSG(relative_error(values_of(sides(gradients)[i]), values_of(sides(want)[i])) <= 1e-4,
                  what << ": side " << i << " against reference");
    }
  }
}

// Keys after k-norm and values of every layer for tokens at the start of a text.
Cushion cushion_of(Model& m, const std::vector<int32_t>& tokens) {
  Cushion cushion = make_cushion(m.config, tokens, CushionWindow::native);
  ParameterSet unused(*m.backend, m.config, [](const TensorSlot& slot) { return slot.role == TensorRole::final_norm; });
  const auto n = static_cast<int64_t>(tokens.size()), dim = m.config.head_dim, width = m.config.kv_width();
  const std::vector<int64_t> lengths = {n};
  StepInput input;
  input.batch = {tokens, lengths};
  input.stream = [&](int64_t l, const Tensor& x, const Tensor&) {
    if (l == m.config.num_layers) return 0.0;
    Owned normed(DType::f32, {n, m.config.hidden});
    m.backend->rms_norm(x, m.parameters.norm({TensorRole::input_norm, l}), normed.t);
    const Tensor k(cushion.k[static_cast<size_t>(l)].data, DType::f32, {n, width}),
        v(cushion.v[static_cast<size_t>(l)].data, DType::f32, {n, width});
    m.backend->training().matmul(MatmulForm::nt, normed.t, m.parameters.weight({TensorRole::k, l}), k, false);
    m.backend->training().matmul(MatmulForm::nt, normed.t, m.parameters.weight({TensorRole::v, l}), v, false);
    const Tensor rows(k.data, DType::f32, {n * m.config.num_kv_heads, dim});
    if (m.config.qk_norm) m.backend->rms_norm(rows, m.parameters.norm({TensorRole::k_norm, l}), rows);
    return 0.0;
  };
  TrainingStep(*m.backend, m.config, {n}).run(m.parameters, input, {&unused, nullptr});
  return cushion;
}

TEST("train: a cushion made from tokens is those tokens") {
  for (const char* name : kModels) {
    Model m(name, "cpu");
    const Text text(m.config, {30});
    const std::vector<int32_t> first(text.ids.begin(), text.ids.begin() + 3), rest(text.ids.begin() + 3, text.ids.end());
    const Cushion cushion = cushion_of(m, first);
    TrainingStep step(*m.backend, m.config, {30});
    const std::vector<int64_t> rest_length = {27};
    TokenLoss of_all = next_tokens(text.batch()), of_rest = next_tokens({rest, rest_length});
    for (size_t i = 0; i < of_all.rows.size(); ++i) of_all.weights[i] = of_all.rows[i] < 3 ? 0 : of_rest.weights[0];
    const Loss hard = token_loss(of_all), soft = token_loss(of_rest);
    StepInput whole;
    whole.batch = text.batch();
    whole.loss = &hard;
    StepInput after;
    after.batch = {rest, rest_length};
    after.cushion = &cushion;
    after.loss = &soft;
    const double a = step.run(m.parameters, whole, {}).loss, b = step.run(m.parameters, after, {}).loss;
    CHECK_MSG(std::abs(a - b) <= 1e-5 * a, name << ": " << a << " and " << b);

    // And the engine's own forward pass sees the same cushion the same way, pinned too.
    for (const CushionWindow window : {CushionWindow::native, CushionWindow::pinned}) {
      Cushion placed = cushion;
      placed.window = window;
      after.cushion = &placed;
      const double ours = step.run(m.parameters, after, {}).loss;
      StepScratch scratch(*m.backend, m.config, Precision::f32, 27, 27);
      scratch.use_cushion(*m.backend, m.config, &placed);
      TestCache cache(*m.backend, m.config, DType::f32, 27);
      std::vector<int32_t> positions(27);
      std::iota(positions.begin(), positions.end(), 0);
      const StepSpan span{0, 27, 0, cache.views()};
      const Tensor logits = forward(*m.backend, *m.host, {rest, positions, {&span, 1}, positions}, scratch);
      double nats = 0;
      const auto vocab = static_cast<size_t>(m.config.vocab);
      for (size_t t = 0; t + 1 < 27; ++t) nats += nats_of({logits.as<float>() + t * vocab, vocab}, rest[t + 1]);
      CHECK_MSG(std::abs(nats / 26 - ours) <= 1e-5 * ours,
                name << ", window " << static_cast<int>(window) << ": " << nats / 26 << " and " << ours);
    }
  }
}

// With a scale so large that every input rounds to 0 the error is Σ x², smooth, and its literal derivative exact.
TEST("train: the quantisation error of each site along its derivative") {
  Model m("gemma3-tiny", "cpu");
  const Text text(m.config, {30, 8});
  Cushion cushion = random_cushion(m.config, 2, CushionWindow::pinned);
  TrainingStep step(*m.backend, m.config, {38});
  for (int site = 0; site < kQuantSites; ++site) {
    QuantPlan plan;
    plan.sites.resize(static_cast<size_t>(m.config.num_layers));
    plan.error_weights.resize(plan.sites.size());
    for (size_t l = 0; l < plan.sites.size(); ++l) {
      plan.sites[l][static_cast<size_t>(site)] = {QuantScope::fixed, 1e4f};
      plan.error_weights[l][static_cast<size_t>(site)] = 1e-3f * static_cast<float>(l + 1);
    }
    plan.gradient = QuantErrorGradient::literal;
    plan.rounds = false;
    StepInput input;
    input.batch = text.batch();
    input.cushion = &cushion;
    input.quant = &plan;
    Cushion gradients = make_cushion(m.config, cushion.tokens, cushion.window);
    const StepResult result = step.run(m.parameters, input, {nullptr, &gradients});
    CHECK(result.loss == 0 && result.total() == result.quant_loss && result.quant_error.size() == plan.sites.size());
    double sum = 0;
    for (size_t l = 0; l < plan.sites.size(); ++l) {
      for (int s = 0; s < kQuantSites; ++s) CHECK((result.quant_error[l][static_cast<size_t>(s)] > 0) == (s == site));
      sum += plan.error_weights[l][static_cast<size_t>(site)] * result.quant_error[l][static_cast<size_t>(site)];
    }
    CHECK(std::abs(sum - result.quant_loss) <= 1e-9 * sum);
    check_along("site " + std::to_string(site), sides(cushion), sides(gradients), 0.03, 1e-2,
                [&] { return step.run(m.parameters, input, {}).total(); });
  }
}

TEST("train: fine fake quantisation hardly changes the derivative, and takes part in it") {
  Model m("gemma2-tiny", "cpu");
  const Text text(m.config, {30, 8});
  TrainingStep step(*m.backend, m.config, {38});
  StepInput input;
  input.batch = text.batch();
  const Loss loss = token_loss(next_tokens(input.batch));
  input.loss = &loss;
  ParameterSet exact(*m.backend, m.config), rounded(*m.backend, m.config), clipped(*m.backend, m.config);
  const double without = step.run(m.parameters, input, {&exact, nullptr}).loss;
  QuantPlan plan;
  for (const FakeQuant& quant : {FakeQuant{QuantScope::token}, FakeQuant{QuantScope::sequence}}) {
    plan.sites.assign(static_cast<size_t>(m.config.num_layers), {quant, quant, quant, quant});
    input.quant = &plan;
    rounded.zero();
    const StepResult result = step.run(m.parameters, input, {&rounded, nullptr});
    CHECK_MSG(result.loss != without && std::abs(result.loss - without) <= 2e-2 * without, result.loss << " and " << without);
    const double error = relative_error(all_values(*m.backend, rounded), all_values(*m.backend, exact));
    CHECK_MSG(error > 1e-4 && error <= 0.15, "relative difference " << error);
    ParameterSet again(*m.backend, m.config);
    TrainingStep(*m.backend, m.config, {38, false}).run(m.parameters, input, {&again, nullptr});
    CHECK(same_bits(all_values(*m.backend, again), all_values(*m.backend, rounded)));
  }
  // Everything clipped at the entrance of the projections: they get no derivative from their input, so the norm before them gets none.
  const FakeQuant tiny{QuantScope::fixed, 1e-12f};
  plan.sites.assign(static_cast<size_t>(m.config.num_layers), {tiny, FakeQuant{}, tiny, FakeQuant{}});
  step.run(m.parameters, input, {&clipped, nullptr});
  for (float g : values_on(*m.backend, clipped.find({TensorRole::input_norm, 1}))) CHECK(g == 0);
  for (float g : values_on(*m.backend, clipped.find({TensorRole::pre_ffn_norm, 1}))) CHECK(g == 0);
}

TEST("train: distillation and losses on hidden states and feed-forward activations along their derivative") {
  Model m("gemma2-tiny", "cpu");
  const Text text(m.config, {20, 8});
  TrainingStep step(*m.backend, m.config, {28});
  const std::vector<int32_t> rows = {0, 3, 4, 19, 27};
  const Owned teacher = plain_numbers({5, m.config.vocab}, 1), target = plain_numbers({28, m.config.hidden}, 2);
  const Loss loss =
      distillation_loss(rows, {1, 0.5f, 0.25f, 2, 1}, 1.5f, [&](int64_t first, int64_t n) { return teacher.t.rows(first, n); });
  StepInput input;
  input.batch = text.batch();
  input.loss = &loss;
  // Mean squared distance of layer 2's stream from a target; its value is also what a forward pass alone is asked for below.
  input.stream = [&](int64_t l, const Tensor& x, const Tensor& g) {
    if (l != 2) return 0.0;
    double sum = 0;
    for (int64_t i = 0; i < x.elements(); ++i) {
      const double d = x.as<float>()[i] - target.t.as<float>()[i], n = static_cast<double>(x.elements());
      sum += d * d / n;
      g.as<float>()[i] += static_cast<float>(2 * d / n);
    }
    return sum;
  };
  // Of layer 1's feed-forward activations, the squares of two channels in every row.
  input.gated = [&](int64_t layer, const Tensor& x, const Tensor& g) {
    if (layer != 1) return 0.0;
    double sum = 0;
    for (int64_t t = 0; t < x.shape[0]; ++t) {
      for (const int64_t channel : {int64_t{3}, m.config.ffn - 1}) {
        const int64_t at = t * m.config.ffn + channel;
        sum += double{x.as<float>()[at]} * x.as<float>()[at];
        g.as<float>()[at] += 2 * x.as<float>()[at];
      }
    }
    return sum;
  };
  ParameterSet gradients(*m.backend, m.config), spare(*m.backend, m.config);
  const double loss_of_all = step.run(m.parameters, input, {&gradients, nullptr}).loss;
  StepInput without = input;
  without.gated = {};
  CHECK(loss_of_all > step.run(m.parameters, without, {&spare, nullptr}).loss);
  std::vector<Tensor> values, derivatives;
  for (const ParameterSet::Entry& entry : gradients.entries())
    values.push_back(m.parameters.find(entry.slot)), derivatives.push_back(entry.tensor);
  check_along("distillation", values, derivatives, 1e-3, 5e-3, [&] { return step.run(m.parameters, input, {&spare, nullptr}).loss; });

  // In chunks of two rows.
  ParameterSet chunked(*m.backend, m.config);
  TrainingStep(*m.backend, m.config, {28, true, 2 * m.config.vocab}).run(m.parameters, input, {&chunked, nullptr});
  CHECK(relative_error(all_values(*m.backend, chunked), all_values(*m.backend, gradients)) <= 1e-5);
}

TEST("train: AdamW on a cushion lowers the loss") {
  Model m("gemma3-tiny", "cpu");
  const Text text(m.config, {24, 24});
  Cushion cushion = random_cushion(m.config, 2, CushionWindow::pinned), gradients = make_cushion(m.config, cushion.tokens, cushion.window);
  std::vector<TrainedTensor> trained;
  for (size_t i = 0; i < sides(cushion).size(); ++i)
    trained.push_back({"side " + std::to_string(i), sides(cushion)[i], sides(gradients)[i]});
  Optimizer optimizer(*m.backend, trained, {});
  TrainingStep step(*m.backend, m.config, {48});
  WidenedWeights frozen(*m.backend, *m.host);
  StepInput input;
  input.batch = text.batch();
  input.cushion = &cushion;
  const Loss loss = token_loss(next_tokens(input.batch));
  input.loss = &loss;
  std::vector<double> losses;
  for (int i = 0; i < 12; ++i) {
    for (const Tensor& t : sides(gradients)) std::memset(t.data, 0, static_cast<size_t>(t.bytes()));
    losses.push_back(step.run(frozen, input, {nullptr, &gradients}).loss);
    optimizer.step(0.02);
  }
  CHECK_MSG(losses.back() < losses.front() - 0.02, losses.front() << " to " << losses.back());
}

TEST("train: a cushion that does not fit is refused") {
  Model m("gemma3-tiny", "reference");
  const Text text(m.config, {4});
  Cushion cushion = random_cushion(m.config, 2, CushionWindow::pinned), other = make_cushion(m.config, {1, 2, 3}, CushionWindow::pinned);
  TrainingStep step(*m.backend, m.config, {4});
  StepInput input;
  input.batch = text.batch();
  CHECK_THROWS(step.run(m.parameters, input, {nullptr, &other}), ErrorCode::invalid_argument, "there is none");
  input.cushion = &cushion;
  CHECK_THROWS(step.run(m.parameters, input, {nullptr, &other}), ErrorCode::invalid_argument, "another size");
  cushion.k.pop_back();
  CHECK_THROWS(step.run(m.parameters, input, {}), ErrorCode::invalid_argument, "another model");
  QuantPlan plan;
  input.cushion = nullptr;
  input.quant = &plan;
  CHECK_THROWS(step.run(m.parameters, input, {}), ErrorCode::invalid_argument, "number of layers");
}

}  // namespace
}  // namespace lapidary::test
