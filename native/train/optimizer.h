// AdamW and SGD over a list of f32 parameters, with clipping by the global norm, decay of matrices alone, masks, and a schedule.
#pragma once

#include <string>
#include <vector>

#include "ops/training.h"

namespace lapidary {

// Rises linearly from 0 at step 0 to `peak` at step `warmup`, then falls as a cosine to 0 at step `total`.
struct Schedule {
  double peak = 0;
  int64_t warmup = 0, total = 0;  // total 0: constant after the warm-up
  double at(int64_t step) const;  // step counted from 0
};

enum class OptimizerKind : uint8_t { adamw, sgd };

struct OptimizerOptions {
  OptimizerKind kind = OptimizerKind::adamw;
  float beta1 = 0.9f, beta2 = 0.999f, eps = 1e-8f;  // adamw
  float momentum = 0;                               // sgd
  float weight_decay = 0;                           // adamw: decoupled; sgd: added to the gradient
  double clip = 0;                                  // gradients are scaled by clip / (norm + 1e-6) where that is below 1; 0: never
};

// What is trained. `mask` (f32, like value, may be empty) multiplies the value after each step, so that pruned elements stay 0; with
// `mask_gradient` it multiplies the gradient before the step, norm included. Straight-through training leaves it empty and masks a copy.
struct TrainedTensor {
  std::string name;
  Tensor value, gradient;
  bool decays = false;
  Tensor mask{};
  bool mask_gradient = false;
};

class Optimizer {
 public:
  // Tensors on the backend, kept alive by the caller; the moments start as zeros.
  Optimizer(Backend& backend, std::vector<TrainedTensor> tensors, const OptimizerOptions& options);

  // Values move against their gradients; returns the gradients' norm before clipping. Where that is not finite nothing moves and the step
  // does not count. Gradients are left as they are (masked with mask_gradient): the caller zeroes them.
  double step(double learning_rate);

  int64_t steps() const { return steps_; }
  // For saving and resuming: moments by name ("m.NAME", "v.NAME", "momentum.NAME").
  std::vector<std::pair<std::string, Tensor>> state() const;
  void set_steps(int64_t steps) { steps_ = steps; }

 private:
  struct Moments {
    Tensor first, second;  // adamw: m, v; sgd: momentum and none
  };
  Backend& backend_;
  TrainingOps& ops_;
  const std::vector<TrainedTensor> tensors_;
  const OptimizerOptions options_;
  std::vector<Moments> moments_;
  std::vector<Buffer> owned_;
  int64_t steps_ = 0;
};

class ParameterSet;

// One entry per tensor of `gradients`, with its value from `parameters`; tensors of two dimensions decay.
std::vector<TrainedTensor> trained_tensors(const ParameterSet& parameters, const ParameterSet& gradients);

}  // namespace lapidary
