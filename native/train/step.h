// One step of training without its optimiser: the loss of a batch and its derivatives by the weights, by the cushion, or by both. Keeps no
// state between calls but memory. What is trained, on what, and how often is its caller's business.
//
// Memory, with checkpointing: the residual stream of every layer, one layer's activations, one chunk of logits; without: all layers'
// activations. Both give the same bits.
#pragma once

#include <functional>
#include <memory>
#include <span>
#include <vector>

#include "model/cushion.h"
#include "train/layer.h"
#include "train/loss.h"

namespace lapidary {

struct StepShape {
  int64_t max_tokens = 0;                   // of a batch
  bool checkpoint = true;                   // recompute a layer's activations when its turn comes
  int64_t logit_floats = int64_t{1} << 25;  // of a chunk of logits at most, one row at least
};

// What the forward pass sees besides the weights.
struct StepInput {
  TrainingBatch batch;
  const Loss* loss = nullptr;        // null: none, the quantisation error alone counts
  const Cushion* cushion = nullptr;  // stands before every sequence; positions of the text follow its tokens
  const QuantPlan* quant = nullptr;
  // Called on the way back with l = L (stream after the last layer) .. 0 (scaled embedding): x [tokens, hidden] and the derivative by it,
  // to which it may add. Returns a loss of its own, which is added to the step's: distillation of hidden states.
  std::function<double(int64_t l, const Tensor& x, const Tensor& g)> stream;
  // The same of every layer's feed-forward activations, the input of down before any rounding: x [tokens, ffn].
  std::function<double(int64_t layer, const Tensor& x, const Tensor& g)> gated;
  std::function<bool()> stop;  // polled between layers: Error(aborted)
};

// Derivatives are added to what is there. All null: the forward pass alone.
struct StepGradients {
  ParameterSet* weights = nullptr;  // slots it lacks are left out
  Cushion* cushion = nullptr;       // k and v on the host, of the cushion's shape: make_cushion gives zeros
};

struct StepResult {
  double loss = 0;                           // of Loss, `stream` and `gated`
  double quant_loss = 0;                     // Σ error_weights · errors
  std::vector<PerSite<double>> quant_error;  // [num_layers]: Σ (x - q(x))² of each quantised site; empty without a plan
  double total() const { return loss + quant_loss; }
};

class TrainingStep {
 public:
  TrainingStep(Backend& backend, const ModelConfig& config, const StepShape& shape);
  static int64_t bytes(const ModelConfig& config, const StepShape& shape);  // what it allocates

  // Error(invalid_argument) names an id, length, row or cushion that does not fit.
  StepResult run(WeightSource& weights, const StepInput& input, const StepGradients& gradients);

 private:
  struct Pass;

  LayerActivations& activations(int64_t layer) { return layers_[shape_.checkpoint ? 0 : static_cast<size_t>(layer)]; }

  Backend& backend_;
  const ModelConfig config_;
  const StepShape shape_;
  std::vector<LayerActivations> layers_;
  LayerScratch scratch_;
  std::vector<Tensor> streams_;  // [num_layers + 1]: each layer's input, the last one's output
  Tensor g_;                     // the derivative by the stream
  std::vector<Tensor> cos_, sin_;
  std::vector<std::vector<float>> inv_freq_;
  Tensor prefix_cos_, prefix_sin_;
  Tensor selected_, selected_normed_, selected_g_, logits_;
  std::vector<Buffer> owned_;
};

}  // namespace lapidary
