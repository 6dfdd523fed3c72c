// Making JavaScript values of results.
#include "addon/results.h"

#include <algorithm>
#include <cstring>
#include <memory>
#include <system_error>
#include <thread>

namespace lapidary::addon {

namespace {

// Below this a copy is cheaper than a finaliser.
constexpr size_t kSmallBytes = 64 << 10;
// From here on giving memory back to the system takes a noticeable part of a millisecond.
constexpr size_t kLargeBytes = 4 << 20;

// Frees the memory of an external array buffer. Runs also while the environment ends, before this addon is told: so neither
// Node-API nor Node's thread pool may be used here.
void take_back(napi_env, void*, void* hint) {
  std::unique_ptr<std::vector<float>> values(static_cast<std::vector<float>*>(hint));
  if (values->size() * sizeof(float) < kLargeBytes) return;
  try {
    std::thread([values = std::move(values)] {}).detach();
  } catch (const std::system_error&) {  // no thread to be had: freed here
  }
}

double number(int64_t value) { return static_cast<double>(value); }

Napi::Value typed_array(Napi::Env env, napi_typedarray_type type, size_t length, napi_value buffer) {
  napi_value array = nullptr;
  const napi_status status = napi_create_typedarray(env, type, length, buffer, 0, &array);
  if (status != napi_ok) throw Napi::Error::New(env);
  return Napi::Value(env, array);
}

Napi::Value copied_array(Napi::Env env, napi_typedarray_type type, const void* data, size_t length) {
  Napi::ArrayBuffer buffer = Napi::ArrayBuffer::New(env, length * 4);
  if (length) std::memcpy(buffer.Data(), data, length * 4);
  return typed_array(env, type, length, buffer);
}

}  // namespace

Napi::Value text(Napi::Env env, std::string_view utf8) { return Napi::String::New(env, utf8.data(), utf8.size()); }

Napi::Array id_array(Napi::Env env, std::span<const int32_t> ids) {
  Napi::Array array = Napi::Array::New(env, ids.size());
  for (size_t i = 0; i < ids.size(); ++i) {
    const Napi::HandleScope scope(env);
    array.Set(static_cast<uint32_t>(i), Napi::Number::New(env, ids[i]));
  }
  return array;
}

Napi::Value float_array(Napi::Env env, std::vector<float> values) {
  const size_t length = values.size(), bytes = length * sizeof(float);
  if (bytes <= kSmallBytes) return copied_array(env, napi_float32_array, values.data(), length);
  auto lent = std::make_unique<std::vector<float>>(std::move(values));
  napi_value buffer = nullptr;
  if (napi_create_external_arraybuffer(env, lent->data(), bytes, take_back, lent.get(), &buffer) != napi_ok) {
    return copied_array(env, napi_float32_array, lent->data(), length);  // runtimes that confine array memory refuse
  }
  static_cast<void>(lent.release());  // take_back owns it
  return typed_array(env, napi_float32_array, length, buffer);
}

Napi::Array float_arrays(Napi::Env env, std::vector<std::vector<float>> rows) {
  Napi::Array array = Napi::Array::New(env, rows.size());
  for (size_t i = 0; i < rows.size(); ++i) array.Set(static_cast<uint32_t>(i), float_array(env, std::move(rows[i])));
  return array;
}

Napi::Value int32_array(Napi::Env env, std::span<const int32_t> values) {
  return copied_array(env, napi_int32_array, values.data(), values.size());
}

Napi::Object model_info(Napi::Env env, const ModelConfig& config, int64_t file_bytes) {
  int64_t window = 0, local_layers = 0;
  for (const LayerConfig& layer : config.layers) {
    if (!layer.is_local()) continue;
    ++local_layers;
    window = std::max(window, layer.window);
  }
  Napi::Object info = Napi::Object::New(env);
  info.Set("family", config.family);
  info.Set("parameters", number(config.parameters()));
  info.Set("layers", number(config.num_layers));
  info.Set("hidden", number(config.hidden));
  info.Set("ffn", number(config.ffn));
  info.Set("vocab", number(config.vocab));
  info.Set("heads", number(config.num_heads));
  info.Set("kvHeads", number(config.num_kv_heads));
  info.Set("headDim", number(config.head_dim));
  info.Set("maxPositions", number(config.max_positions));
  info.Set("window", number(window));
  info.Set("localLayers", number(local_layers));
  info.Set("bosId", number(config.bos_id));
  info.Set("eosIds", id_array(env, config.eos_ids));
  Napi::Array notes = Napi::Array::New(env, config.notes.size());
  for (size_t i = 0; i < config.notes.size(); ++i) notes.Set(static_cast<uint32_t>(i), text(env, config.notes[i]));
  info.Set("notes", notes);
  info.Set("fileBytes", number(file_bytes));
  // generation_config.json's settings count only where it asks for sampling.
  Napi::Object defaults = Napi::Object::New(env);
  if (config.default_do_sample) {
    if (config.default_temperature >= 0) defaults.Set("temperature", config.default_temperature);
    if (config.default_top_k >= 0) defaults.Set("topK", number(config.default_top_k));
    if (config.default_top_p >= 0) defaults.Set("topP", config.default_top_p);
  }
  info.Set("defaults", defaults);
  return info;
}

Napi::Object tensor_fact(Napi::Env env, const TensorFact& fact) {
  Napi::Object object = Napi::Object::New(env);
  object.Set("name", text(env, fact.name));
  object.Set("dtype", text(env, fact.dtype));
  Napi::Array shape = Napi::Array::New(env, fact.shape.size());
  for (size_t i = 0; i < fact.shape.size(); ++i) shape.Set(static_cast<uint32_t>(i), number(fact.shape[i]));
  object.Set("shape", shape);
  object.Set("bytes", number(fact.bytes));
  return object;
}

Napi::Object token_event(Napi::Env env, const TokenEvent& event) {
  Napi::Object object = Napi::Object::New(env);
  object.Set("id", number(event.id));
  object.Set("text", text(env, event.text));
  object.Set("logprob", static_cast<double>(event.logprob));
  Napi::Array top = Napi::Array::New(env, event.top.size());
  for (size_t i = 0; i < event.top.size(); ++i) {
    Napi::Object entry = Napi::Object::New(env);
    entry.Set("id", number(event.top[i].id));
    entry.Set("logprob", static_cast<double>(event.top[i].logprob));
    top.Set(static_cast<uint32_t>(i), entry);
  }
  object.Set("top", top);
  return object;
}

Napi::Object outcome_object(Napi::Env env, const Outcome& outcome) {
  Napi::Object object = Napi::Object::New(env);
  object.Set("reason", finish_reason_name(outcome.reason));
  object.Set("stopSequence", text(env, outcome.stop_sequence));
  object.Set("promptTokens", number(outcome.usage.prompt_tokens));
  object.Set("cachedTokens", number(outcome.usage.cached_tokens));
  object.Set("generatedTokens", number(outcome.usage.generated_tokens));
  object.Set("queueMs", outcome.usage.queue_ms);
  object.Set("prefillMs", outcome.usage.prefill_ms);
  object.Set("decodeMs", outcome.usage.decode_ms);
  return object;
}

Napi::Object memory_object(Napi::Env env, const MemoryUse& use) {
  Napi::Object object = Napi::Object::New(env);
  object.Set("weightBytes", number(use.weight_bytes));
  object.Set("kvBytes", number(use.kv_bytes));
  object.Set("kvLimitBytes", number(use.kv_limit_bytes));
  object.Set("scratchBytes", number(use.scratch_bytes));
  return object;
}

Napi::Object estimate_object(Napi::Env env, const MemoryEstimate& estimate) {
  Napi::Object object = Napi::Object::New(env);
  object.Set("weightBytes", number(estimate.weight_bytes));
  object.Set("kvBytesPerSequence", number(estimate.kv_bytes_per_sequence));
  object.Set("kvBytes", number(estimate.kv_bytes));
  object.Set("scratchBytes", number(estimate.scratch_bytes));
  object.Set("totalBytes", number(estimate.total_bytes));
  return object;
}

}  // namespace lapidary::addon
