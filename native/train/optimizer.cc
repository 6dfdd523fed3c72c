// Clipping, moments and the order of a step; the arithmetic is the backend's.
#include "train/optimizer.h"

#include <cmath>
#include <numbers>

#include "base/error.h"
#include "train/weights.h"

namespace lapidary {

double Schedule::at(int64_t step) const {
  if (step < warmup) return peak * (static_cast<double>(step) / static_cast<double>(warmup));
  if (total == 0) return peak;
  if (step >= total) return 0;
  return peak * 0.5 * (1 + std::cos(std::numbers::pi * static_cast<double>(step - warmup) / static_cast<double>(total - warmup)));
}

Optimizer::Optimizer(Backend& backend, std::vector<TrainedTensor> tensors, const OptimizerOptions& options)
    : backend_(backend), ops_(backend.training()), tensors_(std::move(tensors)), options_(options) {
  const auto zeros_like = [&](const Tensor& value) {
    Tensor t = value;
    t.data = owned_.emplace_back(backend.allocate(static_cast<size_t>(value.bytes()))).memory.get();
    backend.zero(t);
    return t;
  };
  for (const TrainedTensor& t : tensors_) {
    expect(
        t.value.dtype == DType::f32 && t.gradient.elements() == t.value.elements() && (!t.mask || t.mask.elements() == t.value.elements()),
        ErrorCode::invalid_argument, "optimizer: ", t.name, " is ", t.value.shape_text(), ", its gradient ", t.gradient.shape_text());
    Moments& m = moments_.emplace_back();
    if (options_.kind == OptimizerKind::adamw) m = {zeros_like(t.value), zeros_like(t.value)};
    if (options_.kind == OptimizerKind::sgd && options_.momentum != 0) m.first = zeros_like(t.value);
  }
}

double Optimizer::step(double learning_rate) {
  double squares = 0;
  for (const TrainedTensor& t : tensors_) {
    if (t.mask && t.mask_gradient) ops_.multiply(t.gradient, t.mask);
    squares += ops_.sum_of_squares(t.gradient);
  }
  const double norm = std::sqrt(squares);
  if (!std::isfinite(norm)) return norm;
  const double clipped = options_.clip > 0 ? options_.clip / (norm + 1e-6) : 1;
  const float scale = static_cast<float>(clipped < 1 ? clipped : 1), rate = static_cast<float>(learning_rate);
  ++steps_;
  for (size_t i = 0; i < tensors_.size(); ++i) {
    const TrainedTensor& t = tensors_[i];
    const float decay = t.decays ? options_.weight_decay : 0;
    if (options_.kind == OptimizerKind::adamw) {
      ops_.adamw(t.value, t.gradient, moments_[i].first, moments_[i].second,
                 {rate, options_.beta1, options_.beta2, options_.eps, decay, steps_, scale});
    } else {
      ops_.sgd(t.value, t.gradient, moments_[i].first, {rate, options_.momentum, decay, steps_ == 1, scale});
    }
    if (t.mask) ops_.multiply(t.value, t.mask);
  }
  return norm;
}

std::vector<std::pair<std::string, Tensor>> Optimizer::state() const {
  std::vector<std::pair<std::string, Tensor>> named;
  for (size_t i = 0; i < tensors_.size(); ++i) {
    const bool adam = options_.kind == OptimizerKind::adamw;
    if (moments_[i].first) named.emplace_back((adam ? "m." : "momentum.") + tensors_[i].name, moments_[i].first);
    if (moments_[i].second) named.emplace_back("v." + tensors_[i].name, moments_[i].second);
  }
  return named;
}

std::vector<TrainedTensor> trained_tensors(const ParameterSet& parameters, const ParameterSet& gradients) {
  std::vector<TrainedTensor> tensors;
  for (const ParameterSet::Entry& entry : gradients.entries()) {
    const Tensor value = parameters.find(entry.slot);
    expect(static_cast<bool>(value), ErrorCode::invalid_argument, "optimizer: there are derivatives of ", entry.name, " but no weight");
    tensors.push_back({entry.name, value, entry.tensor, value.rank >= 2});
  }
  return tensors;
}

}  // namespace lapidary
