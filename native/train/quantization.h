// Quantisation as training sees it: which of a layer's inputs to matrix products are rounded to int8, and what the rounding costs.
#pragma once

#include <array>
#include <vector>

#include "ops/training.h"

namespace lapidary {

// The four tensors of a layer that feed its matrix products: q, k, v; o; gate, up; down.
enum class QuantSite : uint8_t { attn_in, o_in, mlp_in, down_in };
inline constexpr int kQuantSites = 4;

template <typename T>
using PerSite = std::array<T, kQuantSites>;

struct QuantPlan {
  std::vector<PerSite<FakeQuant>> sites;  // [num_layers]
  // The loss has the term weight · Σ (x - q(x))² for each site, over the text's tokens; empty: none has. For a mean, divide by the
  // elements.
  std::vector<PerSite<float>> error_weights;  // [num_layers]
  QuantErrorGradient gradient = QuantErrorGradient::straight_through;
  // The layers compute with q(x); false: with x, and the error is only measured.
  bool rounds = true;
};

}  // namespace lapidary
