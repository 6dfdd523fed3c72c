// Weights of one model as typed views, complete and shape-checked. Const after loading.
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "model/config.h"
#include "model/convert.h"
#include "ops/ops.h"

namespace lapidary {

struct LayerWeights {
  Norm input_norm, post_attention_norm, pre_ffn_norm, post_ffn_norm;
  Norm q_norm, k_norm;  // weight empty when the model has none
  Linear q, k, v, o, gate, up, down;
};

struct ModelWeights {
  ModelConfig config;
  Linear embedding;  // [vocab, hidden]
  Linear head;       // the same tensor when tied
  Norm final_norm;
  std::vector<LayerWeights> layers;
  int64_t file_bytes = 0;     // bytes of the weights in use: of the file's tensors, or of what they were converted to
  std::vector<Buffer> owned;  // norms and whatever was converted
};

// done, total in bytes; called on the loading thread.
using LoadProgress = std::function<void(int64_t done, int64_t total)>;

struct WeightsOptions {
  WeightsKind kind = WeightsKind::as_is;
  int threads = 1;  // of the conversion
};

// `path`: a Hugging Face folder, a .safetensors file beside a config.json, or a .gguf file. Every expected tensor must be there with
// the config's shape, and every tensor in the file must be known: errors name the tensor, what was expected and what was found.
std::shared_ptr<const ModelWeights> load_weights(const std::string& path, Backend& backend, const LoadProgress& progress = {},
                                                 const WeightsOptions& options = {});

// The config alone, no tensor touched.
ModelConfig load_config(const std::string& path);

// For inspect: one line of facts per tensor, in file order.
struct TensorFact {
  std::string name, dtype;
  std::vector<int64_t> shape;
  int64_t bytes = 0;
};
std::vector<TensorFact> list_tensors(const std::string& path);

}  // namespace lapidary
