// Quantising a model: scales against plain computations, what is saved against what is held in memory, and failures that leave nothing.
#include "compress/quantize.h"

#include <filesystem>
#include <fstream>
#include <set>

#include "check.h"
#include "model/golden_checks.h"
#include "model/tiny_checkpoint.h"
#include "ops/int8.h"
#include "runtime/engine_core.h"

namespace lapidary::test {
namespace {

std::vector<int32_t> some_ids(int64_t vocab, int64_t tokens, uint64_t seed) {
  std::vector<int32_t> ids;
  for (int64_t i = 0; i < tokens; ++i) {
    seed = seed * 6364136223846793005u + 1442695040888963407u;
    ids.push_back(static_cast<int32_t>((seed >> 33) % static_cast<uint64_t>(vocab)));
  }
  return ids;
}

struct Original {
  Loaded model;
  std::string path;
  std::vector<TextIds> texts;
  const ModelConfig& config() const { return model.weights->config; }
  Subject subject(const Cushion* cushion = nullptr) const { return {*model.backend, *model.weights, Precision::f32, cushion}; }
  std::shared_ptr<QuantizedModel> quantize(const QuantizeOptions& options, const EvaluationWatch& watch = {}) const {
    const Subject s = subject(options.cushion.get());
    return quantize_model(path, &s, texts, options, watch);
  }
};

Original open_original(const std::string& name) {
  Original o{load(golden(name), "cpu"), golden(name), {}};
  o.texts = {some_ids(o.config().vocab, 50, 1), some_ids(o.config().vocab, 23, 2)};
  return o;
}

std::shared_ptr<const Cushion> some_cushion(const Original& o) {
  TextPass maker(*o.model.backend, *o.model.weights, {});
  maker.run(some_ids(o.config().vocab, 2, 9), nullptr);
  return std::make_shared<const Cushion>(maker.to_cushion(CushionWindow::pinned));
}

Loaded load_quantised(QuantizedModel& model, const std::string& backend) {
  Loaded loaded{make_backend(backend), nullptr};
  loaded.weights = load_weights(model.path(), *loaded.backend, {}, {.transform = &model});
  return loaded;
}

std::vector<float> logits_with_cushion(const Loaded& model, std::span<const int32_t> ids) {
  std::vector<float> all;
  TextPass pass(*model.backend, *model.weights, {.cushion = model.weights->cushion.get()});
  pass.run(ids, [&](int64_t, const Tensor& rows) { all.insert(all.end(), rows.as<float>(), rows.as<float>() + rows.elements()); });
  return all;
}

int64_t files_in(const std::string& folder) { return std::distance(std::filesystem::directory_iterator(folder), {}); }

TEST("quantize: weights per channel and per tensor are those of plain loops") {
  const Original o = open_original("gemma3-tiny");
  for (const bool per_channel : {true, false}) {
    const auto model = o.quantize({.per_channel = per_channel, .activations = ActScheme::none});
    const Loaded plain = load(o.path, "reference"), loaded = load_quantised(*model, "reference");
    for (const auto member : {&LayerWeights::q, &LayerWeights::down}) {
      const Linear &before = plain.weights->layers[2].*member, &after = loaded.weights->layers[2].*member;
      REQUIRE(after.weight.dtype == DType::i8 && after.activations == ActScheme::none);
      std::vector<float> values(static_cast<size_t>(before.out() * before.in()));
      dequantize_row(before.weight.dtype, before.weight.data, before.out() * before.in(), values.data());
      float most = 0;
      for (const float v : values) most = std::max(most, std::fabs(v));
      int64_t wrong = 0;
      for (int64_t r = 0; r < before.out(); ++r) {
        const float* row = values.data() + r * before.in();
        float row_most = 0;
        for (int64_t i = 0; i < before.in(); ++i) row_most = std::max(row_most, std::fabs(row[i]));
        const float scale = (per_channel ? row_most : most) / 127.0f;
        wrong += after.scale.as<float>()[r] != scale;
        for (int64_t i = 0; i < before.in(); ++i)
          wrong += after.weight.as<int8_t>()[r * before.in() + i] != std::nearbyint(row[i] * (1.0f / scale));
      }
      CHECK(wrong == 0);
    }
    CHECK(loaded.weights->embedding.weight.dtype == plain.weights->embedding.weight.dtype);
  }
}

TEST("quantize: static scales are those of a plain look at the inputs") {
  const Original o = open_original("gemma2-tiny");
  const int64_t sites = o.config().num_layers * kNumSites;
  std::vector<std::vector<float>> seen(static_cast<size_t>(sites));
  for (const TextIds& text : o.texts) {
    TextIds ids = {o.config().bos_id};
    ids.insert(ids.end(), text.begin(), text.end());
    TextPass pass(*o.model.backend, *o.model.weights, {});
    pass.run(ids, nullptr, {.sites = [&](int64_t layer, Site site, const Tensor& x) {
               std::vector<float>& all = seen[static_cast<size_t>(layer * kNumSites + static_cast<int>(site))];
               for (int64_t i = 0; i < x.elements(); ++i) all.push_back(std::fabs(x.as<float>()[i]));
             }});
  }
  const auto absmax = o.quantize({.activations = ActScheme::fixed, .clip = ClipRule::absmax});
  const auto mse = o.quantize({.activations = ActScheme::fixed, .clip = ClipRule::mse});
  const auto percentile = o.quantize({.activations = ActScheme::fixed, .clip = ClipRule::percentile});
  REQUIRE(static_cast<int64_t>(absmax->scales().size()) == sites);
  const auto error = [](const std::vector<float>& values, float scale) {
    double sum = 0;
    for (const float v : values) sum += std::pow(static_cast<double>(v) - static_cast<float>(to_int8(v * (1.0f / scale))) * scale, 2);
    return sum;
  };
  bool clips = false;
  for (size_t i = 0; i < seen.size(); ++i) {
    std::vector<float>& values = seen[i];
    std::sort(values.begin(), values.end());
    CHECK(absmax->scales()[i].scale == int8_scale(values.back()));
    // One in 10,000 lies above the percentile, rounded down to whole values; a histogram's bin is 1/64 wide.
    const size_t rank = static_cast<size_t>(std::ceil(0.9999 * static_cast<double>(values.size()))) - 1;
    CHECK_CLOSE((std::vector<float>{percentile->scales()[i].scale}), (std::vector<float>{int8_scale(values[rank])}), 1.0 / 60, 0);
    // Within what bins can tell, no share of the largest does better than the chosen one.
    const float chosen = mse->scales()[i].scale;
    clips = clips || mse->scales()[i].clip < 1;
    double least = INFINITY;
    for (int step = 64; step <= 128; ++step)
      least = std::min(least, error(values, int8_scale(values.back() * static_cast<float>(step) / 128)));
    CHECK_MSG(error(values, chosen) <= 1.1 * least, "site " << i << ": " << error(values, chosen) << " against " << least);
  }
  CHECK(clips);
  const Loaded loaded = load_quantised(*mse, "reference");
  const LayerWeights& layer = loaded.weights->layers[1];
  CHECK(layer.q.activations == ActScheme::fixed && layer.q.input_scale == mse->scales()[kNumSites].scale);
  CHECK(layer.v.input_scale == layer.q.input_scale && layer.up.input_scale == mse->scales()[kNumSites + 2].scale);
  CHECK(layer.down.input_scale == mse->scales()[kNumSites + 3].scale && layer.o.input_scale == mse->scales()[kNumSites + 1].scale);
}

TEST("quantize: a saved model reads back with the logits of the one in memory") {
  for (const char* name : {"gemma3-tiny", "gemma2-tiny"}) {
    const Original o = open_original(name);
    const std::vector<int32_t> ids = some_ids(o.config().vocab, 40, 5);
    const std::shared_ptr<const Cushion> cushion = some_cushion(o);
    const std::vector<float> wanted = logits_of(o.model, Precision::f32, ids);
    std::set<std::string> models = {model_fingerprint(*o.model.weights)};
    for (const QuantizeOptions& options : std::vector<QuantizeOptions>{
             {},
             {.activations = ActScheme::none, .embedding = true},
             {.per_channel = false, .smooth = 0.5},
             {.activations = ActScheme::fixed, .smooth = 0.5},
             {.per_channel = false, .activations = ActScheme::sequence},
             {.activations = ActScheme::fixed, .smooth = 0.8, .embedding = true, .cushion = cushion},
             {.activations = ActScheme::token, .cushion = cushion},
         }) {
      const auto model = o.quantize(options);
      const std::string above = temporary_folder(), target = above + "/out";
      model->save(target);
      CHECK(files_in(above) == 1);
      for (const std::string backend : {"reference", "cpu"}) {
        const Loaded held = load_quantised(*model, backend), back = load(target, backend);
        CHECK((back.weights->cushion != nullptr) == (options.cushion != nullptr));
        // Sessions of one are not taken for another's.
        const std::string fingerprint = model_fingerprint(*back.weights);
        CHECK(model_fingerprint(*held.weights) == fingerprint && models.insert(fingerprint).second == (backend == "reference"));
        const std::vector<float> a = logits_with_cushion(held, ids), b = logits_with_cushion(back, ids);
        CHECK_MSG(same_bits(a, b), name << ' ' << backend << ": " << relative_error(b, a));
        // int8 is near the original, but not the original.
        if (!options.cushion)
          CHECK_MSG(relative_error(a, wanted) < 0.2 && relative_error(a, wanted) > 1e-4, name << ' ' << relative_error(a, wanted));
      }
    }
  }
}

TEST("quantize: the original's embedding is not made twice") {
  for (const std::string name : {"gemma3-tiny", "gemma2-tiny"}) {
    const Original o = open_original(name);
    const std::vector<int32_t> ids = some_ids(o.config().vocab, 20, 5);
    for (const bool embedding : {false, true}) {
      const auto model = o.quantize({.embedding = embedding});
      const Loaded apart = load_quantised(*model, "cpu");
      Loaded beside{make_backend("cpu"), nullptr};
      beside.weights = load_weights(model->path(), *beside.backend, {}, {.transform = model.get(), .original = o.model.weights});
      const Linear &mine = beside.weights->embedding, &theirs = o.model.weights->embedding, &other = apart.weights->embedding;
      const auto memory = [](const Linear& w) { return w.packed ? static_cast<const void*>(w.packed.get()) : w.weight.data; };
      CHECK((memory(mine) == memory(theirs)) == !embedding);
      CHECK(memory(mine) == memory(beside.weights->head) && beside.weights->file_bytes == apart.weights->file_bytes);
      CHECK(!other.packed || memory(other) != memory(theirs));
      CHECK(beside.weights->content_hash == apart.weights->content_hash);
      CHECK(same_bits(logits_of(beside, Precision::f32, ids), logits_of(apart, Precision::f32, ids)));
    }
  }
}

TEST("quantize: a model and its cushion belong together") {
  const Original o = open_original("gemma3-tiny");
  const std::string above = temporary_folder(), target = above + "/out", file = target + "/cushion.safetensors";
  o.quantize({.activations = ActScheme::fixed, .cushion = some_cushion(o)})->save(target);
  const ModelConfig config = load_config(target);
  const Cushion written = read_cushion(file, config);
  CHECK(config.cushion_fingerprint == cushion_fingerprint(written) && written.notes.at("fingerprint") == config.cushion_fingerprint);
  const auto reload = [&] { return load_weights(target, *make_reference_backend()); };
  CHECK(reload()->cushion && cushion_fingerprint(*reload()->cushion) == config.cushion_fingerprint);
  CHECK(load_weights(target, *make_reference_backend(), {}, {.cushion = false})->cushion == nullptr);

  Cushion other = read_cushion(file, config);
  other.v[0].as<float>()[0] += 1;
  write_cushion(file, other);
  CHECK_THROWS(reload(), ErrorCode::bad_file, "is not what was written");
  other.notes.clear();
  write_cushion(file, other);
  CHECK_THROWS(reload(), ErrorCode::bad_file, "is another cushion");
  std::filesystem::remove(file);
  CHECK_THROWS(reload(), ErrorCode::bad_file, "cushion.safetensors is not beside it");

  const std::string plain = above + "/plain";
  o.quantize({.activations = ActScheme::fixed})->save(plain);
  write_cushion(plain + "/cushion.safetensors", written);
  const auto noted = load_weights(plain, *make_reference_backend())->config.notes;
  CHECK(std::any_of(noted.begin(), noted.end(), [](const std::string& n) { return n.find("none was recorded") != n.npos; }));
}

TEST("quantize: what is refused, and stopping leaves nothing") {
  const Original o = open_original("gemma2-tiny");
  const ErrorCode wrong = ErrorCode::invalid_argument;
  CHECK_THROWS(o.quantize({.smooth = 1.5}), wrong, "from 0 to 1");
  CHECK_THROWS(o.quantize({.activations = ActScheme::none, .smooth = 0.5}), wrong, "of no use");
  const Subject subject = o.subject();
  CHECK_THROWS(quantize_model(o.path, &subject, {}, {.activations = ActScheme::fixed}), wrong, "calibration texts are needed");
  CHECK_THROWS(quantize_model(golden("compressed-tensors/gemma2-tiny-static"), nullptr, {}, {}), ErrorCode::unsupported,
               "quantised already");
  CHECK_THROWS(quantize_model("/nowhere", nullptr, {}, {}), ErrorCode::bad_file, "no such file");

  const std::string above = temporary_folder(), target = above + "/out";
  for (const int after : {0, 1, 5}) {
    int polls = 0;
    const auto stop = [&] { return polls++ >= after; };
    CHECK_THROWS(o.quantize({.activations = ActScheme::fixed, .smooth = 0.5}, {{}, stop}), ErrorCode::aborted, "stopped");
    polls = 0;
    CHECK_THROWS(o.quantize({})->save(target, {{}, stop}), ErrorCode::aborted, "stopped");
    CHECK(files_in(above) == 0);
  }
  int64_t last = 0, all = 0;
  o.quantize({})->save(target, {[&](int64_t done, int64_t total) {
                         CHECK(done >= last);
                         last = done;
                         all = total;
                       }});
  CHECK(last == all && all > 0 && files_in(above) == 1);
  CHECK_THROWS(o.quantize({})->save(target), wrong, "is there already");
}

// Rounds a site's tensor to int8 and back with one scale for all of it.
void round_to_int8(int64_t, Site, const Tensor& x) {
  float most = 0;
  for (int64_t i = 0; i < x.elements(); ++i) most = std::max(most, std::fabs(x.as<float>()[i]));
  const float scale = most / 127, inverse = 1 / scale;
  for (int64_t i = 0; i < x.elements(); ++i) x.as<float>()[i] = static_cast<float>(std::nearbyint(x.as<float>()[i] * inverse)) * scale;
}

TEST("quantize: per-tensor dynamic inputs are those of the weights alone, each site rounded with one scale") {
  const Original o = open_original("gemma3-tiny");
  const std::vector<int32_t> ids = some_ids(o.config().vocab, 30, 6);
  const auto weights_alone = o.quantize({.activations = ActScheme::none}), both = o.quantize({.activations = ActScheme::sequence});
  const Loaded plain = load_quantised(*weights_alone, "reference");
  TextPass pass(*plain.backend, *plain.weights, {});
  std::vector<float> rounded;
  pass.run(ids, [&](int64_t, const Tensor& t) { rounded.insert(rounded.end(), t.as<float>(), t.as<float>() + t.elements()); },
           {.sites = round_to_int8});
  for (const std::string backend : {"reference", "cpu"}) {
    const std::vector<float> got = logits_of(load_quantised(*both, backend), Precision::f32, ids);
    CHECK_MSG(relative_error(got, rounded) < 1e-3, backend << ": " << relative_error(got, rounded));
  }
  const std::vector<float> token = logits_of(load_quantised(*o.quantize({}), "reference"), Precision::f32, ids);
  CHECK(relative_error(token, rounded) > 2e-3);  // so the bound above tells schemes apart
}

TEST("quantize: per-tensor dynamic inputs know no other sequence of the step") {
  for (const char* name : {"gemma3-tiny", "gemma2-tiny"}) {
    const std::string target = temporary_folder() + "/out";
    open_original(name).quantize({.per_channel = false, .activations = ActScheme::sequence})->save(target);
    CHECK(load_config(target).notes ==
          std::vector<std::string>{"int8 weights (compressed-tensors), inputs quantised with a scale per sequence and step"});
    const TensorFile file = open_safetensors(target);
    CHECK(file.tensors.at("model.layers.0.mlp.down_proj.weight_scale").view.elements() == 1);
    for (const std::string backend : {"reference", "cpu"}) {
      const Loaded model = load(target, backend);
      for (const Precision precision : {Precision::f32, Precision::bf16}) check_company(model, some_ids(512, 40, 3), precision, name);
    }
  }
}

// Counts what it is shown.
class Counting final : public WeightsTransform {
 public:
  Linear linear(const TensorSlot& slot, Linear host) override { return seen.push_back(slot), host; }
  void norm(const TensorSlot& slot, std::span<float> weight) override { seen.push_back(slot), numbers += weight.size(); }
  std::vector<TensorSlot> seen;
  size_t numbers = 0;
};

TEST("weights: a transform sees every weight of a file once, loading or visiting") {
  for (const std::string& path : {golden("gemma3-tiny"), golden("compressed-tensors/gemma2-tiny-static")}) {
    Counting loading, visiting;
    const auto weights = load_weights(path, *make_reference_backend(), {}, {.transform = &loading});
    int64_t done = 0, total = 0;
    visit_weights(path, visiting, [&](int64_t d, int64_t t) { done = d, total = t; });
    CHECK(done == total && total > 0 && loading.numbers == visiting.numbers);
    const std::set<TensorSlot> a(loading.seen.begin(), loading.seen.end()), b(visiting.seen.begin(), visiting.seen.end());
    CHECK(a == b && a.size() == loading.seen.size() && b.size() == visiting.seen.size());
    std::set<TensorSlot> wanted;
    for (const TensorSlot& slot : expected_slots(weights->config)) wanted.insert(slot);
    CHECK(a == wanted);
    CHECK(weights->content_hash.size() == 16);
  }
  CHECK(load(golden("gemma3-tiny"), "reference").weights->content_hash != load(golden("gemma2-tiny"), "reference").weights->content_hash);
}

}  // namespace
}  // namespace lapidary::test
