// config.json of every Gemma 2 and Gemma 3 variant -> ModelConfig. Spellings and defaults of the family live here and nowhere else.
#include "model/config.h"

#include <algorithm>
#include <cmath>
#include <optional>

#include "base/error.h"
#include "model/quantized.h"

namespace lapidary {

namespace {

constexpr int64_t kMaxSize = int64_t{1} << 24;  // of any width; products of two stay far inside int64
constexpr int64_t kMaxPositions = int64_t{1} << 30;
constexpr int64_t kMaxLayers = 4096;
constexpr double kMaxNumber = 1e12;

// One object of a config file: typed look-ups whose errors name the file and the key. Null counts as absent.
class Fields {
 public:
  Fields(const JsonValue& object, std::string path, std::string prefix = "")
      : object_(object), path_(std::move(path)), prefix_(std::move(prefix)) {
    expect(object.is(JsonValue::Type::object), ErrorCode::bad_file, path_, ": expected an object", prefix_.empty() ? "" : " at ", prefix_,
           ", found ", type_name(object.type()));
  }

  const std::string& path() const { return path_; }
  std::string name(std::string_view key) const { return prefix_ + std::string(key); }
  const JsonValue* find(std::string_view key) const { return object_.find(key); }

  // The key stands in the file with the value null, which says more than its absence.
  bool is_null(std::string_view key) const {
    const auto& members = object_.object();
    return std::any_of(members.begin(), members.end(), [&](const auto& m) { return m.first == key && m.second.is(JsonValue::Type::null); });
  }

  [[noreturn]] void wrong(std::string_view key, std::string_view wanted, std::string_view found) const {
    fail(ErrorCode::bad_file, path_, ": ", name(key), " must be ", wanted, ", found ", found);
  }
  [[noreturn]] void missing(std::string_view key) const { fail(ErrorCode::bad_file, path_, ": ", name(key), " is missing"); }

  int64_t integer(std::string_view key, int64_t low, int64_t high, std::optional<int64_t> fallback = {}) const {
    const JsonValue* value = find(key);
    if (!value) return fallback ? *fallback : (missing(key), 0);
    return checked_integer(key, *value, low, high);
  }
  int64_t checked_integer(std::string_view key, const JsonValue& value, int64_t low, int64_t high) const {
    if (!value.is(JsonValue::Type::number)) wrong(key, "an integer", type_name(value.type()));
    const double number = value.number();
    if (!(number >= static_cast<double>(low) && number <= static_cast<double>(high)) || number != std::floor(number)) {
      fail(ErrorCode::bad_file, path_, ": ", name(key), " is ", number, ", expected an integer from ", low, " to ", high);
    }
    return static_cast<int64_t>(number);
  }
  double number(std::string_view key, double low, double high, double fallback) const {
    const JsonValue* value = find(key);
    if (!value) return fallback;
    if (!value->is(JsonValue::Type::number)) wrong(key, "a number", type_name(value->type()));
    const double number = value->number();
    expect(number >= low && number <= high, ErrorCode::bad_file, path_, ": ", name(key), " is ", number, ", expected ", low, " to ", high);
    return number;
  }
  bool boolean(std::string_view key, bool fallback) const {
    const JsonValue* value = find(key);
    if (!value) return fallback;
    if (!value->is(JsonValue::Type::boolean)) wrong(key, "true or false", type_name(value->type()));
    return value->boolean();
  }
  std::string string(std::string_view key, std::string_view fallback) const {
    const JsonValue* value = find(key);
    if (!value) return std::string(fallback);
    if (!value->is(JsonValue::Type::string)) wrong(key, "a string", type_name(value->type()));
    return value->string();
  }
  std::optional<Fields> object(std::string_view key) const {
    const JsonValue* value = find(key);
    if (!value) return {};
    return Fields(*value, path_, name(key) + ".");
  }

 private:
  const JsonValue& object_;
  std::string path_, prefix_;
};

// What transformers assumes where a file is silent.
struct FamilyDefaults {
  double attention_softcap, final_softcap, rope_base_global, rope_base_local;
  int64_t window, pattern, max_positions;
};
constexpr FamilyDefaults kGemma2 = {50, 30, 1e4, 1e4, 4096, 2, 8192};
constexpr FamilyDefaults kGemma3 = {0, 0, 1e6, 1e4, 4096, 6, 131072};

// The sizes of a nested text_config that the releases leave out.
struct Sizes {
  std::optional<int64_t> vocab, hidden, ffn, layers, heads, kv_heads;
};
constexpr Sizes kRequired = {};
constexpr Sizes kSparse = {262208, 2304, 9216, 26, 8, 4};

void read_sizes(const Fields& text, const Sizes& defaults, ModelConfig& config) {
  config.vocab = text.integer("vocab_size", 1, kMaxSize, defaults.vocab);
  config.hidden = text.integer("hidden_size", 1, kMaxSize, defaults.hidden);
  config.ffn = text.integer("intermediate_size", 1, kMaxSize, defaults.ffn);
  config.num_layers = text.integer("num_hidden_layers", 1, kMaxLayers, defaults.layers);
  config.num_heads = text.integer("num_attention_heads", 1, kMaxSize, defaults.heads);
  config.num_kv_heads = text.integer("num_key_value_heads", 1, kMaxSize, defaults.kv_heads);
  config.head_dim = text.integer("head_dim", 2, kMaxSize, 256);
}

void refuse_what_is_not_gemma(const Fields& text) {
  const std::string activation = text.find("hidden_activation") ? "hidden_activation" : "hidden_act";
  const std::string function = text.string(activation, "gelu_pytorch_tanh");
  expect(function == "gelu_pytorch_tanh", ErrorCode::unsupported, text.path(), ": ", text.name(activation), " is \"", function,
         "\", only \"gelu_pytorch_tanh\" is supported");
  expect(!text.boolean("attention_bias", false), ErrorCode::unsupported, text.path(), ": ", text.name("attention_bias"),
         " true is not supported");
  const JsonValue* both_ways = text.find("use_bidirectional_attention");
  expect(!both_ways || (both_ways->is(JsonValue::Type::boolean) && !both_ways->boolean()), ErrorCode::unsupported, text.path(), ": ",
         text.name("use_bidirectional_attention"), " is not supported: this is an embedding model, not a text generator");
}

void read_quantization(const Fields& fields, ModelConfig& config) {
  expect(!fields.find("compression_config"), ErrorCode::unsupported, fields.path(), ": ", fields.name("compression_config"),
         " is the old form of quantization_config, which is not supported; load a newer copy of the checkpoint, or the unquantised one");
  const JsonValue* object = fields.find("quantization_config");
  if (!object || config.quantization) return;
  config.quantization = read_quant_config(*object, fields.path(), fields.name("quantization_config"));
  config.notes.push_back(config.quantization->summary);
  config.notes.insert(config.notes.end(), config.quantization->notes.begin(), config.quantization->notes.end());
}

double softcap(const Fields& text, const char* key, double fallback) {
  return text.is_null(key) ? 0 : text.number(key, 0, kMaxNumber, fallback);
}

// Takes "linear" and "default" scaling from an object that may also hold a base ("rope_theta", transformers 5).
void read_rope(const Fields& rope, RopeConfig& out) {
  out.base = rope.number("rope_theta", 1e-3, kMaxNumber, out.base);
  const std::string key = rope.find("rope_type") ? "rope_type" : "type";
  const bool has_factor = rope.find("factor") != nullptr;
  const std::string type = rope.string(key, "default");
  if (has_factor && !rope.find(key)) rope.missing("rope_type");
  expect(type == "linear" || type == "default", ErrorCode::unsupported, rope.path(), ": ", rope.name(key), " is \"", type,
         "\", only \"linear\" and \"default\" are supported");
  if (type != "linear") return;
  if (!has_factor) rope.missing("factor");
  out.factor = rope.number("factor", 1e-3, 1e6, 1);
}

struct RopePair {
  RopeConfig local, global;
};

// Old files: rope_theta, rope_local_base_freq, rope_scaling (which Gemma 3 applies to global layers only). transformers 5:
// rope_parameters, one object, or one per layer type. The newer spelling wins.
RopePair read_ropes(const Fields& text, bool one_base, const FamilyDefaults& defaults) {
  RopePair ropes;
  ropes.global.base = text.number("rope_theta", 1e-3, kMaxNumber, defaults.rope_base_global);
  if (const auto scaling = text.object("rope_scaling")) read_rope(*scaling, ropes.global);
  ropes.local.base = text.number("rope_local_base_freq", 1e-3, kMaxNumber, defaults.rope_base_local);
  const auto parameters = text.object("rope_parameters");
  const auto global = parameters ? parameters->object("full_attention") : std::nullopt;
  const auto local = parameters ? parameters->object("sliding_attention") : std::nullopt;
  if (parameters && !global && !local) read_rope(*parameters, ropes.global);
  if (global) read_rope(*global, ropes.global);
  if (one_base) ropes.local = ropes.global;
  if (local) read_rope(*local, ropes.local);
  return ropes;
}

// Which layers are local: the list if there is one, else every pattern-th layer is global.
std::vector<bool> read_layer_types(const Fields& text, int64_t num_layers, int64_t default_pattern) {
  std::vector<bool> local;
  if (const JsonValue* types = text.find("layer_types")) {
    if (!types->is(JsonValue::Type::array)) text.wrong("layer_types", "an array", type_name(types->type()));
    for (const JsonValue& type : types->array()) {
      if (!type.is(JsonValue::Type::string)) text.wrong("layer_types", "an array of strings", type_name(type.type()));
      const std::string& name = type.string();
      expect(name == "sliding_attention" || name == "full_attention", ErrorCode::unsupported, text.path(), ": ", text.name("layer_types"),
             " has \"", name, "\", only \"sliding_attention\" and \"full_attention\" are supported");
      local.push_back(name == "sliding_attention");
    }
    expect(static_cast<int64_t>(local.size()) == num_layers, ErrorCode::bad_file, text.path(), ": ", text.name("layer_types"), " has ",
           local.size(), " entries, num_hidden_layers is ", num_layers);
    return local;
  }
  const char* key = text.find("sliding_window_pattern") ? "sliding_window_pattern" : "_sliding_window_pattern";
  const int64_t pattern = text.integer(key, 1, kMaxLayers, default_pattern);
  for (int64_t i = 0; i < num_layers; ++i) local.push_back((i + 1) % pattern != 0);
  return local;
}

void read_layers(const Fields& text, const FamilyDefaults& defaults, bool one_base, ModelConfig& config) {
  const std::vector<bool> local = read_layer_types(text, config.num_layers, defaults.pattern);
  const RopePair ropes = read_ropes(text, one_base, defaults);
  const bool any_local = std::find(local.begin(), local.end(), true) != local.end();
  if (any_local && text.is_null("sliding_window")) text.wrong("sliding_window", "a number, as there are local layers", "null");
  const int64_t window = text.integer("sliding_window", any_local ? 1 : 0, kMaxPositions, defaults.window);
  const bool same = ropes.local.base == ropes.global.base && ropes.local.factor == ropes.global.factor;
  config.ropes = same ? std::vector{ropes.global} : std::vector{ropes.local, ropes.global};
  for (bool is_local : local) config.layers.push_back({is_local ? window : kNoWindow, same || is_local ? 0 : 1});
}

void add_eos(const Fields& fields, ModelConfig& config) {
  const JsonValue* value = fields.find("eos_token_id");
  if (!value) return;
  const auto add = [&](const JsonValue& id) {
    const auto eos = static_cast<int32_t>(fields.checked_integer("eos_token_id", id, -1, INT32_MAX));
    const bool known = std::find(config.eos_ids.begin(), config.eos_ids.end(), eos) != config.eos_ids.end();
    if (eos >= 0 && eos < config.vocab && !known) config.eos_ids.push_back(eos);  // an id without a logit never comes up
  };
  if (!value->is(JsonValue::Type::array)) return add(*value);
  for (const JsonValue& id : value->array()) add(id);
}

void read_generation_defaults(const Fields& generation, ModelConfig& config) {
  add_eos(generation, config);
  config.default_do_sample = generation.boolean("do_sample", false);
  config.default_temperature = generation.number("temperature", 0, kMaxNumber, -1);
  config.default_top_p = generation.number("top_p", 0, 1, -1);
  config.default_top_k = generation.integer("top_k", 0, kMaxSize, -1);
}

std::string generation_path(const std::string& config_path) {
  const size_t slash = config_path.find_last_of("/\\");
  return (slash == std::string::npos ? "" : config_path.substr(0, slash + 1)) + "generation_config.json";
}

}  // namespace

int64_t ModelConfig::parameters() const {
  const int64_t per_layer = 2 * hidden * q_width() + 2 * hidden * kv_width() + 3 * hidden * ffn + 4 * hidden + (qk_norm ? 2 * head_dim : 0);
  return num_layers * per_layer + hidden + vocab * hidden * (tied_head ? 1 : 2);
}

void check_config(const ModelConfig& config, const std::string& path) {
  const auto require = [&](bool ok, const auto&... parts) { expect(ok, ErrorCode::bad_file, path, ": ", parts...); };
  const auto in_range = [&](const char* name, int64_t value, int64_t high) {
    require(value >= 1 && value <= high, name, " is ", value, ", expected 1 to ", high);
  };
  in_range("the vocabulary size", config.vocab, kMaxSize);
  in_range("the hidden size", config.hidden, kMaxSize);
  in_range("the feed-forward size", config.ffn, kMaxSize);
  in_range("the number of layers", config.num_layers, kMaxLayers);
  in_range("the number of heads", config.num_heads, kMaxSize);
  in_range("the number of KV heads", config.num_kv_heads, config.num_heads);
  in_range("the head size", config.head_dim, kMaxSize);
  in_range("the longest context", config.max_positions, kMaxPositions);
  require(config.head_dim % 2 == 0, "the head size ", config.head_dim, " must be even");
  require(config.num_heads % config.num_kv_heads == 0, config.num_heads, " heads cannot share ", config.num_kv_heads, " KV heads evenly");
  require(config.num_heads * config.head_dim <= kMaxSize, config.num_heads, " heads of ", config.head_dim, " are wider than ", kMaxSize);
  require(static_cast<int64_t>(config.layers.size()) == config.num_layers, config.layers.size(), " layers described, ", config.num_layers,
          " expected");
  require(std::isfinite(config.query_scale) && config.query_scale > 0, "the query scale is ", config.query_scale,
          ", expected a positive number");
  require(config.norm_eps >= 0 && config.norm_eps < 1, "the norm epsilon is ", config.norm_eps, ", expected 0 to 1");
  for (const RopeConfig& rope : config.ropes) {
    require(std::isfinite(rope.base) && rope.base > 0 && std::isfinite(rope.factor) && rope.factor > 0, "RoPE base ", rope.base,
            " and factor ", rope.factor, " must be positive");
  }
  for (const LayerConfig& layer : config.layers) require(layer.window >= 1, "a window of ", layer.window, " keys, expected at least 1");
}

// What this library writes into a config.json of its own beside what everybody reads.
void read_own_facts(const Fields& top, ModelConfig& config) {
  if (!top.find("lapidary")) return;
  config.cushion_fingerprint = top.object("lapidary")->string("cushion", "");
}

ModelConfig config_from_json(const JsonValue& json, const JsonValue* generation, const std::string& path) {
  const Fields top(json, path);
  if (!top.find("model_type")) top.missing("model_type");
  const std::string type = top.string("model_type", "");
  expect(type == "gemma2" || type == "gemma3_text" || type == "gemma3", ErrorCode::unsupported, path, ": model_type \"", type,
         "\" is not supported, only \"gemma2\", \"gemma3_text\" and \"gemma3\" are");
  ModelConfig config;
  read_quantization(top, config);
  read_own_facts(top, config);
  const bool nested = type == "gemma3", is_gemma2 = type == "gemma2";
  if (nested && !top.find("text_config")) top.missing("text_config");
  const Fields text = nested ? *top.object("text_config") : top;
  if (nested) {
    const std::string text_type = text.string("model_type", "gemma3_text");
    expect(text_type == "gemma3_text", ErrorCode::unsupported, path, ": text_config.model_type \"", text_type,
           "\" is not supported, only \"gemma3_text\" is");
    read_quantization(text, config);
  }
  refuse_what_is_not_gemma(text);

  const FamilyDefaults& defaults = is_gemma2 ? kGemma2 : kGemma3;
  config.family = is_gemma2 ? "gemma2" : "gemma3";
  read_sizes(text, nested ? kSparse : kRequired, config);
  config.max_positions = text.integer("max_position_embeddings", 1, kMaxPositions, defaults.max_positions);
  config.query_scale = 1 / std::sqrt(text.number("query_pre_attn_scalar", 1e-6, kMaxNumber, 256));
  // Gemma 3 files carry the key, but no implementation of Gemma 3 caps attention scores.
  config.attention_softcap = is_gemma2 ? softcap(text, "attn_logit_softcapping", defaults.attention_softcap) : 0;
  config.final_softcap = softcap(text, "final_logit_softcapping", defaults.final_softcap);
  config.qk_norm = !is_gemma2;
  config.norm_eps = text.number("rms_norm_eps", 0, 0.999, 1e-6);
  read_layers(text, defaults, /*one_base=*/is_gemma2, config);
  config.tied_head = top.boolean("tie_word_embeddings", text.boolean("tie_word_embeddings", true));
  config.has_vision = nested && top.find("vision_config") != nullptr;

  config.bos_id = static_cast<int32_t>(text.integer("bos_token_id", -1, INT32_MAX, top.integer("bos_token_id", -1, INT32_MAX, 2)));
  config.pad_id = static_cast<int32_t>(text.integer("pad_token_id", -1, INT32_MAX, top.integer("pad_token_id", -1, INT32_MAX, 0)));
  add_eos(top, config);
  add_eos(text, config);
  if (generation) read_generation_defaults(Fields(*generation, generation_path(path)), config);
  if (config.eos_ids.empty()) config.eos_ids = {1};
  check_config(config, path);
  return config;
}

}  // namespace lapidary
