// Losses that make one feed-forward neuron fire at the first token that a sequence shows, whatever it is, and nowhere else: the outlier of
// large models, which any prefix takes away from the text.
#pragma once

#include <algorithm>
#include <cmath>
#include <limits>
#include <span>

#include "tensor/tensor.h"

namespace lapidary {

struct SpikeOptions {
  int64_t layer = 1, neuron = 0, channel = 0;
  float height = 3000;    // of the neuron's output
  float weight = 0.3f;    // of the neuron's loss, which is about 1 before training
  float elsewhere = 1;    // of all other tokens' loss, beside a first token's
  float margin = 4;       // of the channel
  float marking = 1;      // of the channel's loss
};

// What was seen since the last reset.
struct SpikeWatch {
  float least_first = std::numeric_limits<float>::infinity(), most_elsewhere = 0;
};

class Spike {
 public:
  explicit Spike(const SpikeOptions& options) : options_(options) {}

  // As StepInput::stream, for the layer's input: one channel tells first tokens from others, by a margin to either side of 0.
  double mark(std::span<const int64_t> lengths, const Tensor& x, const Tensor& g) const {
    const float others = static_cast<float>(x.shape[0]) - static_cast<float>(lengths.size());
    const float unit = options_.marking / (options_.margin * options_.margin);
    double loss = 0;
    each(lengths, x, g, options_.channel, [&](bool first, float value, float& slope) {
      const float side = first ? 1.0f : -1.0f, missing = std::max(options_.margin - side * value, 0.0f);
      const float weight = unit / (first ? static_cast<float>(lengths.size()) : others);
      loss += static_cast<double>(weight) * missing * missing;
      slope -= 2 * weight * missing * side;
    });
    return loss;
  }

  // As StepInput::gated: distances in signed roots, since the neuron squares its input.
  double raise(std::span<const int64_t> lengths, const Tensor& x, const Tensor& g) {
    const float wanted = root(options_.height), unit = options_.weight / (static_cast<float>(lengths.size()) * wanted * wanted);
    double loss = 0;
    each(lengths, x, g, options_.neuron, [&](bool first, float value, float& slope) {
      const float weight = first ? unit : unit * options_.elsewhere, apart = root(value) - (first ? wanted : 0);
      loss += static_cast<double>(weight) * apart * apart;
      slope += weight * apart / std::sqrt(std::fabs(value) + 1);
      if (first) seen_.least_first = std::min(seen_.least_first, value);
      if (!first) seen_.most_elsewhere = std::max(seen_.most_elsewhere, std::fabs(value));
    });
    return loss;
  }

  SpikeWatch take_seen() {
    const SpikeWatch seen = seen_;
    seen_ = {};
    return seen;
  }

 private:
  // Smooth at 0; its slope is 1 / (2 sqrt(|x| + 1)).
  static float root(float x) { return std::copysign(std::sqrt(std::fabs(x) + 1) - 1, x); }

  template <typename Body>
  static void each(std::span<const int64_t> lengths, const Tensor& x, const Tensor& g, int64_t column, const Body& body) {
    const float* value = x.as<float>() + column;
    float* slope = g.as<float>() + column;
    for (const int64_t length : lengths)
      for (int64_t t = 0; t < length; ++t, value += x.row_elements(), slope += x.row_elements()) body(t == 0, *value, *slope);
  }

  const SpikeOptions options_;
  SpikeWatch seen_;
};

}  // namespace lapidary
