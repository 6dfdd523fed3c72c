#include "runtime/text_pass.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "base/error.h"

namespace lapidary {

namespace {

constexpr int64_t kLogitBytes = int64_t{64} << 20;

int64_t logit_rows(const ModelConfig& config, int64_t chunk) {
  return std::clamp<int64_t>(kLogitBytes / (config.vocab * static_cast<int64_t>(sizeof(float))), 1, chunk);
}

}  // namespace

TextPass::TextPass(Backend& backend, const ModelWeights& weights, const TextPassOptions& options)
    : backend_(backend),
      weights_(weights),
      options_(options),
      scratch_(backend, weights.config, options.precision, options.chunk, logit_rows(weights.config, options.chunk)),
      pool_(backend, weights.config, options.kv.value_or(kv_dtype(options.precision)), 0) {
  use_cushion(options.cushion);
}

void TextPass::use_cushion(const Cushion* cushion) {
  const TurnLock::Hold turn(options_.turns);
  scratch_.use_cushion(backend_, weights_.config, cushion);
}

void TextPass::begin() {
  ids_.clear();
  marked_ = nullptr;
  cache_ = std::make_unique<KvCache>(pool_, weights_.config, options_.chunk);
}

void TextPass::mark() {
  marked_ = cache_->fork();
  marked_tokens_ = ids_.size();
}

void TextPass::back() {
  expect(marked_ != nullptr, ErrorCode::internal, "back: no text was marked");
  cache_ = marked_->fork();
  ids_.resize(marked_tokens_);
}

void TextPass::append(std::span<const int32_t> ids, const LogitsSink& sink, const StepWatch& watch, int64_t wanted) {
  const ModelConfig& config = weights_.config;
  expect(cache_ != nullptr, ErrorCode::internal, "append: no text was begun");
  const int64_t before = scratch_.cushion ? scratch_.cushion->tokens : 0, begun = length();
  const int64_t tokens = begun + static_cast<int64_t>(ids.size());
  expect(!ids.empty(), ErrorCode::invalid_argument, "the text has no tokens");
  expect(tokens + before <= config.max_positions, ErrorCode::invalid_argument, "the text has ", tokens, " tokens, the model was made for ",
         config.max_positions - before);
  for (int32_t id : ids)
    expect(id >= 0 && id < config.vocab, ErrorCode::invalid_argument, "token id ", id, " is outside the vocabulary of ", config.vocab);
  ids_.insert(ids_.end(), ids.begin(), ids.end());
  for (int64_t first = begun, count = 0; first < tokens; first += count) {
    count = part_rows(tokens - first);
    step(ids.subspan(static_cast<size_t>(first - begun), static_cast<size_t>(count)), first, watch);
    for (int64_t at = std::max<int64_t>(wanted - first, 0); sink && at < count; at += scratch_.max_logit_rows) {
      sink(first + at, logits(first + at, std::min(scratch_.max_logit_rows, count - at)));
    }
  }
}

// Of `left` tokens: a chunk, but for precision int8 less of one where it would leave too short a span.
int64_t TextPass::part_rows(int64_t left) const {
  const int64_t rows = std::min(options_.chunk, left), behind = left - rows;
  const bool too_few = options_.precision == Precision::int8 && behind > 0 && behind < kLongSpan;
  return too_few && left >= 2 * kLongSpan ? left - kLongSpan : rows;
}

// The scratch is this pass's own: where it lies on the host, nothing is copied.
Tensor TextPass::logits(int64_t first, int64_t rows) {
  expect(first >= step_first_ && first + rows <= length() && rows <= max_logit_rows(), ErrorCode::internal, "logits of rows ", first,
         " to ", first + rows, ": the last step has ", step_first_, " to ", length(), ", and ", max_logit_rows(), " are given at once");
  const TurnLock::Hold turn(options_.turns);
  check_open();
  std::vector<int32_t> in_step(static_cast<size_t>(rows));
  std::iota(in_step.begin(), in_step.end(), static_cast<int32_t>(first - step_first_));
  const Tensor logits = step_logits(backend_, weights_, in_step, scratch_);
  if (logits.device == Device::host) return logits;
  host_logits_.resize(static_cast<size_t>(logits.elements()));
  backend_.download(host_logits_.data(), logits);
  return Tensor(host_logits_.data(), DType::f32, {logits.shape[0], logits.shape[1]});
}

void TextPass::check_open() const { expect(!options_.turns || !options_.turns->ending(), ErrorCode::disposed, "the model is closed"); }

void TextPass::step(std::span<const int32_t> ids, int64_t first, const StepWatch& watch) {
  const TurnLock::Hold turn(options_.turns);
  check_open();
  const auto count = static_cast<int64_t>(ids.size());
  cache_->reserve(count);
  std::vector<int32_t> positions(ids.size());
  std::iota(positions.begin(), positions.end(), static_cast<int32_t>(first));
  const StepSpan span = {0, count, first, cache_->views()};
  StepWatch watched = watch;
  if (options_.turns) watched.stop = [&] { return options_.turns->ending() || (watch.stop && watch.stop()); };
  try {
    forward(backend_, weights_, {ids, positions, {&span, 1}, {}}, scratch_, watched);
  } catch (const Error& error) {
    if (error.code() == ErrorCode::aborted) check_open();
    throw;
  }
  cache_->advance(count);
  step_first_ = first;
}

Cushion TextPass::to_cushion(CushionWindow window) const {
  const ModelConfig& config = weights_.config;
  expect(cache_ && !scratch_.cushion && options_.precision == Precision::f32 && pool_.dtype() == DType::f32, ErrorCode::internal,
         "to_cushion: no plain f32 text was run");
  const auto tokens = static_cast<int64_t>(ids_.size());
  for (const LayerConfig& layer : config.layers)
    expect(tokens <= layer.window, ErrorCode::invalid_argument, "a cushion of ", tokens, " tokens is longer than the window of ",
           layer.window);
  Cushion cushion = make_cushion(config, ids_, window);
  const int64_t half = config.head_dim / 2;
  for (int64_t l = 0; l < config.num_layers; ++l) {
    const Tensor &k = cushion.k[static_cast<size_t>(l)], &v = cushion.v[static_cast<size_t>(l)];
    cache_->export_layer(l, {k.data, v.data});
    const std::vector<float>& inv_freq = scratch_.inv_freq[static_cast<size_t>(config.layers[static_cast<size_t>(l)].rope)];
    for (int64_t t = 0; t < tokens; ++t) {
      for (int64_t j = 0; j < half; ++j) {
        const float angle = static_cast<float>(t) * inv_freq[static_cast<size_t>(j)];
        const double c = std::cos(angle), s = std::sin(angle);
        for (int64_t h = 0; h < config.num_kv_heads; ++h) {
          float *a = k.as<float>() + (t * config.num_kv_heads + h) * config.head_dim + j, *b = a + half;
          const double x = *a, y = *b;
          *a = static_cast<float>(x * c + y * s);
          *b = static_cast<float>(y * c - x * s);
        }
      }
    }
  }
  return cushion;
}

}  // namespace lapidary
