// The sampler against golden distributions, against sorting everything, and by counting draws.
#include "ops/sampling.h"

#include <algorithm>
#include <cstring>
#include <limits>
#include <numeric>
#include <random>

#include "check.h"
#include "formats/json.h"
#include "formats/mapped_file.h"
#include "formats/safetensors.h"
#include "ops/sampling_math.h"

using namespace lapidary;
using namespace lapidary::test;

namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();

template <typename T>
std::vector<T> values(const TensorFile& file, const std::string& name) {
  const Tensor& t = file.tensors.at(name).view;
  std::vector<T> v(static_cast<size_t>(t.elements()));
  std::memcpy(v.data(), t.data, v.size() * sizeof(T));
  return v;
}

std::vector<float> normal_logits(size_t vocab, uint32_t seed, float deviation) {
  std::mt19937 random(seed);
  std::normal_distribution<float> normal(0, deviation);
  std::vector<float> x(vocab);
  for (float& v : x) v = normal(random);
  return x;
}

// The filters by sorting everything, in double.
std::vector<double> naive_distribution(const std::vector<float>& logits, const SamplingSettings& s) {
  std::vector<size_t> order(logits.size());
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(), [&](size_t a, size_t b) { return logits[a] > logits[b]; });
  std::vector<double> p(logits.size(), 0);
  size_t kept = logits.size();
  if (s.top_k > 0 && static_cast<size_t>(s.top_k) < kept)
    for (kept = static_cast<size_t>(s.top_k); kept < logits.size() && logits[order[kept]] == logits[order[kept - 1]];) ++kept;
  double total = 0;
  for (size_t i = 0; i < kept; ++i) total += p[order[i]] = std::exp((double(logits[order[i]]) - logits[order[0]]) / s.temperature);
  double before = 0;
  for (size_t i = 0; i < kept; ++i) {
    const double mine = p[order[i]];
    if (i > 0 && s.top_p < 1 && before >= s.top_p * total) p[order[i]] = 0;
    before += mine;
  }
  for (double& x : p)
    if (x < s.min_p) x = 0;
  total = std::accumulate(p.begin(), p.end(), 0.0);
  for (double& x : p) x /= total;
  return p;
}

std::vector<float> distribution(const std::vector<float>& logits, const SampleRequest& request) {
  std::vector<float> p(logits.size());
  sampling_distribution(logits, request, p);
  return p;
}

}  // namespace

TEST("sampling: filtered distributions equal the golden ones") {
  const TensorFile file = open_safetensors(golden("sampling/expected.safetensors"));
  const JsonValue cases = JsonValue::parse(read_text_file(golden("sampling/expected.json")), "expected.json");
  REQUIRE(cases.array().size() == 10);
  for (const JsonValue& c : cases.array()) {
    const std::string name = c.find("name")->string();
    const auto number = [&](const char* key, double otherwise) { return c.find(key) ? c.find(key)->number() : otherwise; };
    SamplingSettings s;
    s.temperature = static_cast<float>(number("temperature", 1));
    s.top_k = static_cast<int64_t>(number("top_k", 0));
    s.top_p = static_cast<float>(number("top_p", 1));
    s.min_p = static_cast<float>(number("min_p", 0));
    s.repetition_penalty = static_cast<float>(number("repetition_penalty", 1));
    const std::vector<int32_t> history = values<int32_t>(file, name + ".history");
    SampleRequest r;
    r.settings = &s;
    r.history = history;
    const std::vector<float> got = distribution(values<float>(file, name + ".logits"), r),
                             want = values<float>(file, name + ".probabilities");
    CHECK_CLOSE(got, want, 0, 1e-5);
    for (size_t i = 0; i < want.size(); ++i) CHECK_MSG((got[i] == 0) == (want[i] == 0), name << " token " << i);
  }
}

TEST("sampling: filters equal sorting everything, on awkward sizes and settings") {
  for (const size_t vocab : {1, 2, 15, 16, 17, 1023, 5000, 40000}) {
    for (const float deviation : {0.01f, 2.0f, 12.0f}) {
      std::vector<float> logits = normal_logits(vocab, static_cast<uint32_t>(vocab), deviation);
      if (vocab > 100)  // ties across the thresholds
        for (float& x : logits) x = std::round(x * 64) / 64;
      for (const auto& [top_k, top_p, min_p, temperature] : std::vector<std::tuple<int64_t, float, float, float>>{{0, 1, 0, 1},
                                                                                                                  {1, 1, 0, 1},
                                                                                                                  {7, 1, 0, 0.7f},
                                                                                                                  {2000, 1, 0, 1},
                                                                                                                  {0, 0.5f, 0, 1},
                                                                                                                  {0, 0.999f, 0, 2},
                                                                                                                  {0, 0, 0, 1},
                                                                                                                  {64, 0.95f, 0.01f, 0.8f},
                                                                                                                  {0, 1, 1, 1},
                                                                                                                  {0, 0.9f, 0, 1e-30f}}) {
        SamplingSettings s;
        s.top_k = top_k, s.top_p = top_p, s.min_p = min_p, s.temperature = temperature;
        SampleRequest r;
        r.settings = &s;
        const std::vector<float> got = distribution(logits, r);
        const std::vector<double> want = naive_distribution(logits, s);
        double worst = 0;
        for (size_t i = 0; i < vocab; ++i) worst = std::max(worst, std::abs(got[i] - want[i]));
        CHECK_MSG(worst <= 1e-6, "vocab " << vocab << " deviation " << deviation << " k " << top_k << " p " << top_p << " worst " << worst);
        CHECK(std::abs(std::accumulate(got.begin(), got.end(), 0.0) - 1) <= 1e-5);
      }
    }
  }
}

TEST("sampling: penalties, bias and mask by hand") {
  const std::vector<float> logits = {2, -1, 0.5f, 1, 0};
  const std::vector<int32_t> history = {0, 1, 0, 3, 3, 2};  // the first three are the prompt
  SamplingSettings s;
  s.repetition_penalty = 2;
  s.presence_penalty = 0.25f;
  s.frequency_penalty = 0.5f;
  s.logit_bias = {{4, 1.5f}, {2, -kInfinity}};
  SampleRequest r;
  r.settings = &s;
  r.history = history;
  r.prompt_tokens = 3;
  // 0: 2 / 2; 1: -1 * 2; 2: excluded; 3: 1 / 2 - 0.25 - 2 * 0.5; 4: 0 + 1.5
  const double z[] = {1, -2, -INFINITY, -0.75, 1.5};
  double total = 0;
  for (double v : z) total += std::exp(v);
  const std::vector<float> got = distribution(logits, r);
  for (size_t i = 0; i < 5; ++i) CHECK_MSG(std::abs(got[i] - std::exp(z[i]) / total) <= 1e-6, "token " << i << ": " << got[i]);

  const std::vector<uint32_t> mask = {0b01010};
  r.mask = mask;
  total = std::exp(z[1]) + std::exp(z[3]);
  const std::vector<float> masked = distribution(logits, r);
  for (size_t i = 0; i < 5; ++i)
    CHECK_MSG(std::abs(masked[i] - (i % 2 ? std::exp(z[i]) / total : 0)) <= 1e-6, "token " << i << ": " << masked[i]);
  // The same settings again: nothing of the last call is left behind.
  CHECK(distribution(logits, r) == masked);
}

TEST("sampling: greedy takes the lowest id among equals, after penalties and mask") {
  const std::vector<float> logits = {1, 3, 3, 3, 2};
  SamplingSettings s;
  s.temperature = 0;
  SampleRequest r;
  r.settings = &s;
  CHECK(sample_token(logits, r).id == 1);
  CHECK((distribution(logits, r) == std::vector<float>{0, 1, 0, 0, 0}));
  const std::vector<uint32_t> mask = {0b11101};
  r.mask = mask;
  CHECK(sample_token(logits, r).id == 2);
}

TEST("sampling: 100,000 draws follow the distribution, and the same seed gives the same draws") {
  const std::vector<float> logits = normal_logits(257, 5, 1.5f);
  SamplingSettings s;
  s.temperature = 0.9f, s.top_k = 40, s.top_p = 0.95f;
  SampleRequest r;
  r.settings = &s;
  const std::vector<float> p = distribution(logits, r);
  for (const uint64_t seed : {uint64_t{1}, uint64_t{2}, ~uint64_t{0}}) {
    constexpr int kDraws = 100000;
    std::vector<int> counts(logits.size());
    r.seed = seed;
    for (int i = 0; i < kDraws; ++i) {
      r.counter = static_cast<uint64_t>(i);
      ++counts[sample_token(logits, r).id];
    }
    double chi = 0;
    int cells = 0;
    for (size_t i = 0; i < p.size(); ++i) {
      if (p[i] == 0) CHECK(counts[i] == 0);
      if (p[i] == 0) continue;
      ++cells;
      chi += std::pow(counts[i] - kDraws * double(p[i]), 2) / (kDraws * double(p[i]));
    }
    // Mean df, variance 2 df: four deviations.
    const double df = cells - 1;
    CHECK_MSG(chi <= df + 4 * std::sqrt(2 * df), "seed " << seed << ": chi-square " << chi << " with " << df << " degrees");
    r.counter = 77;
    CHECK(sample_token(logits, r).id == sample_token(logits, r).id);
  }
}

TEST("sampling: a draw from the top p is the one by sorting all units") {
  for (const size_t vocab : {1, 2, 63, 65, 1000, 16385, 70000}) {
    for (const float deviation : {0.001f, 3.0f, 40.0f}) {
      std::vector<float> logits = normal_logits(vocab, static_cast<uint32_t>(vocab) + 1, deviation);
      for (size_t i = 0; i < vocab; i += 3) logits[i] = std::round(logits[i]);  // ties
      if (vocab > 2) logits[vocab / 2] = -kInfinity;
      for (const auto& [top_p, temperature] :
           std::vector<std::pair<float, float>>{{0.9f, 1}, {0.3f, 2}, {0.9999f, 0.7f}, {0, 1}, {0.5f, 1e-30f}}) {
        const float top = *std::max_element(logits.begin(), logits.end());
        const int bits = sampling::unit_bits(static_cast<int64_t>(vocab));
        std::vector<uint64_t> units(vocab);
        for (size_t i = 0; i < vocab; ++i)
          units[i] = sampling::units_of(sampling::weight_of(sampling::scaled_logit(logits[i], top, temperature)), bits);
        const uint64_t limit = sampling::top_p_limit(top_p, std::accumulate(units.begin(), units.end(), uint64_t{0}));
        std::vector<size_t> order(vocab);
        std::iota(order.begin(), order.end(), 0);
        std::stable_sort(order.begin(), order.end(), [&](size_t a, size_t b) { return logits[a] > logits[b]; });
        uint64_t before = 0, kept = 0;
        for (size_t id : order) {
          const uint64_t mine = units[id];
          if (before >= limit) units[id] = 0;
          before += mine;
        }
        kept = std::accumulate(units.begin(), units.end(), uint64_t{0});
        SamplingSettings s;
        s.top_p = top_p, s.temperature = temperature;
        SampleRequest r;
        r.settings = &s;
        for (r.counter = 0; r.counter < 20; ++r.counter) {
          const uint64_t target = sampling::draw_target(sampling::draw_bits(r.seed, r.counter), kept);
          size_t want = 0;
          for (uint64_t sum = units[0]; sum <= target; sum += units[++want]) {
          }
          const SampleResult got = sample_token(logits, r);
          CHECK_MSG(got.id == static_cast<int32_t>(want), "vocabulary " << vocab << ", deviation " << deviation << ", p " << top_p
                                                                        << ", temperature " << temperature << ": " << got.id << ", not "
                                                                        << want);
        }
      }
    }
  }
}

TEST("sampling: counter_uniform is uniform, and neighbouring seeds and counters are unrelated") {
  constexpr int kN = 200000;
  double sum = 0, squares = 0, lag = 0, across = 0, previous = 0.5;
  for (int i = 0; i < kN; ++i) {
    const double u = counter_uniform(9, static_cast<uint64_t>(i)), other = counter_uniform(10, static_cast<uint64_t>(i));
    CHECK(u >= 0 && u < 1);
    sum += u, squares += u * u, lag += (u - 0.5) * (previous - 0.5), across += (u - 0.5) * (other - 0.5);
    previous = u;
  }
  CHECK(std::abs(sum / kN - 0.5) <= 0.003 && std::abs(squares / kN - 1.0 / 3) <= 0.003);
  CHECK(std::abs(lag / kN) <= 0.001 && std::abs(across / kN) <= 0.001);
}

TEST("sampling: logprobs are of the raw logits") {
  std::vector<float> logits = {1, 4, 2, 4, -3};
  SamplingSettings s;
  s.temperature = 0;
  s.logit_bias = {{2, 10.0f}};
  SampleRequest r;
  r.settings = &s;
  r.top_logprobs = 3;
  const SampleResult got = sample_token(logits, r);
  double sum = 0;
  for (float x : logits) sum += std::exp(double(x));
  CHECK(got.id == 2 && std::abs(got.logprob - (2 - std::log(sum))) <= 1e-6);
  REQUIRE(got.top.size() == 3);
  CHECK(got.top[0].id == 1 && got.top[1].id == 3 && got.top[2].id == 2);
  CHECK(std::abs(got.top[0].logprob - (4 - std::log(sum))) <= 1e-6);
  r.top_logprobs = 0;
  CHECK(sample_token(logits, r).top.empty());
  r.top_logprobs = 9;
  CHECK(sample_token(logits, r).top.size() == 5);
}

TEST("sampling: what cannot be drawn from is an error") {
  std::vector<float> logits = {1, 2, 3};
  SamplingSettings s;
  SampleRequest r;
  r.settings = &s;
  const std::vector<uint32_t> none = {0}, wide = {1, 1};
  r.mask = none;
  CHECK_THROWS(sample_token(logits, r), ErrorCode::invalid_argument, "no token is left");
  r.mask = wide;
  CHECK_THROWS(sample_token(logits, r), ErrorCode::invalid_argument, "2 words");
  r.mask = {};
  const std::vector<int32_t> history = {3};
  r.history = history;
  CHECK_THROWS(sample_token(logits, r), ErrorCode::invalid_argument, "token 3");
  r.history = {};
  for (const float bad : {NAN, kInfinity}) {
    logits[1] = bad;
    CHECK_THROWS(sample_token(logits, r), ErrorCode::internal, "token 1");
  }
  logits[1] = -kInfinity;
  CHECK(sample_token(logits, r).id != 1);
  CHECK_THROWS(sample_token({}, r), ErrorCode::invalid_argument, "0 logits");
  s.logit_bias = {{0, 3e38f}};
  logits[0] = 3e38f;
  CHECK_THROWS(sample_token(logits, r), ErrorCode::invalid_argument, "beyond the range");

  const auto refused = [](auto change, const char* part) {
    SamplingSettings bad;
    change(bad);
    CHECK_THROWS(check_settings(bad, 100), ErrorCode::invalid_argument, part);
  };
  refused([](auto& b) { b.temperature = -1; }, "temperature is -1");
  refused([](auto& b) { b.temperature = NAN; }, "temperature");
  refused([](auto& b) { b.temperature = kInfinity; }, "temperature");
  refused([](auto& b) { b.top_k = -5; }, "topK is -5");
  refused([](auto& b) { b.top_p = 1.5f; }, "topP is 1.5");
  refused([](auto& b) { b.min_p = -0.1f; }, "minP");
  refused([](auto& b) { b.repetition_penalty = 0; }, "repetitionPenalty");
  refused([](auto& b) { b.presence_penalty = NAN; }, "presencePenalty");
  refused([](auto& b) { b.frequency_penalty = kInfinity; }, "frequencyPenalty");
  refused([](auto& b) { b.logit_bias = {{100, 1.0f}}; }, "token 100");
  refused([](auto& b) { b.logit_bias = {{5, NAN}}; }, "token 5");
}
