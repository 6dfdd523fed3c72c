// The mutations. Structure-aware ones keep the frame of a file right, so that the checks behind it are reached too.
#include "mutate.h"

#include <algorithm>
#include <limits>
#include <vector>

namespace lapidary::fuzz {
namespace {

using test::little_endian;

uint64_t extreme(Random& random) {
  const uint64_t power = uint64_t{1} << random.below(64);
  return random.pick<uint64_t>({0, 1, 2, 31, 32, 255, 65535, UINT32_MAX, INT64_MAX, uint64_t{1} << 63, UINT64_MAX, UINT64_MAX - 31, power,
                                power - 1, random.next()});
}

// Where each number or string of a JSON text begins and ends.
std::vector<std::pair<size_t, size_t>> json_tokens(const std::string& text) {
  std::vector<std::pair<size_t, size_t>> tokens;
  const auto is_number = [](char c) { return (c >= '0' && c <= '9') || c == '-' || c == '.'; };
  for (size_t i = 0; i < text.size();) {
    size_t end = i + 1;
    if (text[i] == '"') {
      while (end < text.size() && text[end] != '"') end += text[end] == '\\' ? 2 : 1;
      end = std::min(end + 1, text.size());
      tokens.emplace_back(i, end);
    } else if (is_number(text[i])) {
      while (end < text.size() && is_number(text[end])) ++end;
      tokens.emplace_back(i, end);
    }
    i = end;
  }
  return tokens;
}

void spoil_json(std::string& text, Random& random) {
  const auto tokens = json_tokens(text);
  if (tokens.empty()) return;
  const auto [begin, end] = tokens[random.below(tokens.size())];
  const auto [other_begin, other_end] = tokens[random.below(tokens.size())];
  const std::string other = text.substr(other_begin, other_end - other_begin);
  const std::string value = random.pick<std::string>({std::to_string(extreme(random)),
                                                      "-1",
                                                      "0",
                                                      "1e308",
                                                      "1e999",
                                                      "-0.5",
                                                      "1.5",
                                                      "null",
                                                      "true",
                                                      "[]",
                                                      "{}",
                                                      "\"\"",
                                                      "\"../x\"",
                                                      "\"BF16\"",
                                                      "\"F64\"",
                                                      "\"F32\"",
                                                      "[[1]]",
                                                      std::string(200, '['),
                                                      "\"\\ud800\"",
                                                      "\"\\u0000\"",
                                                      "99999999999999999999",
                                                      other,
                                                      other,
                                                      other,
                                                      "\"model.safetensors\"",
                                                      "\"model.safetensors.index.json\"",
                                                      "[0,0]",
                                                      "[4294967296,4294967296]"});
  switch (random.below(4)) {
    case 0:
    case 1:
      text.replace(begin, end - begin, value);
      break;
    case 2:
      text.insert(end, "," + other);
      break;
    default:
      text.erase(begin, std::max(begin, other_begin) - begin);
      break;
  }
}

void spoil_safetensors(SafetensorsParts& parts, Random& random) {
  switch (random.below(5)) {
    case 0:
      parts.data.resize(random.below(parts.data.size() + 1));
      break;
    case 1:
      parts.data += random.bytes(1 + random.below(64));
      break;
    case 2:
      spoil_bytes(parts.header, random);
      break;
    default:
      spoil_json(parts.header, random);
      break;
  }
}

void spoil_metadata(test::GgufParts& parts, Random& random) {
  auto& [key, value] = random.pick_from(parts.metadata);
  const auto& other = random.pick_from(parts.metadata);
  switch (random.below(8)) {
    case 0:
      key = other.first;
      break;
    case 1:
      value = other.second;
      break;
    case 2:
      value = test::gguf_value<uint64_t>(10, extreme(random));
      break;
    case 3:
      value = test::gguf_u32(static_cast<uint32_t>(extreme(random)));
      break;
    case 4:
      value = test::gguf_array(static_cast<uint32_t>(random.below(14)), random.one_in(2) ? extreme(random) : random.below(9),
                               random.bytes(random.below(64)));
      break;
    case 5:
      value = test::gguf_f32(random.pick({0.0f, -1.0f, 1e38f, -1e38f, std::numeric_limits<float>::quiet_NaN()}));
      break;
    case 6:
      value.replace(0, 4, little_endian<uint32_t>(static_cast<uint32_t>(random.below(14))));
      break;
    default:
      parts.metadata.erase(parts.metadata.begin() + static_cast<std::ptrdiff_t>(random.below(parts.metadata.size())));
      break;
  }
}

void spoil_tensor(test::GgufParts& parts, Random& random) {
  test::GgufTensor& tensor = random.pick_from(parts.tensors);
  const test::GgufTensor& other = random.pick_from(parts.tensors);
  switch (random.below(8)) {
    case 0:
      tensor.name = random.one_in(2) ? other.name : random.bytes(random.below(80));
      break;
    case 1:
      random.pick_from(tensor.dims) = extreme(random);
      break;
    case 2:
      tensor.dims = other.dims;
      break;
    case 3:
      tensor.dims.resize(random.below(7), extreme(random));
      break;
    case 4:
      tensor.type = static_cast<uint32_t>(random.below(45));
      break;
    case 5:
      tensor.offset = random.one_in(2) ? other.offset : extreme(random) & ~uint64_t{31};
      break;
    case 6:
      std::swap(random.pick_from(parts.tensors), tensor);
      break;
    default:
      parts.tensors.erase(parts.tensors.begin() + static_cast<std::ptrdiff_t>(random.below(parts.tensors.size())));
      break;
  }
}

void spoil_gguf(test::GgufParts& parts, Random& random) {
  switch (random.below(8)) {
    case 0:
      parts.version = static_cast<uint32_t>(random.one_in(2) ? random.below(6) : extreme(random));
      break;
    case 1:
      parts.extra_tensors = static_cast<int64_t>(extreme(random));
      break;
    case 2:
      parts.extra_metadata = static_cast<int64_t>(extreme(random));
      break;
    case 3:
      parts.data.resize(random.below(parts.data.size() + 1));
      break;
    case 4:
    case 5:
      spoil_metadata(parts, random);
      break;
    default:
      if (!parts.tensors.empty()) spoil_tensor(parts, random);
      break;
  }
}

}  // namespace

void spoil_parts(Sample& sample, Random& random) {
  const auto pick_member = [&](auto& files) { return std::next(files.begin(), static_cast<std::ptrdiff_t>(random.below(files.size()))); };
  if (sample.has_gguf) return spoil_gguf(sample.gguf, random);
  switch (random.below(8)) {
    case 0:
      sample.safetensors.erase(pick_member(sample.safetensors));
      break;
    case 1: {
      // Two files under each other's names.
      auto a = pick_member(sample.safetensors), b = pick_member(sample.safetensors);
      std::swap(a->second, b->second);
      break;
    }
    case 2:
    case 3:
    case 4:
      spoil_safetensors(pick_member(sample.safetensors)->second, random);
      break;
    default:
      spoil_json(pick_member(sample.texts)->second, random);
      break;
  }
  if (sample.safetensors.empty()) sample.safetensors["model.safetensors"];
}

void spoil_bytes(std::string& bytes, Random& random) {
  if (bytes.empty()) return;
  // Headers are where the decisions are made, so half of the hits go there.
  const size_t reach = random.one_in(2) ? std::min<size_t>(bytes.size(), 512) : bytes.size();
  const size_t at = random.below(reach), length = 1 + random.below(std::min<size_t>(bytes.size() - at, 64));
  switch (random.below(8)) {
    case 0:
      bytes[at] = static_cast<char>(bytes[at] ^ (1 << random.below(8)));
      break;
    case 1:
      bytes[at] = static_cast<char>(random.next());
      break;
    case 2:
      bytes.resize(at);
      break;
    case 3:
      bytes.erase(at, length);
      break;
    case 4:
      bytes.insert(at, random.bytes(length));
      break;
    case 5:
      bytes.insert(random.below(bytes.size()), bytes.substr(at, length));
      break;
    case 6:
      bytes.replace(at, std::min<size_t>(4, bytes.size() - at), little_endian(static_cast<uint32_t>(extreme(random))));
      break;
    default:
      bytes.replace(at, std::min<size_t>(8, bytes.size() - at), little_endian(extreme(random)));
      break;
  }
}

}  // namespace lapidary::fuzz
