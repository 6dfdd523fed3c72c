// The cushion's side of a training step.
#include "train/cushion_pass.h"

#include <algorithm>
#include <numeric>

namespace lapidary {

CushionPass::CushionPass(Backend& backend, const ModelConfig& config, const Cushion& cushion, std::span<const int32_t> positions,
                         const std::vector<std::vector<float>>& inv_freq)
    : backend_(backend),
      config_(config),
      inv_freq_(inv_freq),
      tokens_(cushion.size()),
      positions_(positions.begin(), positions.end()),
      placed_(place_cushion(backend, config, cushion, DType::f32, inv_freq)) {}

Tensor CushionPass::take(int64_t a, int64_t b, int64_t c) {
  const size_t bytes = static_cast<size_t>(a * b * c) * sizeof(float);
  return owned_.emplace_back(backend_.allocate(bytes)).tensor(DType::f32, {a, b, c});
}

CushionPass::Angles CushionPass::make_angles(std::span<const int32_t> positions, int rope) {
  const int64_t rows = static_cast<int64_t>(positions.size()), half = config_.head_dim / 2;
  const auto table = [&] {
    return owned_.emplace_back(backend_.allocate(static_cast<size_t>(rows * half) * sizeof(float))).tensor(DType::f32, {rows, half});
  };
  const Angles angles{table(), table()};
  backend_.rope_angles(positions, inv_freq_[static_cast<size_t>(rope)], angles.first, angles.second);
  return angles;
}

void CushionPass::add_to(LayerContext& context, int64_t layer) {
  const LayerConfig& kind = config_.layers[static_cast<size_t>(layer)];
  const bool pinned = placed_->window == CushionWindow::pinned;
  context.prefix_k = placed_->k[static_cast<size_t>(layer)];
  context.prefix_v = placed_->v[static_cast<size_t>(layer)];
  context.prefix_in_window = !pinned && kind.is_local();
  context.prefix_cos = context.prefix_sin = {};
  if (!pinned || !kind.is_local()) return;
  // Queries farther away than the window's last token see the cushion at that token's distance.
  const int64_t farthest = tokens_ + kind.window - 1;
  if (*std::max_element(positions_.begin(), positions_.end()) <= farthest) return;
  const std::pair key(kind.window, kind.rope);
  auto found = clamped_.find(key);
  if (found == clamped_.end()) {
    std::vector<int32_t> clamped = positions_;
    for (int32_t& p : clamped) p = static_cast<int32_t>(std::min<int64_t>(p, farthest));
    found = clamped_.emplace(key, make_angles(clamped, kind.rope)).first;
  }
  context.prefix_cos = found->second.first;
  context.prefix_sin = found->second.second;
}

void CushionPass::begin_gradients(LayerGradients& gradients) {
  if (!gk_) {
    gk_ = take(config_.num_kv_heads, tokens_, config_.head_dim);
    gv_ = take(config_.num_kv_heads, tokens_, config_.head_dim);
    turned_ = take(tokens_, config_.num_kv_heads, config_.head_dim);
  }
  backend_.zero(gk_);
  backend_.zero(gv_);
  gradients.prefix_k = gk_;
  gradients.prefix_v = gv_;
}

void CushionPass::collect(const LayerGradients& gradients, int64_t layer, Cushion& sums) {
  const int64_t heads = config_.num_kv_heads, dim = config_.head_dim;
  std::vector<float> by_head(static_cast<size_t>(tokens_ * heads * dim)), by_token(by_head.size());
  const auto turn = [&](const Tensor& from) {
    backend_.download(by_head.data(), from);
    for (int64_t h = 0; h < heads; ++h) {
      for (int64_t t = 0; t < tokens_; ++t)
        std::copy_n(&by_head[static_cast<size_t>((h * tokens_ + t) * dim)], dim, &by_token[static_cast<size_t>((t * heads + h) * dim)]);
    }
  };
  const auto add = [&](const Tensor& sum) {
    for (size_t i = 0; i < by_token.size(); ++i) sum.as<float>()[i] += by_token[i];
  };
  turn(gradients.prefix_v);
  add(sums.v[static_cast<size_t>(layer)]);

  turn(gradients.prefix_k);
  const int rope = config_.layers[static_cast<size_t>(layer)].rope;
  if (!own_.contains(rope)) {
    std::vector<int32_t> slots(static_cast<size_t>(tokens_));
    std::iota(slots.begin(), slots.end(), 0);
    own_.emplace(rope, make_angles(slots, rope));
  }
  backend_.upload(turned_, by_token.data());
  backend_.training().rope_backward(turned_, own_.at(rope).first, own_.at(rope).second);
  backend_.download(by_token.data(), turned_);
  add(sums.k[static_cast<size_t>(layer)]);
}

}  // namespace lapidary
