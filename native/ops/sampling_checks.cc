// What settings and requests must be like, said in the words of the JavaScript options.
#include <limits>

#include "base/error.h"
#include "ops/sampling.h"

namespace lapidary {

namespace {

void check_range(const char* name, double value, double low, double high, const char* range) {
  expect(value >= low && value <= high, ErrorCode::invalid_argument, name, " is ", value, ", must be ", range);
}

}  // namespace

void check_settings(const SamplingSettings& s, int64_t vocab) {
  constexpr double kMost = std::numeric_limits<float>::max();
  check_range("temperature", s.temperature, 0, kMost, "a finite number from 0 (greedy) up");
  expect(s.top_k >= 0, ErrorCode::invalid_argument, "topK is ", s.top_k, ", must be 0 (off) or more");
  check_range("topP", s.top_p, 0, 1, "from 0 to 1 (off)");
  check_range("minP", s.min_p, 0, 1, "from 0 (off) to 1");
  check_range("repetitionPenalty", s.repetition_penalty, std::numeric_limits<float>::min(), kMost, "a finite number above 0 (1: off)");
  check_range("presencePenalty", s.presence_penalty, -kMost, kMost, "a finite number (0: off)");
  check_range("frequencyPenalty", s.frequency_penalty, -kMost, kMost, "a finite number (0: off)");
  for (const auto& [id, bias] : s.logit_bias) {
    expect(id >= 0 && id < vocab, ErrorCode::invalid_argument, "logitBias names token ", id, ", the vocabulary has ", vocab);
    expect(bias < std::numeric_limits<float>::infinity(), ErrorCode::invalid_argument, "logitBias of token ", id, " is ", bias,
           ", must be finite, or -Infinity to exclude the token");
  }
}

void check_sample_request(const SampleRequest& request, int64_t vocab) {
  expect(vocab > 0 && request.settings, ErrorCode::invalid_argument, "sampling needs settings and at least one logit, got ", vocab,
         " logits");
  check_settings(*request.settings, vocab);
  const int64_t words = (vocab + 31) / 32;
  expect(request.mask.empty() || static_cast<int64_t>(request.mask.size()) == words, ErrorCode::invalid_argument, "token mask has ",
         request.mask.size(), " words, a vocabulary of ", vocab, " needs ", words);
  const int64_t history = static_cast<int64_t>(request.history.size());
  expect(request.prompt_tokens >= 0 && request.prompt_tokens <= history, ErrorCode::invalid_argument, "prompt tokens ",
         request.prompt_tokens, " must lie within the history of ", history);
  for (int32_t id : request.history)
    expect(id >= 0 && id < vocab, ErrorCode::invalid_argument, "history holds token ", id, ", the vocabulary has ", vocab);
}

}  // namespace lapidary
