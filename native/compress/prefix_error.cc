#include "compress/prefix_error.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <limits>
#include <numeric>

#include "base/error.h"
#include "base/float16.h"
#include "base/thread_pool.h"
#include "ops/int8.h"

namespace lapidary {

namespace {

constexpr double kInfinity = std::numeric_limits<double>::infinity();

float widen(float x) { return x; }
float widen(bf16 x) { return to_f32(x); }

// As bits, magnitudes compare like integers, and what is not finite is largest.
template <typename T>
float largest(const T* x, int64_t n) {
  uint32_t most = 0;
  for (int64_t i = 0; i < n; ++i) most = std::max(most, std::bit_cast<uint32_t>(widen(x[i])) & 0x7fffffffu);
  return std::bit_cast<float>(most);
}

template <typename T>
double squares(const T* x, int64_t n) {
  double sums[8] = {};
  int64_t i = 0;
  for (; i + 8 <= n; i += 8)
    for (int j = 0; j < 8; ++j) sums[j] += static_cast<double>(widen(x[i + j])) * widen(x[i + j]);
  for (; i < n; ++i) sums[0] += static_cast<double>(widen(x[i])) * widen(x[i]);
  return std::accumulate(sums, sums + 8, 0.0);
}

template <typename T>
double rounding_error(const T* x, int64_t n, float scale) {
  const float inverse = 1.0f / scale;
  double sum = 0;
  for (int64_t i = 0; i < n; ++i) {
    const float value = widen(x[i]);
    const double apart = static_cast<double>(value) - static_cast<float>(to_int8(value * inverse)) * scale;
    sum += apart * apart;
  }
  return sum;
}

// Calls body with x as its element type.
template <typename Body>
auto typed(const std::byte* x, DType dtype, const Body& body) {
  return dtype == DType::bf16 ? body(reinterpret_cast<const bf16*>(x)) : body(reinterpret_cast<const float*>(x));
}

double surrogate(const std::byte* x, DType dtype, int64_t n) {
  return typed(x, dtype, [&](const auto* values) {
    const float most = largest(values, n);
    if (!std::isfinite(most)) return kInfinity;
    const double scale = int8_scale(most);
    return std::min(static_cast<double>(n) * scale * scale / 12, squares(values, n));
  });
}

bool holds(std::span<const int32_t> ids, int32_t id) { return std::find(ids.begin(), ids.end(), id) != ids.end(); }

}  // namespace

double SiteErrors::total() const { return std::accumulate(sites.begin(), sites.end(), 0.0); }

void SiteErrors::add(const SiteErrors& other) {
  if (sites.empty()) sites.resize(other.sites.size());
  for (size_t i = 0; i < sites.size(); ++i) sites[i] += other.sites[i];
}

ExactError::ExactError(const Subject& subject, int64_t longest)
    : subject_(subject),
      chunk_(std::min<int64_t>(longest + 1, 1024)),
      pass_(subject.backend, subject.weights, {subject.precision, chunk_, nullptr, subject.turns}),
      maker_(subject.backend, subject.weights, {Precision::f32, 64, nullptr, subject.turns}) {}

Cushion ExactError::make(std::span<const int32_t> tokens, CushionWindow window) {
  maker_.run(tokens, nullptr);
  return maker_.to_cushion(window);
}

// A text in one step is looked at once; longer ones twice, since errors need the scale of the whole.
void ExactError::gather(const std::vector<int32_t>& ids, const std::function<bool()>& stop) {
  const bool at_once = static_cast<int64_t>(ids.size()) <= chunk_;
  std::fill(absmax_.begin(), absmax_.end(), 0.0f);
  std::fill(errors_.begin(), errors_.end(), 0.0);
  const auto look = [&](bool ranges, bool errors) {
    return [this, ranges, errors](int64_t layer, Site site, const Tensor& x) {
      raw_.resize(static_cast<size_t>(x.bytes()));
      subject_.backend.download(raw_.data(), x);
      const auto at = static_cast<size_t>(layer * kNumSites + static_cast<int>(site));
      typed(raw_.data(), x.dtype, [&](const auto* values) {
        if (ranges) {
          const float most = largest(values, x.elements());
          if (!(most <= absmax_[at])) absmax_[at] = most;
        }
        if (errors) errors_[at] += std::isfinite(absmax_[at]) ? rounding_error(values, x.elements(), int8_scale(absmax_[at])) : kInfinity;
      });
    };
  };
  pass_.run(ids, nullptr, {.sites = look(true, at_once), .stop = stop});
  if (!at_once) pass_.run(ids, nullptr, {.sites = look(false, true), .stop = stop});
}

SiteErrors ExactError::measure(const Cushion* cushion, std::span<const TextIds> texts, const std::function<bool()>& stop) {
  const auto sites = static_cast<size_t>(subject_.weights.config.num_layers * kNumSites);
  SiteErrors sums{std::vector<double>(sites)};
  absmax_.resize(sites);
  errors_.resize(sites);
  pass_.use_cushion(cushion);
  Subject opened = subject_;
  opened.cushion = cushion;
  for (const TextIds& text : texts) {
    std::vector<int32_t> ids = opened.opening();
    ids.insert(ids.end(), text.begin(), text.end());
    gather(ids, stop);
    sums.add({errors_});
  }
  return sums;
}

// Two more rows than the text: the candidate and BOS.
CandidatePass::CandidatePass(const Subject& subject, int64_t longest, int64_t rows)
    : subject_(subject),
      longest_(longest + 2),
      rows_(std::max(rows, longest + 2)),
      scratch_(subject.backend, subject.weights.config, subject.precision, rows_, 1),
      pool_(subject.backend, subject.weights.config, subject.precision == Precision::f32 ? DType::f32 : DType::bf16, 0) {}

CandidatePass::~CandidatePass() {
  const TurnLock::Hold turn(subject_.turns);
  prefix_cache_ = nullptr;
}

int64_t CandidatePass::batch(int64_t text_tokens) const { return std::max<int64_t>(rows_ / (text_tokens + 2), 1); }

void CandidatePass::run(const std::vector<int32_t>& ids, const std::vector<std::unique_ptr<KvCache>>& caches,
                        std::span<const int64_t> lengths, const StepWatch& watch) {
  std::vector<StepSpan> spans;
  std::vector<int32_t> positions;
  int64_t row = 0;
  for (size_t i = 0; i < caches.size(); ++i) {
    caches[i]->reserve(lengths[i]);
    spans.push_back({row, lengths[i], caches[i]->length(), caches[i]->views()});
    for (int64_t t = 0; t < lengths[i]; ++t) positions.push_back(static_cast<int32_t>(caches[i]->length() + t));
    row += lengths[i];
  }
  forward(subject_.backend, subject_.weights, {ids, positions, spans, {}}, scratch_, watch);
}

void CandidatePass::use_prefix(std::span<const int32_t> tokens) {
  const TurnLock::Hold turn(subject_.turns);
  expect(!subject_.turns || !subject_.turns->ending(), ErrorCode::disposed, "the model is closed");
  expect(static_cast<int64_t>(tokens.size()) <= rows_, ErrorCode::internal, "a prefix longer than a step");
  prefix_.assign(tokens.begin(), tokens.end());
  prefix_cache_ = nullptr;
  if (tokens.empty()) return;
  std::vector<std::unique_ptr<KvCache>> one;
  const auto count = static_cast<int64_t>(tokens.size());
  one.push_back(std::make_unique<KvCache>(pool_, subject_.weights.config, std::max(longest_, count)));
  run(prefix_, one, {&count, 1}, {});
  one[0]->advance(count);
  prefix_cache_ = std::move(one[0]);
}

void CandidatePass::score(std::span<const int32_t> candidates, std::span<const int32_t> text, int64_t layers, std::span<double> out,
                          const std::function<bool()>& stop) {
  const auto most = static_cast<size_t>(batch(static_cast<int64_t>(text.size())));
  for (size_t first = 0; first < candidates.size(); first += most) {
    const size_t count = std::min(most, candidates.size() - first);
    step(candidates.subspan(first, count), text, layers, out.subspan(first, count), stop);
  }
}

void CandidatePass::step(std::span<const int32_t> candidates, std::span<const int32_t> text, int64_t layers, std::span<double> out,
                         const std::function<bool()>& stop) {
  const TurnLock::Hold turn(subject_.turns);
  expect(!subject_.turns || !subject_.turns->ending(), ErrorCode::disposed, "the model is closed");
  const ModelConfig& config = subject_.weights.config;
  const bool has_bos = holds(prefix_, config.bos_id);
  std::vector<int32_t> ids;
  std::vector<int64_t> lengths, first_text;  // rows of each sequence, and the first of them that is text
  std::vector<std::unique_ptr<KvCache>> caches;
  for (const int32_t candidate : candidates) {
    const size_t begun = ids.size();
    if (candidate != kNone) ids.push_back(candidate);
    first_text.push_back(static_cast<int64_t>(ids.size()));
    if (!has_bos && candidate != config.bos_id) ids.push_back(config.bos_id);
    ids.insert(ids.end(), text.begin(), text.end());
    lengths.push_back(static_cast<int64_t>(ids.size() - begun));
    caches.push_back(prefix_cache_ ? prefix_cache_->fork() : std::make_unique<KvCache>(pool_, config, longest_));
  }
  std::fill(out.begin(), out.end(), 0.0);
  bool enough = false;
  const std::shared_ptr<ThreadPool> threads = ThreadPool::shared(std::max(subject_.threads, 1));
  const SiteHook look = [&](int64_t layer, Site site, const Tensor& x) {
    raw_.resize(static_cast<size_t>(x.bytes()));
    subject_.backend.download(raw_.data(), x);
    const int64_t row_bytes = x.bytes() / x.shape[0];
    threads->parallel_for(static_cast<int64_t>(candidates.size()), 1, [&](int64_t begin, int64_t end) {
      for (auto i = static_cast<size_t>(begin); i < static_cast<size_t>(end); ++i) {
        const int64_t rows = lengths[i] - (candidates[i] != kNone);
        out[i] += surrogate(raw_.data() + first_text[i] * row_bytes, x.dtype, rows * x.row_elements());
      }
    });
    enough = layer + 1 == layers && site == Site::down_in;
  };
  const auto ending = [&] { return enough || (stop && stop()) || (subject_.turns && subject_.turns->ending()); };
  try {
    run(ids, caches, lengths, {.sites = look, .stop = ending});
  } catch (const Error& error) {
    if (error.code() != ErrorCode::aborted || !enough) throw;
  }
}

}  // namespace lapidary
