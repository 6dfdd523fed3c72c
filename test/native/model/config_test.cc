// config.json in every spelling of the family, the eight released sizes, and each way a config can be wrong. GGUF: gguf_config_test.cc.
#include "model/config.h"

#include <algorithm>
#include <cmath>

#include "check.h"

namespace lapidary::test {
namespace {

ModelConfig parse(const std::string& text, const std::string& generation = "") {
  const JsonValue config = JsonValue::parse(text, "m/config.json");
  if (generation.empty()) return config_from_json(config, nullptr, "m/config.json");
  const JsonValue defaults = JsonValue::parse(generation, "m/generation_config.json");
  return config_from_json(config, &defaults, "m/config.json");
}

// `text` with the first `from` replaced; the test is wrong if there is none.
std::string with(std::string text, const std::string& from, const std::string& to) {
  const size_t at = text.find(from);
  REQUIRE(at != std::string::npos);
  return text.replace(at, from.size(), to);
}

// The released files: Gemma 2 and the text-only Gemma 3 sizes are flat and complete, the multimodal ones nested and sparse.
std::string gemma2(int hidden, int ffn, int layers, int heads, int kv_heads, int head_dim, int scalar) {
  std::ostringstream s;
  s << R"({"architectures": ["Gemma2ForCausalLM"], "attention_bias": false, "attention_dropout": 0.0, "attn_logit_softcapping": 50.0, "bos_token_id": 2,
    "cache_implementation": "hybrid", "eos_token_id": 1, "final_logit_softcapping": 30.0, "hidden_act": "gelu_pytorch_tanh",
    "hidden_activation": "gelu_pytorch_tanh", "initializer_range": 0.02, "max_position_embeddings": 8192, "model_type": "gemma2", "pad_token_id": 0,
    "rms_norm_eps": 1e-06, "rope_theta": 10000.0, "sliding_window": 4096, "torch_dtype": "bfloat16", "use_cache": true, "vocab_size": 256000,)"
    << "\"hidden_size\": " << hidden << ", \"intermediate_size\": " << ffn << ", \"num_hidden_layers\": " << layers
    << ", \"num_attention_heads\": " << heads << ", \"num_key_value_heads\": " << kv_heads << ", \"head_dim\": " << head_dim
    << ", \"query_pre_attn_scalar\": " << scalar << "}";
  return s.str();
}

std::string gemma3_text(int hidden, int ffn, int layers, const std::string& pattern) {
  std::ostringstream s;
  s << R"({"architectures": ["Gemma3ForCausalLM"], "attention_bias": false, "attn_logit_softcapping": null, "bos_token_id": 2, "eos_token_id": [1, 106],
    "final_logit_softcapping": null, "head_dim": 256, "hidden_activation": "gelu_pytorch_tanh", "max_position_embeddings": 32768,
    "model_type": "gemma3_text", "num_attention_heads": 4, "num_key_value_heads": 1, "pad_token_id": 0, "query_pre_attn_scalar": 256,
    "rms_norm_eps": 1e-06, "rope_local_base_freq": 10000, "rope_scaling": null, "rope_theta": 1000000, "sliding_window": 512, "vocab_size": 262144,)"
    << pattern << ", \"hidden_size\": " << hidden << ", \"intermediate_size\": " << ffn << ", \"num_hidden_layers\": " << layers << "}";
  return s.str();
}

std::string gemma3(const std::string& text_config) {
  return R"({"architectures": ["Gemma3ForConditionalGeneration"], "boi_token_index": 255999, "eoi_token_index": 256000, "eos_token_id": [1, 106],
    "image_token_index": 262144, "initializer_range": 0.02, "mm_tokens_per_image": 256, "model_type": "gemma3", "text_config": {)" +
         text_config +
         R"("model_type": "gemma3_text", "sliding_window": 1024, "rope_scaling": {"factor": 8.0, "rope_type": "linear"}}, "torch_dtype": "bfloat16",
    "vision_config": {"hidden_size": 1152, "image_size": 896, "model_type": "siglip_vision_model"}})";
}

const std::string k270m = gemma3_text(640, 2048, 18, R"("_sliding_window_pattern": 6, "use_bidirectional_attention": false)");
const std::string k1b = gemma3_text(1152, 6912, 26, R"("sliding_window_pattern": 6)");
const std::string k4b = gemma3(R"("hidden_size": 2560, "intermediate_size": 10240, "num_hidden_layers": 34, )");
const std::string k12b = gemma3(
    R"("hidden_size": 3840, "intermediate_size": 15360, "num_hidden_layers": 48, "num_attention_heads": 16, "num_key_value_heads": 8, )");
const std::string k27b = gemma3(R"("hidden_size": 5376, "intermediate_size": 21504, "num_hidden_layers": 62, "num_attention_heads": 32,
    "num_key_value_heads": 16, "head_dim": 128, "query_pre_attn_scalar": 168, )");
const std::string k2b = gemma2(2304, 9216, 26, 8, 4, 256, 256);

struct Size {
  const char* name;
  std::string text;
  int64_t parameters, layers, window;
  int pattern;
  double query_scalar, rope_local, rope_global, rope_factor;
  int64_t max_positions, vocab;
};

TEST("config: the eight released sizes") {
  const Size sizes[] = {
      {"gemma 2 2b", k2b, 2614341888, 26, 4096, 2, 256, 1e4, 1e4, 1, 8192, 256000},
      {"gemma 2 9b", gemma2(3584, 14336, 42, 16, 8, 256, 256), 9241705984, 42, 4096, 2, 256, 1e4, 1e4, 1, 8192, 256000},
      {"gemma 2 27b", gemma2(4608, 36864, 46, 32, 16, 128, 144), 27227128320, 46, 4096, 2, 144, 1e4, 1e4, 1, 8192, 256000},
      {"gemma 3 270m", k270m, 268098176, 18, 512, 6, 256, 1e4, 1e6, 1, 32768, 262144},
      {"gemma 3 1b", k1b, 999885952, 26, 512, 6, 256, 1e4, 1e6, 1, 32768, 262144},
      {"gemma 3 4b", k4b, 3880263168, 34, 1024, 6, 256, 1e4, 1e6, 8, 131072, 262208},
      {"gemma 3 12b", k12b, 11766034176, 48, 1024, 6, 256, 1e4, 1e6, 8, 131072, 262208},
      {"gemma 3 27b", k27b, 27009346304, 62, 1024, 6, 168, 1e4, 1e6, 8, 131072, 262208},
  };
  for (const Size& size : sizes) {
    const ModelConfig c = parse(size.text);
    const bool is_gemma2 = size.pattern == 2;
    CHECK_MSG(c.parameters() == size.parameters, size.name << ": " << c.parameters());
    CHECK_MSG(c.num_layers == size.layers && static_cast<int64_t>(c.layers.size()) == size.layers, size.name);
    for (int64_t i = 0; i < c.num_layers; ++i) {
      const LayerConfig& layer = c.layers[static_cast<size_t>(i)];
      const bool global = (i + 1) % size.pattern == 0;
      const RopeConfig& rope = c.ropes[static_cast<size_t>(layer.rope)];
      CHECK_MSG(layer.window == (global ? kNoWindow : size.window) && layer.is_local() == !global, size.name << " layer " << i);
      CHECK_MSG(rope.base == (global ? size.rope_global : size.rope_local) && rope.factor == (global ? size.rope_factor : 1),
                size.name << " layer " << i);
    }
    CHECK_MSG(std::abs(c.query_scale - 1 / std::sqrt(size.query_scalar)) < 1e-15, size.name);
    CHECK_MSG(c.attention_softcap == (is_gemma2 ? 50 : 0) && c.final_softcap == (is_gemma2 ? 30 : 0) && c.qk_norm == !is_gemma2, size.name);
    CHECK_MSG(c.max_positions == size.max_positions && c.vocab == size.vocab && c.norm_eps == 1e-6 && c.norm_offset == 1 && c.tied_head,
              size.name);
    CHECK_MSG(c.family == (is_gemma2 ? "gemma2" : "gemma3") && c.has_vision == (size.rope_factor == 8), size.name);
    CHECK_MSG((c.eos_ids == (is_gemma2 ? std::vector<int32_t>{1} : std::vector<int32_t>{1, 106})) && c.bos_id == 2 && c.pad_id == 0,
              size.name);
  }
}

TEST("config: the sparse text_config falls back on the class's own defaults") {
  const ModelConfig c = parse(R"({"model_type": "gemma3", "text_config": {}})");
  CHECK(c.vocab == 262208 && c.hidden == 2304 && c.ffn == 9216 && c.num_layers == 26 && c.num_heads == 8 && c.num_kv_heads == 4 &&
        c.head_dim == 256);
  CHECK(c.layers[0].window == 4096 && c.max_positions == 131072 && !c.has_vision);
}

TEST("config: layer patterns") {
  const auto locals = [](const ModelConfig& c) {
    std::string s;
    for (const LayerConfig& l : c.layers) s += l.is_local() ? 'l' : 'G';
    return s;
  };
  const std::string small = with(k270m, "\"num_hidden_layers\": 18", "\"num_hidden_layers\": 4");
  CHECK(locals(parse(with(small, "\"_sliding_window_pattern\": 6", "\"_sliding_window_pattern\": 3"))) == "llGl");
  CHECK(locals(parse(with(small, "\"_sliding_window_pattern\": 6", "\"sliding_window_pattern\": 1"))) == "GGGG");
  CHECK(locals(parse(with(small, "\"_sliding_window_pattern\": 6,", ""))) == "llll");
  const std::string both = with(
      small, "\"_sliding_window_pattern\": 6,",
      R"("_sliding_window_pattern": 2, "layer_types": ["full_attention", "sliding_attention", "sliding_attention", "full_attention"],)");
  CHECK(locals(parse(both)) == "GllG");
  CHECK_THROWS(parse(with(small, "\"_sliding_window_pattern\": 6", "\"layer_types\": [\"full_attention\"]")), ErrorCode::bad_file,
               "layer_types has 1 entries");
  CHECK_THROWS(parse(with(small, "\"_sliding_window_pattern\": 6", "\"layer_types\": [\"chunked_attention\"]")), ErrorCode::unsupported,
               "chunked_attention");
  CHECK_THROWS(parse(with(small, "\"_sliding_window_pattern\": 6", "\"layer_types\": \"full_attention\"")), ErrorCode::bad_file,
               "layer_types must be an array");
  CHECK_THROWS(parse(with(small, "\"_sliding_window_pattern\": 6", "\"layer_types\": [1]")), ErrorCode::bad_file, "array of strings");
  CHECK_THROWS(parse(with(small, "\"_sliding_window_pattern\": 6", "\"_sliding_window_pattern\": 0")), ErrorCode::bad_file,
               "_sliding_window_pattern");
  CHECK_THROWS(parse(with(small, "\"sliding_window\": 512", "\"sliding_window\": null")), ErrorCode::bad_file, "sliding_window");
  CHECK_THROWS(parse(with(small, "\"sliding_window\": 512", "\"sliding_window\": 0")), ErrorCode::bad_file, "sliding_window is 0");
  const std::string all_global = with(small, "\"_sliding_window_pattern\": 6", "\"sliding_window_pattern\": 1");
  CHECK(locals(parse(with(all_global, "\"sliding_window\": 512", "\"sliding_window\": null"))) == "GGGG");
}

TEST("config: rope spellings") {
  const auto rope = [](const ModelConfig& c, size_t layer) { return c.ropes[static_cast<size_t>(c.layers[layer].rope)]; };
  const auto is = [](const RopeConfig& r, double base, double factor) { return r.base == base && r.factor == factor; };
  const std::string old = "\"rope_local_base_freq\": 10000, \"rope_scaling\": null, \"rope_theta\": 1000000";
  const auto with_rope = [&](const std::string& text) { return parse(with(k270m, old, text)); };

  ModelConfig c =
      with_rope("\"rope_local_base_freq\": 5000, \"rope_theta\": 70000, \"rope_scaling\": {\"type\": \"linear\", \"factor\": 4}");
  CHECK(is(rope(c, 0), 5000, 1) && is(rope(c, 5), 70000, 4));
  c = with_rope(
      R"("rope_parameters": {"full_attention": {"rope_type": "linear", "rope_theta": 3e5, "factor": 2.5}, "sliding_attention": {"rope_type": "default", "rope_theta": 2e4}})");
  CHECK(is(rope(c, 0), 2e4, 1) && is(rope(c, 5), 3e5, 2.5));
  c = with_rope(
      R"("rope_theta": 3e5, "rope_local_base_freq": 2e4, "rope_parameters": {"full_attention": {"rope_type": "linear", "factor": 2}, "sliding_attention": null})");
  CHECK(is(rope(c, 0), 2e4, 1) && is(rope(c, 5), 3e5, 2));
  c = with_rope("\"rope_scaling\": {\"rope_type\": \"default\", \"factor\": 3}");  // a default type has no factor
  CHECK(is(rope(c, 0), 1e4, 1) && is(rope(c, 5), 1e6, 1));
  c = with_rope("\"rope_theta\": 10000, \"rope_local_base_freq\": 10000");
  CHECK(c.ropes.size() == 1 && is(rope(c, 0), 1e4, 1) && is(rope(c, 5), 1e4, 1));
  c = parse(with(k2b, "\"rope_theta\": 10000.0", R"("rope_parameters": {"rope_theta": 500.0, "rope_type": "linear", "factor": 2})"));
  CHECK(c.ropes.size() == 1 && is(rope(c, 0), 500, 2) && is(rope(c, 1), 500, 2));

  CHECK_THROWS(with_rope("\"rope_scaling\": {\"rope_type\": \"yarn\", \"factor\": 3}"), ErrorCode::unsupported,
               "rope_scaling.rope_type is \"yarn\"");
  CHECK_THROWS(with_rope(R"("rope_parameters": {"full_attention": {"rope_type": "llama3"}})"), ErrorCode::unsupported,
               "rope_parameters.full_attention.rope_type");
  CHECK_THROWS(with_rope("\"rope_scaling\": {\"type\": \"linear\"}"), ErrorCode::bad_file, "rope_scaling.factor is missing");
  CHECK_THROWS(with_rope("\"rope_scaling\": {\"factor\": 8}"), ErrorCode::bad_file, "rope_scaling.rope_type is missing");
  CHECK_THROWS(with_rope("\"rope_scaling\": {\"type\": \"linear\", \"factor\": 0}"), ErrorCode::bad_file, "rope_scaling.factor is 0");
  CHECK_THROWS(with_rope("\"rope_scaling\": 8"), ErrorCode::bad_file, "rope_scaling.");
  CHECK_THROWS(with_rope("\"rope_theta\": -1"), ErrorCode::bad_file, "rope_theta is -1");
}

TEST("config: soft caps, null and absent") {
  CHECK(parse(with(k2b, "\"attn_logit_softcapping\": 50.0,", "")).attention_softcap == 50);
  CHECK(parse(with(k2b, "\"attn_logit_softcapping\": 50.0,", "\"attn_logit_softcapping\": null,")).attention_softcap == 0);
  CHECK(parse(with(k2b, "\"final_logit_softcapping\": 30.0,", "\"final_logit_softcapping\": 12.5,")).final_softcap == 12.5);
  CHECK(parse(with(k1b, "\"final_logit_softcapping\": null", "\"final_logit_softcapping\": 20")).final_softcap == 20);
  CHECK(parse(with(k1b, "\"attn_logit_softcapping\": null", "\"attn_logit_softcapping\": 50")).attention_softcap == 0);
  CHECK_THROWS(parse(with(k2b, "\"final_logit_softcapping\": 30.0,", "\"final_logit_softcapping\": -3,")), ErrorCode::bad_file,
               "final_logit_softcapping");
}

TEST("config: generation_config.json") {
  ModelConfig c = parse(
      k1b,
      R"({"eos_token_id": [106, 7, 1], "do_sample": true, "temperature": 0.7, "top_k": 64, "top_p": 0.95, "cache_implementation": "hybrid"})");
  CHECK((c.eos_ids == std::vector<int32_t>{1, 106, 7}) && c.default_do_sample && c.default_temperature == 0.7 && c.default_top_k == 64 &&
        c.default_top_p == 0.95);
  c = parse(k1b, R"({"eos_token_id": null, "temperature": null})");
  CHECK((c.eos_ids == std::vector<int32_t>{1, 106}) && !c.default_do_sample && c.default_temperature == -1 && c.default_top_k == -1 &&
        c.default_top_p == -1);
  c = parse(with(k1b, "\"eos_token_id\": [1, 106],", ""), R"({"eos_token_id": 300000})");
  CHECK((c.eos_ids == std::vector<int32_t>{1}));
  CHECK_THROWS(parse(k1b, "[]"), ErrorCode::bad_file, "m/generation_config.json: expected an object");
  CHECK_THROWS(parse(k1b, R"({"top_k": "many"})"), ErrorCode::bad_file,
               "m/generation_config.json: top_k must be an integer, found a string");
  CHECK_THROWS(parse(k1b, R"({"top_p": 2})"), ErrorCode::bad_file, "top_p is 2");
  CHECK_THROWS(parse(k1b, R"({"do_sample": 1})"), ErrorCode::bad_file, "do_sample must be true or false");
  CHECK_THROWS(parse(k1b, R"({"eos_token_id": ["<eos>"]})"), ErrorCode::bad_file, "eos_token_id");
  CHECK_THROWS(parse(k1b, R"({"eos_token_id": 1.5})"), ErrorCode::bad_file, "eos_token_id is 1.5");
}

TEST("config: heads of their own, activations, wordings") {
  CHECK(!parse(with(k1b, "\"attention_bias\": false", "\"tie_word_embeddings\": false")).tied_head);
  CHECK(parse(with(k1b, "\"attention_bias\": false", "\"tie_word_embeddings\": false")).parameters() == 999885952 + 301989888);
  CHECK(!parse(with(k4b, "\"initializer_range\": 0.02", "\"tie_word_embeddings\": false")).tied_head);
  CHECK(parse(with(k2b, "\"hidden_act\": \"gelu_pytorch_tanh\"", "\"hidden_act\": \"gelu\"")).hidden == 2304);
  CHECK(parse(with(k1b, "\"hidden_activation\"", "\"hidden_act\"")).hidden == 1152);
  CHECK(parse(with(k1b, "\"hidden_size\": 1152", "\"hidden_size\": 1152.0")).hidden == 1152);
  CHECK_THROWS(parse(with(k1b, "\"hidden_activation\": \"gelu_pytorch_tanh\"", "\"hidden_activation\": \"silu\"")), ErrorCode::unsupported,
               "hidden_activation is \"silu\"");
  CHECK_THROWS(parse(with(k1b, "\"hidden_activation\": \"gelu_pytorch_tanh\"", "\"hidden_act\": \"gelu\"")), ErrorCode::unsupported,
               "hidden_act is \"gelu\"");
}

TEST("config: what is not a Gemma 2 or 3 text model is refused by name") {
  for (const char* type : {"llama", "gemma", "gemma3n", "gemma3n_text", "gemma4", "siglip_vision_model"}) {
    CHECK_THROWS(parse(std::string("{\"model_type\": \"") + type + "\"}"), ErrorCode::unsupported,
                 std::string("model_type \"") + type + "\"");
  }
  CHECK_THROWS(parse("{}"), ErrorCode::bad_file, "m/config.json: model_type is missing");
  CHECK_THROWS(parse("{\"model_type\": 3}"), ErrorCode::bad_file, "model_type must be a string, found a number");
  CHECK_THROWS(parse("[]"), ErrorCode::bad_file, "m/config.json: expected an object");
  CHECK_THROWS(parse("{\"model_type\": \"gemma3\"}"), ErrorCode::bad_file, "text_config is missing");
  CHECK_THROWS(parse("{\"model_type\": \"gemma3\", \"text_config\": []}"), ErrorCode::bad_file, "text_config");
  CHECK_THROWS(parse("{\"model_type\": \"gemma3\", \"text_config\": {\"model_type\": \"gemma2\"}}"), ErrorCode::unsupported,
               "text_config.model_type \"gemma2\"");
  CHECK_THROWS(parse(with(k1b, "\"attention_bias\": false", "\"attention_bias\": true")), ErrorCode::unsupported, "attention_bias");
  CHECK_THROWS(parse(with(k1b, "\"attention_bias\": false", "\"use_bidirectional_attention\": true")), ErrorCode::unsupported,
               "use_bidirectional_attention");
  CHECK_THROWS(parse(with(k1b, "\"attention_bias\": false", "\"use_bidirectional_attention\": \"all\"")), ErrorCode::unsupported,
               "use_bidirectional_attention");
  CHECK_THROWS(parse(with(k1b, "\"attention_bias\": false", R"("compression_config": {"quant_method": "compressed-tensors"})")),
               ErrorCode::unsupported, "compression_config");
  CHECK_THROWS(parse(with(k4b, "\"sliding_window\": 1024", R"("sliding_window": 1024, "quantization_config": {"quant_method": "gptq"})")),
               ErrorCode::unsupported, "gptq");
}

TEST("config: missing keys, wrong types and senseless sizes are named") {
  for (const char* key :
       {"hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "vocab_size"}) {
    const std::string quoted = std::string("\"") + key + "\"";
    CHECK_THROWS(parse(with(k1b, quoted, "\"absent\"")), ErrorCode::bad_file, std::string("m/config.json: ") + key + " is missing");
    CHECK_THROWS(parse(with(k1b, quoted + ": ", quoted + ": -")), ErrorCode::bad_file, std::string(key) + " is -");
    CHECK_THROWS(parse(with(k1b, quoted + ": ", quoted + ": 0.")), ErrorCode::bad_file, std::string(key) + " is 0.");
    CHECK_THROWS(parse(with(k1b, quoted + ": ", quoted + ": 123456789012345")), ErrorCode::bad_file, std::string(key) + " is 1");
    CHECK_THROWS(parse(with(k1b, quoted + ": ", quoted + ": \"7\", \"absent\": ")), ErrorCode::bad_file,
                 std::string(key) + " must be an integer, found a string");
  }
  CHECK_THROWS(parse(with(k1b, "\"head_dim\": 256", "\"head_dim\": 255")), ErrorCode::bad_file, "255 must be even");
  CHECK_THROWS(parse(with(k1b, "\"num_key_value_heads\": 1", "\"num_key_value_heads\": 3")), ErrorCode::bad_file,
               "4 heads cannot share 3 KV heads");
  CHECK_THROWS(parse(with(k1b, "\"num_key_value_heads\": 1", "\"num_key_value_heads\": 8")), ErrorCode::bad_file, "KV heads is 8");
  CHECK_THROWS(parse(with(with(k1b, "\"num_attention_heads\": 4", "\"num_attention_heads\": 16777216"), "\"head_dim\": 256",
                          "\"head_dim\": 16777216")),
               ErrorCode::bad_file, "wider");
  CHECK_THROWS(parse(with(k1b, "\"query_pre_attn_scalar\": 256", "\"query_pre_attn_scalar\": 0")), ErrorCode::bad_file,
               "query_pre_attn_scalar is 0");
  CHECK_THROWS(parse(with(k1b, "\"rms_norm_eps\": 1e-06", "\"rms_norm_eps\": -1")), ErrorCode::bad_file, "rms_norm_eps is -1");
  CHECK_THROWS(parse(with(k1b, "\"max_position_embeddings\": 32768", "\"max_position_embeddings\": 0")), ErrorCode::bad_file,
               "max_position_embeddings is 0");
  CHECK_THROWS(parse(with(k4b, "\"hidden_size\": 2560", "\"hidden_size\": \"big\"")), ErrorCode::bad_file,
               "text_config.hidden_size must be an integer");
}

}  // namespace
}  // namespace lapidary::test
