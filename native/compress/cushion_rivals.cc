#include "compress/cushion_rivals.h"

#include <algorithm>
#include <cmath>
#include <map>

#include "base/error.h"
#include "base/float16.h"
#include "ops/int8.h"

namespace lapidary {

namespace {

int64_t longest(std::span<const TextIds> texts) {
  int64_t most = 1;
  for (const TextIds& text : texts) most = std::max(most, static_cast<int64_t>(text.size()));
  return most;
}

// The upper one of two in the middle.
template <typename T>
T median_of(std::vector<T> values) {
  const auto middle = values.begin() + static_cast<int64_t>(values.size() / 2);
  std::nth_element(values.begin(), middle, values.end());
  return *middle;
}

float row_maximum(const std::byte* row, DType dtype, int64_t width) {
  if (dtype == DType::f32) return absolute_max(reinterpret_cast<const float*>(row), width);
  float most = 0;
  for (int64_t i = 0; i < width; ++i) most = std::max(most, std::fabs(to_f32(reinterpret_cast<const bf16*>(row)[i])));
  return most;
}

}  // namespace

std::vector<int32_t> frequent_outliers(const Subject& subject, std::span<const TextIds> texts, double ratio, const EvaluationWatch& watch) {
  const ModelConfig& config = subject.weights.config;
  TextPass pass(subject.backend, subject.weights, {subject.precision, std::min<int64_t>(longest(texts) + 1, 512), nullptr, subject.turns});
  std::vector<int64_t> outliers(static_cast<size_t>(config.num_layers));
  std::map<int32_t, int64_t> frequency;
  std::vector<std::vector<float>> maxima(outliers.size());  // per layer, of the text's tokens
  std::vector<std::byte> raw;
  const SiteHook look = [&](int64_t layer, Site site, const Tensor& x) {
    if (site != Site::down_in) return;
    raw.resize(static_cast<size_t>(x.bytes()));
    subject.backend.download(raw.data(), x);
    for (int64_t r = 0; r < x.shape[0]; ++r)
      maxima[static_cast<size_t>(layer)].push_back(row_maximum(raw.data() + r * (x.bytes() / x.shape[0]), x.dtype, x.row_elements()));
  };
  int64_t done = 0;
  for (const TextIds& text : texts) {
    std::vector<int32_t> ids = {config.bos_id};
    ids.insert(ids.end(), text.begin(), text.end());
    for (std::vector<float>& layer : maxima) layer.clear();
    pass.run(ids, nullptr, {.sites = look, .stop = watch.stop});
    for (size_t l = 0; l < maxima.size(); ++l) {
      const double limit = ratio * median_of(maxima[l]);
      for (size_t t = 1; t < ids.size(); ++t) {
        if (!(maxima[l][t] > limit)) continue;
        ++outliers[l];
        ++frequency[ids[t]];
      }
    }
    if (watch.progress) watch.progress(++done, static_cast<int64_t>(texts.size()));
  }
  const int64_t most = *std::max_element(outliers.begin(), outliers.end()), count = static_cast<int64_t>(texts.size());
  std::vector<std::pair<int64_t, int32_t>> order;  // by falling frequency
  for (const auto& [id, times] : frequency)
    if (id != config.bos_id) order.push_back({-times, id});
  std::sort(order.begin(), order.end());
  std::vector<int32_t> tokens;
  for (const auto& [times, id] : order) {
    if (static_cast<int64_t>(tokens.size()) * count < most) tokens.push_back(id);
  }
  tokens.push_back(config.bos_id);
  return tokens;
}

double RandomPrefixes::median() const { return median_of(errors); }

RandomPrefixes random_prefixes(const Subject& subject, std::span<const TextIds> texts, int64_t count, int64_t size, CushionWindow window,
                               uint64_t seed, const EvaluationWatch& watch) {
  expect(count >= 1 && size >= 1, ErrorCode::invalid_argument, "random prefixes: at least one of at least one token");
  const ModelConfig& config = subject.weights.config;
  ExactError exact(subject, longest(texts));
  RandomPrefixes out;
  uint64_t state = seed;
  for (int64_t i = 0; i < count; ++i) {
    std::vector<int32_t>& tokens = out.tokens.emplace_back();
    while (static_cast<int64_t>(tokens.size()) < size) {
      state = state * 6364136223846793005u + 1442695040888963407u;
      const auto id = static_cast<int32_t>((state >> 33) % static_cast<uint64_t>(config.vocab));
      if (id != config.bos_id) tokens.push_back(id);
    }
    const Cushion cushion = exact.make(tokens, window);
    out.errors.push_back(exact.measure(&cushion, texts, watch.stop).total());
    if (watch.progress) watch.progress(i + 1, count);
  }
  return out;
}

}  // namespace lapidary
