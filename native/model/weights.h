// Weights of one model as typed views, complete and shape-checked. Const after loading.
#pragma once

#include <functional>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "model/config.h"
#include "model/convert.h"
#include "model/cushion.h"
#include "model/tensor_table.h"
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
  int64_t file_bytes = 0;                    // bytes of the weights in use: of the file's tensors, or of what they were converted to
  std::vector<Buffer> owned;                 // norms and whatever was converted
  std::shared_ptr<const Cushion> cushion{};  // what every text is preceded by; null: nothing
  std::string content_hash;                  // of some bytes of every weight as it is computed on: tells models of one shape apart
};

// done, total in bytes; called on the loading thread.
using LoadProgress = std::function<void(int64_t done, int64_t total)>;

// Stands between the file and the backend, so that a model is loaded in another form than the file's without a detour over a disk. Called
// once per weight, on one thread, matrices first; what it throws ends the loading.
class WeightsTransform {
 public:
  virtual ~WeightsTransform() = default;
  // The matrix as it is to be computed on: host memory, the same shape. `host` may be a view of the file; the head only when it is not
  // tied.
  virtual Linear linear(const TensorSlot& slot, Linear host) = 0;
  // A norm's numbers as the file has them (ModelConfig::norm_offset), in place.
  virtual void norm(const TensorSlot& slot, std::span<float> weight) = 0;
  // The cushion that stands before every text, given that of the file; either may be null.
  virtual std::shared_ptr<const Cushion> cushion(std::shared_ptr<const Cushion> of_file) { return of_file; }
};

struct WeightsOptions {
  WeightsKind kind = WeightsKind::as_is;
  int threads = 1;                        // of the conversion
  bool cushion = true;                    // read cushion.safetensors where it lies beside the weights
  WeightsTransform* transform = nullptr;  // sees what `kind` has made of the file; null: none
  // The same file's weights as a backend of the same kind in the same memory has loaded them: an embedding or a head that the transform
  // leaves as it is, is not made again. May be null.
  std::shared_ptr<const ModelWeights> original{};
  // Blocks of a layer's matrices take the scheme long_spans where the backend has that: what Precision::int8 is.
  bool long_spans = false;
};

// `path`: a Hugging Face folder, a .safetensors file beside a config.json, or a .gguf file. Every expected tensor must be there with
// the config's shape, and every tensor in the file must be known: errors name the tensor, what was expected and what was found.
// Layers that a checkpoint holds in int8 (model/quantized.h) stay as they are, whatever `options.kind`.
std::shared_ptr<const ModelWeights> load_weights(const std::string& path, Backend& backend, const LoadProgress& progress = {},
                                                 const WeightsOptions& options = {});

// Shows every weight of the file to a transform, as load_weights would, and keeps nothing of what it gives.
void visit_weights(const std::string& path, WeightsTransform& transform, const LoadProgress& progress = {});

// The cushion.safetensors beside the weights; null: there is none. Error(bad_file) as read_cushion.
std::shared_ptr<const Cushion> find_cushion(const std::string& path, const ModelConfig& config);

// Whether rows of long spans meet some weights as int8 (WeightsOptions::long_spans, and a backend and blocks for it).
bool has_long_spans(const ModelWeights& weights);

// Whether a matrix of this type (dtype_info's name) may be one of them.
bool takes_long_spans(std::string_view dtype);

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
