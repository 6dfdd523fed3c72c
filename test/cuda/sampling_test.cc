// The device sampler against native/ops/sampling.cc, token for token: random settings, adversarial logits, golden data.
#include "ops/sampling.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <random>

#include "cuda/support.h"
#include "formats/json.h"
#include "formats/mapped_file.h"
#include "formats/safetensors.h"
#ifdef LAPIDARY_EMULATED
#include "emulator/control.h"
#endif

namespace lapidary::test {

namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();

// One row of a call: what a SampleRequest points at, owned.
struct Row {
  std::vector<float> logits;
  SamplingSettings settings;
  std::vector<int32_t> history;
  std::vector<uint32_t> mask;
  int64_t prompt_tokens = 0;
  uint64_t seed = 0, counter = 0;
  int32_t top_logprobs = -1;

  SampleRequest request() const {
    SampleRequest r;
    r.settings = &settings;
    r.history = history;
    r.prompt_tokens = prompt_tokens;
    r.mask = mask;
    r.seed = seed;
    r.counter = counter;
    r.top_logprobs = top_logprobs;
    return r;
  }
};

struct DeviceResult {
  cuda::SampledToken token;
  std::vector<TokenLogprob> top;
};

// The device sampler with the workspace it keeps between calls.
class Sampler {
 public:
  Sampler(int max_rows, int vocab)
      : max_rows_(max_rows), vocab_(vocab), workspace_(std::vector<uint8_t>(cuda::sample_workspace_bytes(max_rows, vocab, true), 0)) {}

  std::vector<DeviceResult> run(const std::vector<Row>& rows) {
    const int64_t stride = vocab_ + 3;  // rows that are not aligned
    std::vector<float> logits(rows.size() * static_cast<size_t>(stride), std::numeric_limits<float>::quiet_NaN());
    std::vector<cuda::SampleRow> settings;
    std::vector<int32_t> history, bias_ids;
    std::vector<uint32_t> mask;
    std::vector<float> bias_values;
    for (const Row& row : rows) {
      history.insert(history.end(), row.history.begin(), row.history.end());
      mask.insert(mask.end(), row.mask.begin(), row.mask.end());
    }
    const DeviceArray<int32_t> device_history(history);
    const DeviceArray<uint32_t> device_mask(mask);
    cuda::SampleParams p = {};
    size_t history_at = 0, mask_at = 0;
    for (size_t r = 0; r < rows.size(); ++r) {
      const Row& row = rows[r];
      REQUIRE(row.logits.size() == static_cast<size_t>(vocab_));
      std::copy(row.logits.begin(), row.logits.end(), logits.begin() + static_cast<int64_t>(r) * stride);
      const SamplingSettings& s = row.settings;
      cuda::SampleRow d = {};
      d.temperature = s.temperature, d.top_p = s.top_p, d.min_p = s.min_p;
      d.top_k = static_cast<int32_t>(std::min<int64_t>(s.top_k, vocab_));
      d.repetition_penalty = s.repetition_penalty, d.presence_penalty = s.presence_penalty, d.frequency_penalty = s.frequency_penalty;
      d.top_logprobs = row.top_logprobs;
      d.history = device_history.get() + history_at;
      d.history_tokens = static_cast<int32_t>(row.history.size());
      d.prompt_tokens = static_cast<int32_t>(row.prompt_tokens);
      d.mask = row.mask.empty() ? nullptr : device_mask.get() + mask_at;
      d.seed = row.seed, d.counter = row.counter;
      std::vector<std::pair<int32_t, float>> bias = s.logit_bias;
      std::stable_sort(bias.begin(), bias.end(), [](const auto& a, const auto& b) { return a.first < b.first; });
      d.first_bias = static_cast<int32_t>(bias_ids.size());
      d.num_bias = static_cast<int32_t>(bias.size());
      for (const auto& [id, value] : bias) bias_ids.push_back(id), bias_values.push_back(value);
      history_at += row.history.size();
      mask_at += row.mask.size();
      settings.push_back(d);
      cuda::note_row(p.needs, d, vocab_);
    }
    const DeviceArray<float> device_logits(logits), device_bias_values(bias_values);
    const DeviceArray<int32_t> device_bias_ids(bias_ids);
    const DeviceArray<cuda::SampleRow> device_settings(settings);
    const DeviceArray<cuda::SampledToken> out(rows.size());
    p.top_stride = std::max(p.needs.most_top, 0);
    const DeviceArray<int32_t> top_ids(rows.size() * static_cast<size_t>(p.top_stride) + 1);
    const DeviceArray<float> top_logprobs(rows.size() * static_cast<size_t>(p.top_stride) + 1);
    p.logits = device_logits.get(), p.settings = device_settings.get();
    p.bias_ids = device_bias_ids.get(), p.bias_values = device_bias_values.get();
    p.out = out.get(), p.top_ids = top_ids.get(), p.top_logprobs = top_logprobs.get();
    p.workspace = workspace_.get();
    p.stride = stride, p.rows = static_cast<int32_t>(rows.size()), p.vocab = vocab_, p.max_rows = max_rows_;
    require_ok(api().sample(p, context()));
    std::vector<DeviceResult> results;
    const std::vector<cuda::SampledToken> tokens = out.download();
    for (size_t r = 0; r < rows.size(); ++r) {
      results.push_back({tokens[r], {}});
      const int count = tokens[r].error == cuda::SampleError::none ? std::min(rows[r].top_logprobs, vocab_) : 0;
      if (count <= 0) continue;
      const std::vector<int32_t> ids = top_ids.download();
      const std::vector<float> logprobs = top_logprobs.download();
      for (int i = 0; i < count; ++i) {
        const size_t at = r * static_cast<size_t>(p.top_stride) + static_cast<size_t>(i);
        results[r].top.push_back({ids[at], logprobs[at]});
      }
    }
    return results;
  }

 private:
  int max_rows_, vocab_;
  DeviceArray<uint8_t> workspace_;
};

std::string describe(const Row& row) {
  std::ostringstream os;
  const SamplingSettings& s = row.settings;
  os << "vocab " << row.logits.size() << ", temperature " << s.temperature << ", k " << s.top_k << ", p " << s.top_p << ", min-p "
     << s.min_p << ", penalties " << s.repetition_penalty << " " << s.presence_penalty << " " << s.frequency_penalty << ", bias "
     << s.logit_bias.size() << ", history " << row.history.size() << ", mask " << row.mask.size() << ", seed " << row.seed << ":"
     << row.counter;
  return os.str();
}

// The device's results equal the reference's, or its errors do.
void check_rows(const std::vector<Row>& rows, const std::vector<DeviceResult>& got) {
  for (size_t r = 0; r < rows.size(); ++r) {
    SampleResult want;
    try {
      want = sample_token(rows[r].logits, rows[r].request());
    } catch (const Error& e) {
      const std::string text = e.what();
      const cuda::SampleError error = text.find("damaged") != std::string::npos            ? cuda::SampleError::bad_logit
                                      : text.find("beyond the range") != std::string::npos ? cuda::SampleError::beyond_range
                                                                                           : cuda::SampleError::no_token;
      CHECK_MSG(got[r].token.error == error, describe(rows[r]) << ": error " << static_cast<int>(got[r].token.error) << ", want " << text);
      if (error == cuda::SampleError::bad_logit) {
        CHECK_MSG(text.find("token " + std::to_string(got[r].token.id) + " ") != std::string::npos,
                  "names token " << got[r].token.id << ": " << text);
      }
      continue;
    }
    CHECK_MSG(got[r].token.error == cuda::SampleError::none, describe(rows[r]) << ": error " << static_cast<int>(got[r].token.error));
    CHECK_MSG(got[r].token.id == want.id, describe(rows[r]) << ": token " << got[r].token.id << ", want " << want.id);
    if (rows[r].top_logprobs < 0) continue;
    CHECK_MSG(std::abs(got[r].token.logprob - want.logprob) <= 1e-5,
              describe(rows[r]) << ": logprob " << got[r].token.logprob << ", want " << want.logprob);
    REQUIRE(got[r].top.size() == want.top.size());
    for (size_t i = 0; i < want.top.size(); ++i) {
      CHECK_MSG(got[r].top[i].id == want.top[i].id, describe(rows[r])
                                                        << ": top " << i << " is " << got[r].top[i].id << ", want " << want.top[i].id);
      const bool same = got[r].top[i].logprob == want.top[i].logprob || std::abs(got[r].top[i].logprob - want.top[i].logprob) <= 1e-5;
      CHECK_MSG(same, describe(rows[r]) << ": top logprob " << i << " is " << got[r].top[i].logprob << ", want " << want.top[i].logprob);
    }
  }
}

class Dice {
 public:
  explicit Dice(uint32_t seed) : random_(seed) {}
  int below(int n) { return static_cast<int>(random_() % static_cast<uint32_t>(n)); }
  bool chance(int in) { return below(in) == 0; }
  float normal() { return std::normal_distribution<float>()(random_); }
  template <class T>
  T pick(std::initializer_list<T> from) {
    return from.begin()[below(static_cast<int>(from.size()))];
  }
  uint64_t bits() { return static_cast<uint64_t>(random_()) << 32 | random_(); }

 private:
  std::mt19937 random_;
};

std::vector<float> random_logits(int vocab, Dice& dice) {
  std::vector<float> x(static_cast<size_t>(vocab));
  const int kind = dice.below(8);
  const float deviation = dice.pick({0.01f, 1.0f, 3.0f, 12.0f}), centre = dice.pick({0.0f, -20.0f, 15.0f});
  for (float& v : x) {
    v = centre + deviation * dice.normal();
    if (kind == 1) v = std::round(v * 4) / 4;          // many ties
    if (kind == 2) v = 3.5f;                           // all equal
    if (kind == 3) v = dice.chance(2) ? 0.0f : -0.0f;  // equal, of both signs
    if (kind == 4) v = dice.normal() * 1e-40f;         // subnormal
    if (kind == 5 && dice.chance(3)) v = -kInfinity;   // excluded by the model
  }
  if (kind == 6) x[static_cast<size_t>(dice.below(vocab))] = 1e4f;  // one huge
  if (kind == 5) x[static_cast<size_t>(dice.below(vocab))] = 1;     // at least one
  return x;
}

Row random_row(int vocab, Dice& dice) {
  Row row;
  row.logits = random_logits(vocab, dice);
  SamplingSettings& s = row.settings;
  s.temperature = dice.pick({0.0f, 1.0f, 0.7f, 1.7f, 1e-3f, 1e-30f, 100.0f});
  if (dice.chance(2)) s.top_k = dice.pick({1, 2, 7, 64, 1000, vocab - 1, vocab, vocab + 5});
  if (s.top_k < 0) s.top_k = 0;
  if (dice.chance(2)) s.top_p = dice.pick({0.0f, 1e-6f, 0.3f, 0.5f, 0.9f, 0.95f, 0.999f, 0.99999994f, 1.0f});
  if (dice.chance(3)) s.min_p = dice.pick({0.01f, 0.1f, 0.5f, 1.0f, 1e-9f});
  if (dice.chance(3)) {
    const int tokens = dice.pick({1, 5, 700, 3000});
    for (int i = 0; i < tokens; ++i) row.history.push_back(dice.below(std::min(vocab, dice.pick({7, 300, vocab}))));
    row.prompt_tokens = dice.below(tokens + 1);
    s.repetition_penalty = dice.pick({1.0f, 1.3f, 0.8f});
    s.presence_penalty = dice.pick({0.0f, 0.5f, -0.25f});
    s.frequency_penalty = dice.pick({0.0f, 0.125f, 1.5f});
  }
  if (dice.chance(3)) {
    for (int i = dice.pick({1, 4, 40}); i > 0; --i)
      s.logit_bias.push_back({dice.below(std::min(vocab, dice.pick({5, vocab}))), dice.pick({-kInfinity, 2.5f, -1.0f, 0.3f})});
  }
  if (dice.chance(3)) {
    row.mask.resize(static_cast<size_t>((vocab + 31) / 32));
    const int kind = dice.below(3);
    for (uint32_t& word : row.mask)
      word = kind == 0 ? ~0u : kind == 1 ? static_cast<uint32_t>(dice.bits()) : dice.chance(20) ? 1u << dice.below(32) : 0;
  }
  row.seed = dice.bits();
  row.counter = dice.chance(2) ? static_cast<uint64_t>(dice.below(100)) : dice.bits();
  row.top_logprobs = dice.pick({-1, -1, 0, 1, 5, 20, 128});
  return row;
}

template <typename T>
std::vector<T> values(const TensorFile& file, const std::string& name) {
  const Tensor& t = file.tensors.at(name).view;
  std::vector<T> v(static_cast<size_t>(t.elements()));
  std::memcpy(v.data(), t.data, v.size() * sizeof(T));
  return v;
}

}  // namespace

TEST("cuda sampling: random rows, settings and batches draw the reference's tokens") {
  Dice dice(2024);
  for (const auto& [vocab, calls] :
       std::vector<std::pair<int, int>>{{1, 4}, {2, 6}, {31, 10}, {257, 20}, {2047, 10}, {2048, 6}, {2049, 10}, {5000, 10}, {20011, 2}}) {
    constexpr int kMostRows = 9;
    Sampler sampler(kMostRows, vocab);
    for (int call = 0; call < calls; ++call) {
      std::vector<Row> rows;
      for (int r = 1 + dice.below(kMostRows); r > 0; --r) rows.push_back(random_row(vocab, dice));
      check_rows(rows, sampler.run(rows));
    }
  }
}

TEST("cuda sampling: many draws of one distribution follow the reference draw by draw") {
  Dice dice(5);
  const int vocab = 3000;
  Sampler sampler(64, vocab);
  std::vector<Row> rows(64);
  const std::vector<float> logits = [&] {
    std::vector<float> x(vocab);
    for (float& v : x) v = 2 * dice.normal();
    return x;
  }();
  for (const auto& [k, p, min_p] :
       std::vector<std::tuple<int64_t, float, float>>{{0, 1, 0}, {40, 1, 0}, {0, 0.9f, 0}, {200, 0.95f, 0.001f}, {0, 1, 0.02f}}) {
    for (size_t i = 0; i < rows.size(); ++i) {
      rows[i].logits = logits;
      rows[i].settings.top_k = k, rows[i].settings.top_p = p, rows[i].settings.min_p = min_p;
      rows[i].seed = 77, rows[i].counter = i;
    }
    check_rows(rows, sampler.run(rows));
  }
}

TEST("cuda sampling: more candidates than the list has room for are searched in place") {
  const int vocab = cuda::kSampleListRoom + 3001;
  Dice dice(6);
  Sampler sampler(6, vocab);
  std::vector<Row> rows(6);
  for (Row& row : rows) {
    row.logits.assign(static_cast<size_t>(vocab), 0);
    row.seed = dice.bits();
  }
  rows[0].settings.top_p = 0.7f;                         // all equal: the cut is among equals, by id
  rows[1].settings.top_k = 5, rows[1].top_logprobs = 9;  // all equal: all stay
  rows[2].settings.top_k = vocab - 1, rows[2].settings.top_p = 0.5f;
  rows[3].settings.top_p = 0.999f, rows[3].settings.min_p = 0.5f;
  rows[4].settings.top_k = 17000;
  rows[5].settings.top_k = 17000, rows[5].settings.top_p = 0.99f, rows[5].settings.min_p = 0.3f;
  for (size_t r = 2; r < rows.size(); ++r)
    for (float& v : rows[r].logits) v = 8 + 0.1f * dice.normal();
  for (int call = 0; call < 3; ++call) {
    check_rows(rows, sampler.run(rows));
    for (Row& row : rows) ++row.counter;
  }
}

TEST("cuda sampling: top-p that ends exactly between equal tokens keeps the lower half, and one unit more the next") {
  for (const int vocab : {4, 600}) {
    for (const int64_t top_k : {int64_t{0}, int64_t{vocab} - 1}) {
      Sampler sampler(32, vocab);
      std::vector<Row> rows(32);
      for (size_t i = 0; i < rows.size(); ++i) {
        rows[i].logits.assign(static_cast<size_t>(vocab), -1.5f);
        rows[i].settings.top_p = i % 2 ? 0.50000006f : 0.5f;
        rows[i].settings.top_k = top_k;
        rows[i].counter = i;
      }
      const std::vector<DeviceResult> got = sampler.run(rows);
      check_rows(rows, got);
      for (size_t i = 0; i < rows.size(); ++i) CHECK(got[i].token.id < vocab / 2 + static_cast<int>(i % 2));
    }
  }
}

TEST("cuda sampling: a vocabulary of Gemma's size") {
  const int vocab = 262144;
  Dice dice(7);
  Sampler sampler(4, vocab);
  std::vector<Row> rows(4);
  for (Row& row : rows) {
    row.logits.resize(vocab);
    for (float& v : row.logits) v = 3 * dice.normal();
    row.seed = dice.bits();
    row.top_logprobs = 3;
  }
  rows[0].settings.temperature = 0;
  rows[1].settings.top_k = 64, rows[1].settings.top_p = 0.95f;
  rows[2].settings.top_p = 0.9f, rows[2].settings.repetition_penalty = 1.1f, rows[2].history = {5, 262143, 262143, 100000};
  check_rows(rows, sampler.run(rows));
  check_rows({rows[3]}, sampler.run({rows[3]}));  // alone, after a larger batch with the same workspace
}

TEST("cuda sampling: a damaged or empty row is an error of that row alone") {
  const int vocab = 2500;
  Dice dice(8);
  Sampler sampler(8, vocab);
  std::vector<Row> rows(8);
  for (Row& row : rows) {
    row.logits.resize(vocab);
    for (float& v : row.logits) v = dice.normal();
    row.settings.top_k = 10;
  }
  rows[0].logits[2100] = std::numeric_limits<float>::quiet_NaN();
  rows[0].logits[2400] = kInfinity;
  rows[1].logits[7] = kInfinity;
  rows[2].mask.assign((vocab + 31) / 32, 0);
  rows[3].logits.assign(vocab, -kInfinity);
  rows[4].logits[5] = 3e38f, rows[4].settings.logit_bias = {{5, 3e38f}};
  rows[5].logits[5] = -3e38f, rows[5].settings.logit_bias = {{5, -3e38f}};  // to minus infinity: excluded, no error
  rows[6].settings.temperature = 0, rows[6].logits[0] = std::numeric_limits<float>::quiet_NaN();
  for (int call = 0; call < 2; ++call) check_rows(rows, sampler.run(rows));
  for (Row& row : rows) row.settings.top_k = 0, row.settings.top_p = 0.8f, row.top_logprobs = 2;
  check_rows(rows, sampler.run(rows));
}

TEST("cuda sampling: golden settings draw the reference's tokens, all of them in the golden distributions") {
  const TensorFile file = open_safetensors(golden("sampling/expected.safetensors"));
  const JsonValue cases = JsonValue::parse(read_text_file(golden("sampling/expected.json")), "expected.json");
  REQUIRE(cases.array().size() == 10);
  for (const JsonValue& c : cases.array()) {
    const std::string name = c.find("name")->string();
    const auto number = [&](const char* key, double otherwise) { return c.find(key) ? c.find(key)->number() : otherwise; };
    Row row;
    row.logits = values<float>(file, name + ".logits");
    row.history = values<int32_t>(file, name + ".history");
    row.settings.temperature = static_cast<float>(number("temperature", 1));
    row.settings.top_k = static_cast<int64_t>(number("top_k", 0));
    row.settings.top_p = static_cast<float>(number("top_p", 1));
    row.settings.min_p = static_cast<float>(number("min_p", 0));
    row.settings.repetition_penalty = static_cast<float>(number("repetition_penalty", 1));
    const std::vector<float> golden_probabilities = values<float>(file, name + ".probabilities");
    std::vector<Row> rows(16, row);
    for (size_t i = 0; i < rows.size(); ++i) rows[i].counter = i;
    Sampler sampler(16, static_cast<int>(row.logits.size()));
    const std::vector<DeviceResult> got = sampler.run(rows);
    check_rows(rows, got);
    for (const DeviceResult& r : got) {
      REQUIRE(r.token.id >= 0 && r.token.id < static_cast<int32_t>(golden_probabilities.size()));
      CHECK_MSG(golden_probabilities[static_cast<size_t>(r.token.id)] > 0,
                name << ": token " << r.token.id << " has no probability and was drawn");
    }
  }
}

TEST("cuda sampling: rows that the plan does not cover say so, and what does not fit is refused") {
  const int vocab = 100;
  const DeviceArray<uint8_t> workspace(std::vector<uint8_t>(cuda::sample_workspace_bytes(1, vocab, true), 0));
  const DeviceArray<float> logits(std::vector<float>(vocab, 1));
  cuda::SampleRow row = {};
  row.temperature = 1, row.top_p = 0.5f, row.repetition_penalty = 1, row.top_logprobs = -1;
  const DeviceArray<cuda::SampleRow> settings(std::vector<cuda::SampleRow>{row});
  const DeviceArray<cuda::SampledToken> out(1);
  cuda::SampleParams p = {};
  p.logits = logits.get(), p.settings = settings.get(), p.out = out.get(), p.workspace = workspace.get();
  p.stride = vocab, p.rows = 1, p.vocab = vocab, p.max_rows = 1;
  for (const auto& [draws, nucleus, error] :
       std::vector<std::tuple<bool, bool, cuda::SampleError>>{{false, false, cuda::SampleError::unplanned},
                                                              {true, false, cuda::SampleError::unplanned},
                                                              {true, true, cuda::SampleError::none}}) {
    p.needs.draws = draws, p.needs.nucleus = nucleus;
    require_ok(api().sample(p, context()));
    CHECK(out.download()[0].error == error);
  }
  const auto refused = [&](auto change) {
    cuda::SampleParams q = p;
    change(q);
    return api().sample(q, context()).kind == cuda::Status::Kind::refused;
  };
  CHECK(refused([](auto& q) { q.vocab = 0; }));
  CHECK(refused([](auto& q) { q.rows = 2; }));
  CHECK(refused([](auto& q) { q.stride = 99; }));
  CHECK(refused([](auto& q) { q.needs.most_top = 5; }));
  CHECK(refused([](auto& q) { q.needs.most_top = cuda::kSampleMaxTop + 1; }));
}

#ifdef LAPIDARY_EMULATED
TEST("cuda sampling: any order of threads and blocks draws the same") {
  Dice dice(9);
  const int vocab = 4500;
  std::vector<Row> rows;
  for (int r = 0; r < 6; ++r) rows.push_back(random_row(vocab, dice));
  Sampler sampler(6, vocab);
  for (const uint64_t seed : {1, 2, 3}) {
    emulator::set_schedule(seed);
    check_rows(rows, sampler.run(rows));
  }
  emulator::set_schedule(0);
}
#endif

}  // namespace lapidary::test
