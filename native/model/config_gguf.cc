// GGUF metadata of gemma2 and gemma3 files -> ModelConfig, with the defaults that readers of the format agree on.
#include <algorithm>
#include <cmath>

#include "base/error.h"
#include "model/config.h"

namespace lapidary {

namespace {

// Look-ups under the architecture's prefix: "gemma3." + key.
class Keys {
 public:
  Keys(const GgufFile& file, std::string architecture) : file_(file), prefix_(std::move(architecture) + ".") {}

  std::string name(std::string_view key) const { return prefix_ + std::string(key); }
  const GgufValue* find(std::string_view key) const { return file_.find(name(key)); }

  int64_t integer(std::string_view key, int64_t fallback) const {
    int64_t value = fallback;
    file_.integer(name(key), value);
    return value;
  }
  int64_t required(std::string_view key) const {
    int64_t value = 0;
    expect(file_.integer(name(key), value), ErrorCode::bad_file, file_.path(), ": the key ", name(key), " is missing");
    return value;
  }
  double number(std::string_view key, double fallback) const {
    double value = fallback;
    file_.number(name(key), value);
    return value;
  }
  double positive_or_zero(std::string_view key, double fallback) const {
    const double value = number(key, fallback);
    expect(value >= 0 && value < 1e12, ErrorCode::bad_file, file_.path(), ": ", name(key), " is ", value, ", expected a number from 0 up");
    return value;
  }

 private:
  const GgufFile& file_;
  std::string prefix_;
};

// The rows of the embedding decide; the token list speaks where the embedding is absent.
int64_t vocab_of(const GgufFile& file) {
  if (const auto embedding = file.tensors().find("token_embd.weight"); embedding != file.tensors().end()) {
    if (embedding->second.view.rank == 2) return embedding->second.view.shape[0];
  }
  const std::vector<std::string>* tokens = file.strings("tokenizer.ggml.tokens");
  expect(tokens != nullptr, ErrorCode::bad_file, file.path(),
         ": neither token_embd.weight nor tokenizer.ggml.tokens is there to tell the vocabulary size");
  return static_cast<int64_t>(tokens->size());
}

// A number n: every n-th layer is global, 0: none is. Or a list: one entry per layer, true for local.
std::vector<bool> local_layers(const GgufFile& file, const Keys& keys, int64_t num_layers, int64_t default_pattern) {
  std::vector<bool> local;
  const char* key = "attention.sliding_window_pattern";
  const GgufValue* value = keys.find(key);
  if (const auto* list = value ? std::get_if<std::vector<int64_t>>(value) : nullptr) {
    expect(static_cast<int64_t>(list->size()) == num_layers, ErrorCode::bad_file, file.path(), ": ", keys.name(key), " has ", list->size(),
           " entries for ", num_layers, " layers");
    for (int64_t entry : *list) local.push_back(entry != 0);
    return local;
  }
  const int64_t pattern = keys.integer(key, default_pattern);
  expect(pattern >= 0, ErrorCode::bad_file, file.path(), ": ", keys.name(key), " is ", pattern, ", expected 0 or more");
  for (int64_t i = 0; i < num_layers; ++i) local.push_back(pattern == 0 || (i + 1) % pattern != 0);
  return local;
}

double rope_factor(const GgufFile& file, const Keys& keys) {
  double factor = keys.positive_or_zero("rope.scaling.factor", keys.positive_or_zero("rope.scale_linear", 1));
  if (factor == 0) factor = 1;
  const std::string* type = file.string(keys.name("rope.scaling.type"));
  if (type && *type == "none") return 1;
  expect(!type || *type == "linear", ErrorCode::unsupported, file.path(), ": ", keys.name("rope.scaling.type"), " is \"", type ? *type : "",
         "\", only \"linear\" and \"none\" are supported");
  return factor;
}

// Gemma 3 scales positions on global layers only and has a second base for local ones; Gemma 2 has one rope for all.
void read_layers(const GgufFile& file, const Keys& keys, bool is_gemma2, ModelConfig& config) {
  const int64_t window = keys.integer("attention.sliding_window", is_gemma2 ? 4096 : 0);
  expect(window >= 0, ErrorCode::bad_file, file.path(), ": ", keys.name("attention.sliding_window"), " is ", window,
         ", expected 0 or more");
  std::vector<bool> local = local_layers(file, keys, config.num_layers, is_gemma2 ? 2 : 6);
  if (window == 0) std::fill(local.begin(), local.end(), false);

  const RopeConfig global = {keys.number("rope.freq_base", is_gemma2 ? 1e4 : 1e6), rope_factor(file, keys)};
  const RopeConfig swa = {keys.number("rope.freq_base_swa", is_gemma2 ? global.base : 1e4), is_gemma2 ? global.factor : 1};
  const bool same = window == 0 || (swa.base == global.base && swa.factor == global.factor);
  config.ropes = same ? std::vector{global} : std::vector{swa, global};
  for (bool is_local : local) config.layers.push_back({is_local ? window : kNoWindow, same || is_local ? 0 : 1});
}

// The format does not store the scale. Every size has head_dim^-0.5 but the two 27B ones, known by their layer count.
double query_scale(const ModelConfig& config, int64_t layers_of_27b) {
  const bool is_27b = config.num_layers == layers_of_27b;
  const double width =
      is_27b ? static_cast<double>(config.hidden) / static_cast<double>(config.num_heads) : static_cast<double>(config.head_dim);
  return 1 / std::sqrt(width);
}

void read_special_ids(const GgufFile& file, ModelConfig& config) {
  const auto in_vocab = [&](int64_t id) { return id >= 0 && id < config.vocab; };
  int64_t id = 0;
  if (file.integer("tokenizer.ggml.bos_token_id", id) && in_vocab(id)) config.bos_id = static_cast<int32_t>(id);
  if (file.integer("tokenizer.ggml.padding_token_id", id) && in_vocab(id)) config.pad_id = static_cast<int32_t>(id);
  const auto add_eos = [&](int64_t eos) {
    const auto& known = config.eos_ids;
    if (in_vocab(eos) && std::find(known.begin(), known.end(), eos) == known.end()) config.eos_ids.push_back(static_cast<int32_t>(eos));
  };
  for (const char* key : {"tokenizer.ggml.eos_token_id", "tokenizer.ggml.eot_token_id"}) {
    if (file.integer(key, id)) add_eos(id);
  }
  if (const std::vector<std::string>* tokens = file.strings("tokenizer.ggml.tokens")) {
    const auto turn_end = std::find(tokens->begin(), tokens->end(), "<end_of_turn>");
    if (turn_end != tokens->end()) add_eos(turn_end - tokens->begin());
  }
  if (config.eos_ids.empty()) config.eos_ids = {1};
}

}  // namespace

ModelConfig config_from_gguf(const GgufFile& file) {
  const std::string* architecture = file.string("general.architecture");
  expect(architecture != nullptr, ErrorCode::bad_file, file.path(), ": the key general.architecture is missing");
  expect(*architecture == "gemma2" || *architecture == "gemma3", ErrorCode::unsupported, file.path(), ": general.architecture \"",
         *architecture, "\" is not supported, only \"gemma2\" and \"gemma3\" are");
  const bool is_gemma2 = *architecture == "gemma2";
  const Keys keys(file, *architecture);

  ModelConfig config;
  config.family = *architecture;
  config.vocab = vocab_of(file);
  config.hidden = keys.required("embedding_length");
  config.ffn = keys.required("feed_forward_length");
  config.num_layers = keys.required("block_count");
  config.num_heads = keys.required("attention.head_count");
  config.num_kv_heads = keys.integer("attention.head_count_kv", config.num_heads);
  config.max_positions = keys.required("context_length");
  expect(config.num_heads >= 1 && config.num_layers >= 1 && config.num_layers <= 4096, ErrorCode::bad_file, file.path(), ": ",
         config.num_layers, " layers of ", config.num_heads, " heads, expected 1 to 4096 layers and at least 1 head");
  config.head_dim = keys.integer("attention.key_length", config.hidden / config.num_heads);
  const int64_t value_length = keys.integer("attention.value_length", config.head_dim),
                rotated = keys.integer("rope.dimension_count", config.head_dim);
  expect(value_length == config.head_dim && rotated == config.head_dim, ErrorCode::unsupported, file.path(), ": keys of ", config.head_dim,
         ", values of ", value_length, " and ", rotated, " rotated dimensions; only equal sizes are supported");

  config.query_scale = query_scale(config, is_gemma2 ? 46 : 62);
  config.attention_softcap = is_gemma2 ? keys.positive_or_zero("attn_logit_softcapping", 50) : 0;  // see config.cc
  config.final_softcap = keys.positive_or_zero("final_logit_softcapping", is_gemma2 ? 30 : 0);
  config.qk_norm = !is_gemma2;
  config.norm_eps = keys.number("attention.layer_norm_rms_epsilon", 1e-6);
  config.norm_offset = 0;  // the converter stored 1 + w
  read_layers(file, keys, is_gemma2, config);
  read_special_ids(file, config);
  check_config(config, file.path());
  return config;
}

}  // namespace lapidary
