// NativeModel: a loaded model and its engine.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "addon/args.h"
#include "addon/handles.h"
#include "addon/model_state.h"
#include "model/weights.h"

namespace lapidary::addon {

// What loading gives before it is a JavaScript object.
struct LoadedModel {
  std::shared_ptr<ModelState> state;
  std::shared_ptr<const ModelWeights> weights;
  std::string device, precision;
};

class ModelObject {
 public:
  static constexpr const char* kName = "NativeModel";
  static constexpr const napi_type_tag& kTag = kModelTag;
  static std::vector<Method> methods();

  ModelObject(Environment& environment, std::shared_ptr<ModelState> state, int64_t reported_bytes)
      : environment_(environment.shared_from_this()), state_(std::move(state)), reported_bytes_(reported_bytes) {}
  ~ModelObject();

 private:
  napi_value generate(const Napi::CallbackInfo& info);
  napi_value logits(const Napi::CallbackInfo& info);
  napi_value log_probabilities(const Napi::CallbackInfo& info);
  napi_value score(const Napi::CallbackInfo& info, RunKind kind);
  napi_value hidden_states(const Napi::CallbackInfo& info);
  // evaluation.cc
  napi_value text_likelihood(const Napi::CallbackInfo& info);
  napi_value divergence(const Napi::CallbackInfo& info);
  napi_value choice_likelihoods(const Napi::CallbackInfo& info);
  napi_value activations(const Napi::CallbackInfo& info);
  napi_value quantize(const Napi::CallbackInfo& info);  // quantized_object.cc
  // cushion_object.cc
  napi_value search_cushion(const Napi::CallbackInfo& info);
  napi_value tune_cushion(const Napi::CallbackInfo& info);
  napi_value read_cushion(const Napi::CallbackInfo& info);
  napi_value new_sequence(const Napi::CallbackInfo& info);
  napi_value restore(const Napi::CallbackInfo& info);
  napi_value memory(const Napi::CallbackInfo& info);
  napi_value close(const Napi::CallbackInfo& info);
  void report_bytes_gone();
  void dispose_tokenizer(const Napi::CallbackInfo& info);

  std::shared_ptr<Environment> environment_;
  std::shared_ptr<ModelState> state_;
  int64_t reported_bytes_;  // told to the garbage collector and not taken back yet
};

// Any thread: weights, tokenizer and engine of the model at `path`; `transform` and `original` as in WeightsOptions.
LoadedModel load_model(const std::string& path, const LoadOptions& options, const LoadProgress& progress,
                       WeightsTransform* transform = nullptr, std::shared_ptr<const ModelWeights> original = nullptr);
// JavaScript thread: the NativeModel.
Napi::Object make_model(Napi::Env env, LoadedModel model);

}  // namespace lapidary::addon
