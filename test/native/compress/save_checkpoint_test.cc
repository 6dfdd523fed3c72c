// Saving int8 checkpoints: what is read back has the bytes and the logits of what was saved, and failures leave nothing.
#include "compress/save_checkpoint.h"

#include <filesystem>

#include "compress/quant_config_text.h"
#include "model/golden_checks.h"
#include "model/quantized.h"
#include "model/tiny_checkpoint.h"

namespace lapidary::test {
namespace {

Linear* linear_of(LayerWeights& layer, TensorRole role) {
  switch (role) {
    case TensorRole::q:
      return &layer.q;
    case TensorRole::k:
      return &layer.k;
    case TensorRole::v:
      return &layer.v;
    case TensorRole::o:
      return &layer.o;
    case TensorRole::gate:
      return &layer.gate;
    case TensorRole::up:
      return &layer.up;
    default:
      return &layer.down;
  }
}

// An input scale that q, k and v share, and gate and up.
float input_scale(const TensorSlot& slot) {
  const bool qkv = slot.role == TensorRole::q || slot.role == TensorRole::k || slot.role == TensorRole::v;
  const bool gate_up = slot.role == TensorRole::gate || slot.role == TensorRole::up;
  return (qkv ? 0.021f : gate_up ? 0.017f : 0.043f) + 0.001f * static_cast<float>(slot.layer);
}

// Quantises every planned matrix of `weights`, of the reference backend, and keeps it there.
void quantise(ModelWeights& weights, const CheckpointPlan& plan) {
  for (const auto& [slot, scheme] : plan.linears) {
    const bool embedding = slot.role == TensorRole::embedding;
    Linear& linear = embedding ? weights.embedding : *linear_of(weights.layers[static_cast<size_t>(slot.layer)], slot.role);
    linear = convert_linear(linear, WeightsKind::int8, 1);
    linear.activations = scheme;
    if (scheme == ActScheme::fixed) linear.input_scale = input_scale(slot);
    if (embedding) weights.head = linear;
  }
}

Linear& quantised(ModelWeights& weights, const TensorSlot& slot) {
  if (slot.role == TensorRole::embedding) return weights.embedding;
  return *linear_of(weights.layers[static_cast<size_t>(slot.layer)], slot.role);
}

void save(ModelWeights& weights, const std::string& source, const std::string& target, const CheckpointPlan& plan) {
  CheckpointWriter writer(source, target, plan);
  for (const auto& [slot, scheme] : plan.linears) writer.linear(slot, quantised(weights, slot));
  writer.commit();
}

int64_t files_in(const std::string& folder) { return std::distance(std::filesystem::directory_iterator(folder), {}); }

// Saves, reads back, compares bytes and logits; the folder above the target holds the target alone.
void round_trip(const std::string& source, const CheckpointPlan& plan, const std::string& backend = "reference") {
  const Loaded original = load(source, "reference");
  ModelWeights weights = *original.weights;
  quantise(weights, plan);
  const std::string above = temporary_folder(), target = above + "/out";
  save(weights, source, target, plan);
  CHECK(files_in(above) == 1);
  const Loaded back = load(target, backend);
  for (const auto& [slot, scheme] : plan.linears) {
    ModelWeights read = *load_weights(target, *make_reference_backend());
    const Linear &a = quantised(weights, slot), &b = quantised(read, slot);
    REQUIRE(b.weight.dtype == DType::i8 && a.weight.bytes() == b.weight.bytes());
    CHECK(std::memcmp(a.weight.data, b.weight.data, static_cast<size_t>(a.weight.bytes())) == 0);
    CHECK(std::memcmp(a.scale.data, b.scale.data, static_cast<size_t>(a.scale.bytes())) == 0);
    CHECK(a.activations == b.activations && a.input_scale == b.input_scale);
  }
  const std::vector<int32_t> ids = {2, 7, 39, 0, 7, 11, 25, 3, 9};
  const Loaded kept = {make_reference_backend(), std::make_shared<ModelWeights>(weights)};
  if (backend == "reference") CHECK(same_bits(logits_of(back, Precision::f32, ids), logits_of(kept, Precision::f32, ids)));
}

TEST("save checkpoint: round trips of the golden models") {
  for (const std::string name : {"gemma2-tiny", "gemma3-tiny"}) {
    const ModelConfig config = load_config(golden(name));
    for (const ActScheme scheme : {ActScheme::token, ActScheme::fixed, ActScheme::none})
      round_trip(golden(name), plan_all_layers(config, scheme));
  }
}

TEST("save checkpoint: shards, mixed schemes, int8 embedding, layers left out") {
  const ModelConfig config = load_config(golden("gemma3-tiny"));
  CheckpointPlan plan = plan_all_layers(config, ActScheme::token);
  plan.max_shard_bytes = 100'000;
  round_trip(golden("gemma3-tiny"), plan);
  plan.linears[{TensorRole::embedding, -1}] = ActScheme::none;
  for (int64_t l = 0; l < config.num_layers; ++l) plan.linears[{TensorRole::down, l}] = ActScheme::fixed;
  plan.linears.erase({TensorRole::o, 2});
  for (const TensorRole role : {TensorRole::gate, TensorRole::up}) plan.linears.erase({role, 5});
  round_trip(golden("gemma3-tiny"), plan);
}

TEST("save checkpoint: a vision checkpoint keeps its tower") {
  const std::string source = golden("gemma3-vision-tiny");
  const CheckpointPlan plan = plan_all_layers(load_config(source), ActScheme::token);
  round_trip(source, plan);
  const Loaded original = load(source, "reference");
  ModelWeights weights = *original.weights;
  quantise(weights, plan);
  const std::string target = temporary_folder();  // there already, and empty
  save(weights, source, target, plan);
  const TensorFile before = open_safetensors(source), after = open_safetensors(target);
  int64_t same = 0;
  for (const auto& [name, stored] : before.tensors) {
    const Tensor& t = after.tensors.at(name).view;
    if (t.dtype == DType::i8) continue;
    CHECK(t.dtype == stored.view.dtype && std::memcmp(t.data, stored.view.data, static_cast<size_t>(t.bytes())) == 0);
    ++same;
  }
  CHECK(same > 20 && load_config(target).has_vision);
  CHECK(read_text_file(target + "/generation_config.json") == read_text_file(source + "/generation_config.json"));
}

TEST("save checkpoint: norms are replaced in the type of the source, or in f32") {
  const std::string source = golden("gemma3-tiny");  // norms in bf16 or f32
  const DType stored = open_safetensors(source).tensors.at("model.norm.weight").view.dtype;
  for (const bool f32 : {false, true}) {
    CheckpointPlan plan = plan_all_layers(load_config(source), ActScheme::token);
    plan.f32_norms = f32;
    ModelWeights weights = *load(source, "reference").weights;
    quantise(weights, plan);
    const std::string target = temporary_folder() + "/out";
    const std::vector<float> norm(128, 0.1234567f);
    {
      CheckpointWriter writer(source, target, plan);
      writer.norm({TensorRole::final_norm, -1}, norm);
      for (const auto& [slot, scheme] : plan.linears) writer.linear(slot, quantised(weights, slot));
      writer.commit();
    }
    const TensorFile file = open_safetensors(target);
    const Tensor& t = file.tensors.at("model.norm.weight").view;
    CHECK(t.dtype == (f32 ? DType::f32 : stored));
    const auto back = load_weights(target, *make_reference_backend());
    CHECK(back->final_norm.weight.as<float>()[5] == (t.dtype == DType::f32 ? norm[5] : round_to_bf16(norm[5])));
    CHECK(file.tensors.at("model.layers.0.input_layernorm.weight").view.dtype == (f32 ? DType::f32 : stored));
    const std::vector<float> kept(weights.layers[0].input_norm.weight.as<float>(), weights.layers[0].input_norm.weight.as<float>() + 128);
    CHECK(std::equal(kept.begin(), kept.end(), back->layers[0].input_norm.weight.as<float>()));
  }
}

TEST("save checkpoint: what is refused, and leaves nothing") {
  const std::string source = golden("gemma2-tiny"), above = temporary_folder(), target = above + "/out";
  const ModelConfig config = load_config(source);
  CheckpointPlan plan = plan_all_layers(config, ActScheme::fixed);
  ModelWeights weights = *load(source, "reference").weights;
  quantise(weights, plan);
  const ErrorCode wrong = ErrorCode::invalid_argument;
  const TensorSlot q{TensorRole::q, 0}, k{TensorRole::k, 0};
  {
    CheckpointWriter writer(source, target, plan);
    writer.linear(q, weights.layers[0].q);
    CHECK_THROWS(writer.linear(q, weights.layers[0].q), wrong, "it was given already");
    Linear other = weights.layers[0].k;
    other.input_scale *= 2;
    CHECK_THROWS(writer.linear(k, other), wrong, "that of the others with the same input is");
    other = weights.layers[0].k;
    other.activations = ActScheme::token;
    CHECK_THROWS(writer.linear(k, other), wrong, "otherwise than planned");
    CHECK_THROWS(writer.linear(k, weights.layers[0].q), wrong, "the weight is i8 [128, 128], expected i8 [64, 128]");
    CHECK_THROWS(writer.linear({TensorRole::embedding, -1}, weights.embedding), wrong, "the plan leaves it as it is");
    CHECK_THROWS(writer.linear({TensorRole::q, 99}, weights.layers[0].q), wrong, "has no model.layers.99.self_attn.q_proj.weight");
    CHECK_THROWS(writer.norm({TensorRole::final_norm, -1}, std::vector<float>(3)), wrong, "3 numbers");
    CHECK_THROWS(writer.commit(), wrong, "q_proj.weight was not given");
  }
  CHECK(files_in(above) == 0);
  const auto refused = [&](const CheckpointPlan& p, ErrorCode code, const char* part) {
    CHECK_THROWS(CheckpointWriter(source, target, p), code, part);
  };
  CheckpointPlan whole = plan;
  whole.per_channel = false;
  CHECK_THROWS(CheckpointWriter(source, target, whole).linear(q, weights.layers[0].q), wrong, "the rows' scales differ");
  CheckpointPlan uneven = plan;
  uneven.linears[k] = ActScheme::token;
  refused(uneven, wrong, "must be quantised alike");
  uneven.linears.erase(k);
  refused(uneven, wrong, "must be quantised alike");
  refused({}, wrong, "quantises nothing");
  refused({{{{TensorRole::embedding, -1}, ActScheme::token}}}, wrong, "cannot be quantised");
  refused({{{{TensorRole::final_norm, -1}, ActScheme::token}}}, wrong, "cannot be quantised");
  CHECK_THROWS(CheckpointWriter(source, source, plan), wrong, "is there already");
  CHECK_THROWS(CheckpointWriter(source, source + "/config.json", plan), wrong, "is there already");
  CHECK_THROWS(CheckpointWriter(source, above + "/no/where", plan), ErrorCode::bad_file, "must exist and be writable");
  CHECK_THROWS(CheckpointWriter("m.gguf", target, plan), ErrorCode::unsupported, "Hugging Face folder");
  CHECK_THROWS(CheckpointWriter(golden("compressed-tensors/gemma2-tiny-static"), target, plan), ErrorCode::unsupported,
               "quantised already");
  CHECK(files_in(above) == 0);
}

TEST("save checkpoint: config.json keeps its spelling") {
  const std::string text =
      "{ \"a\": 1e-06,\n\t\"b\": [50.0, {\"quantization_config\": \"},{\\\"\"}],\"quantization_config\": null, \"z\":\"]}\" }";
  CHECK(with_member(text, "x", "quantization_config", "7") ==
        "{\n  \"a\": 1e-06,\n  \"b\": [50.0, {\"quantization_config\": \"},{\\\"\"}],\n  \"z\":\"]}\",\n  \"quantization_config\": 7\n}\n");
  CHECK(with_member("{}", "x", "k", "{}") == "{\n  \"k\": {}\n}\n" && with_member(" { } ", "x", "k", "1") == "{\n  \"k\": 1\n}\n");
  CHECK_THROWS(with_member("[1]", "x", "k", "1"), ErrorCode::bad_file, "expected an object");
  CHECK_THROWS(with_member("{\"a\":", "x", "k", "1"), ErrorCode::bad_file, "x");
}

}  // namespace
}  // namespace lapidary::test
