// Loading weights: every naming gives the same model, and whatever is wrong with a checkpoint is named.
#include "model/weights.h"

#include <algorithm>

#include "check.h"
#include "model/runner.h"
#include "model/tensor_table.h"
#include "model/tiny_checkpoint.h"

namespace lapidary::test {
namespace {

using Kind = NameMatch::Kind;

std::vector<float> logits_of(const std::string& path) {
  const auto backend = make_reference_backend();
  const auto weights = load_weights(path, *backend);
  const std::vector<int32_t> ids = {2, 7, 39, 0, 7, 11, 25, 3, 9};
  return Runner(*backend, *weights, Precision::f32, 9, 9).append(ids);
}

std::string folder_with(const TinyTensors& tensors, const std::string& config = kTinyConfig, DType dtype = DType::bf16) {
  const std::string folder = temporary_folder();
  write_folder(folder, config, tensors, dtype);
  return folder;
}

std::shared_ptr<const ModelWeights> load(const std::string& path, const LoadProgress& progress = {}) {
  const auto backend = make_reference_backend();
  return load_weights(path, *backend, progress);
}

TinyTensors renamed(const TinyTensors& tensors, const std::string& text_prefix, const std::string& head_prefix = "") {
  TinyTensors out;
  for (const auto& [name, tensor] : tensors) out[name.starts_with("model.") ? text_prefix + name.substr(6) : head_prefix + name] = tensor;
  return out;
}

GgufWriter tiny_gguf(const TinyTensors& tensors) {
  GgufWriter w;
  w.text("general.architecture", "gemma3")
      .u32("gemma3.context_length", 128)
      .u32("gemma3.embedding_length", 32)
      .u32("gemma3.block_count", 3);
  w.u32("gemma3.feed_forward_length", 48).u32("gemma3.attention.head_count", 4).u32("gemma3.attention.head_count_kv", 2);
  w.u32("gemma3.attention.key_length", 16).u32("gemma3.attention.value_length", 16).u32("gemma3.attention.sliding_window", 5);
  w.u32("gemma3.attention.sliding_window_pattern", 3).f32("gemma3.rope.freq_base", 1e6f);
  for (const auto& [name, tensor] : tensors) {
    const NameMatch match = match_tensor_name(NameStyle::safetensors, name);
    TinyTensor stored = tensor;
    if (is_norm(match.slot.role)) {
      for (float& v : stored.values) v += 1;  // as the converter does
    }
    w.tensor(slot_name(NameStyle::gguf, match.slot), stored);
  }
  return w;
}

TEST("weights: names of every layout") {
  for (const char* prefix : {"model.", "language_model.model.", "model.language_model.", "language_model.", ""}) {
    const auto of = [&](const std::string& rest) { return match_tensor_name(NameStyle::safetensors, prefix + rest); };
    CHECK(of("embed_tokens.weight").kind == Kind::weight && of("embed_tokens.weight").slot == (TensorSlot{TensorRole::embedding, -1}));
    CHECK(of("layers.17.mlp.down_proj.weight").slot == (TensorSlot{TensorRole::down, 17}));
    CHECK(of("layers.0.self_attn.rotary_emb.inv_freq").kind == Kind::buffer);
    CHECK(of("layers.00.mlp.up_proj.weight").kind == Kind::unknown && of("layers.x.mlp.up_proj.weight").kind == Kind::unknown);
    CHECK(of("layers.99999999999999999999.mlp.up_proj.weight").kind == Kind::unknown && of("layers.1").kind == Kind::unknown);
    CHECK(of("layers.-1.mlp.up_proj.weight").kind == Kind::unknown && of("layers.1.mlp.up_proj.bias").kind == Kind::unknown);
  }
  for (const char* head : {"lm_head.weight", "language_model.lm_head.weight"})
    CHECK(match_tensor_name(NameStyle::safetensors, head).slot.role == TensorRole::head);
  for (const char* vision :
       {"vision_tower.vision_model.post_layernorm.bias", "model.vision_tower.x", "multi_modal_projector.mm_input_projection_weight",
        "model.multi_modal_projector.x", "vision_model.x", "multimodal_projector.x"}) {
    CHECK(match_tensor_name(NameStyle::safetensors, vision).kind == Kind::vision);
  }
  CHECK(match_tensor_name(NameStyle::gguf, "blk.3.attn_q.weight").slot == (TensorSlot{TensorRole::q, 3}));
  CHECK(match_tensor_name(NameStyle::gguf, "blk.3.attn_q.bias").kind == Kind::unknown &&
        match_tensor_name(NameStyle::gguf, "model.norm.weight").kind == Kind::unknown);
  for (const TensorSlot& slot : expected_slots([] {
         ModelConfig c;
         c.num_layers = 2, c.qk_norm = true, c.tied_head = false;
         return c;
       }())) {
    for (const NameStyle style : {NameStyle::safetensors, NameStyle::gguf})
      CHECK_MSG(match_tensor_name(style, slot_name(style, slot)).slot == slot, slot_name(style, slot));
  }
}

TEST("weights: every layout, number type and container gives the same logits") {
  const TinyTensors tensors = tiny_tensors();
  const std::vector<float> want = logits_of(folder_with(tensors));
  REQUIRE(want.size() == 9 * 40);
  const auto same = [&](const std::string& path) { return logits_of(path) == want; };
  for (const char* prefix : {"language_model.model.", "model.language_model.", "language_model.", ""})
    CHECK_MSG(same(folder_with(renamed(tensors, prefix))), prefix);
  CHECK(same(folder_with(tensors, kTinyConfig, DType::f32)));
  CHECK(same(folder_with(tensors) + "/model.safetensors"));
  // 1 + w is rounded once in the file instead of once in the product.
  const std::vector<float> gguf = logits_of(tiny_gguf(tensors).write(temporary_folder() + "/m.gguf"));
  CHECK_MSG(relative_error(gguf, want) < 1e-6, relative_error(gguf, want));
}

TEST("weights: heads") {
  TinyTensors tensors = tiny_tensors();
  const std::vector<float> tied = logits_of(folder_with(tensors));
  tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"];
  CHECK(logits_of(folder_with(tensors)) == tied);
  CHECK(load(folder_with(tensors))->config.tied_head &&
        load(folder_with(tensors))->config.parameters() == load(folder_with(tiny_tensors()))->config.parameters());
  tensors["lm_head.weight"] = tiny_tensor("another head", {40, 32});
  const std::string own = folder_with(tensors);
  const auto weights = load(own);
  CHECK(!weights->config.tied_head && weights->head.weight.data != weights->embedding.weight.data && logits_of(own) != tied);
  CHECK(logits_of(folder_with(renamed(tensors, "language_model.model.", "language_model."))) == logits_of(own));
  std::string untied = kTinyConfig;
  untied.insert(1, "\"tie_word_embeddings\": false, ");
  CHECK(logits_of(folder_with(tensors, untied)) == logits_of(own));
  CHECK_THROWS(load(folder_with(tiny_tensors(), untied)), ErrorCode::bad_file, "1 tensor is missing: lm_head.weight");
  tensors["lm_head.weight"] = tiny_tensor("another head", {41, 32});
  CHECK_THROWS(load(folder_with(tensors)), ErrorCode::bad_file, "lm_head.weight has shape [41, 32], config.json says [40, 32]");
}

TEST("weights: missing, unknown, misshapen and doubled tensors are named") {
  TinyTensors t = tiny_tensors();
  t.erase("model.layers.1.self_attn.k_proj.weight");
  CHECK_THROWS(load(folder_with(t)), ErrorCode::bad_file, "1 tensor is missing: model.layers.1.self_attn.k_proj.weight");
  CHECK_THROWS(load(tiny_gguf(t).write(temporary_folder() + "/m.gguf")), ErrorCode::bad_file, "1 tensor is missing: blk.1.attn_k.weight");

  t = tiny_tensors({.layers = 4});
  CHECK_THROWS(load(folder_with(t)), ErrorCode::bad_file,
               "a gemma3 model of 3 layers does not have: model.layers.3.input_layernorm.weight, ");
  CHECK_THROWS(load(folder_with(t)), ErrorCode::bad_file, " and 8 more");
  t = tiny_tensors();
  t["model.layers.0.self_attn.q_proj.bias"] = tiny_tensor("b", {64});
  CHECK_THROWS(load(folder_with(t)), ErrorCode::bad_file, "does not have: model.layers.0.self_attn.q_proj.bias");

  t = tiny_tensors();
  t["model.layers.2.mlp.up_proj.weight"] = tiny_tensor("u", {47, 32});
  CHECK_THROWS(load(folder_with(t)), ErrorCode::bad_file,
               "model.layers.2.mlp.up_proj.weight has shape [47, 32], config.json says [48, 32]");
  CHECK_THROWS(load(tiny_gguf(t).write(temporary_folder() + "/m.gguf")), ErrorCode::bad_file,
               "blk.2.ffn_up.weight has shape [47, 32], its metadata says [48, 32]");
  t = tiny_tensors();
  t["model.norm.weight"] = tiny_tensor("n", {1, 32});
  CHECK_THROWS(load(folder_with(t)), ErrorCode::bad_file, "model.norm.weight has shape [1, 32], config.json says [32]");

  t = tiny_tensors();
  t["language_model.model.norm.weight"] = t["model.norm.weight"];
  CHECK_THROWS(load(folder_with(t)), ErrorCode::bad_file,
               "language_model.model.norm.weight and model.norm.weight are both the weight model.norm.weight");

  const std::string gemma2 = std::string(kTinyConfig).replace(std::string(kTinyConfig).find("gemma3_text"), 11, "gemma2");
  CHECK_THROWS(load(folder_with(tiny_tensors(), gemma2)), ErrorCode::bad_file,
               "a gemma2 model of 3 layers does not have: model.layers.0.self_attn.k_norm.weight");
  CHECK(load(folder_with(tiny_tensors({.qk_norm = false}), gemma2))->config.num_layers == 3);
}

TEST("weights: number types that cannot be computed on") {
  const auto write = [](const std::string& name, DType dtype, std::initializer_list<int64_t> shape) {
    const std::string folder = temporary_folder();
    write_text(folder + "/config.json", kTinyConfig);
    const TinyTensors all = tiny_tensors();
    std::vector<std::pair<std::string, Tensor>> tensors;
    static const std::vector<float> zeros(64 * 64);
    for (const auto& [n, t] : all)
      tensors.push_back({n, t.shape.size() == 1 ? Tensor(t.values.data(), DType::f32, {t.shape[0]})
                                                : Tensor(t.values.data(), DType::f32, {t.shape[0], t.shape[1]})});
    for (auto& [n, t] : tensors) {
      if (n == name) t = Tensor(zeros.data(), dtype, shape);
    }
    write_safetensors(folder + "/model.safetensors", tensors, {});
    return folder;
  };
  CHECK_THROWS(load(write("model.layers.0.mlp.up_proj.weight", DType::i8, {48, 32})), ErrorCode::unsupported,
               "model.layers.0.mlp.up_proj.weight is stored as i8");
  CHECK_THROWS(load(write("model.norm.weight", DType::i32, {32})), ErrorCode::unsupported, "model.norm.weight is stored as i32");
  CHECK(load(write("model.norm.weight", DType::f16, {32}))->config.num_layers == 3);

  GgufWriter w = tiny_gguf(tiny_tensors());
  CHECK_THROWS(load(w.tensor("output.weight", {40, 32}, 20, std::vector<std::byte>(40 * 18)).write(temporary_folder() + "/m.gguf")),
               ErrorCode::unsupported, "output.weight is stored as IQ4_NL");
  TinyTensors no_norm = tiny_tensors();
  no_norm.erase("model.norm.weight");
  GgufWriter blocks = tiny_gguf(no_norm);
  CHECK_THROWS(load(blocks.tensor("output_norm.weight", {32}, 8, std::vector<std::byte>(34)).write(temporary_folder() + "/m.gguf")),
               ErrorCode::unsupported, "is stored as q8_0, which is not supported for a norm");
}

TEST("weights: what may stand in a file without being needed") {
  TinyTensors t = tiny_tensors();
  t["model.layers.0.self_attn.rotary_emb.inv_freq"] = tiny_tensor("f", {8});
  CHECK(!load(folder_with(t))->config.has_vision);
  t["vision_tower.vision_model.post_layernorm.bias"] = tiny_tensor("v", {12});
  const auto weights = load(folder_with(t));
  CHECK(weights->config.has_vision && weights->config.notes.size() == 1);
  TinyTensor ones = {{8}, std::vector<float>(8, 1.0f)};
  CHECK(load(tiny_gguf(tiny_tensors()).tensor("rope_freqs.weight", ones).write(temporary_folder() + "/m.gguf"))->config.num_layers == 3);
  ones.values[7] = 2;
  CHECK_THROWS(load(tiny_gguf(tiny_tensors()).tensor("rope_freqs.weight", ones).write(temporary_folder() + "/m.gguf")),
               ErrorCode::unsupported, "rope_freqs.weight");
}

TEST("weights: places") {
  CHECK_THROWS(load("/nowhere/at/all"), ErrorCode::bad_file, "/nowhere/at/all: there is no such file or folder");
  const std::string folder = temporary_folder();
  CHECK_THROWS(load(folder), ErrorCode::bad_file, "there is no config.json in this folder");
  write_text(folder + "/model.bin", "x");
  CHECK_THROWS(load(folder + "/model.bin"), ErrorCode::unsupported, "a model is a folder with config.json");
  write_text(folder + "/config.json", "{\"model_type\": ");
  CHECK_THROWS(load(folder), ErrorCode::bad_file, "config.json");
  write_text(folder + "/config.json", kTinyConfig);
  CHECK_THROWS(load(folder), ErrorCode::bad_file, folder);
  CHECK(load_config(folder).num_layers == 3);  // needs no tensor
  write_text(folder + "/generation_config.json", "{\"top_k\": 3}");
  CHECK(load_config(folder).default_top_k == 3);
  write_text(folder + "/generation_config.json", "nothing");
  CHECK_THROWS(load_config(folder), ErrorCode::bad_file, "generation_config.json");
}

TEST("weights: progress counts the bytes in use") {
  TinyTensors t = tiny_tensors();
  t["lm_head.weight"] = t["model.embed_tokens.weight"];
  int64_t last = -1, end = 0, calls = 0;
  const auto weights = load(folder_with(t), [&](int64_t done, int64_t total) {
    CHECK(done >= last && done <= total);
    last = done, end = total, ++calls;
  });
  CHECK(last == end && end == weights->file_bytes && end == 2 * weights->config.parameters() && calls > 3);
}

TEST("weights: the facts of a file, in its order") {
  const std::string folder = folder_with(tiny_tensors());
  const std::vector<TensorFact> facts = list_tensors(folder);
  CHECK(facts.size() == tiny_tensors().size());
  CHECK(facts[0].name == "model.embed_tokens.weight" && facts[0].dtype == "bf16" && (facts[0].shape == std::vector<int64_t>{40, 32}) &&
        facts[0].bytes == 2560);
  GgufWriter w;
  w.text("general.architecture", "llama")
      .tensor("z", tiny_tensor("z", {2, 3}))
      .tensor("a", {32}, 20, std::vector<std::byte>(18))
      .tensor("b", {1, 32}, 8, std::vector<std::byte>(34));
  const std::vector<TensorFact> gguf = list_tensors(w.write(temporary_folder() + "/m.gguf"));
  REQUIRE(gguf.size() == 3);
  CHECK(gguf[0].name == "z" && (gguf[0].shape == std::vector<int64_t>{2, 3}) && gguf[1].name == "b" && gguf[1].dtype == "q8_0" &&
        gguf[2].name == "a" && gguf[2].dtype == "IQ4_NL");
}

}  // namespace
}  // namespace lapidary::test
