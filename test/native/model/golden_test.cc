// The golden text checkpoints on the reference and the CPU backend, and what else golden data says of loading.
#include "formats/json.h"
#include "model/golden_checks.h"

namespace lapidary::test {
namespace {

const char* const kBackends[] = {"reference", "cpu"};

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
