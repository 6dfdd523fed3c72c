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
  std::string device;
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
  napi_value hidden_states(const Napi::CallbackInfo& info);
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

// Any thread: weights, tokenizer and engine of the model at `path`.
LoadedModel load_model(const std::string& path, const LoadOptions& options, const LoadProgress& progress);
// JavaScript thread: the NativeModel.
Napi::Object make_model(Napi::Env env, LoadedModel model);

}  // namespace lapidary::addon
