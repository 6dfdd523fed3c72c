// The golden text checkpoints, run on every backend: logits, hidden states, greedy text, bf16 error, and the invariances
// (chunks, rings, company) that the engine relies on.
#include <cmath>
#include <cstring>

#include "check.h"
#include "formats/json.h"
#include "formats/safetensors.h"
#include "model/runner.h"
#include "tensor/blocks.h"

namespace lapidary::test {
namespace {

const char* const kBackends[] = {"reference", "cpu"};
const char* const kModels[] = {"gemma2-tiny", "gemma3-tiny", "gemma3-head256"};
constexpr double kLogitsTolerance = 1e-4;
constexpr size_t kReferenceTokens = 72;  // plain loops are slow; enough to wrap a ring of one page

class Expected {
 public:
  explicit Expected(const std::string& folder) : file_(open_safetensors(golden(folder) + "/expected.safetensors")) {}

  bool has(const std::string& name) const { return file_.tensors.contains(name); }
  const Tensor& view(const std::string& name) const { return file_.tensors.at(name).view; }
  std::vector<float> floats(const std::string& name) const {
    std::vector<float> values(static_cast<size_t>(view(name).elements()));
    dequantize_row(view(name).dtype, view(name).data, view(name).elements(), values.data());
    return values;
  }
  std::vector<int32_t> ids(const std::string& name) const {
    std::vector<int32_t> values(static_cast<size_t>(view(name).elements()));
    std::memcpy(values.data(), view(name).data, values.size() * sizeof(int32_t));
    return values;
  }
  std::vector<std::string> cases() const {
    std::vector<std::string> names;
    for (int i = 0; has("case" + std::to_string(i) + ".ids"); ++i) names.push_back("case" + std::to_string(i));
    return names;
  }

 private:
  TensorFile file_;
};

struct Loaded {
  std::unique_ptr<Backend> backend;
  std::shared_ptr<const ModelWeights> weights;
};

Loaded load(const std::string& path, const std::string& backend) {
  Loaded model{make_backend(backend), nullptr};
  model.weights = load_weights(path, *model.backend);
  return model;
}

std::vector<float> logits_of(const Loaded& model, Precision precision, std::span<const int32_t> ids, int64_t chunk = 0, bool ring = false) {
  const auto tokens = static_cast<int64_t>(ids.size());
  return Runner(*model.backend, *model.weights, precision, tokens, chunk == 0 ? tokens : chunk, ring).append(ids);
}

bool same_bits(const std::vector<float>& a, const std::vector<float>& b) {
  return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0;
}

double log_sum(std::span<const float> row) {
  const double high = *std::max_element(row.begin(), row.end());
  double sum = 0;
  for (float v : row) sum += std::exp(v - high);
  return high + std::log(sum);
}

double nats_of(std::span<const float> logits, int32_t id) { return log_sum(logits) - logits[static_cast<size_t>(id)]; }

// Mean over rows of KL(softmax(p) || softmax(q)).
double mean_kl(std::span<const float> p, std::span<const float> q, size_t vocab) {
  double total = 0;
  for (size_t at = 0; at < p.size(); at += vocab) {
    const auto rp = p.subspan(at, vocab), rq = q.subspan(at, vocab);
    const double lp = log_sum(rp), lq = log_sum(rq);
    for (size_t i = 0; i < vocab; ++i) total += std::exp(rp[i] - lp) * ((rp[i] - lp) - (rq[i] - lq));
  }
  return total / static_cast<double>(p.size() / vocab);
}

void check_logits(const std::string& name, const std::string& backend) {
  const Expected expected(name);
  const Loaded model = load(golden(name), backend);
  REQUIRE(!expected.cases().empty());
  for (const std::string& c : expected.cases()) {
    const std::vector<float> got = logits_of(model, Precision::f32, expected.ids(c + ".ids"));
    const double error = relative_error(got, expected.floats(c + ".logits_f32"));
    CHECK_MSG(error <= kLogitsTolerance, name << " " << c << " on " << backend << ": relative error " << error);
  }
}

void check_hidden(const std::string& name, const std::string& backend) {
  const Expected expected(name);
  const Loaded model = load(golden(name), backend);
  const std::vector<int32_t> ids = expected.ids("case2.ids");
  int64_t seen = 0;
  const auto observe = [&](int64_t l, const Tensor& x) {
    CHECK(l == seen++);
    std::vector<float> got(static_cast<size_t>(x.elements()));
    model.backend->download(got.data(), x);
    const double error = relative_error(got, expected.floats("case2.hidden" + std::to_string(l)));
    CHECK_MSG(error <= kLogitsTolerance, name << " hidden " << l << " on " << backend << ": relative error " << error);
  };
  const auto tokens = static_cast<int64_t>(ids.size());
  const std::vector<float> observed = Runner(*model.backend, *model.weights, Precision::f32, tokens, tokens).append(ids, observe);
  CHECK(seen == model.weights->config.num_layers + 1);
  CHECK_MSG(same_bits(observed, logits_of(model, Precision::f32, ids)), "watching must not change the logits");
}

void check_greedy(const std::string& name, const std::string& backend) {
  const Expected expected(name);
  const Loaded model = load(golden(name), backend);
  const std::vector<int32_t> prompt = expected.ids("greedy.prompt"), want = expected.ids("greedy.continuation");
  Runner runner(*model.backend, *model.weights, Precision::f32, static_cast<int64_t>(prompt.size() + want.size()), 16, /*ring=*/true);
  CHECK_MSG(runner.greedy(prompt, want.size()) == want, name << " on " << backend);
}

void check_bf16(const std::string& name, const std::string& backend) {
  const Expected expected(name);
  const Loaded model = load(golden(name), backend);
  const auto vocab = static_cast<size_t>(model.weights->config.vocab);
  for (const std::string& c : expected.cases()) {
    const std::vector<float> truth = expected.floats(c + ".logits_f32");
    const double ours = mean_kl(truth, logits_of(model, Precision::bf16, expected.ids(c + ".ids")), vocab);
    const double theirs = mean_kl(truth, expected.floats(c + ".logits_bf16"), vocab);
    CHECK_MSG(ours <= 1.5 * theirs + 1e-6, name << " " << c << " on " << backend << ": KL " << ours << ", the reference's own " << theirs);
    CHECK_MSG(ours > 0, "bf16 must differ from f32");
  }
}

void check_chunks(const std::string& name, const std::string& backend) {
  const Expected expected(name);
  const Loaded model = load(golden(name), backend);
  std::vector<int32_t> ids = expected.ids(expected.cases().back() + ".ids");
  if (backend == "reference") ids.resize(std::min(ids.size(), kReferenceTokens));
  for (const Precision precision : {Precision::f32, Precision::bf16}) {
    const std::vector<float> whole = logits_of(model, precision, ids);
    for (const int64_t chunk : {1, 7, 64}) {
      CHECK_MSG(same_bits(whole, logits_of(model, precision, ids, chunk)), name << " on " << backend << ", chunks of " << chunk);
      CHECK_MSG(same_bits(whole, logits_of(model, precision, ids, chunk, /*ring=*/true)),
                name << " on " << backend << ", ring, chunks of " << chunk);
    }
  }
}

// Logits are causal, so the golden rows of a long case are the truth for every shorter length.
void check_window_lengths(const std::string& name, const std::string& backend) {
  const Expected expected(name);
  const Loaded model = load(golden(name), backend);
  const std::string longest = expected.cases().back();
  const std::vector<int32_t> ids = expected.ids(longest + ".ids");
  const std::vector<float> truth = expected.floats(longest + ".logits_f32");
  const int64_t window = model.weights->config.layers[0].window;
  REQUIRE(model.weights->config.layers[0].is_local());
  for (const int64_t length : {int64_t{1}, window - 1, window, window + 1, 2 * window, 5 * window + 3}) {
    if (length > static_cast<int64_t>(ids.size())) continue;
    const std::span<const int32_t> part(ids.data(), static_cast<size_t>(length));
    const std::vector<float> whole = logits_of(model, Precision::f32, part);
    const double error = relative_error(whole, std::span(truth).first(whole.size()));
    CHECK_MSG(error <= kLogitsTolerance, name << " on " << backend << ", " << length << " tokens: relative error " << error);
    CHECK_MSG(same_bits(whole, logits_of(model, Precision::f32, part, 1, /*ring=*/true)),
              name << " on " << backend << ", " << length << " tokens, one by one");
  }
}

// Three sequences in one step, at different positions, give what each gives alone.
void check_company(const std::string& name, const std::string& backend) {
  const Expected expected(name);
  const Loaded model = load(golden(name), backend);
  const ModelConfig& config = model.weights->config;
  const std::vector<int32_t> ids = expected.ids("case1.ids");
  const auto tokens = static_cast<int64_t>(ids.size());
  StepScratch scratch(*model.backend, config, Precision::f32, 3 * tokens, 3 * tokens);
  std::vector<TestCache> caches;
  std::vector<StepSpan> spans;
  std::vector<int32_t> all_ids, positions, logit_rows;
  for (int64_t s = 0; s < 3; ++s) caches.emplace_back(*model.backend, config, DType::f32, tokens);
  for (int64_t s = 0; s < 3; ++s) {
    const int64_t rows = tokens - s;  // of different lengths
    spans.push_back({static_cast<int64_t>(all_ids.size()), rows, 0, caches[static_cast<size_t>(s)].views()});
    for (int64_t r = 0; r < rows; ++r)
      all_ids.push_back((ids[static_cast<size_t>(r)] + static_cast<int32_t>(s)) % static_cast<int32_t>(config.vocab)),
          positions.push_back(static_cast<int32_t>(r));
    logit_rows.push_back(static_cast<int32_t>(all_ids.size()) - 1);
  }
  const Tensor together = forward(*model.backend, *model.weights, {all_ids, positions, spans, logit_rows}, scratch);
  CHECK(together.shape[0] == 3);
  for (size_t s = 0; s < 3; ++s) {
    const std::span<const int32_t> own(all_ids.data() + spans[s].first_row, static_cast<size_t>(spans[s].rows));
    const std::vector<float> alone = logits_of(model, Precision::f32, own);
    std::vector<float> row(static_cast<size_t>(config.vocab));
    model.backend->download(row.data(), together.rows(static_cast<int64_t>(s), 1));
    CHECK_MSG(same_bits(row, {alone.end() - config.vocab, alone.end()}), name << " on " << backend << ", sequence " << s);
  }
}

void on_all(void (*check)(const std::string&, const std::string&)) {
  for (const char* backend : kBackends) {
    for (const char* name : kModels) check(name, backend);
  }
}

TEST("golden: f32 logits") { on_all(check_logits); }
TEST("golden: hidden states layer by layer") { on_all(check_hidden); }
TEST("golden: 64 greedy tokens") { on_all(check_greedy); }
TEST("golden: bf16 error") { on_all(check_bf16); }
TEST("golden: chunks do not change a bit") { on_all(check_chunks); }
TEST("golden: lengths around the window") { on_all(check_window_lengths); }
TEST("golden: company does not change a bit") { on_all(check_company); }

bool same_model(const ModelConfig& a, const ModelConfig& b) {
  const auto ropes = [](const RopeConfig& x, const RopeConfig& y) { return x.base == y.base && x.factor == y.factor; };
  const auto layers = [](const LayerConfig& x, const LayerConfig& y) { return x.window == y.window && x.rope == y.rope; };
  return a.family == b.family && a.num_layers == b.num_layers && a.hidden == b.hidden && a.ffn == b.ffn && a.vocab == b.vocab &&
         a.num_heads == b.num_heads && a.num_kv_heads == b.num_kv_heads && a.head_dim == b.head_dim && a.max_positions == b.max_positions &&
         a.query_scale == b.query_scale && a.attention_softcap == b.attention_softcap && a.final_softcap == b.final_softcap &&
         a.qk_norm == b.qk_norm && a.norm_eps == b.norm_eps && a.norm_offset == b.norm_offset && a.tied_head == b.tied_head &&
         a.eos_ids == b.eos_ids && a.bos_id == b.bos_id && a.pad_id == b.pad_id &&
         std::equal(a.ropes.begin(), a.ropes.end(), b.ropes.begin(), b.ropes.end(), ropes) &&
         std::equal(a.layers.begin(), a.layers.end(), b.layers.begin(), b.layers.end(), layers);
}

TEST("golden: config.hub.json is the same model as config.json") {
  for (const std::string name : kModels) {
    const auto read = [&](const std::string& file) {
      const std::string path = golden(name) + "/" + file;
      return config_from_json(JsonValue::parse(read_text_file(path), path), nullptr, path);
    };
    CHECK_MSG(same_model(read("config.json"), read("config.hub.json")), name);
  }
}

TEST("golden: a vision checkpoint loads its text part, with a note") {
  const Expected expected("gemma3-vision-tiny");
  const std::vector<float> truth = expected.floats("logits_f32");
  std::vector<int32_t> ids = expected.ids("ids");
  ids.resize(static_cast<size_t>(std::find_if(ids.begin(), ids.end(), [](int32_t id) { return id == 502; }) -
                                 ids.begin()));  // up to the first image token
  REQUIRE(!ids.empty());
  for (const char* backend : kBackends) {
    const Loaded model = load(golden("gemma3-vision-tiny"), backend);
    CHECK(model.weights->config.has_vision);
    REQUIRE(model.weights->config.notes.size() == 1);
    CHECK(model.weights->config.notes[0].find("vision tower") != std::string::npos);
    const std::vector<float> got = logits_of(model, Precision::f32, ids);
    CHECK(relative_error(got, std::span(truth).first(got.size())) <= kLogitsTolerance);
  }
  CHECK(load_config(golden("gemma3-vision-tiny")).notes.size() == 1);
}

TEST("golden: the embedded model") {
  const Expected expected("gemma3-small");
  for (const std::string backend : kBackends) {
    const Loaded model = load(LAPIDARY_SOURCE_DIR "/models/tiny", backend);
    const auto vocab = static_cast<size_t>(model.weights->config.vocab);
    const size_t texts = backend == "reference" ? 1 : 4;
    for (size_t t = 0; t < texts; ++t) {
      const std::string text = "text" + std::to_string(t);
      const std::vector<int32_t> ids = expected.ids(text + ".ids"), prompt = expected.ids(text + ".prompt");
      std::vector<int32_t> greedy = expected.ids(text + ".greedy");
      if (backend == "reference") greedy.resize(kReferenceTokens);
      const std::vector<float> truth = expected.floats(text + ".last8_logits_f32"), all = logits_of(model, Precision::f32, ids);
      const double error = relative_error(std::span(all).last(8 * vocab), truth);
      CHECK_MSG(error <= kLogitsTolerance, text << " on " << backend << ": relative error " << error);
      const std::vector<float> rounded = logits_of(model, Precision::bf16, ids);
      const double ours = mean_kl(truth, std::span(rounded).last(8 * vocab), vocab),
                   theirs = mean_kl(truth, expected.floats(text + ".last8_logits_bf16"), vocab);
      CHECK_MSG(ours <= 1.5 * theirs + 1e-6, text << " on " << backend << ": KL " << ours << ", the reference's own " << theirs);
      Runner runner(*model.backend, *model.weights, Precision::f32, static_cast<int64_t>(prompt.size() + greedy.size()), 64, /*ring=*/true);
      CHECK_MSG(runner.greedy(prompt, greedy.size()) == greedy, text << " on " << backend);
    }
  }
}

// The library reads no F64 tensors, so this test takes them from the file itself.
std::vector<double> read_doubles(const std::string& path, const std::string& name) {
  const auto file = MappedFile::open(path);
  uint64_t header_bytes = 0;
  std::memcpy(&header_bytes, file->slice(0, 8).data(), 8);
  const auto header = file->slice(8, header_bytes);
  const JsonValue json = JsonValue::parse({reinterpret_cast<const char*>(header.data()), header.size()}, path);
  const auto& offsets = json.find(name)->find("data_offsets")->array();
  const auto begin = static_cast<uint64_t>(offsets[0].integer()), end = static_cast<uint64_t>(offsets[1].integer());
  std::vector<double> values((end - begin) / sizeof(double));
  std::memcpy(values.data(), file->slice(8 + header_bytes + begin, end - begin).data(), end - begin);
  return values;
}

TEST("golden: surprise of held-out text") {
  const Expected expected("gemma3-small");
  const std::vector<int32_t> windows = expected.ids("perplexity.windows");
  const std::vector<double> nats = read_doubles(golden("gemma3-small") + "/expected.safetensors", "perplexity.nats");
  const auto length = static_cast<size_t>(expected.view("perplexity.windows").shape[1]);
  REQUIRE(windows.size() == nats.size() * length);
  for (const std::string backend : kBackends) {
    const Loaded model = load(LAPIDARY_SOURCE_DIR "/models/tiny", backend);
    const auto vocab = static_cast<size_t>(model.weights->config.vocab);
    const size_t count = backend == "reference" ? 1 : 8;
    for (size_t w = 0; w < count; ++w) {
      const std::span<const int32_t> ids(windows.data() + w * length, length);
      const std::vector<float> logits = logits_of(model, Precision::f32, ids.first(length - 1));
      double sum = 0;
      for (size_t t = 0; t + 1 < length; ++t) sum += nats_of(std::span(logits).subspan(t * vocab, vocab), ids[t + 1]);
      CHECK_MSG(std::abs(sum - nats[w]) <= 1e-4 * nats[w],
                "window " << w << " on " << backend << ": " << sum << " nats, expected " << nats[w]);
    }
  }
}

TEST("golden: a stopped step throws and leaves the rest undone") {
  const Loaded model = load(golden("gemma3-tiny"), "reference");
  const std::vector<int32_t> ids = {2, 3, 4};
  int polls = 0;
  Runner runner(*model.backend, *model.weights, Precision::f32, 3, 3);
  CHECK_THROWS(runner.append(ids, {}, [&] { return ++polls == 3; }), ErrorCode::aborted, "layer 2");
  CHECK(polls == 3);
}

TEST("golden: scratch takes what it says") {
  const Loaded model = load(golden("gemma3-tiny"), "reference");
  for (const Precision precision : {Precision::f32, Precision::bf16}) {
    const StepScratch s(*model.backend, model.weights->config, precision, 5, 2);
    int64_t sum = s.x.bytes() + s.selected.bytes() + s.selected_normed.bytes() + s.logits.bytes();
    for (const Tensor* t : {&s.ws.normed, &s.ws.q, &s.ws.k, &s.ws.v, &s.ws.attended, &s.ws.branch, &s.ws.gate, &s.ws.up, &s.ws.gated})
      sum += t->bytes();
    for (size_t i = 0; i < s.cos.size(); ++i) sum += s.cos[i].bytes() + s.sin[i].bytes();
    CHECK(sum == StepScratch::bytes(model.weights->config, precision, 5, 2));
  }
}

}  // namespace
}  // namespace lapidary::test
