// A small model with whole texts' logits, for evaluations to be compared with.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "compress/evaluate.h"
#include "cpu/backend.h"
#include "model/golden_checks.h"

namespace lapidary::test {

struct Measured {
  std::unique_ptr<Backend> backend;
  std::shared_ptr<const ModelWeights> weights;

  const ModelConfig& config() const { return weights->config; }
  Subject subject() const { return {*backend, *weights, Precision::f32, nullptr, nullptr, 2}; }
  // BOS and at most `window` tokens of the text from `first` on.
  std::vector<int32_t> with_bos(const TextIds& text, int64_t first, int64_t window) const {
    std::vector<int32_t> ids = {config().bos_id};
    for (int64_t t = first; t < std::min(first + window, static_cast<int64_t>(text.size())); ++t)
      ids.push_back(text[static_cast<size_t>(t)]);
    return ids;
  }
  std::vector<float> logits(std::span<const int32_t> ids) const {
    const auto tokens = static_cast<int64_t>(ids.size());
    return Runner(*backend, *weights, Precision::f32, tokens, tokens).append(ids);
  }
  std::span<const float> row(const std::vector<float>& logits, int64_t r) const {
    const auto vocab = static_cast<size_t>(config().vocab);
    return std::span(logits).subspan(static_cast<size_t>(r) * vocab, vocab);
  }
};

// "tiny": the model of the package; else a golden one.
inline Measured open_measured(const std::string& name, WeightsKind kind = WeightsKind::as_is) {
  Measured m{make_cpu_backend(2), nullptr};
  m.weights = load_weights(name == "tiny" ? std::string(LAPIDARY_SOURCE_DIR "/models/tiny") : golden(name), *m.backend, {}, {kind, 1});
  return m;
}

inline std::vector<int32_t> some_text(int64_t vocab, int64_t tokens, uint64_t seed) {
  std::vector<int32_t> ids;
  for (int64_t i = 0; i < tokens; ++i) {
    seed = seed * 6364136223846793005u + 1442695040888963407u;
    ids.push_back(static_cast<int32_t>((seed >> 33) % static_cast<uint64_t>(vocab)));
  }
  return ids;
}

}  // namespace lapidary::test
