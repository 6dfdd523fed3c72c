// What the engine tests share: golden models on a backend, an observer that records, a backend that can be watched.
#pragma once

#include <algorithm>
#include <chrono>
#include <condition_variable>
#include <cstring>
#include <functional>
#include <mutex>
#include <utility>

#include "check.h"
#include "cpu/backend.h"
#include "formats/safetensors.h"
#include "runtime/engine.h"

namespace lapidary::test {

// Sanitized builds are some twenty times slower: what is merely long is shorter there.
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
inline constexpr bool kSanitized = true;
#else
inline constexpr bool kSanitized = false;
#endif

inline const char* const kBackendNames[] = {"reference", "cpu"};

inline std::shared_ptr<Backend> backend_named(const std::string& name) {
  return name == "cpu" ? std::shared_ptr<Backend>(make_cpu_backend(2)) : std::shared_ptr<Backend>(make_reference_backend());
}

inline std::string tiny_model() { return LAPIDARY_SOURCE_DIR "/models/tiny"; }

struct Model {
  std::shared_ptr<Backend> backend;
  std::shared_ptr<const ModelWeights> weights;
  std::shared_ptr<const Tokenizer> tokenizer;

  std::unique_ptr<Engine> engine(const EngineOptions& options) const { return Engine::start(backend, weights, tokenizer, options); }
};

inline Model load_model(const std::string& folder, std::shared_ptr<Backend> backend) {
  Model m{std::move(backend), nullptr, nullptr};
  m.weights = load_weights(folder, *m.backend);
  if (folder == tiny_model()) m.tokenizer = Tokenizer::load(folder);
  return m;
}

// A golden model by name, f32 engine options with no prefix cache.
inline Model golden_model(const std::string& name, const std::string& backend) { return load_model(golden(name), backend_named(backend)); }

inline EngineOptions f32_options(int64_t chunk = 64) {
  EngineOptions o;
  o.precision = Precision::f32;
  o.prefill_chunk = chunk;
  o.max_batch_tokens = 2 * chunk;
  o.prefix_cache = 0;
  o.unread_tokens = 1000000;
  return o;
}

template <typename T>
std::vector<T> golden_values(const std::string& model, const std::string& tensor) {
  const TensorFile file = open_safetensors(golden(model + "/expected.safetensors"));
  const Tensor& t = file.tensors.at(tensor).view;
  std::vector<T> v(static_cast<size_t>(t.elements()));
  std::memcpy(v.data(), t.data, v.size() * sizeof(T));
  return v;
}

// Ids that look like text to nobody: any in the vocabulary but the first few special ones.
inline std::vector<int32_t> some_ids(size_t n, uint32_t seed, int32_t vocab = 512) {
  std::vector<int32_t> ids(n);
  uint64_t x = seed * 2654435761u + 1;
  for (int32_t& id : ids) {
    x = x * 6364136223846793005u + 1442695040888963407u;
    id = static_cast<int32_t>(4 + (x >> 33) % static_cast<uint64_t>(vocab - 4));
  }
  return ids;
}

inline std::vector<int32_t> joined(std::vector<int32_t> a, const std::vector<int32_t>& b) {
  a.insert(a.end(), b.begin(), b.end());
  return a;
}

// Everything one run told. `wait` blocks until it has ended.
class Recorder : public RunObserver {
 public:
  std::vector<int32_t> tokens;
  std::vector<float> logprobs;  // the chosen token's, then the likeliest ones', token after token
  std::string text;
  int text_only = 0;  // events without a token
  std::vector<std::vector<float>> scores;
  std::vector<std::vector<int32_t>> masks_wanted;
  Outcome outcome;
  std::exception_ptr error;
  std::function<void(Recorder&)> when_token, when_mask, when_finished;  // on the engine thread

  void on_tokens(std::span<TokenEvent> events) override {
    {
      const std::lock_guard lock(mutex_);
      for (TokenEvent& e : events) {
        text += e.text;
        if (e.id < 0) ++text_only;
        if (e.id < 0) continue;
        tokens.push_back(e.id);
        logprobs.push_back(e.logprob);
        for (const TokenLogprob& t : e.top) logprobs.push_back(t.logprob);
      }
    }
    changed_.notify_all();
    if (when_token) when_token(*this);
  }
  void on_mask_wanted(std::span<const int32_t> generated) override {
    {
      const std::lock_guard lock(mutex_);
      masks_wanted.emplace_back(generated.begin(), generated.end());
    }
    changed_.notify_all();
    if (when_mask) when_mask(*this);
  }
  void on_scores(std::vector<std::vector<float>> rows) override { scores = std::move(rows); }
  void on_finish(const Outcome& o) override {
    end([&] { outcome = o; });
  }
  void on_error(std::exception_ptr e) override {
    end([&] { error = e; });
  }

  // False after ten seconds.
  template <typename Condition>
  bool wait_until(const Condition& condition) {
    std::unique_lock lock(mutex_);
    return changed_.wait_for(lock, std::chrono::seconds(10), condition);
  }
  bool wait_for_tokens(size_t n) {
    return wait_until([&] { return tokens.size() >= n; });
  }
  size_t count() {
    const std::lock_guard lock(mutex_);
    return tokens.size();
  }
  bool has_ended() {
    const std::lock_guard lock(mutex_);
    return ended;
  }
  void wait() {
    std::unique_lock lock(mutex_);
    REQUIRE(changed_.wait_for(lock, std::chrono::seconds(120), [&] { return ended; }));
  }
  void wait_well() {
    wait();
    if (error) std::rethrow_exception(error);
  }
  bool ended = false;
  int endings = 0;

 private:
  template <typename Note>
  void end(const Note& note) {
    {
      const std::lock_guard lock(mutex_);
      note();
      ++endings;
    }
    if (when_finished) when_finished(*this);
    {
      const std::lock_guard lock(mutex_);
      ended = true;
    }
    changed_.notify_all();
  }

  std::mutex mutex_;
  std::condition_variable changed_;
};

struct Started {
  std::shared_ptr<Recorder> seen;
  std::shared_ptr<Run> run;
};

inline RunRequest greedy_request(std::vector<int32_t> prompt, int64_t max_tokens) {
  RunRequest r;
  r.prompt = std::move(prompt);
  r.sampling.temperature = 0;
  r.max_tokens = max_tokens;
  r.ignore_eos = true;
  r.top_logprobs = 5;
  return r;
}

inline RunRequest score_request(RunKind kind, std::vector<int32_t> prompt) {
  RunRequest r;
  r.kind = kind;
  r.prompt = std::move(prompt);
  return r;
}

inline Started start(Engine& engine, RunRequest request, std::shared_ptr<Recorder> recorder = std::make_shared<Recorder>()) {
  request.observer = recorder;
  auto run = engine.submit(std::move(request));
  return {std::move(recorder), std::move(run)};
}

// Runs to the end; errors are thrown.
inline std::shared_ptr<Recorder> run_to_end(Engine& engine, RunRequest request) {
  const Started s = start(engine, std::move(request));
  s.seen->wait_well();
  return s.seen;
}

template <typename T>
bool same_bits(const std::vector<T>& a, const std::vector<T>& b) {
  return a.size() == b.size() && (a.empty() || std::memcmp(a.data(), b.data(), a.size() * sizeof(T)) == 0);
}

// Same tokens and the same logits behind them, bit for bit.
inline bool same_run(const Recorder& a, const Recorder& b) {
  return !a.tokens.empty() && a.tokens == b.tokens && same_bits(a.logprobs, b.logprobs);
}

// Another backend's primitives with a hook before each; stages are the default ones.
class WatchedBackend final : public Backend {
 public:
  explicit WatchedBackend(std::shared_ptr<Backend> inner) : inner_(std::move(inner)) {}
  std::function<void(std::string_view primitive)> before;
  std::function<void(const Tensor& logits)> after_head;  // products as wide as `vocab`
  int64_t vocab = -1;

  std::string_view name() const override { return "watched"; }
  void embed(std::span<const int32_t> ids, const Linear& table, float scale, const Tensor& out) override {
    note("embed");
    inner_->embed(ids, table, scale, out);
  }
  void rms_norm(const Tensor& x, const Norm& norm, const Tensor& out) override { inner_->rms_norm(x, norm, out); }
  void linear(const Tensor& x, const Linear& w, const Tensor& out) override {
    note("linear");
    inner_->linear(x, w, out);
    if (after_head && w.out() == vocab) after_head(out);
  }
  void quantize_rows(const Tensor& x, float fixed_scale, const Tensor& q, const Tensor& scales) override {
    inner_->quantize_rows(x, fixed_scale, q, scales);
  }
  void matmul_int8(const Tensor& x, const Tensor& x_scales, const Linear& w, const Tensor& out) override {
    inner_->matmul_int8(x, x_scales, w, out);
  }
  void rope_angles(std::span<const int32_t> positions, std::span<const float> inv_freq, const Tensor& cos, const Tensor& sin) override {
    inner_->rope_angles(positions, inv_freq, cos, sin);
  }
  void rope(const Tensor& x, const Tensor& cos, const Tensor& sin) override { inner_->rope(x, cos, sin); }
  void append_kv(const Tensor& k, const Tensor& v, std::span<const AttentionSpan> spans, const AttentionShape& shape) override {
    inner_->append_kv(k, v, spans, shape);
  }
  void attention(const Tensor& q, std::span<const AttentionSpan> spans, const AttentionShape& shape, const Tensor& out) override {
    note("attention");
    inner_->attention(q, spans, shape, out);
  }
  void geglu(const Tensor& gate, const Tensor& up, const Tensor& out) override { inner_->geglu(gate, up, out); }
  void add(const Tensor& x, const Tensor& y) override { inner_->add(x, y); }
  void soft_cap(const Tensor& x, float cap) override { inner_->soft_cap(x, cap); }
  void gather_rows(const Tensor& x, std::span<const int32_t> rows, const Tensor& out) override { inner_->gather_rows(x, rows, out); }

 private:
  void note(std::string_view primitive) {
    if (before) before(primitive);
  }
  std::shared_ptr<Backend> inner_;
};

}  // namespace lapidary::test
