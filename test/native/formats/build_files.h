// Writes GGUF and safetensors files byte by byte, right or wrong on purpose. For tests and the fuzzer.
#pragma once

#include <cstdint>
#include <cstdio>
#include <cstring>
#include <string>
#include <utility>
#include <vector>

namespace lapidary::test {

template <typename T>
std::string little_endian(T value) {
  std::string bytes(sizeof(T), '\0');
  std::memcpy(bytes.data(), &value, sizeof(T));
  return bytes;
}

// Length field and text, as GGUF stores strings.
inline std::string gguf_string(const std::string& text) { return little_endian<uint64_t>(text.size()) + text; }

// A metadata value with its type number before it.
template <typename T>
std::string gguf_value(uint32_t type, T value) {
  return little_endian(type) + little_endian(value);
}
inline std::string gguf_u32(uint32_t value) { return gguf_value<uint32_t>(4, value); }
inline std::string gguf_f32(float value) { return gguf_value<float>(6, value); }
inline std::string gguf_bool(bool value) { return gguf_value<uint8_t>(7, value); }
inline std::string gguf_text(const std::string& text) { return little_endian<uint32_t>(8) + gguf_string(text); }
// An array of `count` elements of a type, already encoded.
inline std::string gguf_array(uint32_t type, uint64_t count, const std::string& elements) {
  return little_endian<uint32_t>(9) + little_endian(type) + little_endian(count) + elements;
}
inline std::string gguf_strings(const std::vector<std::string>& texts) {
  std::string elements;
  for (const std::string& text : texts) elements += gguf_string(text);
  return gguf_array(8, texts.size(), elements);
}

struct GgufTensor {
  std::string name;
  std::vector<uint64_t> dims;  // innermost first
  uint32_t type = 0;           // F32
  uint64_t offset = 0;
};

// The parts of a GGUF file. Nothing is checked; counts may lie.
struct GgufParts {
  uint32_t version = 3;
  std::vector<std::pair<std::string, std::string>> metadata;
  std::vector<GgufTensor> tensors;
  std::string data;
  uint64_t alignment = 32;
  int64_t extra_tensors = 0, extra_metadata = 0;  // added to the counts

  std::string bytes() const {
    std::string out = "GGUF" + little_endian(version) + little_endian<uint64_t>(tensors.size() + static_cast<uint64_t>(extra_tensors)) +
                      little_endian<uint64_t>(metadata.size() + static_cast<uint64_t>(extra_metadata));
    for (const auto& [key, value] : metadata) out += gguf_string(key) + value;
    for (const GgufTensor& t : tensors) {
      out += gguf_string(t.name) + little_endian<uint32_t>(static_cast<uint32_t>(t.dims.size()));
      for (const uint64_t d : t.dims) out += little_endian(d);
      out += little_endian(t.type) + little_endian(t.offset);
    }
    out.resize((out.size() + alignment - 1) / alignment * alignment, '\0');
    return out + data;
  }
};

inline std::string safetensors_bytes(const std::string& header, const std::string& data) {
  return little_endian<uint64_t>(header.size()) + header + data;
}

inline std::string write_bytes(const std::string& path, const std::string& bytes) {
  FILE* file = std::fopen(path.c_str(), "wb");
  if (file) {
    std::fwrite(bytes.data(), 1, bytes.size(), file);
    std::fclose(file);
  }
  return path;
}

}  // namespace lapidary::test
