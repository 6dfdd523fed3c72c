#include "compress/smooth.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <mutex>

#include "base/error.h"
#include "base/thread_pool.h"
#include "ops/int8.h"
#include "tensor/blocks.h"

namespace lapidary {

namespace {

constexpr double kLeast = 1e-5;

// fn(row, values f32 [in]) for every row, on all threads.
template <typename Fn>
void for_each_row(const Linear& host, int threads, const Fn& fn) {
  const int64_t in = host.in(), grain = 1 + (int64_t{1} << 16) / in;
  ThreadPool::shared(threads)->parallel_for(host.out(), grain, [&](int64_t begin, int64_t end) {
    std::vector<float> values(static_cast<size_t>(in));
    for (int64_t row = begin; row < end; ++row) {
      dequantize_row(host.weight.dtype, host.weight.rows(row, 1).data, in, values.data());
      fn(row, values.data());
    }
  });
}

// The query channel that stands for a channel of the KV heads: that of the first head of the group.
int64_t first_query_channel(const ModelConfig& c, int64_t kv_channel) {
  const int64_t group = c.num_heads / c.num_kv_heads;
  return kv_channel / c.head_dim * group * c.head_dim + kv_channel % c.head_dim;
}

// Gives every channel of the heads of a group the largest of them.
void share_in_groups(const ModelConfig& c, std::vector<float>& channels) {
  const int64_t group = c.num_heads / c.num_kv_heads;
  for (int64_t kv = 0; kv < c.num_kv_heads; ++kv) {
    for (int64_t d = 0; d < c.head_dim; ++d) {
      const auto channel = [&](int64_t g) -> float& { return channels[static_cast<size_t>((kv * group + g) * c.head_dim + d)]; };
      float most = 0;
      for (int64_t g = 0; g < group; ++g) most = std::max(most, channel(g));
      for (int64_t g = 0; g < group; ++g) channel(g) = most;
    }
  }
}

}  // namespace

bool reads_site(TensorRole role, Site& site) {
  switch (role) {
    case TensorRole::q:
    case TensorRole::k:
    case TensorRole::v:
      site = Site::attn_in;
      return true;
    case TensorRole::o:
      site = Site::o_in;
      return true;
    case TensorRole::gate:
    case TensorRole::up:
      site = Site::mlp_in;
      return true;
    case TensorRole::down:
      site = Site::down_in;
      return true;
    default:
      return false;
  }
}

std::span<const float> Smoothing::divisors(int64_t layer, Site site) const {
  if (layers_.empty()) return {};
  return layers_[static_cast<size_t>(layer)][static_cast<size_t>(site)];
}

Linear Smoothing::linear(const TensorSlot& slot, const Linear& host, int threads) const {
  Site site{};
  if (empty() || !reads_site(slot.role, site)) return host;
  const std::span<const float> columns = divisors(slot.layer, site);
  const std::span<const float> rows = slot.role == TensorRole::v    ? divisors(slot.layer, Site::o_in)
                                      : slot.role == TensorRole::up ? divisors(slot.layer, Site::down_in)
                                                                    : std::span<const float>();
  if (columns.empty() && rows.empty()) return host;
  const int64_t out = host.out(), in = host.in();
  const Buffer memory = allocate_host(static_cast<size_t>(out * in) * sizeof(float));
  const Tensor weight = memory.tensor(DType::f32, {out, in});
  for_each_row(host, threads, [&](int64_t row, const float* values) {
    const int64_t channel = slot.role == TensorRole::v ? first_query_channel(config_, row) : row;
    const double divisor = rows.empty() ? 1 : rows[static_cast<size_t>(channel)];
    float* to = weight.as<float>() + row * in;
    for (int64_t i = 0; i < in; ++i) {
      const double factor = columns.empty() ? 1 : columns[static_cast<size_t>(i)];
      to[i] = static_cast<float>(values[i] * factor / divisor);
    }
  });
  return {weight, memory.memory};
}

bool Smoothing::changes_norm(const TensorSlot& slot) const {
  return (slot.role == TensorRole::input_norm && !divisors(slot.layer, Site::attn_in).empty()) ||
         (slot.role == TensorRole::pre_ffn_norm && !divisors(slot.layer, Site::mlp_in).empty());
}

void Smoothing::norm(const TensorSlot& slot, std::span<float> weight) const {
  if (!changes_norm(slot)) return;
  const std::span<const float> by = divisors(slot.layer, slot.role == TensorRole::input_norm ? Site::attn_in : Site::mlp_in);
  const double offset = config_.norm_offset;
  for (size_t i = 0; i < weight.size(); ++i) weight[i] = static_cast<float>((offset + weight[i]) / by[i] - offset);
}

Cushion Smoothing::cushion(const Cushion& original) const {
  Cushion folded = make_cushion(config_, original.tokens, original.window);
  folded.notes = original.notes;
  const int64_t width = config_.kv_width();
  for (size_t l = 0; l < folded.k.size(); ++l) {
    std::memcpy(folded.k[l].data, original.k[l].data, static_cast<size_t>(original.k[l].bytes()));
    std::memcpy(folded.v[l].data, original.v[l].data, static_cast<size_t>(original.v[l].bytes()));
    const std::span<const float> by = divisors(static_cast<int64_t>(l), Site::o_in);
    for (int64_t i = 0; !by.empty() && i < folded.v[l].elements(); ++i)
      folded.v[l].as<float>()[i] /= by[static_cast<size_t>(first_query_channel(config_, i % width))];
  }
  return folded;
}

ColumnMaxima::ColumnMaxima(const ModelConfig& config, int threads) : threads_(threads), layers_(static_cast<size_t>(config.num_layers)) {}

Linear ColumnMaxima::linear(const TensorSlot& slot, Linear host) {
  Site site{};
  if (!reads_site(slot.role, site)) return host;
  std::vector<float>& most = layers_[static_cast<size_t>(slot.layer)][static_cast<size_t>(site)];
  const auto in = static_cast<size_t>(host.in());
  most.resize(in, 0.0f);
  std::mutex mutex;
  const int64_t rows_at_once = 64;
  ThreadPool::shared(threads_)->parallel_for((host.out() + rows_at_once - 1) / rows_at_once, 1, [&](int64_t begin, int64_t end) {
    std::vector<float> values(in), own(in, 0.0f);
    for (int64_t row = begin * rows_at_once; row < std::min(end * rows_at_once, host.out()); ++row) {
      dequantize_row(host.weight.dtype, host.weight.rows(row, 1).data, host.in(), values.data());
      for (size_t i = 0; i < in; ++i) own[i] = std::max(own[i], std::fabs(values[i]));
    }
    const std::lock_guard lock(mutex);
    for (size_t i = 0; i < in; ++i) most[i] = std::max(most[i], own[i]);
  });
  return host;
}

Smoothing choose_smoothing(const ModelConfig& config, std::span<const std::vector<float>> input_maxima, const ColumnMaxima& weights,
                           double alpha, bool producers) {
  expect(alpha >= 0 && alpha <= 1, ErrorCode::invalid_argument, "smooth is ", alpha, ", must be from 0 to 1");
  std::vector<SiteDivisors> layers(static_cast<size_t>(config.num_layers));
  for (int64_t l = 0; l < config.num_layers; ++l) {
    for (int s = 0; s < kNumSites; ++s) {
      const auto site = static_cast<Site>(s);
      if (!producers && (site == Site::o_in || site == Site::down_in)) continue;
      std::vector<float> inputs = input_maxima[static_cast<size_t>(l * kNumSites + s)], columns = weights.at(l, site);
      if (site == Site::o_in) share_in_groups(config, inputs), share_in_groups(config, columns);
      std::vector<float>& by = layers[static_cast<size_t>(l)][static_cast<size_t>(s)];
      for (size_t i = 0; i < inputs.size(); ++i) {
        const double x = std::max<double>(inputs[i], kLeast), w = std::max<double>(columns[i], kLeast);
        by.push_back(static_cast<float>(std::pow(x, alpha) / std::pow(w, 1 - alpha)));
      }
    }
  }
  return Smoothing(config, std::move(layers));
}

}  // namespace lapidary
