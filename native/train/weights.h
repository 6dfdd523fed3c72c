// Where a training step gets its weights from, and the f32 tensors shaped like them: masters, derivatives, moments, masks.
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "model/tensor_table.h"
#include "model/weights.h"

namespace lapidary {

// The weights a step computes with, each as f32 on the step's backend. A later kind, such as masked weights, is one more subclass.
class WeightSource {
 public:
  virtual ~WeightSource() = default;
  virtual const ModelConfig& config() const = 0;
  // [out, in] or [dim]; of a layer: valid until a weight of another layer is asked for.
  virtual Tensor weight(const TensorSlot& slot) = 0;

  // The slot of the matrix that makes logits: the embedding's where it is tied.
  TensorSlot head_slot() const { return {config().tied_head ? TensorRole::embedding : TensorRole::head, -1}; }
  Norm norm(const TensorSlot& slot) { return {weight(slot), config().norm_offset, static_cast<float>(config().norm_eps)}; }
};

// One f32 tensor per wanted slot of a model, on a backend, zeros to begin with.
class ParameterSet : public WeightSource {
 public:
  struct Entry {
    TensorSlot slot;
    std::string name;  // as in safetensors files
    Tensor tensor;
  };

  ParameterSet(Backend& backend, const ModelConfig& config, const std::function<bool(const TensorSlot&)>& wanted = {});

  const ModelConfig& config() const override { return config_; }
  Tensor weight(const TensorSlot& slot) override { return find(slot); }
  // Empty: not in the set.
  Tensor find(const TensorSlot& slot) const;
  const std::vector<Entry>& entries() const { return entries_; }
  void zero();

 private:
  Backend& backend_;
  ModelConfig config_;
  std::vector<Entry> entries_;
  std::vector<Buffer> owned_;
};

// Row after row of a host weight in any storage kind -> f32 on the host, exactly.
void widen_weight(const Linear& host, float* out);
// The weight of a slot as load_weights gave it; a norm's has `scale` empty.
Linear weight_of(const ModelWeights& weights, const TensorSlot& slot);

// f32 masters of a loaded model. `host`: loaded with the reference backend, so that its weights are plain rows in host memory.
ParameterSet copy_parameters(Backend& backend, const ModelWeights& host);

// Frozen weights in their storage kind, widened one layer at a time: a model in f32 need not fit. `host` as above, kept alive by the
// caller.
class WidenedWeights : public WeightSource {
 public:
  WidenedWeights(Backend& backend, const ModelWeights& host);
  const ModelConfig& config() const override { return host_.config; }
  Tensor weight(const TensorSlot& slot) override;

 private:
  struct Slot {
    Tensor tensor;
    int64_t layer = -2;  // whose weight it holds; -2: none yet
  };
  Backend& backend_;
  const ModelWeights& host_;
  std::vector<float> staging_;
  std::vector<Slot> slots_;  // by role
  std::vector<Buffer> owned_;
};

}  // namespace lapidary
