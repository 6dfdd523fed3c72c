// f32 copies of a model's weights, whole or a layer at a time.
#include "train/weights.h"

#include <algorithm>

#include "base/error.h"
#include "tensor/blocks.h"

namespace lapidary {

namespace {

Tensor shaped(const Buffer& buffer, const std::vector<int64_t>& shape) {
  return shape.size() == 1 ? buffer.tensor(DType::f32, {shape[0]}) : buffer.tensor(DType::f32, {shape[0], shape[1]});
}

int64_t product(const std::vector<int64_t>& shape) {
  int64_t n = 1;
  for (int64_t d : shape) n *= d;
  return n;
}

const Norm& norm_of(const LayerWeights& layer, TensorRole role) {
  switch (role) {
    case TensorRole::input_norm:
      return layer.input_norm;
    case TensorRole::post_attention_norm:
      return layer.post_attention_norm;
    case TensorRole::pre_ffn_norm:
      return layer.pre_ffn_norm;
    case TensorRole::post_ffn_norm:
      return layer.post_ffn_norm;
    case TensorRole::q_norm:
      return layer.q_norm;
    default:
      return layer.k_norm;
  }
}

const Linear& linear_of(const LayerWeights& layer, TensorRole role) {
  switch (role) {
    case TensorRole::q:
      return layer.q;
    case TensorRole::k:
      return layer.k;
    case TensorRole::v:
      return layer.v;
    case TensorRole::o:
      return layer.o;
    case TensorRole::gate:
      return layer.gate;
    case TensorRole::up:
      return layer.up;
    default:
      return layer.down;
  }
}

}  // namespace

ParameterSet::ParameterSet(Backend& backend, const ModelConfig& config, const std::function<bool(const TensorSlot&)>& wanted)
    : backend_(backend), config_(config) {
  for (const TensorSlot& slot : expected_slots(config)) {
    if (wanted && !wanted(slot)) continue;
    const std::vector<int64_t> shape = slot_shape(slot, config);
    const Buffer& buffer = owned_.emplace_back(backend.allocate(static_cast<size_t>(product(shape)) * sizeof(float)));
    entries_.push_back({slot, slot_name(NameStyle::safetensors, slot), shaped(buffer, shape)});
  }
  std::sort(entries_.begin(), entries_.end(), [](const Entry& a, const Entry& b) { return a.slot < b.slot; });
  zero();
}

Tensor ParameterSet::find(const TensorSlot& slot) const {
  const auto at = std::lower_bound(entries_.begin(), entries_.end(), slot, [](const Entry& e, const TensorSlot& s) { return e.slot < s; });
  return at != entries_.end() && at->slot == slot ? at->tensor : Tensor();
}

void ParameterSet::zero() {
  for (const Entry& entry : entries_) backend_.zero(entry.tensor);
}

void widen_weight(const Linear& host, float* out) {
  const int64_t rows = host.weight.rank == 1 ? 1 : host.weight.shape[0], columns = host.weight.elements() / std::max<int64_t>(rows, 1);
  expect(!host.packed, ErrorCode::internal, "widen_weight: the weight is in a backend's own form");
  for (int64_t r = 0; r < rows; ++r, out += columns) {
    const std::byte* from = host.weight.data + r * dtype_bytes(host.weight.dtype, columns);
    if (host.weight.dtype != DType::i8) {
      dequantize_row(host.weight.dtype, from, columns, out);
    } else {
      const float scale = host.scale.as<float>()[r];
      for (int64_t i = 0; i < columns; ++i) out[i] = static_cast<float>(reinterpret_cast<const int8_t*>(from)[i]) * scale;
    }
  }
}

Linear weight_of(const ModelWeights& weights, const TensorSlot& slot) {
  switch (slot.role) {
    case TensorRole::embedding:
      return weights.embedding;
    case TensorRole::head:
      return weights.head;
    case TensorRole::final_norm:
      return {weights.final_norm.weight, nullptr};
    default:
      break;
  }
  const LayerWeights& layer = weights.layers[static_cast<size_t>(slot.layer)];
  return is_norm(slot.role) ? Linear{norm_of(layer, slot.role).weight, nullptr} : linear_of(layer, slot.role);
}

ParameterSet copy_parameters(Backend& backend, const ModelWeights& host) {
  ParameterSet parameters(backend, host.config);
  std::vector<float> staging;
  for (const ParameterSet::Entry& entry : parameters.entries()) {
    staging.resize(static_cast<size_t>(entry.tensor.elements()));
    widen_weight(weight_of(host, entry.slot), staging.data());
    backend.upload(entry.tensor, staging.data());
  }
  return parameters;
}

WidenedWeights::WidenedWeights(Backend& backend, const ModelWeights& host)
    : backend_(backend), host_(host), slots_(static_cast<size_t>(TensorRole::post_ffn_norm) + 1) {}

Tensor WidenedWeights::weight(const TensorSlot& slot) {
  Slot& place = slots_[static_cast<size_t>(slot.role)];
  if (place.layer == slot.layer) return place.tensor;
  if (!place.tensor) {
    const std::vector<int64_t> shape = slot_shape(slot, host_.config);
    place.tensor = shaped(owned_.emplace_back(backend_.allocate(static_cast<size_t>(product(shape)) * sizeof(float))), shape);
  }
  staging_.resize(static_cast<size_t>(place.tensor.elements()));
  widen_weight(weight_of(host_, slot), staging_.data());
  backend_.upload(place.tensor, staging_.data());
  place.layer = slot.layer;
  return place.tensor;
}

}  // namespace lapidary
