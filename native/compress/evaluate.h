// How good a model is: likelihood of texts, distance to another model, likelihood of answers. All of it is scored with the texts opened
// alike: by BOS, unless the model's cushion holds it already.
#pragma once

#include <cstdint>
#include <functional>
#include <span>
#include <vector>

#include "runtime/text_pass.h"

namespace lapidary {

// A model as it is measured. What is referred to outlives the measuring.
struct Subject {
  Backend& backend;
  const ModelWeights& weights;
  Precision precision = Precision::f32;
  const Cushion* cushion = nullptr;
  TurnLock* turns = nullptr;
  int threads = 1;            // for what is computed beside the backend
  std::optional<DType> kv{};  // of the cache; empty: the precision's

  // What a text begins with: BOS or nothing.
  std::vector<int32_t> opening() const;
  TextPassOptions pass_options(int64_t chunk) const { return {precision, chunk, cushion, turns, kv}; }
};

struct EvaluationWatch {
  std::function<void(int64_t done, int64_t total)> progress{};  // on the calling thread
  std::function<bool()> stop{};                                 // true ends the work with Error(aborted), within one layer
};

using TextIds = std::vector<int32_t>;  // without BOS

// Texts are read in windows, each a text of its own to the model. Windows of a text begin `stride` tokens apart; where they overlap, a
// token counts in the first that can score it. So every token is scored exactly once, but for the first of a text where first_tokens is
// false.
//
// The first token of a window: a cushion gives no logits (its keys and values may have been tuned), so behind a cushion that holds BOS
// nothing predicts it. Figures of models with and without such a cushion compare only when neither scores it: that is first_tokens = false,
// where windows overlap by a token at least and the same tokens are scored whatever the opening.
struct WindowOptions {
  int64_t window = 512;       // tokens of the text, BOS aside; at least 2, or 1 with first_tokens
  int64_t stride = 0;         // 1 to window, or to window - 1 without first_tokens; 0: the largest
  bool first_tokens = false;  // Error(invalid_argument) where the opening is empty
};

struct TextWindow {
  size_t text = 0;
  int64_t first = 0, tokens = 0;  // of the text
  int64_t scored = 0;             // tokens [scored, first + tokens) of the text are scored here
};
// `lengths`: of the texts, in tokens. Error(invalid_argument): options out of range.
std::vector<TextWindow> plan_windows(std::span<const int64_t> lengths, const WindowOptions& options);

// A figure over all tokens scored, and over those before and from the model's local window W on, counted from the beginning of their window
// of the text: from there, local layers no longer see all of it. No local layers: all are within.
template <typename T>
struct ByPosition {
  T all, within, beyond;
};
int64_t local_window(const ModelConfig& config);  // the shortest; kNoWindow when no layer is local

struct Likelihood {
  int64_t tokens = 0;
  double nats = 0;  // the sum of the negative log-probabilities
};
// Errors as TextPass::run.
ByPosition<Likelihood> text_likelihood(const Subject& subject, std::span<const TextIds> texts, const WindowOptions& options,
                                       const EvaluationWatch& watch = {});

struct Divergence {
  int64_t tokens = 0;
  double mean_kl = 0, p99_kl = 0,
         max_kl = 0;     // KL(reference || candidate) in nats; the share 0.99 of the tokens, rounded up, is at most p99_kl
  double agreement = 0;  // share of tokens where both have the same likeliest next token
  double reference_nats = 0, candidate_nats = 0;
};
// Both models read the texts in lock step, so no more than some rows' logits are held. Logits that are not numbers make the KL infinite.
// Error(invalid_argument): the vocabularies differ in size.
ByPosition<Divergence> divergence(const Subject& reference, const Subject& candidate, std::span<const TextIds> texts,
                                  const WindowOptions& options, const EvaluationWatch& watch = {});

struct Question {
  TextIds prompt;  // may be empty where the opening is not
  std::vector<TextIds> choices;
};
// The log-probability of every choice as the continuation of its question's prompt: the sum over its tokens, 0 for one without tokens.
// Error(invalid_argument): nothing comes before a choice.
std::vector<std::vector<double>> choice_likelihoods(const Subject& subject, std::span<const Question> questions,
                                                    const EvaluationWatch& watch = {});

}  // namespace lapidary
