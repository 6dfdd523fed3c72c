// A model as a Hugging Face folder whose matrices are int8 in the compressed-tensors layout, made beside the folder it comes from: what is
// not given anew (norms, embedding, vision tower, tokenizer) is taken over from there, byte by byte. Layer by layer, nothing is held.
#pragma once

#include <map>
#include <memory>
#include <span>
#include <string>

#include "model/cushion.h"
#include "model/tensor_table.h"
#include "ops/ops.h"

namespace lapidary {

struct CheckpointPlan {
  // Matrices that become int8, with what their inputs go through; all others stay as they are. q, k and v of a layer are quantised alike,
  // and so are gate and up. The embedding (a tied head is the same matrix) only with ActScheme::none: Hugging Face's own loaders do not
  // take that, this library does.
  std::map<TensorSlot, ActScheme> linears;
  // One scale per output channel, or one per matrix: then all of a matrix's scales are equal, and one is written. The embedding has them
  // per channel always.
  bool per_channel = true;
  bool is_per_channel(const TensorSlot& slot) const { return per_channel || slot.role == TensorRole::embedding; }
  // Norms written in f32 whatever the source has: for norms that have taken up scales, which bf16 would round.
  bool f32_norms = false;
  // Written beside the weights, and its fingerprint into config.json: scales were calibrated with it, and folds may have changed it. May be
  // null.
  const Cushion* cushion = nullptr;
  int64_t max_shard_bytes = int64_t{5} << 30;
};

// Every matrix of the layers with one scheme: what "W8A8" means. The embedding and the head are left out.
CheckpointPlan plan_all_layers(const ModelConfig& config, ActScheme activations);

class CheckpointWriter {
 public:
  // `source`: the folder of the unquantised safetensors checkpoint, or a .safetensors file in one. `target`: a folder that does not exist
  // or is empty; it appears whole at commit(), until then all is in a hidden folder beside it, which the destructor removes.
  // Error(invalid_argument): a target in use, a plan that does not fit; Error(unsupported): a source that is GGUF or quantised itself.
  CheckpointWriter(const std::string& source, const std::string& target, const CheckpointPlan& plan);
  ~CheckpointWriter();

  // A planned matrix, in any order: weight i8 [out, in], scale f32 [out], `activations` as planned, input_scale where that is fixed. Views
  // in host memory, done with on return. q, k and v, and gate and up, must agree in input_scale: other programs fuse them.
  void linear(const TensorSlot& slot, const Linear& quantised);
  // Replaces a norm: the multiplier less one, as the format has it.
  void norm(const TensorSlot& slot, std::span<const float> weight);
  // Takes over what was not given. Error(invalid_argument) naming a planned matrix that was not.
  void commit();

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace lapidary
