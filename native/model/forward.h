// One step of the model: ids at positions of some sequences -> logits of the rows that want them. A function of weights,
// batch and cache views; keeps no state. Reads top to bottom in forward.cc.
#pragma once

#include <cstdint>
#include <functional>
#include <span>
#include <vector>

#include "model/cushion.h"
#include "model/weights.h"

namespace lapidary {

// bf16: inputs of matrix products and the KV cache are rounded to bf16; sums stay f32. int8: likewise, but that prompts meet GGUF blocks as
// int8 where the weights were loaded for it (WeightsOptions::long_spans), with int8 inputs.
enum class Precision { f32, bf16, int8 };
const char* precision_name(Precision precision);  // "f32", ...

// The frequencies of one rope kind, in f32 as the models were trained: 1 / base^(2j / head_dim), divided by the linear factor.
std::vector<float> inverse_frequencies(const RopeConfig& rope, int64_t head_dim);
// sqrt(hidden); in bf16 the factor itself is rounded, the product is not.
float embedding_scale(int64_t hidden, Precision precision);

// Rows of one sequence in a step, with its cache in every layer.
struct StepSpan {
  int64_t first_row = 0, rows = 0, first_pos = 0;
  std::span<const KvView> layers;  // [num_layers]
};

struct StepBatch {
  std::span<const int32_t> ids;         // [tokens]
  std::span<const int32_t> positions;   // [tokens]; of the text: a cushion's tokens come before position 0
  std::span<const StepSpan> spans;      // cover the rows in order
  std::span<const int32_t> logit_rows;  // rows whose logits are wanted, ascending
};

// Called with l = 0 (scaled embedding), 1 .. L-1 (residual stream after layer l), L (after the last layer and the final norm);
// x: f32 [tokens, hidden], valid during the call.
using HiddenObserver = std::function<void(int64_t l, const Tensor& x)>;

// The inputs of a layer's matrix products: what is quantised, where outliers are looked for.
enum class Site : uint8_t { attn_in, o_in, mlp_in, down_in };
inline constexpr int kNumSites = 4;
const char* site_name(Site site);  // "attn_in", ...

// Called for every layer and site of a step; x: act [tokens, dim], on the backend's device, valid during the call. What is written to x is
// what the products read.
using SiteHook = std::function<void(int64_t layer, Site site, const Tensor& x)>;

// Scratch for steps of up to max_tokens tokens and max_logit_rows logits; reused between steps, one step at a time.
class StepScratch {
 public:
  StepScratch(Backend& backend, const ModelConfig& config, Precision precision, int64_t max_tokens, int64_t max_logit_rows);
  static int64_t bytes(const ModelConfig& config, Precision precision, int64_t max_tokens, int64_t max_logit_rows);

  // Steps from now on see this prefix; null: none. Allocates what that needs.
  void use_cushion(Backend& backend, const ModelConfig& config, const Cushion* cushion);

  int64_t max_tokens, max_logit_rows;
  int64_t step_tokens = 0;  // rows of the last step
  Precision precision;
  Tensor x;  // f32 [max_tokens, hidden]
  Workspace ws;
  std::vector<Tensor> cos, sin;              // per rope kind, f32 [max_tokens, head_dim / 2]
  std::vector<std::vector<float>> inv_freq;  // per rope kind
  Tensor selected, selected_normed;          // f32, act [max_logit_rows, hidden]
  Tensor logits;                             // f32 [max_logit_rows, vocab]
  std::unique_ptr<const PlacedCushion> cushion;
  Tensor prefix_cos, prefix_sin;  // with a cushion: f32 [max_tokens, head_dim / 2]

 private:
  std::vector<Buffer> owned_, cushion_owned_;
};

// What may look on, and stop.
struct StepWatch {
  HiddenObserver hidden{};
  SiteHook sites{};              // stages are computed unfused then
  std::function<bool()> stop{};  // polled between layers; true ends the step with Error(aborted)
};

// Returns logits f32 [logit_rows.size(), vocab], a view into the scratch.
Tensor forward(Backend& backend, const ModelWeights& weights, const StepBatch& batch, StepScratch& scratch, const StepWatch& watch = {});

// The logits of further rows of the scratch's last step, at most max_logit_rows, ascending.
Tensor step_logits(Backend& backend, const ModelWeights& weights, std::span<const int32_t> rows, StepScratch& scratch);

}  // namespace lapidary
