// Calibrate, choose folds, calibrate what the folds leave, choose scales; then weight by weight.
#include "compress/quantize.h"

#include <algorithm>
#include <cmath>

#include "base/error.h"
#include "compress/save_checkpoint.h"
#include "ops/int8.h"

namespace lapidary {

namespace {

constexpr double kPercentile = 0.9999;

// Gives the writer what the model makes of the file's weights.
class Saving final : public WeightsTransform {
 public:
  Saving(QuantizedModel& model, const CheckpointPlan& plan, CheckpointWriter& writer) : model_(model), plan_(plan), writer_(writer) {}
  Linear linear(const TensorSlot& slot, Linear host) override {
    if (plan_.linears.contains(slot)) writer_.linear(slot, model_.linear(slot, host));
    return host;
  }
  void norm(const TensorSlot& slot, std::span<float> weight) override {
    if (!model_.smoothing().changes_norm(slot)) return;
    model_.norm(slot, weight);
    writer_.norm(slot, weight);
  }

 private:
  QuantizedModel& model_;
  const CheckpointPlan& plan_;
  CheckpointWriter& writer_;
};

void check_finite(const Activations& seen) {
  for (size_t i = 0; i < seen.sites.size(); ++i) {
    const int64_t bad = seen.sites[i].not_finite;
    expect(bad == 0, ErrorCode::unsupported, "quantize: ", bad, " inputs of layer ", i / kNumSites, ", ",
           site_name(static_cast<Site>(i % kNumSites)), ", are not finite on the calibration texts; is the model whole?");
  }
}

LoadProgress checked(EvaluationWatch watch) {
  return [watch = std::move(watch)](int64_t done, int64_t total) {
    expect(!watch.stop || !watch.stop(), ErrorCode::aborted, "the quantisation was stopped");
    if (watch.progress) watch.progress(done, total);
  };
}

}  // namespace

QuantizedModel::QuantizedModel(std::string path, const ModelConfig& config, const QuantizeOptions& options)
    : path_(std::move(path)), config_(config), options_(options), cushion_(options.cushion) {}

bool QuantizedModel::is_quantised(const TensorSlot& slot) const {
  Site site{};
  return reads_site(slot.role, site) || (slot.role == TensorRole::embedding && options_.embedding);
}

Linear QuantizedModel::linear(const TensorSlot& slot, Linear host) {
  if (!is_quantised(slot)) return host;
  const bool embedding = slot.role == TensorRole::embedding;
  Linear result = int8_linear(smoothing_.linear(slot, host, options_.threads), options_.per_channel || embedding, options_.threads);
  result.activations = embedding ? ActScheme::none : options_.activations;
  Site site{};
  if (result.activations == ActScheme::fixed && reads_site(slot.role, site))
    result.input_scale = scales_[static_cast<size_t>(slot.layer * kNumSites + static_cast<int>(site))].scale;
  return result;
}

void QuantizedModel::norm(const TensorSlot& slot, std::span<float> weight) { smoothing_.norm(slot, weight); }

std::shared_ptr<const Cushion> QuantizedModel::cushion(std::shared_ptr<const Cushion>) { return cushion_; }

void QuantizedModel::choose_scales(const Activations& seen) {
  for (int64_t l = 0; l < config_.num_layers; ++l) {
    for (int s = 0; s < kNumSites; ++s) {
      const auto site = static_cast<Site>(s);
      const SiteStatistics& statistics = seen.at(l, site);
      SiteScale chosen{l, site, statistics.absmax, statistics.token_ratio()};
      if (statistics.absmax > 0 && options_.clip == ClipRule::mse) chosen.clip = mse_clip(statistics.values, statistics.absmax);
      if (statistics.absmax > 0 && options_.clip == ClipRule::percentile)
        chosen.clip = std::min(statistics.values.quantile(kPercentile) / statistics.absmax, 1.0);
      chosen.scale = int8_scale(static_cast<float>(chosen.clip * statistics.absmax));
      scales_.push_back(chosen);
    }
  }
}

void QuantizedModel::save(const std::string& target, const EvaluationWatch& watch) {
  CheckpointPlan plan = plan_all_layers(config_, options_.activations);
  if (options_.embedding) plan.linears[{TensorRole::embedding, -1}] = ActScheme::none;
  plan.per_channel = options_.per_channel;
  plan.f32_norms = !smoothing_.empty();
  plan.cushion = cushion_.get();
  CheckpointWriter writer(path_, target, plan);
  Saving saving(*this, plan, writer);
  visit_weights(path_, saving, checked(watch));
  writer.commit();
}

std::shared_ptr<QuantizedModel> quantize_model(const std::string& path, const Subject* original, std::span<const TextIds> texts,
                                               const QuantizeOptions& options, const EvaluationWatch& watch) {
  const ModelConfig config = load_config(path);
  expect(!config.quantization, ErrorCode::unsupported, path, ": is quantised already; start from the unquantised checkpoint");
  expect(options.smooth <= 1, ErrorCode::invalid_argument, "smooth is ", options.smooth, ", must be from 0 to 1");
  expect(options.activations != ActScheme::none || options.smooth < 0, ErrorCode::invalid_argument,
         "smooth moves the range of inputs into the weights: of no use where inputs are not quantised");
  auto model = std::make_shared<QuantizedModel>(path, config, options);
  if (!options.calibrates()) return model;

  expect(original != nullptr, ErrorCode::internal, "quantize: a calibration needs the original");
  int64_t tokens = 0;
  for (const TextIds& text : texts) tokens += static_cast<int64_t>(text.size());
  expect(tokens > 0, ErrorCode::invalid_argument, "calibration texts are needed for static activations and for smoothing; there are none");
  const bool smooths = options.smooth >= 0, fixes = options.activations == ActScheme::fixed;
  int64_t before = 0;
  const int64_t total = tokens * (static_cast<int64_t>(smooths) + static_cast<int64_t>(fixes));
  EvaluationWatch pass{[&](int64_t done, int64_t) {
                         if (watch.progress) watch.progress(before + done, total);
                       },
                       watch.stop};
  if (smooths) {
    Activations seen = collect_activations(*original, texts, options.window, pass);
    check_finite(seen);
    before += tokens;
    ColumnMaxima columns(config, options.threads);
    visit_weights(path, columns, checked({{}, watch.stop}));
    std::vector<std::vector<float>> maxima;
    for (SiteStatistics& s : seen.sites) maxima.push_back(std::move(s.channel_max));
    model->smoothing_ = choose_smoothing(config, maxima, columns, options.smooth, options.per_channel);
    if (options.cushion) model->cushion_ = std::make_shared<const Cushion>(model->smoothing_.cushion(*options.cushion));
    model->rows_ = seen.rows;
  }
  if (fixes) {
    const Activations seen = collect_activations(*original, texts, options.window, pass,
                                                 [&](int64_t layer, Site site) { return model->smoothing_.divisors(layer, site); });
    check_finite(seen);
    model->choose_scales(seen);
    model->rows_ = seen.rows;
  }
  return model;
}

}  // namespace lapidary
