#include "compress/evaluate.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <numeric>
#include <utility>

#include "base/error.h"
#include "base/thread_pool.h"
#include "ops/sampling.h"

namespace lapidary {

namespace {

constexpr int64_t kChunk = 512;

std::vector<int64_t> lengths_of(std::span<const TextIds> texts) {
  std::vector<int64_t> lengths;
  for (const TextIds& text : texts) lengths.push_back(static_cast<int64_t>(text.size()));
  return lengths;
}

// One window's tokens as a model reads them, less the last one, whose logits predict nothing that is scored.
std::vector<int32_t> opened(std::span<const int32_t> opening, std::span<const int32_t> tokens) {
  std::vector<int32_t> ids(opening.begin(), opening.end());
  ids.insert(ids.end(), tokens.begin(), tokens.end());
  return ids;
}

// Tells how far it is, and stops where that is wished, between windows; the passes look at `stop` within them.
class Advance {
 public:
  Advance(const EvaluationWatch& watch, int64_t total) : watch_(watch), total_(total) {}
  void by(int64_t done) {
    done_ += done;
    if (watch_.progress) watch_.progress(done_, total_);
    expect(!watch_.stop || !watch_.stop(), ErrorCode::aborted, "the evaluation was stopped");
  }

 private:
  const EvaluationWatch& watch_;
  int64_t done_ = 0, total_;
};

int64_t scored_tokens(std::span<const TextWindow> windows) {
  int64_t sum = 0;
  for (const TextWindow& w : windows) sum += w.first + w.tokens - w.scored;
  return sum;
}

void check_first_tokens(const WindowOptions& options, const Subject& subject) {
  expect(!options.first_tokens || !subject.opening().empty(), ErrorCode::invalid_argument,
         "the first token of a window cannot be scored: the model's cushion holds BOS, and a cushion gives no logits");
}

// Rows of one step, each on any thread.
template <typename Fn>
void each_row(ThreadPool& pool, int64_t rows, const Fn& fn) {
  pool.parallel_for(rows, 1, [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r) fn(r);
  });
}

std::span<const float> row_of(const Tensor& logits, int64_t r) {
  return {logits.as<float>() + r * logits.shape[1], static_cast<size_t>(logits.shape[1])};
}

// One scored token.
struct Compared {
  double kl = 0, reference_nats = 0, candidate_nats = 0;
  bool agree = false;
};

struct LogSum {
  double value;
  int32_t top;
};

LogSum log_sum(std::span<const float> row) {
  const auto top = std::max_element(row.begin(), row.end());
  double sum = 0;
  for (float x : row) sum += std::exp(static_cast<double>(x) - *top);
  return {*top + std::log(sum), static_cast<int32_t>(top - row.begin())};
}

Compared compare(std::span<const float> reference, std::span<const float> candidate, int32_t next) {
  const LogSum a = log_sum(reference), b = log_sum(candidate);
  double kl = 0;
  for (size_t i = 0; i < reference.size(); ++i) {
    const double p = reference[i] - a.value, q = candidate[i] - b.value;
    kl += std::exp(p) * (p - q);
  }
  const auto at = static_cast<size_t>(next);
  return {std::isfinite(kl) ? kl : std::numeric_limits<double>::infinity(), a.value - reference[at], b.value - candidate[at],
          a.top == b.top};
}

Divergence summarise(std::span<const Compared> tokens) {
  Divergence out;
  out.tokens = static_cast<int64_t>(tokens.size());
  if (tokens.empty()) return out;
  std::vector<double> kls;
  int64_t agreed = 0;
  for (const Compared& t : tokens) {
    kls.push_back(t.kl);
    out.mean_kl += t.kl;
    out.reference_nats += t.reference_nats;
    out.candidate_nats += t.candidate_nats;
    agreed += t.agree;
  }
  out.mean_kl /= static_cast<double>(out.tokens);
  out.agreement = static_cast<double>(agreed) / static_cast<double>(out.tokens);
  const int64_t rank = (99 * out.tokens + 99) / 100 - 1;
  std::nth_element(kls.begin(), kls.begin() + rank, kls.end());
  out.p99_kl = kls[static_cast<size_t>(rank)];
  out.max_kl = *std::max_element(kls.begin() + rank, kls.end());
  return out;
}

// The log-probability of `ids`, each given the text so far and those before it; `last`: the logits after the text so far.
double continuation(TextPass& pass, std::span<const float> last, std::span<const int32_t> ids, const StepWatch& watch) {
  if (ids.empty()) return 0;
  double sum = log_probability(last, ids[0]);
  if (ids.size() == 1) return sum;
  pass.back();
  const int64_t begun = pass.length();
  pass.append(
      ids.first(ids.size() - 1),
      [&](int64_t first, const Tensor& logits) {
        for (int64_t r = 0; r < logits.shape[0]; ++r)
          sum += log_probability(row_of(logits, r), ids[static_cast<size_t>(first - begun + r + 1)]);
      },
      watch);
  return sum;
}

}  // namespace

std::vector<int32_t> Subject::opening() const {
  const int32_t bos = weights.config.bos_id;
  if (cushion && std::find(cushion->tokens.begin(), cushion->tokens.end(), bos) != cushion->tokens.end()) return {};
  return {bos};
}

int64_t local_window(const ModelConfig& config) {
  int64_t window = kNoWindow;
  for (const LayerConfig& layer : config.layers) window = std::min(window, layer.window);
  return window;
}

std::vector<TextWindow> plan_windows(std::span<const int64_t> lengths, const WindowOptions& options) {
  const int64_t overlap = options.first_tokens ? 0 : 1, most = options.window - overlap, stride = options.stride ? options.stride : most;
  expect(options.window > overlap, ErrorCode::invalid_argument, "window is ", options.window, ", must be at least ", 1 + overlap);
  expect(stride >= 1 && stride <= most, ErrorCode::invalid_argument, "stride is ", stride, ", must be from 1 to ", most);
  std::vector<TextWindow> windows;
  for (size_t text = 0; text < lengths.size(); ++text) {
    int64_t done = overlap;
    for (int64_t first = 0; done < lengths[text]; first += stride) {
      const int64_t end = std::min(first + options.window, lengths[text]);
      windows.push_back({text, first, end - first, done});
      done = end;
    }
  }
  return windows;
}

ByPosition<Likelihood> text_likelihood(const Subject& subject, std::span<const TextIds> texts, const WindowOptions& options,
                                       const EvaluationWatch& watch) {
  check_first_tokens(options, subject);
  const std::vector<TextWindow> windows = plan_windows(lengths_of(texts), options);
  const std::vector<int32_t> opening = subject.opening();
  const auto before = static_cast<int64_t>(opening.size()), local = local_window(subject.weights.config);
  TextPass pass(subject.backend, subject.weights, subject.pass_options(kChunk));
  const std::shared_ptr<ThreadPool> pool = ThreadPool::shared(subject.threads);
  ByPosition<Likelihood> out;
  Advance advance(watch, scored_tokens(windows));
  std::vector<double> nats;
  for (const TextWindow& w : windows) {
    const auto piece = std::span(texts[w.text]).subspan(static_cast<size_t>(w.first), static_cast<size_t>(w.tokens));
    // Row r of the text predicts token r + 1 - before of the piece.
    const auto sink = [&](int64_t first, const Tensor& logits) {
      nats.resize(static_cast<size_t>(logits.shape[0]));
      const int64_t token = first + 1 - before;
      each_row(*pool, logits.shape[0], [&](int64_t r) {
        nats[static_cast<size_t>(r)] = -log_probability(row_of(logits, r), piece[static_cast<size_t>(token + r)]);
      });
      for (int64_t r = 0; r < logits.shape[0]; ++r) {
        for (Likelihood* sum : {&out.all, token + r < local ? &out.within : &out.beyond}) {
          ++sum->tokens;
          sum->nats += nats[static_cast<size_t>(r)];
        }
      }
    };
    pass.begin();
    pass.append(opened(opening, piece.first(piece.size() - 1)), sink, {.stop = watch.stop}, w.scored - w.first - 1 + before);
    advance.by(w.first + w.tokens - w.scored);
  }
  return out;
}

ByPosition<Divergence> divergence(const Subject& reference, const Subject& candidate, std::span<const TextIds> texts,
                                  const WindowOptions& options, const EvaluationWatch& watch) {
  const int64_t vocab = candidate.weights.config.vocab;
  expect(vocab == reference.weights.config.vocab, ErrorCode::invalid_argument, "the vocabularies differ: ", reference.weights.config.vocab,
         " tokens and ", vocab);
  check_first_tokens(options, reference);
  check_first_tokens(options, candidate);
  const std::vector<TextWindow> windows = plan_windows(lengths_of(texts), options);
  const int64_t local = local_window(candidate.weights.config);
  const std::vector<int32_t> openings[2] = {reference.opening(), candidate.opening()};
  TextPass passes[2] = {{reference.backend, reference.weights, reference.pass_options(kChunk + 1)},
                        {candidate.backend, candidate.weights, candidate.pass_options(kChunk + 1)}};
  const StepWatch step_watch = {.stop = watch.stop};
  const std::shared_ptr<ThreadPool> pool = ThreadPool::shared(candidate.threads);
  std::vector<Compared> within, beyond, here;
  Advance advance(watch, scored_tokens(windows));
  for (const TextWindow& w : windows) {
    const auto piece = std::span(texts[w.text]).subspan(static_cast<size_t>(w.first), static_cast<size_t>(w.tokens));
    for (TextPass& pass : passes) pass.begin();
    for (int64_t at = 0; at + 1 < w.tokens || at == 0; at += kChunk) {
      const int64_t count = std::min(kChunk, w.tokens - 1 - at);
      const auto part = piece.subspan(static_cast<size_t>(at), static_cast<size_t>(count));
      for (int side = 0; side < 2; ++side)
        passes[side].append(at == 0 ? opened(openings[side], part) : opened({}, part), nullptr, step_watch);
      // Tokens of the piece that this part's rows predict, and BOS before the first of them.
      const int64_t from = std::max(w.scored - w.first, at == 0 ? 0 : at + 1), to = at + count + 1;
      const int64_t most = std::min(passes[0].max_logit_rows(), passes[1].max_logit_rows());
      for (int64_t token = from; token < to; token += most) {
        expect(!watch.stop || !watch.stop(), ErrorCode::aborted, "the evaluation was stopped");
        const int64_t rows = std::min(most, to - token);
        const auto logits_of = [&](int side) { return passes[side].logits(token - 1 + static_cast<int64_t>(openings[side].size()), rows); };
        const Tensor theirs = logits_of(0), ours = logits_of(1);
        here.resize(static_cast<size_t>(rows));
        each_row(*pool, rows, [&](int64_t r) {
          here[static_cast<size_t>(r)] = compare(row_of(theirs, r), row_of(ours, r), piece[static_cast<size_t>(token + r)]);
        });
        for (int64_t r = 0; r < rows; ++r) (token + r < local ? within : beyond).push_back(here[static_cast<size_t>(r)]);
      }
      advance.by(std::max<int64_t>(to - from, 0));
    }
  }
  std::vector<Compared> all = within;
  all.insert(all.end(), beyond.begin(), beyond.end());
  return {summarise(all), summarise(within), summarise(beyond)};
}

std::vector<std::vector<double>> choice_likelihoods(const Subject& subject, std::span<const Question> questions,
                                                    const EvaluationWatch& watch) {
  const std::vector<int32_t> opening = subject.opening();
  const StepWatch step_watch = {.stop = watch.stop};
  TextPass pass(subject.backend, subject.weights, subject.pass_options(kChunk));
  std::vector<std::vector<double>> out;
  std::vector<float> last;
  Advance advance(watch, static_cast<int64_t>(questions.size()));
  for (const Question& question : questions) {
    const std::vector<int32_t> prompt = opened(opening, question.prompt);
    expect(!prompt.empty(), ErrorCode::invalid_argument, "question ", out.size(),
           ": the prompt has no tokens, and the model's cushion, which holds BOS, gives no logits");
    pass.begin();
    pass.append(
        prompt, [&](int64_t, const Tensor& logits) { last.assign(logits.as<float>(), logits.as<float>() + logits.elements()); }, step_watch,
        static_cast<int64_t>(prompt.size()) - 1);
    pass.mark();
    std::vector<double>& sums = out.emplace_back();
    for (const TextIds& choice : question.choices) {
      for (int32_t id : choice)
        expect(id >= 0 && id < subject.weights.config.vocab, ErrorCode::invalid_argument, "token id ", id, " is outside the vocabulary of ",
               subject.weights.config.vocab);
      sums.push_back(continuation(pass, last, choice, step_watch));
    }
    advance.by(1);
  }
  return out;
}

}  // namespace lapidary
