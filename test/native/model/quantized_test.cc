// int8 checkpoints in the compressed-tensors layout: golden ones, other spellings of the same, and every way in which one can be wrong.
#include "model/quantized.h"

#include <functional>

#include "model/golden_checks.h"
#include "model/tiny_checkpoint.h"
#include "model/writer_rule.h"

namespace lapidary::test {
namespace {

const char* const kQuantized[] = {"gemma2-tiny-dynamic", "gemma2-tiny-static", "gemma3-tiny-dynamic", "gemma3-tiny-static"};

std::string folder_of(const std::string& name) { return golden("compressed-tensors/" + name); }

// The writer quantises a row to ±127.5 steps, so a row whose largest value is negative lies exactly between -127 and -128, and the last bit
// of a sum decides: its own software does not give its own dynamic logits on another machine. Static scales have no such ties by
// construction; a chance one turns up after some ten thousand roundings and moves the rows that follow.
constexpr double kStaticTies = 0.05,
                 kDynamicTies = 0.4;  // of the writer's distance to the unquantised model; another rule of rounding is at 1 and more

TEST("quantized: with the writer's rule its logits come out") {
  for (const std::string name : kQuantized) {
    const Expected expected("compressed-tensors/" + name);
    const Loaded model = {std::make_unique<WriterRuleBackend>(), load(folder_of(name), "reference").weights};
    const auto vocab = static_cast<size_t>(model.weights->config.vocab);
    REQUIRE(!expected.cases().empty());
    for (const std::string& c : expected.cases()) {
      const std::vector<float> got = logits_of(model, Precision::f32, expected.ids(c + ".ids")), writer = expected.floats(c + ".logits"),
                               truth = expected.floats(c + ".logits_unquantized");
      if (name.ends_with("static")) {
        std::vector<double> errors;
        for (size_t at = 0; at < got.size(); at += vocab)
          errors.push_back(relative_error(std::span(got).subspan(at, vocab), std::span(writer).subspan(at, vocab)));
        std::sort(errors.begin(), errors.end());
        CHECK_MSG(errors[errors.size() / 2] <= kLogitsTolerance,
                  name << " " << c << ": median relative error " << errors[errors.size() / 2]);
      }
      const double between = mean_kl(writer, got, vocab), theirs = mean_kl(truth, writer, vocab);
      const double ties = name.ends_with("static") ? kStaticTies : kDynamicTies;
      CHECK_MSG(between <= ties * theirs, name << " " << c << ": KL " << between << ", the writer's to the unquantised " << theirs);
    }
  }
}

TEST("quantized: with our rule as near to the unquantised model as the writer") {
  for (const std::string backend : {"reference", "cpu"}) {
    double all_ours = 0, all_theirs = 0;
    for (const std::string name : kQuantized) {
      const Expected expected("compressed-tensors/" + name);
      const Loaded model = load(folder_of(name), backend);
      const auto vocab = static_cast<size_t>(model.weights->config.vocab);
      double ours = 0, theirs = 0;
      for (const std::string& c : expected.cases()) {
        const std::vector<float> truth = expected.floats(c + ".logits_unquantized");
        ours += mean_kl(truth, logits_of(model, Precision::f32, expected.ids(c + ".ids")), vocab);
        theirs += mean_kl(truth, expected.floats(c + ".logits"), vocab);
      }
      // Dynamic scales differ from the writer's by 0.4 %, so every rounding differs, and the few tokens of one file scatter: the next test.
      if (name.ends_with("static"))
        CHECK_MSG(ours > 0 && ours <= 1.15 * theirs, name << " on " << backend << ": KL " << ours << ", the writer's own " << theirs);
      all_ours += ours, all_theirs += theirs;
    }
    CHECK_MSG(all_ours > 0 && all_ours <= 1.15 * all_theirs, backend << ": KL " << all_ours << ", the writer's own " << all_theirs);
  }
}

// The same comparison over enough tokens to tell rules apart, both rules computed here. The cpu backend multiplies integers like the
// reference.
TEST("quantized: our rule against the writer's over many tokens") {
  for (const std::string family : {"gemma2-tiny", "gemma3-tiny"}) {
    const Loaded plain = load(golden(family), "cpu");
    for (const std::string kind : {"-dynamic", "-static"}) {
      const Loaded ours = load(folder_of(family + kind), "cpu"), read = load(folder_of(family + kind), "reference");
      const Loaded writer = {std::make_unique<WriterRuleBackend>(), read.weights};
      double our_sum = 0, bf16_sum = 0, writer_sum = 0;
      uint64_t state = 1;
      for (int s = 0; s < 16; ++s) {
        std::vector<int32_t> ids = {2};
        while (ids.size() < 64) ids.push_back(static_cast<int32_t>((state = state * 6364136223846793005u + 1442695040888963407u) >> 55));
        const std::vector<float> truth = logits_of(plain, Precision::f32, ids);
        our_sum += mean_kl(truth, logits_of(ours, Precision::f32, ids), 512);
        bf16_sum += mean_kl(truth, logits_of(ours, Precision::bf16, ids), 512);
        writer_sum += mean_kl(truth, logits_of(writer, Precision::f32, ids), 512);
      }
      CHECK_MSG(our_sum > 0 && our_sum <= 1.05 * writer_sum,
                family << kind << ": KL " << our_sum / 16 << ", with the writer's rule " << writer_sum / 16);
      CHECK_MSG(bf16_sum > 0 && bf16_sum <= 1.05 * writer_sum,
                family << kind << " in bf16: KL " << bf16_sum / 16 << ", with the writer's rule in f32 " << writer_sum / 16);
    }
  }
}

// What a quantised product reads is f32 in either precision; what others read is rounded to bf16. Seen by a hook, which changes no bit.
TEST("quantized: inputs are rounded once") {
  std::vector<int32_t> ids = {2};
  for (int32_t i = 1; i < 40; ++i) ids.push_back(i * 37 % 500 + 3);
  const auto tokens = static_cast<int64_t>(ids.size());
  std::vector<int32_t> positions(ids.size()), rows(ids.size());
  std::iota(positions.begin(), positions.end(), 0);
  std::iota(rows.begin(), rows.end(), 0);
  for (const std::string backend : {"reference", "cpu"}) {
    for (const std::string folder : {"gemma3-tiny", "compressed-tensors/gemma3-tiny-dynamic", "compressed-tensors/gemma3-tiny-static"}) {
      const Loaded model = load(golden(folder), backend);
      const DType want = folder == "gemma3-tiny" ? DType::bf16 : DType::f32;
      int64_t seen = 0;
      const SiteHook hook = [&](int64_t, Site site, const Tensor& x) {
        ++seen;
        CHECK_MSG(x.dtype == want, folder << " on " << backend << ", " << site_name(site) << ": " << dtype_info(x.dtype).name);
      };
      StepScratch scratch(*model.backend, model.weights->config, Precision::bf16, tokens, tokens);
      TestCache cache(*model.backend, model.weights->config, DType::bf16, tokens);
      const StepSpan span = {0, tokens, 0, cache.views()};
      const Tensor logits = forward(*model.backend, *model.weights, {ids, positions, {&span, 1}, rows}, scratch, {.sites = hook});
      CHECK(seen == 4 * model.weights->config.num_layers);
      std::vector<float> watched(static_cast<size_t>(logits.elements()));
      model.backend->download(watched.data(), logits);
      const std::vector<float> plain = logits_of(model, Precision::bf16, ids);
      CHECK_MSG(same_bits(watched, plain), folder << " on " << backend << ": relative error " << relative_error(watched, plain));
    }
  }
}

TEST("quantized: what the golden files say") {
  const Loaded dynamic = load(folder_of("gemma3-tiny-dynamic"), "reference"), fixed = load(folder_of("gemma3-tiny-static"), "reference");
  for (const Loaded* model : {&dynamic, &fixed}) {
    const LayerWeights& layer = model->weights->layers[3];
    const ActScheme scheme = model == &fixed ? ActScheme::fixed : ActScheme::token;
    for (const Linear* linear : {&layer.q, &layer.k, &layer.v, &layer.o, &layer.gate, &layer.up, &layer.down}) {
      CHECK(linear->weight.dtype == DType::i8 && linear->activations == scheme && linear->scale.elements() == linear->out());
      CHECK((linear->input_scale > 0) == (scheme == ActScheme::fixed));
    }
    CHECK(layer.q.input_scale == layer.k.input_scale && layer.gate.input_scale == layer.up.input_scale);
    CHECK(model->weights->embedding.weight.dtype == DType::f32);
  }
  CHECK(load_config(folder_of("gemma3-tiny-static")).notes ==
        std::vector<std::string>{"int8 weights (compressed-tensors), inputs quantised with calibrated scales"});
  CHECK(load_config(folder_of("gemma2-tiny-dynamic")).notes ==
        std::vector<std::string>{"int8 weights (compressed-tensors), inputs quantised per token"});
  // Quantising at load leaves int8 as it is.
  const auto again = load_weights(folder_of("gemma3-tiny-static"), *fixed.backend, {}, {.kind = WeightsKind::int8});
  const Linear &a = fixed.weights->layers[0].down, &b = again->layers[0].down;
  CHECK(b.activations == ActScheme::fixed && a.input_scale == b.input_scale &&
        std::memcmp(a.weight.data, b.weight.data, static_cast<size_t>(a.weight.bytes())) == 0);
  CHECK(again->embedding.weight.dtype == DType::i8);
}

// --- small checkpoints made here ------------------------------------------------------------------------------------------------

// A checkpoint as stored tensors, to be changed one by one.
struct Stored {
  DType dtype = DType::f32;
  std::vector<int64_t> shape;
  std::vector<std::byte> bytes;
};
using StoredTensors = std::map<std::string, Stored>;

Stored numbers(const std::vector<float>& values, std::vector<int64_t> shape, DType dtype = DType::f32) {
  return {dtype, std::move(shape), encode(values, dtype)};
}

bool is_matrix(const std::string& name) { return name.find("_proj.") != std::string::npos; }

// tiny_tensors() quantised by our rule; all scales are powers of two, so that every number type holds them.
StoredTensors quantised(bool input_scales = false) {
  StoredTensors all;
  for (const auto& [name, tensor] : tiny_tensors()) {
    if (!is_matrix(name)) {
      all[name] = numbers(tensor.values, tensor.shape, DType::bf16);
      continue;
    }
    const std::string module = name.substr(0, name.size() - 7);
    Stored weight{DType::i8, tensor.shape, std::vector<std::byte>(tensor.values.size())};
    for (size_t i = 0; i < tensor.values.size(); ++i)
      weight.bytes[i] = static_cast<std::byte>(static_cast<int8_t>(std::nearbyint(tensor.values[i] * 256)));  // -128 .. 127
    std::vector<float> scales(static_cast<size_t>(tensor.shape[0]), 1.0f / 256);
    for (size_t row = 0; row < scales.size(); row += 3) scales[row] = 1.0f / 128;
    all[name] = std::move(weight);
    all[module + ".weight_scale"] = numbers(scales, {tensor.shape[0], 1});
    if (input_scales) all[module + ".input_scale"] = numbers({0.0625f}, {1});
  }
  return all;
}

const std::string kWeights = R"("weights": {"num_bits": 8, "type": "int", "symmetric": true, "strategy": "channel", "dynamic": false})";
const std::string kToken =
    R"("input_activations": {"num_bits": 8, "type": "int", "symmetric": true, "strategy": "token", "dynamic": true})";
const std::string kFixed =
    R"("input_activations": {"num_bits": 8, "type": "int", "symmetric": true, "strategy": "tensor", "dynamic": false})";
const std::string kNone = R"("input_activations": null)";

std::string group(const std::string& inputs, const std::string& targets = R"(["Linear"])", const std::string& weights = kWeights) {
  return R"({"targets": )" + targets + ", " + weights + ", " + inputs + R"(, "output_activations": null})";
}
std::string config_of(const std::string& groups, const std::string& more = R"("ignore": ["lm_head"])") {
  std::string text = kTinyConfig;
  text.insert(1,
              R"("quantization_config": {"quant_method": "compressed-tensors", "format": "int-quantized", "config_groups": {"group_0": )" +
                  groups + "}, " + more + "}, ");
  return text;
}

std::string write(const StoredTensors& tensors, const std::string& config) {
  const std::string folder = temporary_folder();
  write_text(folder + "/config.json", config);
  std::vector<std::pair<std::string, Tensor>> list;
  for (const auto& [name, stored] : tensors) {
    Tensor view(stored.bytes.data(), stored.dtype, {});
    view.rank = static_cast<int>(stored.shape.size());
    std::copy(stored.shape.begin(), stored.shape.end(), view.shape);
    list.emplace_back(name, view);
  }
  write_safetensors(folder + "/model.safetensors", list, {{"format", "pt"}});
  return folder;
}

std::vector<float> logits_at(const std::string& folder, const std::string& backend = "reference") {
  const std::vector<int32_t> ids = {2, 7, 39, 0, 7, 11, 25, 3, 9};
  return logits_of(load(folder, backend), Precision::f32, ids);
}

TEST("quantized: spellings of one checkpoint") {
  const std::vector<float> want = logits_at(write(quantised(), config_of(group(kToken))));
  REQUIRE(want.size() == 9 * 40);
  const auto same = [&](const std::string& folder) { return same_bits(logits_at(folder), want); };
  for (const DType dtype : {DType::bf16, DType::f32}) {
    for (const bool flat : {false, true}) {
      StoredTensors t = quantised();
      for (auto& [name, stored] : t) {
        if (!name.ends_with("weight_scale")) continue;
        std::vector<float> values(static_cast<size_t>(stored.shape[0]));
        std::memcpy(values.data(), stored.bytes.data(), stored.bytes.size());
        stored = numbers(values, flat ? std::vector<int64_t>{stored.shape[0]} : stored.shape, dtype);
      }
      CHECK(same(write(t, config_of(group(kToken)))));
    }
  }
  StoredTensors zeros = quantised();
  for (const auto& [name, stored] : quantised()) {
    if (name.ends_with("weight_scale"))
      zeros[name.substr(0, name.size() - 5) + "zero_point"] = {DType::i8, stored.shape, std::vector<std::byte>(stored.bytes.size() / 4)};
  }
  CHECK(same(write(zeros, config_of(group(kToken)))));
  StoredTensors renamed;
  for (const auto& [name, stored] : quantised()) renamed["language_model." + name] = stored;
  CHECK(same(write(renamed, config_of(group(kToken), R"("ignore": ["lm_head", "re:.*vision_tower.*"])"))));
  // Who is meant: a class, names in either layout, patterns, the more specific one first.
  const char* const all = R"(["re:.*self_attn\\.[qkvo]_proj$", "re:model\\.language_model\\.layers\\.\\d+\\.mlp\\..*"])";
  CHECK(same(write(quantised(), config_of(group(kToken, all)))));
  CHECK(same(write(quantised(), config_of(group(kToken, all) + R"(, "group_1": )" + group(kFixed)))));
  CHECK(same(write(quantised(), config_of(group(kFixed) + R"(, "group_1": )" + group(kToken, R"(["re:.*_proj"])")))));
  CHECK(same(write(quantised(),
                   config_of(group(kToken), R"("ignore": [], "kv_cache_scheme": null, "sparsity_config": {}, "transform_config": {})"))));
}

TEST("quantized: packed into 32-bit words") {
  for (const char* backend : {"reference", "cpu"}) {
    const std::vector<float> want = logits_at(write(quantised(), config_of(group(kNone))), backend);
    StoredTensors packed;
    for (const auto& [name, stored] : quantised()) {
      if (stored.dtype != DType::i8) {
        packed[name] = stored;
        continue;
      }
      Stored words{DType::i32, {stored.shape[0], stored.shape[1] / 4}, stored.bytes};
      for (std::byte& b : words.bytes) b = static_cast<std::byte>(static_cast<int>(static_cast<int8_t>(b)) + 128);
      packed[name + "_packed"] = std::move(words);
      packed[name + "_shape"] = {DType::i32, {2}, std::vector<std::byte>(8)};
    }
    std::string config = config_of(group(kNone));
    config.replace(config.find("int-quantized"), 13, "pack-quantized");
    CHECK_MSG(same_bits(logits_at(write(packed, config), backend), want), backend);
  }
}

TEST("quantized: layers of different kinds in one model") {
  StoredTensors t = quantised(true);
  const TinyTensors plain = tiny_tensors();
  const std::string down = "model.layers.1.mlp.down_proj";
  t[down + ".weight"] = numbers(plain.at(down + ".weight").values, plain.at(down + ".weight").shape, DType::bf16);
  t.erase(down + ".weight_scale"), t.erase(down + ".input_scale");
  t["model.layers.0.self_attn.k_proj.input_scale"] = numbers({0.03125f}, {1});
  t["model.layers.0.mlp.up_proj.input_scale"] = numbers({0.125f}, {1});
  for (int l = 0; l < 3; ++l) t.erase("model.layers." + std::to_string(l) + ".self_attn.o_proj.input_scale");
  const Stored embedding = t["model.embed_tokens.weight"];
  std::vector<std::byte> bytes(embedding.bytes.size() / 2, std::byte{7});
  t["model.embed_tokens.weight"] = {DType::i8, embedding.shape, bytes};
  t["model.embed_tokens.weight_scale"] = numbers(std::vector<float>(40, 0.0625f), {40, 1});
  t["lm_head.weight"] = {DType::bf16, embedding.shape, embedding.bytes};
  const std::string config = config_of(
      group(kFixed) + R"(, "group_1": )" + group(kToken, R"(["re:.*o_proj$"])") + R"(, "group_2": )" + group(kNone, R"(["Embedding"])"),
      R"("ignore": ["lm_head", "model.layers.1.mlp.down_proj"])");
  const std::string folder = write(t, config);
  const auto weights = load(folder, "reference").weights;
  CHECK(weights->layers[0].q.activations == ActScheme::fixed && weights->layers[0].q.input_scale == 0.0625f);
  CHECK(weights->layers[0].k.input_scale == 0.03125f && weights->layers[0].up.input_scale == 0.125f);
  CHECK(weights->layers[2].o.activations == ActScheme::token && weights->layers[1].down.weight.dtype == DType::bf16);
  CHECK(weights->embedding.weight.dtype == DType::i8 && weights->embedding.activations == ActScheme::none);
  CHECK(!weights->config.tied_head && weights->head.weight.dtype == DType::bf16);
  const std::vector<float> got = logits_at(folder, "cpu"), want = logits_at(folder, "reference");
  CHECK_MSG(relative_error(got, want) < 0.02, relative_error(got, want));  // a rounding of an input may fall to the other side
}

TEST("quantized: one scale per matrix") {
  StoredTensors t = quantised(), channel = quantised();
  for (auto& [name, stored] : t) {
    if (!name.ends_with("weight_scale")) continue;
    channel[name] = numbers(std::vector<float>(static_cast<size_t>(stored.shape[0]), 0.01f), stored.shape);
    stored = numbers({0.01f}, {1});
  }
  std::string weights = kWeights;
  weights.replace(weights.find("channel"), 7, "tensor");
  CHECK(same_bits(logits_at(write(t, config_of(group(kToken, R"(["Linear"])", weights)))),
                  logits_at(write(channel, config_of(group(kToken))))));
}

TEST("quantized: one input scale per sequence, but not for the head") {
  std::string sequence = kToken;
  sequence.replace(sequence.rfind("token"), 5, "tensor");
  const std::string folder = write(quantised(), config_of(group(sequence)));
  const auto weights = load(folder, "reference").weights;
  CHECK(weights->layers[0].q.activations == ActScheme::sequence && weights->layers[2].down.activations == ActScheme::sequence);
  CHECK(!same_bits(logits_at(folder), logits_at(write(quantised(), config_of(group(kToken))))));
  StoredTensors t = quantised();
  const Stored embedding = t["model.embed_tokens.weight"];
  t["model.embed_tokens.weight"] = {DType::i8, embedding.shape, std::vector<std::byte>(embedding.bytes.size() / 2, std::byte{7})};
  t["model.embed_tokens.weight_scale"] = numbers(std::vector<float>(40, 0.0625f), {40, 1});
  const std::string all = group(sequence, R"(["Linear", "Embedding"])");
  CHECK_THROWS(load(write(t, config_of(all)), "reference"), ErrorCode::unsupported, "only the layers' matrices can");
}

TEST("quantized: configs that are refused") {
  const auto refused = [](const std::string& config, ErrorCode code, const char* part) {
    const std::string folder = write(quantised(), config);
    CHECK_THROWS(load(folder, "reference"), code, part);
    CHECK_THROWS(load_config(folder), code, part);
  };
  const auto with = [](std::string text, const char* from, const char* to) {
    const size_t at = text.rfind(from);  // of the last place, the inputs
    return text.replace(at, std::strlen(from), to);
  };
  const ErrorCode unsupported = ErrorCode::unsupported, bad = ErrorCode::bad_file;
  refused(config_of(group(with(kFixed, "tensor", "token"))), bad, "\"token\" with dynamic false");
  refused(config_of(group(with(kToken, "token", "group"))), unsupported, "input_activations.strategy is \"group\"");
  refused(config_of(group(with(kToken, "true", "\"local\""))), unsupported, "dynamic is \"local\"");
  refused(config_of(group(with(kToken, "true", "1"))), bad, "dynamic must be true or false, found a number");
  refused(config_of(group(with(kToken, "\"symmetric\": true", "\"symmetric\": false"))), unsupported, "asymmetric");
  refused(config_of(group(with(kToken, "8", "4"))), unsupported, "input_activations.num_bits is 4");
  refused(config_of(group(kToken, R"(["Linear"])", with(kWeights, "8", "4"))), unsupported, "weights.num_bits is 4");
  refused(config_of(group(kToken, R"(["Linear"])", with(kWeights, "\"int\"", "\"float\""))), unsupported, "weights.type is \"float\"");
  refused(config_of(group(kToken, R"(["Linear"])", with(kWeights, "channel", "group"))), unsupported, "weights.strategy is \"group\"");
  refused(config_of(group(kToken, R"(["Linear"])", with(kWeights, "\"dynamic\": false", "\"dynamic\": true"))), bad,
          "weights have fixed scales");
  refused(config_of(group(kToken, R"(["Linear"])", with(kWeights, "\"dynamic\": false", "\"group_size\": 128"))), unsupported,
          "group_size is 128");
  refused(config_of(group(kToken, R"(["Linear"])", "\"weights\": null")), unsupported, "weights is null");
  refused(config_of(group(kToken, "\"Linear\"")), bad, "targets must be an array of strings");
  refused(config_of(group(kToken, "[1]")), bad, "targets must be an array of strings");
  refused(config_of(group(kToken, R"(["re:(?<=a)b"])")), unsupported, "(?<=a)b");
  refused(config_of("[\"Linear\"]"), unsupported, "preset");
  refused(config_of("7"), bad, "config_groups.group_0 must be an object");
  refused(config_of(with(group(kToken), "\"output_activations\": null", "\"output_activations\": {}")), unsupported, "quantised outputs");
  refused(config_of(group(kToken), R"("quantization_status": "frozen")"), unsupported, "quantization_status is \"frozen\"");
  refused(config_of(group(kToken), R"("sparsity_config": {"format": "sparse-24-bitmask"})"), unsupported, "sparse-24-bitmask");
  refused(config_of(group(kToken), R"("transform_config": {"config_groups": {}})"), unsupported, "transform_config");
  refused(with(config_of(group(kToken)), "int-quantized", "float-quantized"), unsupported, "format is \"float-quantized\"");
  refused(with(config_of(group(kToken)), "int-quantized", "mixed-precision"), bad, "format is missing");
  refused(with(config_of(group(kToken)), "compressed-tensors", "gptq"), unsupported, "quant_method is \"gptq\"");
  refused(with(config_of(group(kToken)), "config_groups", "groups"), bad, "config_groups is missing");
}

TEST("quantized: tensors that do not fit the config") {
  const std::string q = "model.layers.1.self_attn.q_proj";
  const auto refused = [&](const std::string& inputs, const std::function<void(StoredTensors&)>& change, ErrorCode code, const char* part) {
    StoredTensors t = quantised(inputs == kFixed);
    change(t);
    CHECK_THROWS(load(write(t, config_of(group(inputs))), "reference"), code, part);
  };
  const ErrorCode bad = ErrorCode::bad_file;
  refused(kToken, [&](auto& t) { t.erase(q + ".weight_scale"); }, bad, "q_proj.weight_scale is missing");
  refused(kToken, [&](auto& t) { t.erase(q + ".weight"); }, bad, "1 tensor is missing: model.layers.1.self_attn.q_proj.weight");
  refused(kFixed, [&](auto& t) { t.erase(q + ".input_scale"); }, bad, "q_proj.input_scale is missing");
  refused(kToken, [&](auto& t) { t[q + ".input_scale"] = numbers({1}, {1}); }, bad, "q_proj.input_scale is in the file");
  for (const float value : {0.0f, -1.0f, 1e-39f, INFINITY, NAN})
    refused(kFixed, [&](auto& t) { t[q + ".input_scale"] = numbers({value}, {1}); }, bad, "expected a positive number");
  refused(kFixed, [&](auto& t) { t[q + ".input_scale"] = numbers({1, 1}, {2}); }, bad, "expected one number");
  for (const float value : {-1.0f, INFINITY, NAN})
    refused(kToken, [&](auto& t) { std::memcpy(t[q + ".weight_scale"].bytes.data() + 12, &value, 4); }, bad, "expected finite numbers");
  refused(
      kToken, [&](auto& t) { t[q + ".weight_scale"] = numbers({1}, {1}); }, bad,
      "q_proj.weight_scale has shape [1], config.json says [64, 1]");
  refused(kToken, [&](auto& t) { t[q + ".weight_scale"].shape = {1, 64}; }, bad, "weight_scale has shape [1, 64]");
  refused(kToken, [&](auto& t) { t[q + ".weight_scale"].dtype = DType::i32; }, bad, "weight_scale is stored as i32");
  refused(kToken, [&](auto& t) { t[q + ".weight"].dtype = DType::u8; }, bad, "q_proj.weight is stored as u8, config.json says i8");
  refused(
      kToken, [&](auto& t) { t[q + ".weight"] = numbers(std::vector<float>(64 * 32), {64, 32}); }, bad, "q_proj.weight is stored as f32");
  refused(kToken, [&](auto& t) { t[q + ".weight"].shape = {32, 64}; }, bad, "q_proj.weight has shape [32, 64]");
  refused(kToken, [&](auto& t) { t[q + ".weight_zero_point"] = {DType::i8, {1}, {std::byte{3}}}; }, ErrorCode::unsupported, "asymmetric");
  refused(kToken, [&](auto& t) { t[q + ".weight_packed"] = t[q + ".weight"]; }, bad, "are both the weight");
  refused(
      kToken, [&](auto& t) { t[q + ".weight_g_idx"] = numbers({0}, {1}); }, bad,
      "does not have: model.layers.1.self_attn.q_proj.weight_g_idx");
  refused(kToken, [&](auto& t) { t["model.norm.weight_scale"] = numbers({1}, {1}); }, bad, "does not have: model.norm.weight_scale");
  refused(kToken, [&](auto& t) { t["model.embed_tokens.weight_scale"] = numbers({1}, {1}); }, bad, "leaves out");
  CHECK_THROWS(load(write(quantised(), config_of(group(kToken), R"("ignore": ["re:.*layers.2.*"])")), "reference"), bad, "leaves out");
  CHECK_THROWS(load(write(quantised(), kTinyConfig), "reference"), bad, "does not have: model.layers.0.mlp.down_proj.weight_scale");
}

TEST("quantized: scales of a KV cache are passed over, with a note") {
  StoredTensors t = quantised();
  t["model.layers.0.self_attn.k_scale"] = numbers({1}, {1}), t["model.layers.0.self_attn.v_scale"] = numbers({1}, {1});
  const std::string config = config_of(group(kToken), R"("kv_cache_scheme": {"num_bits": 8, "type": "float"})");
  const Loaded model = load(write(t, config), "reference");
  REQUIRE(model.weights->config.notes.size() == 2);
  CHECK(model.weights->config.notes[1].find("kv_cache_scheme is not used") != std::string::npos);
}

}  // namespace
}  // namespace lapidary::test
