// Checkpoint files -> typed, complete, shape-checked weights. Every tensor has exactly one meaning, or the load fails naming it.
#include "model/weights.h"

#include <algorithm>
#include <cstdio>
#include <cstring>
#include <map>
#include <optional>
#include <utility>

#include "base/error.h"
#include "formats/gguf.h"
#include "formats/mapped_file.h"
#include "formats/safetensors.h"
#include "model/quantized.h"
#include "model/tensor_table.h"
#include "tensor/blocks.h"

namespace lapidary {

namespace {

constexpr size_t kNamesInMessage = 5;
constexpr const char* kCushionFile = "cushion.safetensors";

bool has_suffix(const std::string& path, std::string_view suffix) { return std::string_view(path).ends_with(suffix); }

std::string folder_of(const std::string& path) {
  const size_t slash = path.find_last_of("/\\");
  return slash == std::string::npos ? "." : path.substr(0, slash);
}

// Where a model lies: a GGUF file, or a config.json and the safetensors that belong to it.
struct Place {
  std::string gguf;                // or empty
  std::string config, generation;  // paths
  std::string tensors;             // what open_safetensors takes
};

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

// Both file types, opened: names -> views.
struct Checkpoint {
  NameStyle style = NameStyle::safetensors;
  std::string path;         // of the model, for messages
  std::string config_name;  // who says what sizes to expect
  ModelConfig config;
  std::map<std::string, StoredTensor> tensors;
  std::map<std::string, std::string> other_dtypes;  // name -> a dtype that cannot be computed on
  std::vector<std::string> files;
};

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

using SlotNames = std::map<TensorSlot, std::string>;

// The names of a checkpoint's tensors by what they are.
struct Slots {
  SlotNames weights;                                                // the matrix or the norm
  std::map<std::pair<TensorSlot, TensorPart>, std::string> others;  // what a quantised checkpoint stores beside it
  bool has_vision = false;
};

// Gives every tensor of the file its slot; what has none, or shares one, fails.
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

std::string module_of(const std::string& tensor) { return tensor.substr(0, tensor.rfind('.')); }

// How config.json says that a matrix is quantised, or null.
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
  if (const QuantScheme* scheme = scheme_of(c, slot, name))
    return check_quantized(quant_tensors(c, slots, slot), *scheme, expected[0], expected[1], c.path, module_of(name));
  expect(std::equal(expected.begin(), expected.end(), view.shape, view.shape + view.rank), ErrorCode::bad_file, c.path, ": ", name,
         " has shape ", view.shape_text(), ", ", c.config_name, " says ", shape_text(expected));
  const bool number = view.dtype == DType::f32 || view.dtype == DType::bf16 || view.dtype == DType::f16;
  expect(number || (is_block_type(view.dtype) && !is_norm(slot.role)), ErrorCode::unsupported, c.path, ": ", name, " is stored as ",
         dtype_info(view.dtype).name, ", which is not supported", is_norm(slot.role) ? " for a norm" : "");
}

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

// A head in the file that is the embedding again is tied, whatever the config says; one that differs is a head of its own, as
// transformers takes it.
bool has_own_head(const Checkpoint& c, const Slots& slots) {
  const auto head = slots.weights.find({TensorRole::head, -1});
  if (head == slots.weights.end()) return false;
  if (scheme_of(c, head->first, head->second)) return true;  // its scales and its inputs are its own
  const Tensor& a = c.tensors.at(head->second).view;
  const Tensor& b = c.tensors.at(slots.weights.at({TensorRole::embedding, -1})).view;
  return a.dtype != b.dtype || std::memcmp(a.data, b.data, static_cast<size_t>(a.bytes())) != 0;
}

Norm* norm_of(LayerWeights& layer, TensorRole role) {
  switch (role) {
    case TensorRole::input_norm:
      return &layer.input_norm;
    case TensorRole::post_attention_norm:
      return &layer.post_attention_norm;
    case TensorRole::pre_ffn_norm:
      return &layer.pre_ffn_norm;
    case TensorRole::post_ffn_norm:
      return &layer.post_ffn_norm;
    case TensorRole::q_norm:
      return &layer.q_norm;
    case TensorRole::k_norm:
      return &layer.k_norm;
    default:
      return nullptr;
  }
}

Linear* linear_of(LayerWeights& layer, TensorRole role) {
  switch (role) {
    case TensorRole::q:
      return &layer.q;
    case TensorRole::k:
      return &layer.k;
    case TensorRole::v:
      return &layer.v;
    case TensorRole::o:
      return &layer.o;
    case TensorRole::gate:
      return &layer.gate;
    case TensorRole::up:
      return &layer.up;
    case TensorRole::down:
      return &layer.down;
    default:
      return nullptr;
  }
}

bool has_fixed_scales(const ModelConfig& config) {
  if (!config.quantization) return false;
  const std::vector<QuantGroup>& groups = config.quantization->groups;
  return std::any_of(groups.begin(), groups.end(), [](const QuantGroup& g) { return g.scheme.activations == ActScheme::fixed; });
}

// Fills `weights` slot by slot from tensors that have passed every check.
class Builder {
 public:
  Builder(const Checkpoint& c, const Slots& slots, Backend& backend, const LoadProgress& progress, const WeightsOptions& options)
      : c_(c), slots_(slots), backend_(backend), progress_(progress), options_(options), weights_(std::make_shared<ModelWeights>()) {}

  std::shared_ptr<const ModelWeights> build(const ModelConfig& config) {
    weights_->config = config;
    weights_->layers.resize(static_cast<size_t>(config.num_layers));
    const bool own_head = !config.tied_head;
    for (const auto& [slot, name] : slots_.weights) {
      if (slot.role != TensorRole::head || own_head) total_ += c_.tensors.at(name).view.bytes();
    }
    report(0);
    weights_->embedding = linear({TensorRole::embedding, -1});
    weights_->head = own_head ? linear({TensorRole::head, -1}) : weights_->embedding;
    for (int64_t l = 0; l < config.num_layers; ++l) {
      LayerWeights& layer = weights_->layers[static_cast<size_t>(l)];
      stacked(layer, l, {TensorRole::q, TensorRole::k, TensorRole::v}, Stack::rows);
      stacked(layer, l, {TensorRole::gate, TensorRole::up}, Stack::interleaved);
      layer.o = linear({TensorRole::o, l});
      layer.down = linear({TensorRole::down, l});
    }
    for (const TensorSlot& slot : expected_slots(config)) {
      if (slot.layer < 0) continue;
      if (Norm* target = norm_of(weights_->layers[static_cast<size_t>(slot.layer)], slot.role)) *target = norm(slot);
    }
    weights_->final_norm = norm({TensorRole::final_norm, -1});
    weights_->file_bytes = bytes_;
    weights_->content_hash = content_hash();
    if (options_.cushion) weights_->cushion = read_checked_cushion();
    if (options_.transform) weights_->cushion = options_.transform->cushion(weights_->cushion);
    return weights_;
  }

 private:
  void report(int64_t bytes) {
    done_ += bytes;
    if (progress_) progress_(done_, total_);
  }

  // As the options want it: in host memory, or in the backend's form already.
  Linear host_linear(const TensorSlot& slot) {
    const std::string& name = slots_.weights.at(slot);
    const StoredTensor& stored = c_.tensors.at(name);
    const QuantScheme* scheme = scheme_of(c_, slot, name);
    const std::vector<int64_t> shape = slot_shape(slot, c_.config);
    if (scheme) return quantized_linear(quant_tensors(c_, slots_, slot), *scheme, shape[0], shape[1]);
    const Linear host = {stored.view, stored.file};
    if (options_.kind == WeightsKind::int8 && !options_.transform) {
      if (std::optional<Linear> made = backend_.make_int8(host)) return *std::move(made);
    }
    return convert_linear(host, options_.kind, options_.threads);
  }

  Linear transformed(const TensorSlot& slot) {
    Linear host = host_linear(slot);
    if (options_.transform) host = options_.transform->linear(slot, std::move(host));
    bytes_ += host.weight.bytes() + host.scale.bytes();
    if (host.activations == ActScheme::fixed) bytes_ += static_cast<int64_t>(sizeof(float));
    report(c_.tensors.at(slots_.weights.at(slot)).view.bytes());
    return host;
  }

  Linear linear(const TensorSlot& slot) {
    Linear made = backend_.make_linear(transformed(slot));
    release(slot, made);
    return made;
  }

  // The file's pages of a weight that has another form now: they would stay in memory beside it until all weights are made.
  void release(const TensorSlot& slot, const Linear& made) {
    const StoredTensor& stored = c_.tensors.at(slots_.weights.at(slot));
    if (!stored.file->holds(made.weight.data)) stored.file->release(stored.view.data, static_cast<size_t>(stored.view.bytes()));
  }

  // Weights of one layer that read the same input.
  void stacked(LayerWeights& layer, int64_t l, std::initializer_list<TensorRole> roles, Stack stack) {
    std::vector<Linear> host;
    for (TensorRole role : roles) host.push_back(transformed({role, l}));
    std::vector<Linear> made = backend_.make_linears(host, stack);
    size_t at = 0;
    for (TensorRole role : roles) {
      release({role, l}, made[at]);
      *linear_of(layer, role) = std::move(made[at++]);
    }
  }

  // FNV-1a of 64 stretches of the embedding and of the final norm, as the file has them.
  std::string content_hash() const {
    constexpr int64_t kStretches = 64, kStretchBytes = 64;
    uint64_t hash = 0xcbf29ce484222325u;
    const auto add = [&](const std::byte* p, int64_t bytes) {
      for (int64_t i = 0; i < bytes; ++i) hash = (hash ^ static_cast<uint64_t>(p[i])) * 0x100000001b3u;
    };
    const Tensor& embedding = c_.tensors.at(slots_.weights.at({TensorRole::embedding, -1})).view;
    const Tensor& norm = c_.tensors.at(slots_.weights.at({TensorRole::final_norm, -1})).view;
    const int64_t length = std::min(kStretchBytes, embedding.bytes());
    for (int64_t i = 0; i < kStretches; ++i) add(embedding.data + (embedding.bytes() - length) * i / (kStretches - 1), length);
    add(norm.data, norm.bytes());
    char text[20];
    std::snprintf(text, sizeof text, "%016llx", static_cast<unsigned long long>(hash));
    return text;
  }

  // Static scales hold for the cushion that they were calibrated with, and for no other.
  std::shared_ptr<const Cushion> read_checked_cushion() {
    std::shared_ptr<const Cushion> cushion = find_cushion(c_.path, weights_->config);
    const std::string& wanted = weights_->config.cushion_fingerprint;
    if (cushion && cushion->notes.contains("fingerprint"))
      expect(cushion->notes.at("fingerprint") == cushion_fingerprint(*cushion), ErrorCode::bad_file, c_.path, ": ", kCushionFile,
             " is not what was written; copy it again from where the model came from");
    if (!wanted.empty()) {
      expect(cushion != nullptr, ErrorCode::bad_file, c_.path, ": the model was quantised with a cushion, but ", kCushionFile,
             " is not beside it; copy it from where the model came from, or quantise the model anew");
      const std::string found = cushion_fingerprint(*cushion);
      expect(found == wanted, ErrorCode::bad_file, c_.path, ": ", kCushionFile, " is another cushion (", found,
             ") than the one that the model was quantised with (", wanted, "); take both from the same place, or quantise the model anew");
    } else if (cushion && has_fixed_scales(weights_->config)) {
      weights_->config.notes.push_back(
          "the cushion beside the model is not the one that its static scales were calibrated with: none was recorded");
    }
    return cushion;
  }

  // Widened to f32 in memory of the backend's device.
  Norm norm(const TensorSlot& slot) {
    const Tensor& view = c_.tensors.at(slots_.weights.at(slot)).view;
    const int64_t dim = view.elements();
    std::vector<float> values(static_cast<size_t>(dim));
    dequantize_row(view.dtype, view.data, dim, values.data());
    if (options_.transform) options_.transform->norm(slot, values);
    const Buffer& buffer = weights_->owned.emplace_back(backend_.allocate(values.size() * sizeof(float)));
    const Tensor weight = buffer.tensor(DType::f32, {dim});
    backend_.upload(weight, values.data());
    bytes_ += view.bytes();
    report(view.bytes());
    return {weight, weights_->config.norm_offset, static_cast<float>(weights_->config.norm_eps)};
  }

  const Checkpoint& c_;
  const Slots& slots_;
  Backend& backend_;
  const LoadProgress& progress_;
  const WeightsOptions& options_;
  std::shared_ptr<ModelWeights> weights_;
  int64_t done_ = 0, total_ = 0;  // of the file's bytes
  int64_t bytes_ = 0;             // of the result
};

}  // namespace

std::shared_ptr<const ModelWeights> load_weights(const std::string& path, Backend& backend, const LoadProgress& progress,
                                                 const WeightsOptions& options) {
  const Checkpoint c = open_checkpoint(path);
  ModelConfig config = c.config;
  const Slots slots = assign_slots(c);
  check_complete(c, slots);
  set_vision(config, slots.has_vision);
  config.tied_head = !has_own_head(c, slots);
  return Builder(c, slots, backend, progress, options).build(config);
}

void visit_weights(const std::string& path, WeightsTransform& transform, const LoadProgress& progress) {
  const Checkpoint c = open_checkpoint(path);
  const Slots slots = assign_slots(c);
  check_complete(c, slots);
  const bool own_head = has_own_head(c, slots);
  std::vector<TensorSlot> matrices, norms;
  int64_t done = 0, total = 0;
  for (const TensorSlot& slot : expected_slots(c.config)) {
    if (slot.role == TensorRole::head) continue;
    (is_norm(slot.role) ? norms : matrices).push_back(slot);
  }
  if (own_head) matrices.push_back({TensorRole::head, -1});
  const auto view = [&](const TensorSlot& slot) -> const StoredTensor& { return c.tensors.at(slots.weights.at(slot)); };
  for (const std::vector<TensorSlot>* part : {&matrices, &norms})
    for (const TensorSlot& slot : *part) total += view(slot).view.bytes();
  const auto report = [&](const TensorSlot& slot) {
    done += view(slot).view.bytes();
    if (progress) progress(done, total);
  };
  for (const TensorSlot& slot : matrices) {
    const std::string& name = slots.weights.at(slot);
    const std::vector<int64_t> shape = slot_shape(slot, c.config);
    const QuantScheme* scheme = scheme_of(c, slot, name);
    transform.linear(slot, scheme ? quantized_linear(quant_tensors(c, slots, slot), *scheme, shape[0], shape[1])
                                  : Linear{view(slot).view, view(slot).file});
    report(slot);
  }
  for (const TensorSlot& slot : norms) {
    const Tensor& stored = view(slot).view;
    std::vector<float> values(static_cast<size_t>(stored.elements()));
    dequantize_row(stored.dtype, stored.data, stored.elements(), values.data());
    transform.norm(slot, values);
    report(slot);
  }
}

std::shared_ptr<const Cushion> find_cushion(const std::string& path, const ModelConfig& config) {
  const std::string file = (is_directory(path) ? path : folder_of(path)) + "/" + kCushionFile;
  return is_file(file) ? std::make_shared<const Cushion>(read_cushion(file, config)) : nullptr;
}

ModelConfig load_config(const std::string& path) {
  const Place place = find_place(path);
  ModelConfig config = place.gguf.empty() ? read_config(place) : config_from_gguf(*GgufFile::open(place.gguf));
  set_vision(config, config.has_vision);
  return config;
}

std::vector<TensorFact> list_tensors(const std::string& path) {
  const Place place = find_place(path);
  std::map<std::string, StoredTensor> tensors;
  std::map<std::string, std::string> other_dtypes;
  std::vector<std::string> files = {place.gguf};
  if (place.gguf.empty()) {
    TensorFile file = open_safetensors(place.tensors);
    tensors = std::move(file.tensors), other_dtypes = std::move(file.other_dtypes), files = std::move(file.files);
  } else {
    const std::shared_ptr<const GgufFile> file = GgufFile::open(place.gguf);
    tensors = file->tensors(), other_dtypes = file->other_dtypes();
  }
  // File order: shards in their order, within one by address.
  std::vector<std::pair<std::pair<size_t, const std::byte*>, const std::pair<const std::string, StoredTensor>*>> order;
  for (const auto& entry : tensors) {
    const size_t shard = static_cast<size_t>(std::find(files.begin(), files.end(), entry.second.file->path()) - files.begin());
    order.push_back({{shard, entry.second.view.data}, &entry});
  }
  std::sort(order.begin(), order.end());
  std::vector<TensorFact> facts;
  for (const auto& [key, entry] : order) {
    const Tensor& view = entry->second.view;
    facts.push_back({entry->first, std::string(dtype_info(view.dtype).name), {view.shape, view.shape + view.rank}, view.bytes()});
  }
  for (const auto& [name, dtype] : other_dtypes) facts.push_back({name, dtype, {}, 0});
  return facts;
}

}  // namespace lapidary
