#include "compress/activations.h"

#include <algorithm>
#include <functional>

#include "base/error.h"
#include "base/float16.h"

namespace lapidary {

int64_t site_width(const ModelConfig& config, Site site) {
  switch (site) {
    case Site::o_in:
      return config.q_width();
    case Site::down_in:
      return config.ffn;
    default:
      return config.hidden;
  }
}

Activations collect_activations(const Subject& subject, std::span<const TextIds> texts, int64_t window, const EvaluationWatch& watch,
                                const ChannelDivisors& divisors) {
  const ModelConfig& config = subject.weights.config;
  expect(window >= 1, ErrorCode::invalid_argument, "window is ", window, ", must be at least 1");
  Activations out;
  for (int64_t l = 0; l < config.num_layers; ++l)
    for (int s = 0; s < kNumSites; ++s) out.sites.emplace_back(site_width(config, static_cast<Site>(s)));

  const std::vector<int32_t> opening = subject.opening();
  const auto before = static_cast<int64_t>(opening.size());
  TextPass pass(subject.backend, subject.weights, subject.pass_options(std::min<int64_t>(window + before, 512)));
  int64_t text_index = 0, window_first = 0, step_first = 0, total = 0, done = 0;
  std::span<const int32_t> ids;
  std::vector<std::byte> raw;
  std::vector<float> row;
  const SiteHook look = [&](int64_t layer, Site site, const Tensor& x) {
    const int64_t rows = x.shape[0], width = x.row_elements();
    raw.resize(static_cast<size_t>(x.bytes()));
    subject.backend.download(raw.data(), x);
    row.resize(static_cast<size_t>(width));
    SiteStatistics& sums = out.sites[static_cast<size_t>(layer * kNumSites + static_cast<int>(site))];
    const std::span<const float> by = divisors ? divisors(layer, site) : std::span<const float>();
    for (int64_t r = 0; r < rows; ++r) {
      const std::byte* from = raw.data() + static_cast<size_t>(r) * raw.size() / static_cast<size_t>(rows);
      std::span<const float> values(reinterpret_cast<const float*>(from), row.size());
      if (x.dtype == DType::bf16) {
        const auto* halves = reinterpret_cast<const bf16*>(from);
        std::transform(halves, halves + width, row.begin(), [](bf16 half) { return to_f32(half); });
        values = row;
      }
      if (!by.empty()) {
        std::transform(values.begin(), values.end(), by.begin(), row.begin(), std::divides<>());
        values = row;
      }
      const int64_t at = step_first + r;
      sums.add(values, {text_index, at < before ? -1 : window_first + at - before, ids[static_cast<size_t>(at)], 0, 0});
    }
    // Sites come layer by layer: the last of all ends a step.
    if (layer + 1 == config.num_layers && site == Site::down_in) step_first += rows;
  };
  for (const TextIds& text : texts) total += static_cast<int64_t>(text.size());
  for (const TextIds& text : texts) {
    const auto length = static_cast<int64_t>(text.size());
    for (window_first = 0; window_first < length; window_first += window) {
      const auto piece =
          std::span(text).subspan(static_cast<size_t>(window_first), static_cast<size_t>(std::min(window, length - window_first)));
      TextIds opened = opening;
      opened.insert(opened.end(), piece.begin(), piece.end());
      ids = opened;
      step_first = 0;
      pass.run(ids, nullptr, {.sites = look, .stop = watch.stop});
      out.rows += static_cast<int64_t>(ids.size());
      done += static_cast<int64_t>(piece.size());
      if (watch.progress) watch.progress(done, total);
      expect(!watch.stop || !watch.stop(), ErrorCode::aborted, "the evaluation was stopped");
    }
    ++text_index;
  }
  return out;
}

}  // namespace lapidary
