// Builds the samples: configs in every spelling, tokenizers, one-file and sharded checkpoints, GGUF with every element type.
#include "samples.h"

#include <algorithm>
#include <vector>

#include "formats/json.h"
#include "model/tensor_table.h"

namespace lapidary::fuzz {
namespace {

using namespace test;

constexpr const char* kControls[] = {"<pad>", "<eos>", "<bos>", "<unk>", "<mask>", "<start_of_turn>", "<end_of_turn>"};
constexpr const char* kPieces[] = {"\n",
                                   "\xe2\x96\x81",
                                   "a",
                                   "b",
                                   "ab",
                                   "\xe2\x96\x81"
                                   "a",
                                   "\xe2\x96\x81"
                                   "ab",
                                   "\xc3\xa9",
                                   "e",
                                   "t",
                                   "te",
                                   "\xe2\x96\x81te"};
constexpr int64_t kVocab = std::size(kControls) + 256 + std::size(kPieces);

std::string byte_piece(int byte) {
  constexpr char kHex[] = "0123456789ABCDEF";
  return std::string("<0x") + kHex[byte >> 4] + kHex[byte & 15] + ">";
}

std::vector<std::string> vocabulary() {
  std::vector<std::string> pieces(std::begin(kControls), std::end(kControls));
  for (int byte = 0; byte < 256; ++byte) pieces.push_back(byte_piece(byte));
  pieces.insert(pieces.end(), std::begin(kPieces), std::end(kPieces));
  return pieces;
}

std::string tokenizer_json() {
  std::string added, vocab;
  int id = 0;
  for (const char* name : kControls)
    added += (id ? "," : "") + ("{\"id\":" + std::to_string(id)) + ",\"content\":" + json_quote(name) +
             ",\"single_word\":false,\"lstrip\":false,\"rstrip\":false,\"normalized\":false,\"special\":true}",
        ++id;
  id = 0;
  for (const std::string& piece : vocabulary()) vocab += (id ? "," : "") + json_quote(piece) + ":" + std::to_string(id), ++id;
  return "{\"version\":\"1.0\",\"truncation\":null,\"added_tokens\":[" + added +
         "],\"normalizer\":{\"type\":\"Replace\",\"pattern\":{\"String\":\" \"},\"content\":\"\u2581\"},"
         "\"pre_tokenizer\":{\"type\":\"Split\",\"pattern\":{\"String\":\" \"},\"behavior\":\"MergedWithPrevious\",\"invert\":false},"
         "\"post_processor\":null,\"decoder\":{\"type\":\"Sequence\",\"decoders\":[{\"type\":\"Replace\",\"pattern\":{\"String\":"
         "\"\u2581\"},"
         "\"content\":\" \"},{\"type\":\"ByteFallback\"},{\"type\":\"Fuse\"}]},\"model\":{\"type\":\"BPE\",\"dropout\":null,"
         "\"unk_token\":\"<unk>\",\"fuse_unk\":true,\"byte_fallback\":true,\"ignore_merges\":false,\"vocab\":{" +
         vocab + "},\"merges\":[[\"a\",\"b\"],[\"\u2581\",\"ab\"],\"t e\",[\"\u2581\",\"te\"],[\"\u2581\",\"a\"]]}}";
}

ModelConfig small_config(Random& random) {
  ModelConfig c;
  const bool wide = random.one_in(6);  // K blocks need rows of 256
  c.family = random.pick({"gemma2", "gemma3"});
  c.num_layers = wide ? 1 : 1 + static_cast<int64_t>(random.below(3));
  c.hidden = wide ? 256 : 32, c.ffn = wide ? 256 : 64, c.vocab = kVocab;
  c.num_heads = 2, c.num_kv_heads = 1 + static_cast<int64_t>(random.below(2)), c.head_dim = c.hidden / 2;
  c.qk_norm = c.family == "gemma3";
  return c;
}

std::string sizes_json(const ModelConfig& c) {
  const auto member = [](const char* key, int64_t value) { return std::string("\"") + key + "\":" + std::to_string(value) + ","; };
  return member("vocab_size", c.vocab) + member("hidden_size", c.hidden) + member("intermediate_size", c.ffn) +
         member("num_hidden_layers", c.num_layers) + member("num_attention_heads", c.num_heads) +
         member("num_key_value_heads", c.num_kv_heads) + member("head_dim", c.head_dim) +
         "\"max_position_embeddings\":128,\"sliding_window\":16,"
         "\"query_pre_attn_scalar\":16,\"rms_norm_eps\":1e-06,\"hidden_activation\":\"gelu_pytorch_tanh\"";
}

std::string config_json(const ModelConfig& c, Random& random) {
  if (c.family == "gemma2")
    return "{\"model_type\":\"gemma2\",\"eos_token_id\":[1,6],\"attn_logit_softcapping\":50.0,\"rope_theta\":10000.0," + sizes_json(c) +
           "}";
  const std::string ropes =
      random.pick({",\"rope_theta\":1e6,\"rope_local_base_freq\":1e4,\"rope_scaling\":{\"factor\":8.0,\"rope_type\":\"linear\"}",
                   ",\"rope_parameters\":{\"full_attention\":{\"rope_type\":\"linear\",\"factor\":8,\"rope_theta\":1e6},"
                   "\"sliding_attention\":{\"rope_type\":\"default\",\"rope_theta\":1e4}}"});
  std::string layers = ",\"sliding_window_pattern\":2";
  if (random.one_in(2)) {
    layers = ",\"layer_types\":[";
    for (int64_t i = 0; i < c.num_layers; ++i) layers += i ? ",\"full_attention\"" : "\"sliding_attention\"";
    layers += "]";
  }
  if (random.one_in(2)) return "{\"model_type\":\"gemma3_text\",\"tie_word_embeddings\":true," + sizes_json(c) + ropes + layers + "}";
  return "{\"model_type\":\"gemma3\",\"eos_token_id\":[1,6],\"text_config\":{\"model_type\":\"gemma3_text\"," + sizes_json(c) + ropes +
         layers + "}}";
}

int64_t elements_of(const std::vector<int64_t>& shape) {
  int64_t n = 1;
  for (const int64_t d : shape) n *= d;
  return n;
}

// What a quantised checkpoint is made of; not quantised: no config.
struct Quantization {
  std::string config;  // the member of config.json, with its comma
  bool packed = false, fixed = false, per_channel = true;
};

Quantization some_quantization(Random& random) {
  Quantization q;
  if (!random.one_in(3)) return q;
  q.packed = random.one_in(4), q.fixed = random.one_in(2), q.per_channel = !random.one_in(4);
  const std::string eight = R"({"num_bits":8,"type":"int","symmetric":true,)";
  const std::string inputs = q.fixed            ? eight + R"("strategy":"tensor","dynamic":false})"
                             : random.one_in(3) ? "null"
                                                : eight + R"("strategy":"token","dynamic":true})";
  const std::string targets = random.pick({R"(["Linear"])", R"(["re:.*self_attn\\.[qkvo]_proj$","re:.*mlp.*"])"});
  q.config = R"("quantization_config":{"quant_method":"compressed-tensors","format":")" + std::string(q.packed ? "pack" : "int") +
             R"(-quantized","quantization_status":"compressed","config_groups":{"group_0":{"targets":)" + targets + R"(,"weights":)" +
             eight + R"("strategy":")" + (q.per_channel ? "channel" : "tensor") + R"(","dynamic":false},"input_activations":)" + inputs +
             R"(,"output_activations":null}},"ignore":["lm_head","re:^(?!.*(layers)).*$"],"kv_cache_scheme":null},)";
  return q;
}

SafetensorsParts make_shard(const ModelConfig& c, const std::vector<TensorSlot>& slots, const std::string& dtype, const Quantization& q,
                            Random& random) {
  SafetensorsParts parts;
  parts.header = "{\"__metadata__\":{\"format\":\"pt\"}";
  const auto add = [&](const std::string& name, const std::string& type, const std::vector<int64_t>& shape, const std::string& data) {
    std::string dims;
    for (const int64_t d : shape) dims += (dims.empty() ? "" : ",") + std::to_string(d);
    parts.header += "," + json_quote(name) + ":{\"dtype\":\"" + type + "\",\"shape\":[" + dims + "],\"data_offsets\":[" +
                    std::to_string(parts.data.size()) + "," + std::to_string(parts.data.size() + data.size()) + "]}";
    parts.data += data;
  };
  for (const TensorSlot& slot : slots) {
    const std::vector<int64_t> shape = slot_shape(slot, c);
    const std::string name = slot_name(NameStyle::safetensors, slot), module = name.substr(0, name.rfind('.'));
    if (q.config.empty() || is_norm(slot.role) || slot.role == TensorRole::embedding) {
      add(name, dtype, shape, random.bytes(static_cast<size_t>(elements_of(shape)) * (dtype == "F32" ? 4 : 2)));
      continue;
    }
    const std::string numbers = random.bytes(static_cast<size_t>(elements_of(shape)));
    if (q.packed) {
      add(module + ".weight_packed", "I32", {shape[0], shape[1] / 4}, numbers);
    } else {
      add(name, "I8", shape, numbers);
    }
    const int64_t scales = q.per_channel ? shape[0] : 1;
    std::string data;
    for (int64_t i = 0; i < scales; ++i) data += little_endian(0.001f * static_cast<float>(1 + random.below(9)));
    add(module + ".weight_scale", "F32", random.one_in(2) ? std::vector<int64_t>{scales, 1} : std::vector<int64_t>{scales}, data);
    if (q.fixed) add(module + ".input_scale", "F32", {1}, little_endian(0.05f));
  }
  parts.header += "}";
  parts.header.resize((parts.header.size() + 7) / 8 * 8, ' ');
  return parts;
}

Sample make_folder(Random& random) {
  Sample sample;
  const ModelConfig c = small_config(random);
  const Quantization q = some_quantization(random);
  sample.texts["config.json"] = config_json(c, random).insert(1, q.config);
  sample.texts["tokenizer.json"] = tokenizer_json();
  if (random.one_in(2))
    sample.texts["generation_config.json"] = R"({"do_sample":true,"eos_token_id":[1,6],"temperature":1.0,"top_k":64,"top_p":0.95})";
  if (random.one_in(2))
    sample.texts["tokenizer_config.json"] =
        R"({"add_bos_token":true,"bos_token":{"content":"<bos>"},"eos_token":"<eos>","chat_template":"{{ bos_token }}"})";
  const std::string dtype = random.pick({"F32", "BF16", "F16"});
  const std::vector<TensorSlot> slots = expected_slots(c);
  if (random.one_in(2)) {
    sample.safetensors["model.safetensors"] = make_shard(c, slots, dtype, q, random);
    return sample;
  }
  const size_t cut = 1 + random.below(slots.size() - 1);
  const std::vector<TensorSlot> first(slots.begin(), slots.begin() + static_cast<std::ptrdiff_t>(cut)),
      second(slots.begin() + static_cast<std::ptrdiff_t>(cut), slots.end());
  const std::string names[] = {"model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"};
  sample.safetensors[names[0]] = make_shard(c, first, dtype, q, random);
  sample.safetensors[names[1]] = make_shard(c, second, dtype, q, random);
  std::string map;
  for (size_t i = 0; i < slots.size(); ++i) {
    if (q.packed && !is_norm(slots[i].role) && i > 0) continue;  // of another name; a shard need not be listed in full
    map += (i ? "," : "") + json_quote(slot_name(NameStyle::safetensors, slots[i])) + ":" + json_quote(names[i >= cut]);
  }
  sample.texts["model.safetensors.index.json"] = "{\"metadata\":{\"total_size\":12345},\"weight_map\":{" + map + "}}";
  return sample;
}

// Numbers of the element types, and what one block of each holds.
struct BlockType {
  uint32_t number;
  int64_t elements, bytes;
};
constexpr BlockType kSmallTypes[] = {{0, 1, 4}, {1, 1, 2}, {30, 1, 2}, {8, 32, 34}, {2, 32, 18}, {3, 32, 20}, {6, 32, 22}, {7, 32, 24}};
constexpr BlockType kWideTypes[] = {{10, 256, 84}, {11, 256, 110}, {12, 256, 144}, {13, 256, 176}, {14, 256, 210}, {8, 32, 34}};

void add_gguf_tokenizer(GgufParts& parts) {
  const std::vector<std::string> pieces = vocabulary();
  std::string scores, types;
  for (size_t i = 0; i < pieces.size(); ++i) {
    scores += little_endian(-static_cast<float>(i));
    types += little_endian<int32_t>(i == 3 ? 2 : i < std::size(kControls) ? 3 : i < std::size(kControls) + 256 ? 6 : 1);
  }
  parts.metadata.insert(parts.metadata.end(), {{"tokenizer.ggml.model", gguf_text("llama")},
                                               {"tokenizer.ggml.tokens", gguf_strings(pieces)},
                                               {"tokenizer.ggml.scores", gguf_array(6, pieces.size(), scores)},
                                               {"tokenizer.ggml.token_type", gguf_array(5, pieces.size(), types)},
                                               {"tokenizer.ggml.bos_token_id", gguf_u32(2)},
                                               {"tokenizer.ggml.eos_token_id", gguf_u32(1)},
                                               {"tokenizer.ggml.add_bos_token", gguf_bool(true)},
                                               {"tokenizer.ggml.add_space_prefix", gguf_bool(false)}});
}

Sample make_gguf(Random& random) {
  Sample sample;
  sample.has_gguf = true;
  GgufParts& parts = sample.gguf;
  const ModelConfig c = small_config(random);
  const auto number = [&](const char* key, int64_t value) {
    parts.metadata.emplace_back(c.family + "." + key, gguf_u32(static_cast<uint32_t>(value)));
  };
  parts.version = random.one_in(4) ? 2 : 3;
  parts.metadata = {{"general.architecture", gguf_text(c.family)}, {"general.type", gguf_text("model")}};
  number("context_length", 128), number("embedding_length", c.hidden), number("block_count", c.num_layers),
      number("feed_forward_length", c.ffn);
  number("attention.head_count", c.num_heads), number("attention.head_count_kv", c.num_kv_heads),
      number("attention.key_length", c.head_dim);
  number("attention.value_length", c.head_dim), number("attention.sliding_window", 16);
  parts.metadata.emplace_back(c.family + ".attention.layer_norm_rms_epsilon", gguf_f32(1e-6f));
  if (random.one_in(3)) parts.metadata.emplace_back("general.alignment", gguf_u32(static_cast<uint32_t>(parts.alignment = 64)));
  add_gguf_tokenizer(parts);
  for (const TensorSlot& slot : expected_slots(c)) {
    const std::vector<int64_t> shape = slot_shape(slot, c);
    const BlockType type = is_norm(slot.role) ? kSmallTypes[0]
                           : c.hidden == 256  ? random.pick_from(kWideTypes)
                                              : random.pick_from(kSmallTypes);
    parts.data.resize((parts.data.size() + parts.alignment - 1) / parts.alignment * parts.alignment, '\0');
    parts.tensors.push_back({slot_name(NameStyle::gguf, slot), {shape.rbegin(), shape.rend()}, type.number, parts.data.size()});
    parts.data += random.bytes(static_cast<size_t>(elements_of(shape) / type.elements * type.bytes));
  }
  return sample;
}

}  // namespace

Sample make_sample(Random& random) { return random.one_in(2) ? make_gguf(random) : make_folder(random); }

}  // namespace lapidary::fuzz
