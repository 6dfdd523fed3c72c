// An opened checkpoint -> typed weights in the form that the backend computes on.
#include "model/weights.h"

#include <algorithm>
#include <cstdio>
#include <map>
#include <utility>

#include "base/error.h"
#include "formats/gguf.h"
#include "formats/mapped_file.h"
#include "formats/safetensors.h"
#include "model/checkpoint.h"
#include "model/quantized.h"
#include "model/tensor_table.h"
#include "tensor/blocks.h"

namespace lapidary {

namespace {

constexpr const char* kCushionFile = "cushion.safetensors";

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

// The blocks that long spans may meet as int8.
constexpr DType kLongSpanTypes[] = {DType::q8_0, DType::q4_0, DType::q4_1, DType::q5_0, DType::q5_1, DType::q4_k, DType::q5_k, DType::q6_k};

bool takes_long_spans(DType dtype) { return std::ranges::find(kLongSpanTypes, dtype) != std::end(kLongSpanTypes); }

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
    hash_linear(host, c_.tensors.at(slots_.weights.at(slot)));
    if (host.activations == ActScheme::fixed) bytes_ += static_cast<int64_t>(sizeof(float));
    report(c_.tensors.at(slots_.weights.at(slot)).view.bytes());
    // How a step multiplies is no part of what the model is: not hashed.
    if (options_.long_spans && slot.layer >= 0 && takes_long_spans(host.weight.dtype) && backend_.has_long_spans())
      host.activations = ActScheme::long_spans;
    return host;
  }

  Linear linear(const TensorSlot& slot) {
    Linear host = transformed(slot);
    const Linear* known = made_before(slot, host);
    Linear made = known ? *known : backend_.make_linear(host);
    release(slot, made);
    return made;
  }

  // What the original made of a matrix outside the layers, where that is the file's here too; else null.
  const Linear* made_before(const TensorSlot& slot, const Linear& host) const {
    if (!options_.original || slot.layer >= 0) return nullptr;
    const Tensor& stored = c_.tensors.at(slots_.weights.at(slot)).view;
    const ModelConfig& config = options_.original->config;
    if (slot.role == TensorRole::head && config.tied_head) return nullptr;
    const Linear& made = slot.role == TensorRole::head ? options_.original->head : options_.original->embedding;
    const bool same = made.weight.dtype == stored.dtype && made.out() == stored.shape[0] && made.in() == stored.shape[1];
    return host.weight.data == stored.data && same ? &made : nullptr;
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

  // FNV-1a of stretches of what a weight became, and of how its inputs are treated. Rows that become int8 on loading need not be at hand
  // (Backend::make_int8): then of the file's.
  void hash_linear(const Linear& host, const StoredTensor& stored) {
    const auto kind = static_cast<uint8_t>(host.weight.dtype);
    hash_bytes(&kind, 1);
    hash_bytes(&host.activations, sizeof host.activations);
    hash_bytes(&host.input_scale, sizeof host.input_scale);
    hash_stretches(options_.kind == WeightsKind::int8 ? stored.view : host.weight, 16);
    if (host.scale) hash_stretches(host.scale, 4);
  }

  void hash_stretches(const Tensor& t, int64_t stretches) {
    const int64_t length = std::min<int64_t>(64, t.bytes());
    for (int64_t i = 0; i < stretches; ++i) hash_bytes(t.data + (t.bytes() - length) * i / (stretches - 1), static_cast<size_t>(length));
  }

  void hash_bytes(const void* data, size_t bytes) {
    const auto* p = static_cast<const unsigned char*>(data);
    for (size_t i = 0; i < bytes; ++i) hash_ = (hash_ ^ p[i]) * 0x100000001b3u;
  }

  std::string content_hash() const {
    char text[20];
    std::snprintf(text, sizeof text, "%016llx", static_cast<unsigned long long>(hash_));
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
    hash_bytes(values.data(), values.size() * sizeof(float));
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
  uint64_t hash_ = 0xcbf29ce484222325u;
};

}  // namespace

bool takes_long_spans(std::string_view dtype) {
  return std::ranges::any_of(kLongSpanTypes, [&](DType type) { return dtype_info(type).name == dtype; });
}

bool has_long_spans(const ModelWeights& weights) {
  return std::any_of(weights.layers.begin(), weights.layers.end(), [](const LayerWeights& l) {
    const auto has = [](const Linear& w) { return w.activations == ActScheme::long_spans; };
    return has(l.q) || has(l.k) || has(l.v) || has(l.o) || has(l.gate) || has(l.up) || has(l.down);
  });
}

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
    view(slot).file->release(view(slot).view.data, static_cast<size_t>(view(slot).view.bytes()));
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
