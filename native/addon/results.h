// Plain values -> JavaScript values, on the JavaScript thread.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "addon/errors.h"
#include "model/config.h"
#include "model/weights.h"
#include "runtime/engine.h"

namespace lapidary::addon {

Napi::Value text(Napi::Env env, std::string_view utf8);
Napi::Array id_array(Napi::Env env, std::span<const int32_t> ids);
// Hands the memory over without copying, where the runtime allows that; freed on another thread when collected.
Napi::Value float_array(Napi::Env env, std::vector<float> values);
Napi::Array float_arrays(Napi::Env env, std::vector<std::vector<float>> rows);
Napi::Value int32_array(Napi::Env env, std::span<const int32_t> values);

Napi::Object model_info(Napi::Env env, const ModelConfig& config, int64_t file_bytes);
Napi::Object tensor_fact(Napi::Env env, const TensorFact& fact);
Napi::Object token_event(Napi::Env env, const TokenEvent& event);
Napi::Object outcome_object(Napi::Env env, const Outcome& outcome);
Napi::Object memory_object(Napi::Env env, const MemoryUse& use);
Napi::Object estimate_object(Napi::Env env, const MemoryEstimate& estimate);

}  // namespace lapidary::addon
