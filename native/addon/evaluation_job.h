// Work that takes minutes: on a thread of its own, with progress, an abort handle and one promise.
#pragma once

#include <functional>
#include <memory>
#include <vector>

#include "addon/model_state.h"
#include "compress/evaluate.h"

namespace lapidary::addon {

// On the JavaScript thread: the result as a value.
using Convert = std::function<napi_value(Napi::Env)>;

// A model as evaluations use it; keeps alive what it refers to.
struct SharedSubject {
  EngineShare share;
  Precision precision;
  DType kv;  // of the cache

  Subject subject() const;
};
SharedSubject share_subject(const ModelState& model);  // Error(disposed) once closed

// Starts `work` and gives { result, abort }. `models` stay alive until it has ended; `on_progress` is a function of (done, total), or null
// or undefined. `work` is let go of on its own thread.
Napi::Object start_evaluation(Napi::Env env, std::vector<std::shared_ptr<ModelState>> models, Napi::Value on_progress,
                              std::function<Convert(const EvaluationWatch&)> work);

}  // namespace lapidary::addon
