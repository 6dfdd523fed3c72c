// SmoothQuant's folds for Gemma (arXiv 2211.10438): the input channels of a layer's matrices divided by s, the matrices' columns multiplied
// by it, so that large channels cost the others no resolution. In exact arithmetic the model's results do not change.
//
// What divides a site's channels is what produces them: attn_in and mlp_in the norm before them, (offset + w) / s - offset; o_in the rows
// of v_proj, so heads that share a KV head share s; down_in the rows of up_proj, since gate passes through GELU. Of Gemma's norms only
// those two lie right before matrices: post-attention and post-feed-forward norms close a branch.
#pragma once

#include <array>
#include <vector>

#include "model/forward.h"
#include "model/weights.h"

namespace lapidary {

// Per layer, what each site's channels are divided by: positive and finite; empty: the site is left alone.
using SiteDivisors = std::array<std::vector<float>, kNumSites>;

class Smoothing {
 public:
  Smoothing() = default;  // changes nothing
  Smoothing(const ModelConfig& config, std::vector<SiteDivisors> layers) : config_(config), layers_(std::move(layers)) {}

  bool empty() const { return layers_.empty(); }
  // Empty where nothing is divided.
  std::span<const float> divisors(int64_t layer, Site site) const;

  // `host` in host memory; f32 where it changes, else `host` itself.
  Linear linear(const TensorSlot& slot, const Linear& host, int threads) const;
  bool changes_norm(const TensorSlot& slot) const;
  void norm(const TensorSlot& slot, std::span<float> weight) const;
  // The cushion of the folded model: its values come from v_proj too.
  Cushion cushion(const Cushion& original) const;

 private:
  ModelConfig config_;
  std::vector<SiteDivisors> layers_;
};

// Gathers what choosing needs of the weights: per layer and site the largest magnitude per input channel of all matrices that read it.
class ColumnMaxima final : public WeightsTransform {
 public:
  ColumnMaxima(const ModelConfig& config, int threads);
  Linear linear(const TensorSlot& slot, Linear host) override;
  void norm(const TensorSlot&, std::span<float>) override {}
  const std::vector<float>& at(int64_t layer, Site site) const { return layers_[static_cast<size_t>(layer)][static_cast<size_t>(site)]; }

 private:
  const int threads_;
  std::vector<SiteDivisors> layers_;
};

// s = X^alpha / W^(1 - alpha) per channel, both at least 1e-5; X: the inputs' largest magnitudes, element layer * kNumSites + site. alpha
// in [0, 1]. `producers`: fold o_in and down_in too, which is free where weights have a scale per output channel, and widens the rows of
// v_proj and up_proj where they share one.
Smoothing choose_smoothing(const ModelConfig& config, std::span<const std::vector<float>> input_maxima, const ColumnMaxima& weights,
                           double alpha, bool producers);

// Whether a matrix reads one of the sites, and which.
bool reads_site(TensorRole role, Site& site);

}  // namespace lapidary
