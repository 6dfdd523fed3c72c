// Groups by scheme; a single scheme is written as everybody writes it, by the class of the modules.
#include "compress/quant_config_text.h"

#include <vector>

#include "base/error.h"
#include "formats/json.h"

namespace lapidary {

namespace {

using Names = std::vector<std::string>;

constexpr const char* kArguments = R"("num_bits": 8, "type": "int", "symmetric": true, )";

std::string array_text(const Names& names) {
  std::string text;
  for (const std::string& name : names) text += (text.empty() ? "" : ", ") + json_quote(name);
  return "[" + text + "]";
}

// A module's name in memory; in a larger model a pattern, since the part before the layers has had several names.
std::string module_text(const TensorSlot& slot, bool nested) {
  const std::string tensor = slot_name(NameStyle::safetensors, slot), module = tensor.substr(0, tensor.rfind('.'));
  if (!nested) return module;
  std::string pattern = "re:.*";
  for (const char c : module.substr(std::string("model.").size())) pattern += c == '.' ? "\\." : std::string(1, c);
  return pattern + "$";
}

std::string inputs_text(ActScheme scheme) {
  if (scheme == ActScheme::token) return std::string("{") + kArguments + R"("strategy": "token", "dynamic": true})";
  if (scheme == ActScheme::sequence) return std::string("{") + kArguments + R"("strategy": "tensor", "dynamic": true})";
  if (scheme == ActScheme::fixed) return std::string("{") + kArguments + R"("strategy": "tensor", "dynamic": false})";
  return "null";
}

std::string group_text(size_t number, const Names& targets, ActScheme scheme, bool per_channel) {
  return "      \"group_" + std::to_string(number) + "\": {\n        \"targets\": " + array_text(targets) + ",\n        \"weights\": {" +
         kArguments + "\"strategy\": \"" + (per_channel ? "channel" : "tensor") +
         "\", \"dynamic\": false},\n        \"input_activations\": " + inputs_text(scheme) +
         ",\n        \"output_activations\": null\n      }";
}

}  // namespace

std::string quant_config_text(const ModelConfig& config, const std::map<TensorSlot, ActScheme>& linears, bool per_channel, bool nested) {
  std::map<ActScheme, Names> by_scheme;
  Names ignore = {"lm_head"}, embedding;
  if (nested) ignore.insert(ignore.end(), {"re:.*lm_head", "re:.*vision_tower.*", "re:.*multi_modal_projector.*"});
  for (const TensorSlot& slot : expected_slots(config)) {
    if (is_norm(slot.role) || slot.role == TensorRole::head) continue;
    const auto planned = linears.find(slot);
    if (slot.role == TensorRole::embedding) {
      if (planned != linears.end()) embedding = {"re:.*embed_tokens$"};
    } else if (planned == linears.end()) {
      ignore.push_back(module_text(slot, nested));
    } else {
      by_scheme[planned->second].push_back(module_text(slot, nested));
    }
  }
  if (by_scheme.size() == 1) by_scheme.begin()->second = {"Linear"};
  std::string groups;
  size_t number = 0;
  for (const auto& [scheme, targets] : by_scheme)
    groups += (number ? ",\n" : "") + group_text(number, targets, scheme, per_channel), ++number;
  if (!embedding.empty()) groups += (number ? ",\n" : "") + group_text(number, embedding, ActScheme::none, true);
  return "{\n    \"quant_method\": \"compressed-tensors\",\n    \"format\": \"int-quantized\",\n    \"quantization_status\": "
         "\"compressed\",\n"
         "    \"config_groups\": {\n" +
         groups + "\n    },\n    \"ignore\": " + array_text(ignore) + ",\n    \"kv_cache_scheme\": null\n  }";
}

std::string with_member(const std::string& text, const std::string& path, const std::string& key, const std::string& value) {
  const JsonValue parsed = JsonValue::parse(text, path);  // so that the scan below meets valid JSON alone
  expect(parsed.is(JsonValue::Type::object), ErrorCode::bad_file, path, ": expected an object, found ", type_name(parsed.type()));
  // The pieces between the commas of the outermost object.
  Names members;
  int depth = 0;
  bool quoted = false;
  size_t begin = text.find('{') + 1;
  for (size_t i = begin - 1; i < text.size(); ++i) {
    const char c = text[i];
    if (quoted) {
      if (c == '\\') ++i;
      quoted = c != '"';
      continue;
    }
    quoted = c == '"';
    if (c == '{' || c == '[') ++depth;
    const bool closes = c == '}' || c == ']';
    if ((closes || c == ',') && depth == 1) {
      members.push_back(text.substr(begin, i - begin));
      begin = i + 1;
    }
    if (closes && --depth == 0) break;
  }
  std::string out;
  for (size_t m = 0; m < parsed.object().size(); ++m) {
    if (parsed.object()[m].first == key) continue;
    const size_t first = members[m].find_first_not_of(" \t\r\n"), last = members[m].find_last_not_of(" \t\r\n");
    out += "  " + members[m].substr(first, last - first + 1) + ",\n";
  }
  return "{\n" + out + "  " + json_quote(key) + ": " + value + "\n}\n";
}

}  // namespace lapidary
