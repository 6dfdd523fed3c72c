// A cushion within one training step: placed for attention, seen by each layer, and its derivatives brought back to the host's layout.
#pragma once

#include <map>
#include <memory>
#include <span>
#include <utility>
#include <vector>

#include "model/cushion.h"
#include "train/layer.h"

namespace lapidary {

class CushionPass {
 public:
  // positions: of the text's tokens, the cushion's before them.
  CushionPass(Backend& backend, const ModelConfig& config, const Cushion& cushion, std::span<const int32_t> positions,
              const std::vector<std::vector<float>>& inv_freq);

  // Adds what the layer sees of it.
  void add_to(LayerContext& context, int64_t layer);
  // Zeroed memory for the layer's derivatives, valid until the next call.
  void begin_gradients(LayerGradients& gradients);
  // Adds them to a cushion of derivatives, by the keys before RoPE.
  void collect(const LayerGradients& gradients, int64_t layer, Cushion& sums);

 private:
  using Angles = std::pair<Tensor, Tensor>;  // cos, sin

  Angles make_angles(std::span<const int32_t> positions, int rope);
  Tensor take(int64_t a, int64_t b, int64_t c);

  Backend& backend_;
  const ModelConfig& config_;
  const std::vector<std::vector<float>>& inv_freq_;
  const int64_t tokens_;
  std::vector<int32_t> positions_;
  std::unique_ptr<const PlacedCushion> placed_;
  std::map<std::pair<int64_t, int>, Angles> clamped_;  // by (window, rope kind)
  std::map<int, Angles> own_;                          // of the cushion's tokens, by rope kind
  Tensor gk_, gv_, turned_;
  std::vector<Buffer> owned_;
};

}  // namespace lapidary
