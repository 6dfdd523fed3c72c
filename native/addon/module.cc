// The addon's exports, by name. lib/native.d.ts types them.
#include <utility>

#include "addon/functions.h"
#include "addon/handles.h"

namespace lapidary::addon {

namespace {

using Function = napi_value(const Napi::CallbackInfo& info);

template <Function* function>
napi_value call(napi_env env, napi_callback_info raw) {
  return guarded(env, [&] { return function(Napi::CallbackInfo(env, raw)); });
}

napi_value initialize(napi_env env, napi_value exports) {
  return guarded(env, [&] {
    Environment::install(env);
    const std::pair<const char*, napi_callback> functions[] = {
        {"version", call<version>},
        {"devices", call<list_devices>},
        {"cpuPeaks", call<cpu_peaks>},
        {"loadModel", call<load_model_async>},
        {"loadTokenizer", call<load_tokenizer>},
        {"inspect", call<inspect>},
        {"estimateMemory", call<estimate>},
        {"probabilities", call<probabilities>},
        {"draw", call<draw>},
        {"writeSafetensors", call<write_tensors>},
        {"tensor", call<create_tensor>},
        {"kvCache", call<create_kv_cache>},
        {"op", call<run_op>},
        {"timeOp", call<time_op>},
        {"sampleOp", call<sample_op>},
    };
    for (const auto& [name, function] : functions) {
      napi_value value = nullptr;
      check_napi(env, napi_create_function(env, name, NAPI_AUTO_LENGTH, function, nullptr, &value));
      check_napi(env, napi_set_named_property(env, exports, name, value));
    }
    return exports;
  });
}

}  // namespace

}  // namespace lapidary::addon

NAPI_MODULE_INIT() { return lapidary::addon::initialize(env, exports); }
