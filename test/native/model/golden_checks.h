// Checks of a backend against the golden text checkpoints: logits, hidden states, greedy text, bf16 error, and the invariances (chunks,
// rings, company) that the engine relies on. A backend is named as make_backend (runner.h) knows it.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstring>

#include "check.h"
#include "formats/safetensors.h"
#include "model/runner.h"
#include "tensor/blocks.h"

namespace lapidary::test {

inline const char* const kModels[] = {"gemma2-tiny", "gemma3-tiny", "gemma3-head256"};
inline constexpr double kLogitsTolerance = 1e-4;
inline constexpr size_t kReferenceTokens = 72;  // plain loops are slow; enough to wrap a ring of one page

class Expected {
 public:
  explicit Expected(const std::string& folder, const std::string& file = "expected.safetensors")
      : file_(open_safetensors(golden(folder) + "/" + file)) {}

  bool has(const std::string& name) const { return file_.tensors.contains(name); }
  const Tensor& view(const std::string& name) const { return file_.tensors.at(name).view; }
  std::vector<float> floats(const std::string& name) const {
    std::vector<float> values(static_cast<size_t>(view(name).elements()));
    dequantize_row(view(name).dtype, view(name).data, view(name).elements(), values.data());
    return values;
  }
  std::vector<int32_t> ids(const std::string& name) const {
    std::vector<int32_t> values(static_cast<size_t>(view(name).elements()));
    std::memcpy(values.data(), view(name).data, values.size() * sizeof(int32_t));
    return values;
  }
  std::vector<std::string> cases() const {
    std::vector<std::string> names;
    for (int i = 0; has("case" + std::to_string(i) + ".ids"); ++i) names.push_back("case" + std::to_string(i));
    return names;
  }

 private:
  TensorFile file_;
};

struct Loaded {
  std::unique_ptr<Backend> backend;
  std::shared_ptr<const ModelWeights> weights;
};

inline Loaded load(const std::string& path, const std::string& backend) {
  Loaded model{make_backend(backend), nullptr};
  model.weights = load_weights(path, *model.backend);
  return model;
}

inline std::vector<float> logits_of(const Loaded& model, Precision precision, std::span<const int32_t> ids, int64_t chunk = 0,
                                    bool ring = false) {
  const auto tokens = static_cast<int64_t>(ids.size());
  return Runner(*model.backend, *model.weights, precision, tokens, chunk == 0 ? tokens : chunk, ring).append(ids);
}

inline bool same_bits(const std::vector<float>& a, const std::vector<float>& b) {
  return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0;
}

inline double log_sum(std::span<const float> row) {
  const double high = *std::max_element(row.begin(), row.end());
  double sum = 0;
  for (float v : row) sum += std::exp(v - high);
  return high + std::log(sum);
}

inline double nats_of(std::span<const float> logits, int32_t id) { return log_sum(logits) - logits[static_cast<size_t>(id)]; }

// Mean over rows of KL(softmax(p) || softmax(q)).
inline double mean_kl(std::span<const float> p, std::span<const float> q, size_t vocab) {
  double total = 0;
  for (size_t at = 0; at < p.size(); at += vocab) {
    const auto rp = p.subspan(at, vocab), rq = q.subspan(at, vocab);
    const double lp = log_sum(rp), lq = log_sum(rq);
    for (size_t i = 0; i < vocab; ++i) total += std::exp(rp[i] - lp) * ((rp[i] - lp) - (rq[i] - lq));
  }
  return total / static_cast<double>(p.size() / vocab);
}

inline void check_logits(const std::string& name, const std::string& backend) {
  const Expected expected(name);
  const Loaded model = load(golden(name), backend);
  REQUIRE(!expected.cases().empty());
  for (const std::string& c : expected.cases()) {
    const std::vector<float> got = logits_of(model, Precision::f32, expected.ids(c + ".ids"));
    const double error = relative_error(got, expected.floats(c + ".logits_f32"));
    CHECK_MSG(error <= kLogitsTolerance, name << " " << c << " on " << backend << ": relative error " << error);
  }
}

inline void check_hidden(const std::string& name, const std::string& backend) {
  const Expected expected(name);
  const Loaded model = load(golden(name), backend);
  const std::vector<int32_t> ids = expected.ids("case2.ids");
  int64_t seen = 0;
  const auto observe = [&](int64_t l, const Tensor& x) {
    CHECK(l == seen++);
    std::vector<float> got(static_cast<size_t>(x.elements()));
    model.backend->download(got.data(), x);
    const double error = relative_error(got, expected.floats("case2.hidden" + std::to_string(l)));
    CHECK_MSG(error <= kLogitsTolerance, name << " hidden " << l << " on " << backend << ": relative error " << error);
  };
  const auto tokens = static_cast<int64_t>(ids.size());
  const std::vector<float> observed = Runner(*model.backend, *model.weights, Precision::f32, tokens, tokens).append(ids, observe);
  CHECK(seen == model.weights->config.num_layers + 1);
  CHECK_MSG(same_bits(observed, logits_of(model, Precision::f32, ids)), "watching must not change the logits");
}

inline void check_greedy(const std::string& name, const std::string& backend) {
  const Expected expected(name);
  const Loaded model = load(golden(name), backend);
  const std::vector<int32_t> prompt = expected.ids("greedy.prompt"), want = expected.ids("greedy.continuation");
  Runner runner(*model.backend, *model.weights, Precision::f32, static_cast<int64_t>(prompt.size() + want.size()), 16, /*ring=*/true);
  CHECK_MSG(runner.greedy(prompt, want.size()) == want, name << " on " << backend);
}

inline void check_bf16(const std::string& name, const std::string& backend) {
  const Expected expected(name);
  const Loaded model = load(golden(name), backend);
  const auto vocab = static_cast<size_t>(model.weights->config.vocab);
  for (const std::string& c : expected.cases()) {
    const std::vector<float> truth = expected.floats(c + ".logits_f32");
    const double ours = mean_kl(truth, logits_of(model, Precision::bf16, expected.ids(c + ".ids")), vocab);
    const double theirs = mean_kl(truth, expected.floats(c + ".logits_bf16"), vocab);
    CHECK_MSG(ours <= 1.5 * theirs + 1e-6, name << " " << c << " on " << backend << ": KL " << ours << ", the reference's own " << theirs);
    CHECK_MSG(ours > 0, "bf16 must differ from f32");
  }
}

inline void check_chunks(const std::string& name, const std::string& backend) {
  const Expected expected(name);
  const Loaded model = load(golden(name), backend);
  std::vector<int32_t> ids = expected.ids(expected.cases().back() + ".ids");
  if (backend == "reference") ids.resize(std::min(ids.size(), kReferenceTokens));
  for (const Precision precision : {Precision::f32, Precision::bf16}) {
    const std::vector<float> whole = logits_of(model, precision, ids);
    for (const int64_t chunk : {1, 7, 64}) {
      CHECK_MSG(same_bits(whole, logits_of(model, precision, ids, chunk)), name << " on " << backend << ", chunks of " << chunk);
      CHECK_MSG(same_bits(whole, logits_of(model, precision, ids, chunk, /*ring=*/true)),
                name << " on " << backend << ", ring, chunks of " << chunk);
    }
  }
}

// Logits are causal, so the golden rows of a long case are the truth for every shorter length.
inline void check_window_lengths(const std::string& name, const std::string& backend) {
  const Expected expected(name);
  const Loaded model = load(golden(name), backend);
  const std::string longest = expected.cases().back();
  const std::vector<int32_t> ids = expected.ids(longest + ".ids");
  const std::vector<float> truth = expected.floats(longest + ".logits_f32");
  const int64_t window = model.weights->config.layers[0].window;
  REQUIRE(model.weights->config.layers[0].is_local());
  for (const int64_t length : {int64_t{1}, window - 1, window, window + 1, 2 * window, 5 * window + 3}) {
    if (length > static_cast<int64_t>(ids.size())) continue;
    const std::span<const int32_t> part(ids.data(), static_cast<size_t>(length));
    const std::vector<float> whole = logits_of(model, Precision::f32, part);
    const double error = relative_error(whole, std::span(truth).first(whole.size()));
    CHECK_MSG(error <= kLogitsTolerance, name << " on " << backend << ", " << length << " tokens: relative error " << error);
    CHECK_MSG(same_bits(whole, logits_of(model, Precision::f32, part, 1, /*ring=*/true)),
              name << " on " << backend << ", " << length << " tokens, one by one");
  }
}

// Three sequences in one step, at different positions, give what each gives alone.
inline void check_company(const Loaded& model, std::span<const int32_t> ids, Precision precision, const std::string& label) {
  const ModelConfig& config = model.weights->config;
  const auto tokens = static_cast<int64_t>(ids.size());
  StepScratch scratch(*model.backend, config, precision, 3 * tokens, 3 * tokens);
  std::vector<TestCache> caches;
  std::vector<StepSpan> spans;
  std::vector<int32_t> all_ids, positions, logit_rows;
  const DType kv = precision == Precision::bf16 ? DType::bf16 : DType::f32;
  for (int64_t s = 0; s < 3; ++s) caches.emplace_back(*model.backend, config, kv, tokens);
  for (int64_t s = 0; s < 3; ++s) {
    const int64_t rows = tokens - s;  // of different lengths
    spans.push_back({static_cast<int64_t>(all_ids.size()), rows, 0, caches[static_cast<size_t>(s)].views()});
    for (int64_t r = 0; r < rows; ++r)
      all_ids.push_back((ids[static_cast<size_t>(r)] + static_cast<int32_t>(s)) % static_cast<int32_t>(config.vocab)),
          positions.push_back(static_cast<int32_t>(r));
    logit_rows.push_back(static_cast<int32_t>(all_ids.size()) - 1);
  }
  const Tensor together = forward(*model.backend, *model.weights, {all_ids, positions, spans, logit_rows}, scratch);
  CHECK(together.shape[0] == 3);
  for (size_t s = 0; s < 3; ++s) {
    const std::span<const int32_t> own(all_ids.data() + spans[s].first_row, static_cast<size_t>(spans[s].rows));
    const std::vector<float> alone = logits_of(model, precision, own);
    std::vector<float> row(static_cast<size_t>(config.vocab));
    model.backend->download(row.data(), together.rows(static_cast<int64_t>(s), 1));
    CHECK_MSG(same_bits(row, {alone.end() - config.vocab, alone.end()}), label << " on " << model.backend->name() << ", sequence " << s);
  }
}
inline void check_company(const std::string& name, const std::string& backend) {
  check_company(load(golden(name), backend), Expected(name).ids("case1.ids"), Precision::f32, name);
}

}  // namespace lapidary::test
