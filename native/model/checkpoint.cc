// Every tensor has exactly one meaning, or opening fails naming it.
#include "model/checkpoint.h"

#include <algorithm>
#include <cstring>
#include <string_view>

#include "base/error.h"
#include "formats/gguf.h"
#include "formats/mapped_file.h"
#include "tensor/blocks.h"

namespace lapidary {

namespace {

constexpr size_t kNamesInMessage = 5;

bool has_suffix(const std::string& path, std::string_view suffix) { return std::string_view(path).ends_with(suffix); }

std::string list_names(const std::vector<std::string>& names) {
  std::string text;
  for (size_t i = 0; i < std::min(names.size(), kNamesInMessage); ++i) text += (i ? ", " : "") + names[i];
  if (names.size() > kNamesInMessage) text += " and " + std::to_string(names.size() - kNamesInMessage) + " more";
  return text;
}

std::string shape_text(const std::vector<int64_t>& shape) {
  std::string text = "[";
  for (size_t i = 0; i < shape.size(); ++i) text += (i ? ", " : "") + std::to_string(shape[i]);
  return text + "]";
}

bool all_ones(const StoredTensor& tensor) {
  if (is_block_type(tensor.view.dtype) || tensor.view.dtype == DType::i8 || tensor.view.dtype == DType::i32 ||
      tensor.view.dtype == DType::u8)
    return false;
  std::vector<float> values(static_cast<size_t>(tensor.view.elements()));
  dequantize_row(tensor.view.dtype, tensor.view.data, tensor.view.elements(), values.data());
  return std::all_of(values.begin(), values.end(), [](float v) { return v == 1; });
}

std::string module_of(const std::string& tensor) { return tensor.substr(0, tensor.rfind('.')); }

}  // namespace

Place find_place(const std::string& path) {
  const bool folder = is_directory(path);
  expect(folder || is_file(path), ErrorCode::bad_file, path, ": there is no such file or folder");
  Place place;
  if (!folder && has_suffix(path, ".gguf")) {
    place.gguf = path;
    return place;
  }
  expect(folder || has_suffix(path, ".safetensors") || has_suffix(path, ".safetensors.index.json"), ErrorCode::unsupported, path,
         ": a model is a folder with config.json, a .safetensors file beside one, or a .gguf file");
  const std::string base = folder ? path : folder_of(path);
  place.config = base + "/config.json";
  place.generation = base + "/generation_config.json";
  place.tensors = path;
  expect(is_file(place.config), ErrorCode::bad_file, base, ": there is no config.json in this folder");
  return place;
}

ModelConfig read_config(const Place& place) {
  const JsonValue config = JsonValue::parse(read_text_file(place.config), place.config);
  if (!is_file(place.generation)) return config_from_json(config, nullptr, place.config);
  const JsonValue generation = JsonValue::parse(read_text_file(place.generation), place.generation);
  return config_from_json(config, &generation, place.config);
}

void set_vision(ModelConfig& config, bool present) {
  config.has_vision = present;
  if (present) config.notes.push_back("the vision tower is in the checkpoint but not loaded: text works, images do not yet");
}

Checkpoint open_checkpoint(const std::string& path) {
  const Place place = find_place(path);
  Checkpoint c;
  c.path = path;
  if (!place.gguf.empty()) {
    const std::shared_ptr<const GgufFile> file = GgufFile::open(path);
    c.style = NameStyle::gguf;
    c.config_name = "its metadata";
    c.config = config_from_gguf(*file);
    c.tensors = file->tensors();
    c.other_dtypes = file->other_dtypes();
    c.files = {path};
    return c;
  }
  c.config_name = "config.json";
  c.config = read_config(place);
  TensorFile file = open_safetensors(place.tensors);
  c.tensors = std::move(file.tensors);
  c.other_dtypes = std::move(file.other_dtypes);
  c.files = std::move(file.files);
  return c;
}

Slots assign_slots(const Checkpoint& c) {
  Slots slots;
  std::vector<std::string> unknown;
  const auto assign = [&](const std::string& name) {
    const NameMatch match = match_tensor_name(c.style, name);
    const bool quantised = match.part != TensorPart::weight || match.kind == NameMatch::Kind::kv_scale;
    const bool qk_norm = match.slot.role == TensorRole::q_norm || match.slot.role == TensorRole::k_norm;
    if (match.kind == NameMatch::Kind::vision) {
      slots.has_vision = true;
    } else if (match.kind == NameMatch::Kind::rope_freqs) {
      const auto found = c.tensors.find(name);
      expect(found != c.tensors.end() && all_ones(found->second), ErrorCode::unsupported, c.path, ": ", name,
             " changes the RoPE frequencies, which is not supported");
    } else if (match.kind == NameMatch::Kind::unknown || (quantised && !c.config.quantization) ||
               (match.kind == NameMatch::Kind::weight && match.slot.layer >= c.config.num_layers) ||
               (match.kind == NameMatch::Kind::weight && qk_norm && !c.config.qk_norm)) {
      unknown.push_back(name);
    } else if (match.kind == NameMatch::Kind::weight) {
      const bool matrix = match.part == TensorPart::weight || match.part == TensorPart::weight_packed;
      std::string& taken = matrix ? slots.weights[match.slot] : slots.others[{match.slot, match.part}];
      const std::string other = std::exchange(taken, name);
      expect(other.empty(), ErrorCode::bad_file, c.path, ": the tensors ", other, " and ", name, " are both ",
             matrix ? "the weight " : "of the weight ", slot_name(c.style, match.slot));
    }
  };
  for (const auto& [name, tensor] : c.tensors) assign(name);
  for (const auto& [name, dtype] : c.other_dtypes) assign(name);
  expect(unknown.empty(), ErrorCode::bad_file, c.path, ": tensors that a ", c.config.family, " model of ", c.config.num_layers,
         " layers does not have: ", list_names(unknown));
  return slots;
}

const QuantScheme* scheme_of(const Checkpoint& c, const TensorSlot& slot, const std::string& name) {
  if (!c.config.quantization || is_norm(slot.role)) return nullptr;
  return c.config.quantization->scheme_of(module_of(name), slot.role == TensorRole::embedding);
}

QuantTensors quant_tensors(const Checkpoint& c, const Slots& slots, const TensorSlot& slot) {
  const auto find = [&](TensorPart part) -> const StoredTensor* {
    const auto name = slots.others.find({slot, part});
    if (name == slots.others.end()) return nullptr;
    const auto stored = c.tensors.find(name->second);
    if (stored == c.tensors.end())
      fail(ErrorCode::unsupported, c.path, ": ", name->second, " is stored as ", c.other_dtypes.at(name->second),
           ", which is not supported; load the unquantised checkpoint");
    return &stored->second;
  };
  return {&c.tensors.at(slots.weights.at(slot)), find(TensorPart::weight_scale), find(TensorPart::input_scale),
          find(TensorPart::weight_zero_point), find(TensorPart::input_zero_point)};
}

namespace {

// Scales and the like beside a weight that config.json does not quantise, or beside none.
void check_others(const Checkpoint& c, const Slots& slots) {
  for (const auto& [key, name] : slots.others) {
    const auto weight = slots.weights.find(key.first);
    if (weight == slots.weights.end()) continue;  // named as missing
    expect(scheme_of(c, key.first, weight->second) != nullptr, ErrorCode::bad_file, c.path, ": ", name,
           " belongs to a layer that the quantization_config of config.json leaves out; take both from the same checkpoint");
  }
}

void check_tensor(const Checkpoint& c, const Slots& slots, const TensorSlot& slot, const std::string& name) {
  if (const auto other = c.other_dtypes.find(name); other != c.other_dtypes.end()) {
    fail(ErrorCode::unsupported, c.path, ": ", name, " is stored as ", other->second, ", which is not supported");
  }
  const Tensor& view = c.tensors.at(name).view;
  const std::vector<int64_t> expected = slot_shape(slot, c.config);
  if (const QuantScheme* scheme = scheme_of(c, slot, name)) {
    expect(scheme->activations != ActScheme::sequence || slot.layer >= 0, ErrorCode::unsupported, c.path, ": ", module_of(name),
           " takes one scale for all its inputs, taken from them, which only the layers' matrices can; quantise the model with this module "
           "in \"ignore\", or with per-token inputs");
    return check_quantized(quant_tensors(c, slots, slot), *scheme, expected[0], expected[1], c.path, module_of(name));
  }
  expect(std::equal(expected.begin(), expected.end(), view.shape, view.shape + view.rank), ErrorCode::bad_file, c.path, ": ", name,
         " has shape ", view.shape_text(), ", ", c.config_name, " says ", shape_text(expected));
  const bool number = view.dtype == DType::f32 || view.dtype == DType::bf16 || view.dtype == DType::f16;
  expect(number || (is_block_type(view.dtype) && !is_norm(slot.role)), ErrorCode::unsupported, c.path, ": ", name, " is stored as ",
         dtype_info(view.dtype).name, ", which is not supported", is_norm(slot.role) ? " for a norm" : "");
}

}  // namespace

void check_complete(const Checkpoint& c, const Slots& slots) {
  std::vector<std::string> missing;
  for (const TensorSlot& slot : expected_slots(c.config)) {
    if (!slots.weights.contains(slot)) missing.push_back(slot_name(c.style, slot));
  }
  expect(missing.empty(), ErrorCode::bad_file, c.path, ": ", missing.size(), missing.size() == 1 ? " tensor is" : " tensors are",
         " missing: ", list_names(missing));
  check_others(c, slots);
  for (const auto& [slot, name] : slots.weights) check_tensor(c, slots, slot, name);
}

bool has_own_head(const Checkpoint& c, const Slots& slots) {
  const auto head = slots.weights.find({TensorRole::head, -1});
  if (head == slots.weights.end()) return false;
  if (scheme_of(c, head->first, head->second)) return true;  // its scales and its inputs are its own
  const Tensor& a = c.tensors.at(head->second).view;
  const Tensor& b = c.tensors.at(slots.weights.at({TensorRole::embedding, -1})).view;
  return a.dtype != b.dtype || std::memcmp(a.data, b.data, static_cast<size_t>(a.bytes())) != 0;
}

}  // namespace lapidary
