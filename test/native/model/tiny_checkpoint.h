// Small random Gemma checkpoints for tests, written as safetensors folders under any naming and as GGUF files.
#pragma once

#include <cmath>
#include <cstring>
#include <fstream>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include "base/float16.h"
#include "formats/safetensors.h"
#include "tensor/tensor.h"

namespace lapidary::test {

struct TinyTensor {
  std::vector<int64_t> shape;
  std::vector<float> values;
};
using TinyTensors = std::map<std::string, TinyTensor>;  // by the published name, "model.layers.0.mlp.up_proj.weight"

struct TinySizes {
  int64_t layers = 3, hidden = 32, ffn = 48, vocab = 40, heads = 4, kv_heads = 2, head_dim = 16;
  bool qk_norm = true;
};

// Values in [-0.5, 0.5) that are exact in bf16, from the name and index alone.
inline TinyTensor tiny_tensor(const std::string& name, std::vector<int64_t> shape) {
  TinyTensor t{std::move(shape), {}};
  uint64_t state = 0x9e3779b97f4a7c15u + std::hash<std::string>{}(name);
  int64_t n = 1;
  for (int64_t d : t.shape) n *= d;
  for (int64_t i = 0; i < n; ++i) {
    state = state * 6364136223846793005u + 1442695040888963407u;
    t.values.push_back(round_to_bf16(static_cast<float>(state >> 40) / 16777216.0f - 0.5f));
  }
  return t;
}

inline TinyTensors tiny_tensors(const TinySizes& s = {}) {
  TinyTensors all;
  const auto put = [&](const std::string& name, std::vector<int64_t> shape) { all[name] = tiny_tensor(name, std::move(shape)); };
  put("model.embed_tokens.weight", {s.vocab, s.hidden});
  put("model.norm.weight", {s.hidden});
  for (int64_t i = 0; i < s.layers; ++i) {
    const std::string layer = "model.layers." + std::to_string(i) + ".";
    for (const char* norm : {"input_layernorm", "post_attention_layernorm", "pre_feedforward_layernorm", "post_feedforward_layernorm"})
      put(layer + norm + ".weight", {s.hidden});
    put(layer + "self_attn.q_proj.weight", {s.heads * s.head_dim, s.hidden});
    put(layer + "self_attn.k_proj.weight", {s.kv_heads * s.head_dim, s.hidden});
    put(layer + "self_attn.v_proj.weight", {s.kv_heads * s.head_dim, s.hidden});
    put(layer + "self_attn.o_proj.weight", {s.hidden, s.heads * s.head_dim});
    if (s.qk_norm) put(layer + "self_attn.q_norm.weight", {s.head_dim}), put(layer + "self_attn.k_norm.weight", {s.head_dim});
    put(layer + "mlp.gate_proj.weight", {s.ffn, s.hidden});
    put(layer + "mlp.up_proj.weight", {s.ffn, s.hidden});
    put(layer + "mlp.down_proj.weight", {s.hidden, s.ffn});
  }
  return all;
}

inline const char* const kTinyConfig =
    R"({"model_type": "gemma3_text", "num_hidden_layers": 3, "hidden_size": 32, "intermediate_size": 48, "vocab_size": 40,
  "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16, "query_pre_attn_scalar": 16, "sliding_window": 5, "sliding_window_pattern": 3,
  "max_position_embeddings": 128})";

inline void write_text(const std::string& path, const std::string& text) {
  std::ofstream file(path, std::ios::binary);
  file.write(text.data(), static_cast<std::streamsize>(text.size()));
}

// The bytes of f32 values in another number type.
inline std::vector<std::byte> encode(const std::vector<float>& values, DType dtype) {
  std::vector<std::byte> bytes(static_cast<size_t>(dtype_bytes(dtype, static_cast<int64_t>(values.size()))));
  for (size_t i = 0; i < values.size(); ++i) {
    if (dtype == DType::f32) {
      std::memcpy(&bytes[4 * i], &values[i], 4);
    } else {
      const bf16 v = to_bf16(values[i]);
      std::memcpy(&bytes[2 * i], &v, 2);
    }
  }
  return bytes;
}

// A folder with config.json and model.safetensors; the header is padded so that data starts at an address that is odd.
inline void write_folder(const std::string& folder, const std::string& config, const TinyTensors& tensors, DType dtype = DType::bf16) {
  write_text(folder + "/config.json", config);
  std::string header = "{", data;
  for (const auto& [name, tensor] : tensors) {
    const std::vector<std::byte> bytes = encode(tensor.values, dtype);
    std::string shape;
    for (int64_t d : tensor.shape) shape += (shape.empty() ? "" : ",") + std::to_string(d);
    header += (header.size() > 1 ? ",\"" : "\"") + name + "\":{\"dtype\":\"" + (dtype == DType::f32 ? "F32" : "BF16") + "\",\"shape\":[" +
              shape + "],\"data_offsets\":[" + std::to_string(data.size()) + "," + std::to_string(data.size() + bytes.size()) + "]}";
    data.append(reinterpret_cast<const char*>(bytes.data()), bytes.size());
  }
  header += "}";
  if (header.size() % 2 == 0) header += " ";
  const uint64_t length = header.size();
  write_text(folder + "/model.safetensors", std::string(reinterpret_cast<const char*>(&length), 8) + header + data);
}

// Writes GGUF version 3: metadata in call order, tensors as f32.
class GgufWriter {
 public:
  GgufWriter& u32(const std::string& key, uint32_t v) { return value(key, 4, raw(v)); }
  GgufWriter& u64(const std::string& key, uint64_t v) { return value(key, 10, raw(v)); }
  GgufWriter& f32(const std::string& key, float v) { return value(key, 6, raw(v)); }
  GgufWriter& text(const std::string& key, const std::string& v) { return value(key, 8, string(v)); }
  GgufWriter& bools(const std::string& key, const std::vector<bool>& v) {
    std::string bytes = raw(uint32_t{7}) + raw(static_cast<uint64_t>(v.size()));
    for (bool b : v) bytes += static_cast<char>(b);
    return value(key, 9, bytes);
  }
  GgufWriter& texts(const std::string& key, const std::vector<std::string>& v) {
    std::string bytes = raw(uint32_t{8}) + raw(static_cast<uint64_t>(v.size()));
    for (const std::string& s : v) bytes += string(s);
    return value(key, 9, bytes);
  }
  // shape: outermost first. type: ggml's number, 0 = F32; `bytes` as that type has them.
  GgufWriter& tensor(const std::string& name, const std::vector<int64_t>& shape, uint32_t type, const std::vector<std::byte>& bytes) {
    table_ += string(name) + raw(static_cast<uint32_t>(shape.size()));
    for (size_t i = shape.size(); i-- > 0;) table_ += raw(static_cast<uint64_t>(shape[i]));
    table_ += raw(type) + raw(static_cast<uint64_t>(data_.size()));
    data_.append(reinterpret_cast<const char*>(bytes.data()), bytes.size());
    data_.resize((data_.size() + 31) / 32 * 32);
    ++num_tensors_;
    return *this;
  }
  GgufWriter& tensor(const std::string& name, const TinyTensor& t) { return tensor(name, t.shape, 0, encode(t.values, DType::f32)); }

  std::string write(const std::string& path) const {
    std::string file = "GGUF" + raw(uint32_t{3}) + raw(num_tensors_) + raw(num_values_) + values_ + table_;
    file.resize((file.size() + 31) / 32 * 32);
    write_text(path, file + data_);
    return path;
  }

 private:
  template <typename T>
  static std::string raw(T v) {
    return std::string(reinterpret_cast<const char*>(&v), sizeof(T));
  }
  static std::string string(const std::string& s) { return raw(static_cast<uint64_t>(s.size())) + s; }
  GgufWriter& value(const std::string& key, uint32_t type, const std::string& bytes) {
    values_ += string(key) + raw(type) + bytes;
    ++num_values_;
    return *this;
  }

  std::string values_, table_, data_;
  uint64_t num_values_ = 0, num_tensors_ = 0;
};

}  // namespace lapidary::test
