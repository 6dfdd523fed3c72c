// NativeRun, and the way of a run's events from the engine thread to JavaScript.
#pragma once

#include <memory>
#include <vector>

#include "addon/handles.h"
#include "addon/model_state.h"

namespace lapidary::addon {

class RunObject {
 public:
  static constexpr const char* kName = "NativeRun";
  static constexpr const napi_type_tag& kTag = kRunTag;
  static std::vector<Method> methods();

  explicit RunObject(std::shared_ptr<Run> run) : run_(std::move(run)) {}

 private:
  napi_value abort(const Napi::CallbackInfo& info);
  napi_value acknowledge(const Napi::CallbackInfo& info);
  napi_value provide_mask(const Napi::CallbackInfo& info);

  std::shared_ptr<Run> run_;
};

// Submits `request` and calls `on_event` with its events, in order, on the JavaScript thread. An exception of the callback aborts
// the run; it then sees nothing more but the end.
Napi::Object start_run(Napi::Env env, std::shared_ptr<ModelState> model, RunRequest request, Napi::Function on_event);

// Runs that score instead of generating: { result: Promise<Float32Array[]>, abort() }. One result per prompt for RunKind::logits,
// all rows of the one prompt for RunKind::hidden.
Napi::Object start_scores(Napi::Env env, std::shared_ptr<ModelState> model, RunKind kind, std::vector<std::vector<int32_t>> prompts);

}  // namespace lapidary::addon
