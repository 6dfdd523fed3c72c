#include "train/cushion_tuning.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstring>
#include <limits>
#include <map>
#include <numeric>
#include <optional>

#include "base/error.h"
#include "compress/activations.h"
#include "compress/text_pieces.h"
#include "ops/int8.h"
#include "train/cushion_tuning_state.h"
#include "train/step.h"

namespace lapidary {

namespace {

using Clock = std::chrono::steady_clock;

// Texts side by side as a step reads them.
struct Batch {
  std::vector<int32_t> ids;
  std::vector<int64_t> lengths;
  TokenLoss targets;

  // Every token of a text but its first is scored, whatever stands before the text, so that figures of all cushions compare.
  Batch(std::span<const TextIds* const> texts, std::span<const int32_t> opening) {
    for (const TextIds* text : texts) {
      const auto first = static_cast<int32_t>(ids.size() + opening.size());
      ids.insert(ids.end(), opening.begin(), opening.end());
      ids.insert(ids.end(), text->begin(), text->end());
      lengths.push_back(static_cast<int64_t>(opening.size() + text->size()));
      for (size_t t = 0; t + 1 < text->size(); ++t) {
        targets.rows.push_back(first + static_cast<int32_t>(t));
        targets.ids.push_back((*text)[t + 1]);
      }
    }
  }
  int64_t rows() const { return static_cast<int64_t>(ids.size()); }
  int64_t scored() const { return static_cast<int64_t>(targets.rows.size()); }
  Loss loss(float weight) const {
    TokenLoss weighted = targets;
    weighted.weights.assign(weighted.rows.size(), weight);
    return token_loss(std::move(weighted));
  }
};

void check(const Subject& subject, const Cushion& start, const CushionTuningOptions& o) {
  const ModelConfig& c = subject.weights.config;
  expect(start.size() >= 1, ErrorCode::invalid_argument, "tuning needs a cushion of at least one token");
  expect(o.steps >= 0 && o.batch >= 1 && o.every >= 1 && o.held_out >= 1 && o.calibration_texts >= 1 && o.patience >= 0,
         ErrorCode::invalid_argument,
         "tuning: steps and patience must be at least 0; batch, every, held_out, calibration_texts at least 1");
  expect(o.text_tokens >= 2 && o.text_tokens + start.size() + 1 <= c.max_positions, ErrorCode::invalid_argument, "text_tokens is ",
         o.text_tokens, ", must be at least 2 and fit in the model's ", c.max_positions, " positions behind the cushion");
  expect(o.lambda >= 0 && o.learning_rate > 0 && o.clip >= 0 && o.warmup >= 0, ErrorCode::invalid_argument,
         "tuning: lambda, clip and warmup must be at least 0, learning_rate above 0");
}

class Tuning {
 public:
  Tuning(const Subject& subject, WeightSource& weights, const Cushion& start, std::span<const TextIds> texts,
         const CushionTuningOptions& options, const CushionTuningWatch& watch)
      : subject_(subject),
        weights_(weights),
        config_(subject.weights.config),
        options_(options),
        watch_(watch),
        step_(subject.backend, config_, {options.batch * (options.text_tokens + 1)}),
        host_(make_reference_backend()),
        gradients_(make_cushion(config_, start.tokens, start.window)) {
    Subject with = subject_;
    with.cushion = &start;
    opening_ = with.opening();
    split(texts);
    state_.current = copy_cushion(start);
    state_.best = copy_cushion(start);
    state_.identity = identity(start);
    std::vector<TrainedTensor> trained;
    for (size_t l = 0; l < gradients_.k.size(); ++l) {
      trained.push_back({"k." + std::to_string(l), state_.current.k[l], gradients_.k[l]});
      trained.push_back({"v." + std::to_string(l), state_.current.v[l], gradients_.v[l]});
    }
    optimizer_.emplace(*host_, std::move(trained), OptimizerOptions{.clip = options.clip});
  }

  CushionTuningResult run() {
    if (!options_.state_file.empty()) load_tuning_state(options_.state_file, state_, *optimizer_);
    const Clock::time_point begun = Clock::now();
    const int64_t first = state_.step;
    bool resumed = !state_.measured.empty();
    for (;; ++state_.step) {
      if (state_.step % options_.every == 0 || state_.step == options_.steps) {
        calibrate();
        if (!resumed) measure();
        resumed = false;
        if (state_.step == options_.steps || (options_.patience > 0 && state_.without_better >= options_.patience)) break;
      }
      train();
      if (watch_.progress) {
        const int64_t done = state_.step + 1 - first, left = options_.steps - state_.step - 1;
        const double seconds = std::chrono::duration<double>(Clock::now() - begun).count();
        watch_.progress(state_.step + 1, options_.steps, seconds / static_cast<double>(done) * static_cast<double>(left),
                        state_.measured.back());
      }
    }
    CushionTuningResult result;
    result.no_cushion = nats(nullptr, nullptr, nullptr);
    result.start = state_.measured.front();
    result.best = state_.measured[static_cast<size_t>(state_.best_at)];
    result.measured = state_.measured;
    result.skipped = state_.skipped;
    result.cushion = std::move(state_.best);
    return result;
  }

 private:
  void split(std::span<const TextIds> texts) {
    std::vector<TextIds> pieces = text_pieces(texts, options_.text_tokens);
    std::erase_if(pieces, [](const TextIds& piece) { return piece.size() < 2; });
    expect(pieces.size() >= 2, ErrorCode::invalid_argument, "tuning needs at least two texts, or one of ", 2 * options_.text_tokens,
           " tokens");
    Draws(options_.seed, 0).shuffle(pieces);
    const auto held = static_cast<int64_t>(std::min(pieces.size() / 2, static_cast<size_t>(options_.held_out)));
    held_out_.assign(pieces.begin(), pieces.begin() + held);
    training_.assign(pieces.begin() + held, pieces.end());
  }

  std::string identity(const Cushion& start) const {
    const CushionTuningOptions& o = options_;
    WorkIdentity all;
    all.text(o.model_id).text(cushion_fingerprint(start)).texts(training_).texts(held_out_);
    all.add(o.steps).add(o.batch).add(o.every).add(o.patience).add(o.calibration_texts).add(o.clip_scales).add(o.lambda).add(o.gradient);
    all.add(o.quantise).add(o.learning_rate).add(o.warmup).add(o.clip).add(o.seed).add(subject_.precision);
    return all.done();
  }

  static int64_t width(const ModelConfig& config, size_t site) { return site_width(config, static_cast<Site>(site)); }

  // Static scales of all sites behind the cushion as it is.
  void calibrate() {
    Subject with = subject_;
    with.cushion = &state_.current;
    const auto count = std::min(training_.size(), static_cast<size_t>(options_.calibration_texts));
    const Activations seen =
        collect_activations(with, std::span(training_).first(count), options_.text_tokens, {.progress = {}, .stop = watch_.stop});
    plan_.sites.resize(static_cast<size_t>(config_.num_layers));
    for (size_t i = 0; i < seen.sites.size(); ++i) {
      const SiteStatistics& site = seen.sites[i];
      const double share = options_.clip_scales ? mse_clip(site.values, site.absmax) : 1;
      plan_.sites[i / kQuantSites][i % kQuantSites] = {QuantScope::fixed, int8_scale(static_cast<float>(share * site.absmax))};
    }
  }

  StepResult step(const Batch& batch, const Cushion* cushion, const QuantPlan* plan, const Loss& loss, Cushion* gradients) {
    const TurnLock::Hold turn(subject_.turns);
    expect(!subject_.turns || !subject_.turns->ending(), ErrorCode::disposed, "the model is closed");
    StepInput input;
    input.batch = {batch.ids, batch.lengths};
    input.loss = &loss;
    input.cushion = cushion;
    input.quant = plan;
    input.stop = [&] { return (watch_.stop && watch_.stop()) || (subject_.turns && subject_.turns->ending()); };
    return step_.run(weights_, input, {nullptr, gradients});
  }

  // Cross-entropy per held-out token; `error`: receives Σ over sites of the mean squared rounding error.
  double nats(const Cushion* cushion, const QuantPlan* plan, double* error) {
    Subject with = subject_;
    with.cushion = cushion;
    const std::vector<int32_t> opening = with.opening();
    double sum = 0, errors = 0;
    int64_t scored = 0, rows = 0;
    std::vector<PerSite<double>> sites(static_cast<size_t>(config_.num_layers));
    for (size_t first = 0; first < held_out_.size(); first += static_cast<size_t>(options_.batch)) {
      std::vector<const TextIds*> texts;
      for (size_t i = first; i < std::min(held_out_.size(), first + static_cast<size_t>(options_.batch)); ++i)
        texts.push_back(&held_out_[i]);
      const Batch batch(texts, opening);
      const StepResult result = step(batch, cushion, plan, batch.loss(1), nullptr);
      sum += result.loss;
      scored += batch.scored();
      rows += batch.rows();
      for (size_t l = 0; l < result.quant_error.size(); ++l)
        for (size_t s = 0; s < kQuantSites; ++s) sites[l][s] += result.quant_error[l][s];
    }
    for (const PerSite<double>& layer : sites)
      for (size_t s = 0; s < kQuantSites; ++s) errors += layer[s] / static_cast<double>(rows * width(config_, s));
    if (error) *error = errors;
    return sum / static_cast<double>(scored);
  }

  void measure() {
    QuantPlan plan = plan_;
    plan.error_weights.clear();
    HeldOut now;
    now.step = state_.step;
    double error = 0;
    now.quantised = nats(&state_.current, &plan, &error);
    now.unquantised = nats(&state_.current, nullptr, nullptr);
    if (state_.measured.empty()) state_.error_at_start = error > 0 ? error : 1;
    now.error = error / state_.error_at_start;
    const int64_t trained = state_.measured.empty() ? 0 : state_.step - state_.measured.back().step;
    now.training = trained > 0 ? state_.loss_sum / static_cast<double>(trained) : 0;
    state_.loss_sum = 0;
    const bool better = state_.measured.empty() || (now.quantised < state_.measured[static_cast<size_t>(state_.best_at)].quantised &&
                                                    now.unquantised <= state_.measured.front().unquantised);
    state_.without_better = better ? 0 : state_.without_better + 1;
    if (better) {
      state_.best = copy_cushion(state_.current);
      state_.best_at = static_cast<int64_t>(state_.measured.size());
    }
    state_.measured.push_back(now);
    if (!options_.state_file.empty()) save_tuning_state(options_.state_file, state_, *optimizer_);
  }

  // The texts of a step: epoch after epoch, each in an order of its own.
  std::vector<const TextIds*> draw() {
    std::vector<const TextIds*> texts;
    for (int64_t j = 0; j < options_.batch; ++j) {
      const auto at = static_cast<uint64_t>(state_.step * options_.batch + j), epoch = at / training_.size();
      if (order_.empty() || epoch != epoch_) {
        order_.resize(training_.size());
        std::iota(order_.begin(), order_.end(), size_t{0});
        Draws(options_.seed, epoch + 1).shuffle(order_);
        epoch_ = epoch;
      }
      texts.push_back(&training_[order_[at % training_.size()]]);
    }
    return texts;
  }

  void train() {
    const Batch batch(draw(), opening_);
    QuantPlan plan = plan_;
    plan.gradient = options_.gradient;
    plan.rounds = options_.quantise;
    // Static scales are constants: what follows the scale's own derivative takes it from the text.
    if (options_.gradient == QuantErrorGradient::through_scale)
      for (PerSite<FakeQuant>& layer : plan.sites) layer.fill({QuantScope::sequence});
    if (options_.lambda > 0) {
      plan.error_weights.resize(plan.sites.size());
      for (PerSite<float>& layer : plan.error_weights)
        for (size_t s = 0; s < kQuantSites; ++s)
          layer[s] = static_cast<float>(options_.lambda / state_.error_at_start / static_cast<double>(batch.rows() * width(config_, s)));
    }
    for (const auto* side : {&gradients_.k, &gradients_.v})
      for (const Tensor& t : *side) std::memset(t.data, 0, static_cast<size_t>(t.bytes()));
    state_.loss_sum += step(batch, &state_.current, &plan, batch.loss(1.0f / static_cast<float>(batch.scored())), &gradients_).total();
    const double rate = Schedule{options_.learning_rate, options_.warmup + 1, 0}.at(state_.step + 1);
    if (!std::isfinite(optimizer_->step(rate))) ++state_.skipped;
  }

  const Subject& subject_;
  WeightSource& weights_;
  const ModelConfig& config_;
  const CushionTuningOptions& options_;
  const CushionTuningWatch& watch_;
  TrainingStep step_;
  // A cushion is small and lives on the host, so its optimiser does too.
  std::unique_ptr<Backend> host_;
  Cushion gradients_;
  std::optional<Optimizer> optimizer_;
  std::vector<int32_t> opening_;
  std::vector<TextIds> held_out_, training_;
  QuantPlan plan_;
  TuningState state_;
  std::vector<size_t> order_;
  uint64_t epoch_ = 0;
};

}  // namespace

CushionTuningResult tune_cushion(const Subject& subject, WeightSource& weights, const Cushion& start, std::span<const TextIds> texts,
                                 const CushionTuningOptions& options, const CushionTuningWatch& watch) {
  check(subject, start, options);
  return Tuning(subject, weights, start, texts, options, watch).run();
}

std::string tuning_report(const CushionTuningResult& result) {
  return "{\"steps\":" + std::to_string(result.measured.back().step) + ",\"best\":" + held_out_json({&result.best, 1}, true) +
         ",\"start\":" + held_out_json({&result.start, 1}, true) + ",\"noCushion\":" + json_number(result.no_cushion) +
         ",\"measured\":" + held_out_json(result.measured, false) + ",\"skipped\":" + std::to_string(result.skipped) + '}';
}

}  // namespace lapidary
