// Runs a model in tests without the engine: one sequence, a cache of its own, chunks of any size.
#pragma once

#include <algorithm>
#include <functional>
#include <map>
#include <memory>
#include <numeric>
#include <span>
#include <string>
#include <vector>

#include "cpu/backend.h"
#include "model/forward.h"
#include "model/weights.h"
#include "ops/ops.h"

namespace lapidary::test {

// "reference", "cpu", and what the test program adds.
inline std::map<std::string, std::function<std::unique_ptr<Backend>()>>& backend_makers() {
  static std::map<std::string, std::function<std::unique_ptr<Backend>()>> makers = {{"reference", [] { return make_reference_backend(); }},
                                                                                    {"cpu", [] { return make_cpu_backend(2); }}};
  return makers;
}
inline std::unique_ptr<Backend> make_backend(const std::string& name) { return backend_makers().at(name)(); }

// Pages of one sequence. `ring_chunk` 0: every position has its own row in every layer; else local layers get the fewest pages
// that serve chunks of that size.
class TestCache {
 public:
  TestCache(Backend& backend, const ModelConfig& config, DType dtype, int64_t context, int64_t ring_chunk = 0) {
    const int64_t page_elements = 2 * config.num_kv_heads * kPageTokens * config.head_dim;
    pages_.resize(config.layers.size());
    for (size_t l = 0; l < config.layers.size(); ++l) {
      int64_t positions = context;
      if (ring_chunk > 0 && config.layers[l].is_local())
        positions = std::min(context, config.layers[l].window - 1 + ring_chunk + kPageTokens - 1);
      const int64_t count = (positions + kPageTokens - 1) / kPageTokens;
      for (int64_t p = 0; p < count; ++p) {
        owned_.push_back(backend.allocate(static_cast<size_t>(dtype_bytes(dtype, page_elements))));
        pages_[l].push_back(owned_.back().memory.get());
      }
      views_.push_back({dtype, pages_[l].data(), count});
    }
  }
  std::span<const KvView> views() const { return views_; }

 private:
  std::vector<Buffer> owned_;
  std::vector<std::vector<void*>> pages_;
  std::vector<KvView> views_;
};

class Runner {
 public:
  Runner(Backend& backend, const ModelWeights& weights, Precision precision, int64_t context, int64_t chunk, bool ring = false)
      : backend_(backend),
        weights_(weights),
        scratch_(backend, weights.config, precision, chunk, chunk),
        chunk_(chunk),
        cache_(backend, weights.config, precision == Precision::bf16 ? DType::bf16 : DType::f32, context, ring ? chunk : 0) {}

  // Appends ids, chunk by chunk; returns their logits, row after row.
  std::vector<float> append(std::span<const int32_t> ids, const HiddenObserver& observe = {}, const std::function<bool()>& stop = {}) {
    std::vector<float> all;
    for (size_t at = 0; at < ids.size(); at += static_cast<size_t>(chunk_)) {
      const std::span<const int32_t> part = ids.subspan(at, std::min(ids.size() - at, static_cast<size_t>(chunk_)));
      const auto rows = static_cast<int64_t>(part.size());
      std::vector<int32_t> positions(part.size()), logit_rows(part.size());
      std::iota(positions.begin(), positions.end(), static_cast<int32_t>(length_));
      std::iota(logit_rows.begin(), logit_rows.end(), 0);
      const StepSpan span = {0, rows, length_, cache_.views()};
      const Tensor logits =
          forward(backend_, weights_, {part, positions, {&span, 1}, logit_rows}, scratch_, {.hidden = observe, .stop = stop});
      all.resize(all.size() + static_cast<size_t>(logits.elements()));
      backend_.download(all.data() + all.size() - static_cast<size_t>(logits.elements()), logits);
      length_ += rows;
    }
    return all;
  }

  std::vector<int32_t> greedy(std::span<const int32_t> prompt, size_t tokens) {
    std::vector<int32_t> out;
    std::vector<float> logits = append(prompt);
    while (true) {
      const auto last = logits.end() - static_cast<std::ptrdiff_t>(weights_.config.vocab);
      out.push_back(static_cast<int32_t>(std::max_element(last, logits.end()) - last));
      if (out.size() == tokens) return out;
      logits = append({&out.back(), 1});
    }
  }

 private:
  Backend& backend_;
  const ModelWeights& weights_;
  StepScratch scratch_;
  int64_t chunk_, length_ = 0;
  TestCache cache_;
};

}  // namespace lapidary::test
