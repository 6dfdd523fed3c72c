// The reference sampler: from raw logits to the distribution that settings describe, and one draw from it. Linear in the
// vocabulary: thresholds are found by selection, nothing is sorted whole.
#include "ops/sampling.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <limits>

#include "base/error.h"
#include "ops/sampling_math.h"

namespace lapidary {

namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();

struct Candidate {
  int32_t id;
  float logit;   // adjusted
  float z;       // less the maximum, divided by the temperature: at most 0
  float weight;  // exp(z)
};

// The order of filters: likelier first, the lower id among equals.
bool before(const Candidate& a, const Candidate& b) { return a.logit > b.logit || (a.logit == b.logit && a.id < b.id); }

// Buffers of one thread, kept between draws because a vocabulary's worth of fresh pages per token costs more than the draw.
struct Scratch {
  std::vector<float> logits;
  std::vector<int32_t> counts;  // all zero between calls
  std::vector<Candidate> candidates, boundary;
  std::vector<float> selection;
};

Scratch& scratch() {
  thread_local Scratch s;
  return s;
}

// The largest value; `bad` becomes true when one is NaN or +infinity. Sixteen lanes, so that the loop is not one long chain.
float maximum(std::span<const float> x, bool& bad) {
  constexpr size_t kLanes = 16;
  std::array<float, kLanes> top;
  std::array<int32_t, kLanes> wrong{};
  top.fill(-kInfinity);
  size_t i = 0;
  for (; i + kLanes <= x.size(); i += kLanes) {
    for (size_t l = 0; l < kLanes; ++l) {
      top[l] = x[i + l] > top[l] ? x[i + l] : top[l];
      wrong[l] |= !(x[i + l] < kInfinity);
    }
  }
  for (size_t l = 0; i < x.size(); ++i, ++l) {
    top[l] = x[i] > top[l] ? x[i] : top[l];
    wrong[l] |= !(x[i] < kInfinity);
  }
  for (int32_t w : wrong) bad |= w != 0;
  return *std::max_element(top.begin(), top.end());
}

void check_raw(std::span<const float> logits) {
  bool bad = false;
  maximum(logits, bad);
  if (!bad) return;
  const auto at = std::find_if(logits.begin(), logits.end(), [](float x) { return !(x < kInfinity); });
  fail(ErrorCode::internal, "the model's logit of token ", at - logits.begin(), " is ", *at,
       ": its weights or inputs are damaged, no token can be drawn");
}

void penalize(std::span<float> z, const SampleRequest& request, std::vector<int32_t>& counts) {
  const SamplingSettings& s = *request.settings;
  const std::span<const int32_t> generated = request.history.subspan(static_cast<size_t>(request.prompt_tokens));
  if (counts.size() < z.size()) counts.resize(z.size(), 0);
  if (s.repetition_penalty != 1) {
    for (int32_t id : request.history) {
      if (counts[id]++) continue;
      z[id] = sampling::repeated(z[id], s.repetition_penalty);
    }
    for (int32_t id : request.history) counts[id] = 0;
  }
  if (s.presence_penalty != 0 || s.frequency_penalty != 0) {
    for (int32_t id : generated) ++counts[id];
    for (int32_t id : generated) {
      if (counts[id] == 0) continue;
      z[id] = sampling::generated(z[id], s.presence_penalty, s.frequency_penalty, counts[id]);
      counts[id] = 0;
    }
  }
}

void apply_mask(std::span<float> z, std::span<const uint32_t> mask) {
  for (size_t word = 0; word < mask.size(); ++word) {
    if (mask[word] == ~0u) continue;
    const size_t end = std::min(z.size(), word * 32 + 32);
    for (size_t i = word * 32; i < end; ++i)
      if (!(mask[word] >> (i % 32) & 1)) z[i] = -kInfinity;
  }
}

// Bias, penalties and mask over a copy of the logits; gives the largest of what is left.
float adjust(std::span<const float> logits, const SampleRequest& request, Scratch& s) {
  check_sample_request(request, static_cast<int64_t>(logits.size()));
  check_raw(logits);
  s.logits.assign(logits.begin(), logits.end());
  for (const auto& [id, bias] : request.settings->logit_bias) s.logits[id] += bias;
  penalize(s.logits, request, s.counts);
  apply_mask(s.logits, request.mask);
  bool bad = false;
  const float top = maximum(s.logits, bad);
  expect(!bad, ErrorCode::invalid_argument, "logit bias and penalties together are beyond the range of a float: use smaller ones");
  expect(top > -kInfinity, ErrorCode::invalid_argument, "no token is left to draw from: mask or bias exclude all ", logits.size());
  return top;
}

// The k-th largest of x, duplicates counted; k in [1, x.size()]. A buffer of the best so far is cut back whenever it is full.
float kth_largest(std::span<const float> x, size_t k, std::vector<float>& best) {
  const size_t room = std::max<size_t>(1024, k * 2);
  const auto cut = [&] { std::nth_element(best.begin(), best.begin() + static_cast<ptrdiff_t>(k - 1), best.end(), std::greater<float>()); };
  best.clear();
  float threshold = -kInfinity;
  for (float v : x) {
    if (v < threshold) continue;
    best.push_back(v);
    if (best.size() < room || best.size() <= k) continue;
    cut();
    best.resize(k);
    threshold = best[k - 1];
  }
  cut();
  return best[k - 1];
}

// Every token from `threshold` up, in id order, with its weight.
void collect(const Scratch& s, float top, float threshold, float temperature, std::vector<Candidate>& out) {
  out.clear();
  for (size_t i = 0; i < s.logits.size(); ++i) {
    if (s.logits[i] < threshold || s.logits[i] == -kInfinity) continue;
    const float z = sampling::scaled_logit(s.logits[i], top, temperature);
    out.push_back({static_cast<int32_t>(i), s.logits[i], z, sampling::weight_of(z)});
  }
}

uint64_t total_units(std::span<const Candidate> candidates, int unit_bits) {
  uint64_t sum = 0;
  for (const Candidate& c : candidates) sum += sampling::units_of(c.weight, unit_bits);
  return sum;
}

// The last candidate, in the order of `before`, with fewer than `limit` units before it. `above` are the units outside the set.
Candidate last_below(std::span<Candidate> set, uint64_t above, uint64_t limit, int unit_bits) {
  while (set.size() > 64) {
    const size_t half = set.size() / 2;
    std::nth_element(set.begin(), set.begin() + static_cast<ptrdiff_t>(half), set.end(), before);
    const uint64_t upper = total_units(set.first(half), unit_bits);
    if (above + upper >= limit) {
      set = set.first(half);
    } else {
      above += upper;
      set = set.subspan(half);
    }
  }
  std::sort(set.begin(), set.end(), before);
  size_t last = 0;
  for (; last + 1 < set.size(); ++last) {
    above += sampling::units_of(set[last].weight, unit_bits);
    if (above >= limit) break;
  }
  return set[last];
}

// Keeps tokens that have less than top_p of the units before them in descending order: the first token always stays. One pass
// over coarse buckets finds where the limit falls; only that bucket is looked at closely.
void keep_top_p(Scratch& s, float top_p, int unit_bits) {
  constexpr int kBuckets = 2048;
  constexpr float kRange = 32;  // exp(-32) of the maximum and less share the last bucket
  const auto bucket = [](float z) {
    return z <= -kRange ? kBuckets - 1 : std::min(kBuckets - 1, static_cast<int>(z * (-kBuckets / kRange)));
  };
  std::array<uint64_t, kBuckets> mass{};
  for (const Candidate& c : s.candidates) mass[bucket(c.z)] += sampling::units_of(c.weight, unit_bits);
  uint64_t total = 0, above = 0;
  for (uint64_t m : mass) total += m;
  const uint64_t limit = sampling::top_p_limit(top_p, total);
  int at = 0;
  while (at + 1 < kBuckets && above + mass[at] < limit)
    above += mass[at++];  // ends at a bucket with mass: the limit is not above the total

  s.boundary.clear();
  for (const Candidate& c : s.candidates)
    if (bucket(c.z) == at) s.boundary.push_back(c);
  const Candidate last = last_below(s.boundary, above, limit, unit_bits);
  std::erase_if(s.candidates, [&](const Candidate& c) { return before(last, c); });
}

// The tokens that may be drawn, in id order, with weights relative to the likeliest's 1.
const std::vector<Candidate>& filter(std::span<const float> logits, const SampleRequest& request) {
  Scratch& s = scratch();
  const SamplingSettings& settings = *request.settings;
  const float top = adjust(logits, request, s);
  if (settings.temperature == 0) {
    const auto first = std::find(s.logits.begin(), s.logits.end(), top);
    s.candidates.assign(1, {static_cast<int32_t>(first - s.logits.begin()), top, 0, 1});
    return s.candidates;
  }
  const bool some = settings.top_k > 0 && settings.top_k < static_cast<int64_t>(logits.size());
  collect(s, top, some ? kth_largest(s.logits, static_cast<size_t>(settings.top_k), s.selection) : -kInfinity, settings.temperature,
          s.candidates);
  if (settings.top_p < 1) keep_top_p(s, settings.top_p, sampling::unit_bits(static_cast<int64_t>(logits.size())));
  if (settings.min_p > 0) std::erase_if(s.candidates, [&](const Candidate& c) { return c.weight < settings.min_p; });
  return s.candidates;
}

// Inverse cumulative distribution in id order.
int32_t draw(std::span<const Candidate> candidates, uint64_t random_bits, int unit_bits) {
  const uint64_t target = sampling::draw_target(random_bits, total_units(candidates, unit_bits));
  uint64_t sum = 0;
  for (const Candidate& c : candidates) {
    sum += sampling::units_of(c.weight, unit_bits);
    if (sum > target) return c.id;
  }
  fail(ErrorCode::internal, "a draw passed the end of its distribution");  // the target is below the total
}

// Log-probabilities of the raw logits: the chosen token's and the `count` likeliest.
void fill_logprobs(std::span<const float> logits, size_t count, SampleResult& result) {
  bool bad = false;
  const float top = maximum(logits, bad);
  double sum = 0;
  for (float x : logits) sum += std::exp(x - top);
  const double log_sum = std::log(sum);
  const auto logprob = [&](int32_t id) { return static_cast<float>(static_cast<double>(logits[id]) - top - log_sum); };
  result.logprob = logprob(result.id);
  count = std::min(count, logits.size());
  if (count == 0) return;

  Scratch& s = scratch();
  const float threshold = kth_largest(logits, count, s.selection);
  s.boundary.clear();
  for (size_t i = 0; i < logits.size(); ++i)
    if (logits[i] >= threshold) s.boundary.push_back({static_cast<int32_t>(i), logits[i], 0, 0});
  std::partial_sort(s.boundary.begin(), s.boundary.begin() + static_cast<ptrdiff_t>(count), s.boundary.end(), before);
  for (size_t i = 0; i < count; ++i) result.top.push_back({s.boundary[i].id, logprob(s.boundary[i].id)});
}

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
    expect(bias < kInfinity, ErrorCode::invalid_argument, "logitBias of token ", id, " is ", bias,
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

void sampling_distribution(std::span<const float> logits, const SampleRequest& request, std::span<float> out) {
  expect(out.size() == logits.size(), ErrorCode::invalid_argument, "room for ", out.size(), " probabilities of ", logits.size(), " logits");
  const std::vector<Candidate>& candidates = filter(logits, request);
  const int unit_bits = sampling::unit_bits(static_cast<int64_t>(logits.size()));
  const double total = static_cast<double>(total_units(candidates, unit_bits)) / static_cast<double>(uint64_t{1} << unit_bits);
  std::fill(out.begin(), out.end(), 0.0f);
  for (const Candidate& c : candidates) out[c.id] = static_cast<float>(c.weight / total);
}

SampleResult sample_token(std::span<const float> logits, const SampleRequest& request) {
  SampleResult result;
  const int unit_bits = sampling::unit_bits(static_cast<int64_t>(logits.size()));
  result.id = draw(filter(logits, request), sampling::draw_bits(request.seed, request.counter), unit_bits);
  if (request.top_logprobs >= 0) fill_logprobs(logits, static_cast<size_t>(request.top_logprobs), result);
  return result;
}

double counter_uniform(uint64_t seed, uint64_t counter) { return static_cast<double>(sampling::draw_bits(seed, counter)) * 0x1p-53; }

}  // namespace lapidary
