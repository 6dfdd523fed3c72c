// Drawing one token from logits: settings, the exact distribution, and the draw. Pure functions; the reference for every
// device's sampler. Order, as Hugging Face applies it: logit bias, repetition / presence / frequency penalties, token mask,
// temperature, top-k, top-p, min-p, softmax (docs/numerics.md).
#pragma once

#include <cstdint>
#include <span>
#include <utility>
#include <vector>

namespace lapidary {

struct SamplingSettings {
  float temperature = 1;                              // 0: greedy, the lowest id among equals
  int64_t top_k = 0;                                  // 0: off
  float top_p = 1;                                    // 1: off
  float min_p = 0;                                    // 0: off
  float repetition_penalty = 1;                       // of tokens in the history: logit > 0 ? logit / p : logit * p
  float presence_penalty = 0;                         // subtracted once per token that was generated
  float frequency_penalty = 0;                        // subtracted per occurrence among generated tokens
  std::vector<std::pair<int32_t, float>> logit_bias;  // added to the raw logit
};

// Error(invalid_argument) naming the setting, the value and the allowed range.
void check_settings(const SamplingSettings& settings, int64_t vocab);

struct SampleRequest {
  const SamplingSettings* settings = nullptr;
  std::span<const int32_t> history;  // prompt and generated tokens, for the repetition penalty
  int64_t prompt_tokens = 0;         // history[prompt_tokens..] are the generated ones, for presence and frequency
  std::span<const uint32_t> mask;    // bit i of word i / 32 set: token i allowed; empty: all allowed
  uint64_t seed = 0;
  uint64_t counter = 0;       // position of the draw: the same (seed, counter) gives the same uniform number
  int32_t top_logprobs = -1;  // -1: none wanted; n >= 0: the chosen token's and the n likeliest
};

// Error(invalid_argument) for settings, a mask or a history that do not fit a vocabulary.
void check_sample_request(const SampleRequest& request, int64_t vocab);

struct TokenLogprob {
  int32_t id;
  float logprob;  // of softmax over the raw logits (soft-cap included, no settings applied)
};

struct SampleResult {
  int32_t id = -1;
  float logprob = 0;              // set when top_logprobs >= 0
  std::vector<TokenLogprob> top;  // descending
};

// The passes over a whole vocabulary, which a device may do faster; the base class has them as plain loops. Blocks are of kBlock elements,
// parts of kPart; the last one may be shorter. Weights are exp((x - top) / temperature), units and buckets those of sampling_math.h.
class SamplingLoops {
 public:
  static constexpr int64_t kBlock = 64, kPart = 256 * kBlock;
  virtual ~SamplingLoops() = default;
  // The largest of each block; false: some element is NaN or +infinity.
  virtual bool maxima(std::span<const float> x, std::span<float> blocks) const;
  // The units of each block's weights, summed over the elements that are not below `low`.
  virtual void units(std::span<const float> x, float low, float top, float temperature, int unit_bits, std::span<uint64_t> blocks) const;
  // The units of each part's weights by bucket: sums [parts][buckets].
  virtual void bucket_units(std::span<const float> x, float top, float temperature, int unit_bits, std::span<uint64_t> sums) const;
  // The indices of elements from `low` to `high`, rising.
  virtual void find(std::span<const float> x, float low, float high, std::vector<int32_t>& indices) const;
};

// The distribution that sample_token draws from: out [vocab] sums to 1. Greedy settings give all mass to one token.
void sampling_distribution(std::span<const float> logits, const SampleRequest& request, std::span<float> out);
SampleResult sample_token(std::span<const float> logits, const SampleRequest& request, const SamplingLoops& loops = SamplingLoops());

// log softmax(logits)[id], summed in double.
float log_probability(std::span<const float> logits, int32_t id);

// Uniform in [0, 1) from (seed, counter) alone.
double counter_uniform(uint64_t seed, uint64_t counter);

}  // namespace lapidary
