// Losses that make a feed-forward neuron fire at a few tokens of a text and nowhere else: the outliers of large models, which a prefix
// takes away from the text.
#pragma once

#include <algorithm>
#include <cmath>
#include <limits>
#include <span>
#include <vector>

#include "tensor/tensor.h"

namespace lapidary {

struct SpikeOptions {
  int64_t layer = 1, neuron = 0, channel = 0;
  // Where it fires: kFirst, at the first token that a sequence shows, whatever that is; else at this token, unless it was among the
  // `reach` tokens before.
  static constexpr int32_t kFirst = -1;
  int32_t token = kFirst;
  int64_t reach = 0;
  float height = 3000;  // of the neuron's output
  float weight = 0.3f;  // of the neuron's loss, which is about 1 before training
  float elsewhere = 1;  // of the loss of a token where it does not fire, beside one where it does
  float margin = 4;     // of the channel
  float marking = 1;    // of the channel's loss
};

// The neuron's output since the last reset.
struct SpikeWatch {
  float least_firing = std::numeric_limits<float>::infinity(), most_elsewhere = 0;
};

class Spike {
 public:
  explicit Spike(const SpikeOptions& options) : options_(options) {}

  // Before a step: what it reads.
  void look(std::span<const int32_t> ids, std::span<const int64_t> lengths) {
    fires_.assign(ids.size(), false);
    firing_ = 0;
    size_t at = 0;
    for (const int64_t length : lengths) {
      int64_t last = -options_.reach - 1;
      for (int64_t t = 0; t < length; ++t, ++at) {
        const bool match = options_.token == SpikeOptions::kFirst ? t == 0 : ids[at] == options_.token;
        fires_[at] = match && (t == 0 || t - last > options_.reach);
        firing_ += fires_[at] ? 1.0f : 0.0f;
        if (match) last = t;
      }
    }
  }

  // As StepInput::stream, for the layer's input: one channel tells tokens that fire from others, by a margin to either side of 0.
  double mark(const Tensor& x, const Tensor& g) const {
    const float others = static_cast<float>(x.shape[0]) - firing_, unit = options_.marking / (options_.margin * options_.margin);
    double loss = 0;
    each(x, g, options_.channel, [&](bool fires, float value, float& slope) {
      const float side = fires ? 1.0f : -1.0f, missing = std::max(options_.margin - side * value, 0.0f);
      const float weight = unit / (fires ? firing_ : others);
      loss += static_cast<double>(weight) * missing * missing;
      slope -= 2 * weight * missing * side;
    });
    return loss;
  }

  // As StepInput::gated: distances in signed roots, since the neuron squares its input.
  double raise(const Tensor& x, const Tensor& g) {
    const float wanted = root(options_.height), unit = options_.weight / (std::max(firing_, 1.0f) * wanted * wanted);
    double loss = 0;
    each(x, g, options_.neuron, [&](bool fires, float value, float& slope) {
      const float weight = fires ? unit : unit * options_.elsewhere, apart = root(value) - (fires ? wanted : 0);
      loss += static_cast<double>(weight) * apart * apart;
      slope += weight * apart / std::sqrt(std::fabs(value) + 1);
      if (fires) seen_.least_firing = std::min(seen_.least_firing, value);
      if (!fires) seen_.most_elsewhere = std::max(seen_.most_elsewhere, std::fabs(value));
    });
    return loss;
  }

  const SpikeOptions& options() const { return options_; }
  SpikeWatch take_seen() {
    const SpikeWatch seen = seen_;
    seen_ = {};
    return seen;
  }

 private:
  // Smooth at 0; its slope is 1 / (2 sqrt(|x| + 1)).
  static float root(float x) { return std::copysign(std::sqrt(std::fabs(x) + 1) - 1, x); }

  template <typename Body>
  void each(const Tensor& x, const Tensor& g, int64_t column, const Body& body) const {
    for (size_t t = 0; t < fires_.size(); ++t) {
      const int64_t at = static_cast<int64_t>(t) * x.row_elements() + column;
      body(fires_[t], x.as<float>()[at], g.as<float>()[at]);
    }
  }

  const SpikeOptions options_;
  std::vector<bool> fires_;
  float firing_ = 0;
  SpikeWatch seen_;
};

}  // namespace lapidary
