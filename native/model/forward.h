// One step of the model: ids at positions of some sequences -> logits of the rows that want them. A function of weights,
// batch and cache views; keeps no state. Reads top to bottom in forward.cc.
#pragma once

#include <cstdint>
#include <functional>
#include <span>
#include <vector>

#include "model/weights.h"

namespace lapidary {

enum class Precision { f32, bf16 };  // bf16: inputs of matrix products and the KV cache are rounded to bf16; sums stay f32

// Rows of one sequence in a step, with its cache in every layer.
struct StepSpan {
  int64_t first_row = 0, rows = 0, first_pos = 0;
  std::span<const KvView> layers;  // [num_layers]
};

struct StepBatch {
  std::span<const int32_t> ids;         // [tokens]
  std::span<const int32_t> positions;   // [tokens]
  std::span<const StepSpan> spans;      // cover the rows in order
  std::span<const int32_t> logit_rows;  // rows whose logits are wanted, ascending
};

// Called with l = 0 (scaled embedding), 1 .. L-1 (residual stream after layer l), L (after the last layer and the final norm);
// x: f32 [tokens, hidden], valid during the call.
using HiddenObserver = std::function<void(int64_t l, const Tensor& x)>;

// Scratch for steps of up to max_tokens tokens and max_logit_rows logits; reused between steps, one step at a time.
class StepScratch {
 public:
  StepScratch(Backend& backend, const ModelConfig& config, Precision precision, int64_t max_tokens, int64_t max_logit_rows);
  static int64_t bytes(const ModelConfig& config, Precision precision, int64_t max_tokens, int64_t max_logit_rows);

  int64_t max_tokens, max_logit_rows;
  Precision precision;
  Tensor x;  // f32 [max_tokens, hidden]
  Workspace ws;
  std::vector<Tensor> cos, sin;              // per rope kind, f32 [max_tokens, head_dim / 2]
  std::vector<std::vector<float>> inv_freq;  // per rope kind
  Tensor selected, selected_normed;          // f32, act [max_logit_rows, hidden]
  Tensor logits;                             // f32 [max_logit_rows, vocab]

 private:
  std::vector<Buffer> owned_;
};

// Returns logits f32 [logit_rows.size(), vocab], a view into the scratch. `stop`, polled between layers, ends early with Error(aborted).
Tensor forward(Backend& backend, const ModelWeights& weights, const StepBatch& batch, StepScratch& scratch,
               const HiddenObserver& observe = {}, const std::function<bool()>& stop = {});

}  // namespace lapidary
