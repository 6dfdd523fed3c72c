// The addon's exported functions, each checked and converted like lib/native.d.ts says.
#pragma once

#include "addon/errors.h"

namespace lapidary::addon {

napi_value version(const Napi::CallbackInfo& info);
napi_value list_devices(const Napi::CallbackInfo& info);
napi_value cpu_peaks(const Napi::CallbackInfo& info);
napi_value load_model_async(const Napi::CallbackInfo& info);
napi_value load_tokenizer(const Napi::CallbackInfo& info);
napi_value inspect(const Napi::CallbackInfo& info);
napi_value estimate(const Napi::CallbackInfo& info);
napi_value probabilities(const Napi::CallbackInfo& info);
napi_value draw(const Napi::CallbackInfo& info);
napi_value write_tensors(const Napi::CallbackInfo& info);
napi_value create_tensor(const Napi::CallbackInfo& info);
napi_value create_kv_cache(const Napi::CallbackInfo& info);
napi_value run_op(const Napi::CallbackInfo& info);
napi_value time_op(const Napi::CallbackInfo& info);
napi_value sample_op(const Napi::CallbackInfo& info);

}  // namespace lapidary::addon
