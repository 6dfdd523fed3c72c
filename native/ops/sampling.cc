// The reference sampler: from raw logits to the distribution that settings describe, and one draw from it. Linear in the
// vocabulary: thresholds are found by selection, nothing is sorted whole.
#include "ops/sampling.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <functional>
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
  std::vector<float> adjusted;
  std::span<const float> logits;  // adjusted: the caller's where nothing is to be adjusted
  std::vector<float> maxima;      // of the blocks of `logits`
  std::vector<uint64_t> units;    // likewise, when wanted
  std::vector<uint64_t> parts;    // units by part and bucket
  std::vector<int32_t> found;
  std::vector<int32_t> counts;  // all zero between calls
  std::vector<Candidate> candidates, boundary;
  std::vector<float> selection;
};

Scratch& scratch() {
  thread_local Scratch s;
  return s;
}

size_t block_count(size_t n) { return (n + SamplingLoops::kBlock - 1) / SamplingLoops::kBlock; }
size_t part_count(size_t n) { return (n + SamplingLoops::kPart - 1) / SamplingLoops::kPart; }

// The elements of block b.
std::span<const float> block_of(std::span<const float> x, size_t b) {
  const size_t first = b * SamplingLoops::kBlock;
  return x.subspan(first, std::min<size_t>(SamplingLoops::kBlock, x.size() - first));
}

// The largest value, those of the blocks in `maxima`.
float check_raw(std::span<const float> logits, const SamplingLoops& loops, std::vector<float>& maxima) {
  maxima.resize(block_count(logits.size()));
  if (loops.maxima(logits, maxima)) return *std::max_element(maxima.begin(), maxima.end());
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

bool adjusts(const SampleRequest& request) {
  const SamplingSettings& s = *request.settings;
  return !s.logit_bias.empty() || !request.mask.empty() || s.repetition_penalty != 1 || s.presence_penalty != 0 || s.frequency_penalty != 0;
}

// Bias, penalties and mask, over a copy of the logits where there are any; gives the largest of what is left.
float adjust(std::span<const float> logits, const SampleRequest& request, const SamplingLoops& loops, Scratch& s) {
  check_sample_request(request, static_cast<int64_t>(logits.size()));
  float top = check_raw(logits, loops, s.maxima);
  s.logits = logits;
  if (adjusts(request)) {
    s.adjusted.assign(logits.begin(), logits.end());
    for (const auto& [id, bias] : request.settings->logit_bias) s.adjusted[id] += bias;
    penalize(s.adjusted, request, s.counts);
    apply_mask(s.adjusted, request.mask);
    s.logits = s.adjusted;
    expect(loops.maxima(s.logits, s.maxima), ErrorCode::invalid_argument,
           "logit bias and penalties together are beyond the range of a float: use smaller ones");
    top = *std::max_element(s.maxima.begin(), s.maxima.end());
  }
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

// fn(id, logit) for every token from `threshold` up, in id order; blocks without one are passed over.
template <typename Fn>
void each_from(std::span<const float> logits, std::span<const float> maxima, float threshold, const Fn& fn) {
  for (size_t b = 0; b < maxima.size(); ++b) {
    if (maxima[b] < threshold) continue;
    size_t id = b * SamplingLoops::kBlock;
    for (float logit : block_of(logits, b)) {
      if (logit >= threshold) fn(static_cast<int32_t>(id), logit);
      ++id;
    }
  }
}

// Every token from `threshold` up, in id order, with its weight.
void collect(const Scratch& s, float top, float threshold, float temperature, std::vector<Candidate>& out) {
  out.clear();
  each_from(s.logits, s.maxima, threshold, [&](int32_t id, float logit) {
    if (logit == -kInfinity) return;
    const float z = sampling::scaled_logit(logit, top, temperature);
    out.push_back({id, logit, z, sampling::weight_of(z)});
  });
}

// The k-th largest logit. The k-th largest of the blocks' maxima is not above it, so few blocks are looked at.
float kth_logit(std::span<const float> logits, std::span<const float> maxima, size_t k, std::vector<float>& selection) {
  if (k >= maxima.size()) return kth_largest(logits, k, selection);
  const float floor = kth_largest(maxima, k, selection);
  std::vector<float> likely;
  each_from(logits, maxima, floor, [&](int32_t, float logit) { likely.push_back(logit); });
  return kth_largest(likely, k, selection);
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

// Keeps candidates that have fewer than `limit` units before them in descending order: the first always stays. One pass over
// buckets finds where the limit falls; only that bucket is looked at closely.
void keep_top_p(Scratch& s, uint64_t limit, int unit_bits) {
  std::array<uint64_t, sampling::kBuckets> mass{};
  for (const Candidate& c : s.candidates) mass[sampling::bucket_of(c.z)] += sampling::units_of(c.weight, unit_bits);
  uint64_t above = 0;
  int at = 0;
  while (at + 1 < sampling::kBuckets && above + mass[at] < limit)
    above += mass[at++];  // ends at a bucket with mass: the limit is not above the candidates' units

  s.boundary.clear();
  for (const Candidate& c : s.candidates)
    if (sampling::bucket_of(c.z) == at) s.boundary.push_back(c);
  const Candidate last = last_below(s.boundary, above, limit, unit_bits);
  std::erase_if(s.candidates, [&](const Candidate& c) { return before(last, c); });
}

// The lowest and the highest finite logit of a bucket, which is not empty below the largest logit `top`.
std::pair<float, float> bounds_of(int bucket, float top, float temperature) {
  const auto bucket_at = [&](uint32_t key) {
    return sampling::bucket_of(sampling::scaled_logit(sampling::logit_of_key(key), top, temperature));
  };
  // The first key of [first, end) for which `reached` holds, as for all after it; else end.
  const auto first_key = [&](uint32_t first, uint32_t end, const auto& reached) {
    while (first < end) {
      const uint32_t middle = first + (end - first) / 2;
      reached(bucket_at(middle)) ? end = middle : first = middle + 1;
    }
    return first;
  };
  const uint32_t top_key = sampling::likelihood_key(top), end = sampling::likelihood_key(-std::numeric_limits<float>::max()) + 1;
  const uint32_t first = first_key(top_key, end, [&](int b) { return b >= bucket; });
  const uint32_t behind = first_key(first, end, [&](int b) { return b > bucket; });
  return {sampling::logit_of_key(behind - 1), sampling::logit_of_key(first)};
}

// The top p of all tokens: those up to `last` in the order of `before`.
struct TopP {
  Candidate last;
  int bucket;  // of the last; s.boundary holds its tokens, in any order, s.parts the units of all buckets
  bool keeps(const Candidate& c) const { return !before(last, c); }
};

TopP top_p_of(Scratch& s, float top_p, float top, float temperature, int unit_bits, const SamplingLoops& loops) {
  constexpr size_t kBuckets = sampling::kBuckets;
  s.parts.resize(part_count(s.logits.size()) * kBuckets);
  loops.bucket_units(s.logits, top, temperature, unit_bits, s.parts);
  std::array<uint64_t, kBuckets> mass{};
  for (size_t i = 0; i < s.parts.size(); i += kBuckets)
    for (size_t b = 0; b < kBuckets; ++b) mass[b] += s.parts[i + b];
  uint64_t total = 0, above = 0;
  for (uint64_t units : mass) total += units;
  const uint64_t limit = sampling::top_p_limit(top_p, total);
  size_t at = 0;
  while (at + 1 < kBuckets && above + mass[at] < limit) above += mass[at++];

  const auto [low, high] = bounds_of(static_cast<int>(at), top, temperature);
  loops.find(s.logits, low, high, s.found);
  s.boundary.clear();
  for (int32_t id : s.found) {
    const float logit = s.logits[static_cast<size_t>(id)], z = sampling::scaled_logit(logit, top, temperature);
    s.boundary.push_back({id, logit, z, sampling::weight_of(z)});
  }
  return {last_below(s.boundary, above, limit, unit_bits), static_cast<int>(at)};
}

// The units of all tokens, by block in s.units.
uint64_t units_of_all(Scratch& s, float top, float temperature, int unit_bits, const SamplingLoops& loops) {
  s.units.resize(s.maxima.size());
  loops.units(s.logits, -kInfinity, top, temperature, unit_bits, s.units);
  uint64_t total = 0;
  for (uint64_t units : s.units) total += units;
  return total;
}

bool cuts(const SamplingSettings& s, int64_t vocab) { return s.top_p < 1 || s.min_p > 0 || (s.top_k > 0 && s.top_k < vocab); }

bool cuts_top_p_alone(const SamplingSettings& s, int64_t vocab) {
  return s.temperature > 0 && s.top_p < 1 && !(s.min_p > 0) && !(s.top_k > 0 && s.top_k < vocab);
}

// The tokens that may be drawn, in id order, with weights relative to the likeliest's 1. `top` is the largest of s.logits.
void filter(Scratch& s, const SamplingSettings& settings, float top, const SamplingLoops& loops) {
  const int64_t vocab = static_cast<int64_t>(s.logits.size());
  const int unit_bits = sampling::unit_bits(vocab);
  if (settings.temperature == 0) {
    const size_t b = static_cast<size_t>(std::find(s.maxima.begin(), s.maxima.end(), top) - s.maxima.begin());
    const std::span<const float> block = block_of(s.logits, b);
    const auto id = static_cast<int32_t>(std::find(block.begin(), block.end(), top) - block.begin() + b * SamplingLoops::kBlock);
    s.candidates.assign(1, {id, top, 0, 1});
    return;
  }
  const bool some = settings.top_k > 0 && settings.top_k < vocab;
  if (some) {
    collect(s, top, kth_logit(s.logits, s.maxima, static_cast<size_t>(settings.top_k), s.selection), settings.temperature, s.candidates);
    if (settings.top_p < 1) keep_top_p(s, sampling::top_p_limit(settings.top_p, total_units(s.candidates, unit_bits)), unit_bits);
  } else if (settings.top_p < 1) {
    const TopP kept = top_p_of(s, settings.top_p, top, settings.temperature, unit_bits, loops);
    collect(s, top, kept.last.logit, settings.temperature, s.candidates);
    std::erase_if(s.candidates, [&](const Candidate& c) { return !kept.keeps(c); });
  } else {
    // Of weights from min_p up the logit is above this, with room for every rounding.
    const float lowest = settings.min_p > 0 ? top + settings.temperature * (std::log(settings.min_p) * 1.001f - 0.01f) : -kInfinity;
    collect(s, top, lowest, settings.temperature, s.candidates);
  }
  if (settings.min_p > 0) std::erase_if(s.candidates, [&](const Candidate& c) { return c.weight < settings.min_p; });
}

// The first token from block `first` on at whose end the sum of units, `sum` before that block, exceeds `target`. s.units holds the units
// of the blocks from there on, of those tokens alone for which keeps(id, logit).
template <typename Keeps>
int32_t draw_from_blocks(const Scratch& s, size_t first, uint64_t sum, uint64_t target, float top, float temperature, int unit_bits,
                         const Keeps& keeps) {
  for (size_t b = 0; b < s.units.size(); sum += s.units[b++]) {
    if (sum + s.units[b] <= target) continue;
    int32_t id = static_cast<int32_t>((first + b) * SamplingLoops::kBlock);
    for (float logit : block_of(s.logits, first + b)) {
      if (keeps(id, logit)) sum += sampling::units_of(sampling::weight_of(sampling::scaled_logit(logit, top, temperature)), unit_bits);
      if (sum > target) return id;
      ++id;
    }
  }
  fail(ErrorCode::internal, "a draw passed the end of its distribution");  // the target is below the total
}

// Inverse cumulative distribution over all tokens, without a list of them.
int32_t draw_from_all(Scratch& s, float top, float temperature, uint64_t random_bits, const SamplingLoops& loops) {
  const int unit_bits = sampling::unit_bits(static_cast<int64_t>(s.logits.size()));
  const uint64_t target = sampling::draw_target(random_bits, units_of_all(s, top, temperature, unit_bits, loops));
  return draw_from_blocks(s, 0, 0, target, top, temperature, unit_bits, [](int32_t, float) { return true; });
}

// The same over the top p: the buckets say which part the token is in, only that part's units are looked at again.
int32_t draw_from_top_p(Scratch& s, const SamplingSettings& settings, float top, uint64_t random_bits, const SamplingLoops& loops) {
  constexpr size_t kPart = SamplingLoops::kPart, kBlock = SamplingLoops::kBlock;
  const float temperature = settings.temperature;
  const int unit_bits = sampling::unit_bits(static_cast<int64_t>(s.logits.size()));
  const TopP kept = top_p_of(s, settings.top_p, top, temperature, unit_bits, loops);
  std::vector<uint64_t> parts(part_count(s.logits.size()));
  for (size_t i = 0; i < parts.size(); ++i)
    for (int b = 0; b < kept.bucket; ++b) parts[i] += s.parts[i * sampling::kBuckets + static_cast<size_t>(b)];
  for (const Candidate& c : s.boundary)
    if (kept.keeps(c)) parts[static_cast<size_t>(c.id) / kPart] += sampling::units_of(c.weight, unit_bits);
  uint64_t total = 0, sum = 0;
  for (uint64_t units : parts) total += units;
  const uint64_t target = sampling::draw_target(random_bits, total);
  size_t part = 0;
  while (part + 1 < parts.size() && sum + parts[part] <= target) sum += parts[part++];

  const size_t first = part * kPart;
  const std::span<const float> logits = s.logits.subspan(first, std::min(kPart, s.logits.size() - first));
  s.units.resize(block_count(logits.size()));
  loops.units(logits, kept.last.logit, top, temperature, unit_bits, s.units);
  for (const Candidate& c : s.boundary) {  // what equals the last but comes after it
    const size_t id = static_cast<size_t>(c.id);
    if (c.logit == kept.last.logit && !kept.keeps(c) && id / kPart == part)
      s.units[(id - first) / kBlock] -= sampling::units_of(c.weight, unit_bits);
  }
  return draw_from_blocks(s, first / kBlock, sum, target, top, temperature, unit_bits,
                          [&](int32_t id, float logit) { return kept.keeps({id, logit, 0, 0}); });
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
void fill_logprobs(std::span<const float> logits, size_t count, const SamplingLoops& loops, SampleResult& result) {
  Scratch& s = scratch();
  s.logits = logits;
  const float top = check_raw(logits, loops, s.maxima);
  const int unit_bits = sampling::unit_bits(static_cast<int64_t>(logits.size()));
  const double log_sum = std::log(static_cast<double>(units_of_all(s, top, 1, unit_bits, loops)) * std::ldexp(1.0, -unit_bits));
  const auto logprob = [&](int32_t id) { return static_cast<float>(static_cast<double>(logits[id]) - top - log_sum); };
  result.logprob = logprob(result.id);
  count = std::min(count, logits.size());
  if (count == 0) return;

  const float threshold = kth_logit(logits, s.maxima, count, s.selection);
  s.boundary.clear();
  each_from(logits, s.maxima, threshold, [&](int32_t id, float logit) { s.boundary.push_back({id, logit, 0, 0}); });
  std::partial_sort(s.boundary.begin(), s.boundary.begin() + static_cast<ptrdiff_t>(count), s.boundary.end(), before);
  for (size_t i = 0; i < count; ++i) result.top.push_back({s.boundary[i].id, logprob(s.boundary[i].id)});
}

}  // namespace

void sampling_distribution(std::span<const float> logits, const SampleRequest& request, std::span<float> out) {
  expect(out.size() == logits.size(), ErrorCode::invalid_argument, "room for ", out.size(), " probabilities of ", logits.size(), " logits");
  const SamplingLoops loops;
  Scratch& s = scratch();
  const float top = adjust(logits, request, loops, s);
  filter(s, *request.settings, top, loops);
  const std::vector<Candidate>& candidates = s.candidates;
  const int unit_bits = sampling::unit_bits(static_cast<int64_t>(logits.size()));
  const double total = static_cast<double>(total_units(candidates, unit_bits)) / static_cast<double>(uint64_t{1} << unit_bits);
  std::fill(out.begin(), out.end(), 0.0f);
  for (const Candidate& c : candidates) out[c.id] = static_cast<float>(c.weight / total);
}

bool SamplingLoops::maxima(std::span<const float> x, std::span<float> blocks) const {
  bool good = true;
  for (size_t b = 0; b < blocks.size(); ++b) {
    float top = -kInfinity;
    for (float v : block_of(x, b)) {
      top = v > top ? v : top;
      good &= v < kInfinity;
    }
    blocks[b] = top;
  }
  return good;
}

void SamplingLoops::units(std::span<const float> x, float low, float top, float temperature, int unit_bits,
                          std::span<uint64_t> blocks) const {
  for (size_t b = 0; b < blocks.size(); ++b) {
    uint64_t sum = 0;
    for (float v : block_of(x, b))
      if (v >= low) sum += sampling::units_of(sampling::weight_of(sampling::scaled_logit(v, top, temperature)), unit_bits);
    blocks[b] = sum;
  }
}

void SamplingLoops::bucket_units(std::span<const float> x, float top, float temperature, int unit_bits, std::span<uint64_t> sums) const {
  std::fill(sums.begin(), sums.end(), 0);
  for (size_t i = 0; i < x.size(); ++i) {
    const float z = sampling::scaled_logit(x[i], top, temperature);
    sums[i / kPart * sampling::kBuckets + static_cast<size_t>(sampling::bucket_of(z))] +=
        sampling::units_of(sampling::weight_of(z), unit_bits);
  }
}

void SamplingLoops::find(std::span<const float> x, float low, float high, std::vector<int32_t>& indices) const {
  indices.clear();
  for (size_t i = 0; i < x.size(); ++i)
    if (x[i] >= low && x[i] <= high) indices.push_back(static_cast<int32_t>(i));
}

SampleResult sample_token(std::span<const float> logits, const SampleRequest& request, const SamplingLoops& loops) {
  SampleResult result;
  Scratch& s = scratch();
  const uint64_t random_bits = sampling::draw_bits(request.seed, request.counter);
  const float top = adjust(logits, request, loops, s);
  const SamplingSettings& settings = *request.settings;
  if (settings.temperature > 0 && !cuts(settings, static_cast<int64_t>(logits.size()))) {
    result.id = draw_from_all(s, top, settings.temperature, random_bits, loops);
  } else if (cuts_top_p_alone(settings, static_cast<int64_t>(logits.size()))) {
    result.id = draw_from_top_p(s, settings, top, random_bits, loops);
  } else {
    filter(s, settings, top, loops);
    result.id = draw(s.candidates, random_bits, sampling::unit_bits(static_cast<int64_t>(logits.size())));
  }
  if (request.top_logprobs >= 0) fill_logprobs(logits, static_cast<size_t>(request.top_logprobs), loops, result);
  return result;
}

double counter_uniform(uint64_t seed, uint64_t counter) { return static_cast<double>(sampling::draw_bits(seed, counter)) * 0x1p-53; }

float log_probability(std::span<const float> logits, int32_t id) {
  float top = -std::numeric_limits<float>::infinity();
  for (float x : logits) top = x > top ? x : top;
  double sum = 0;
  for (float x : logits) sum += std::exp(x - top);
  return static_cast<float>(static_cast<double>(logits[static_cast<size_t>(id)]) - top - std::log(sum));
}

}  // namespace lapidary
