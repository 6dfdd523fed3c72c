// Checked conversion of JavaScript values.
#include "addon/args.h"

#include <cmath>
#include <limits>

namespace lapidary::addon {

namespace {

constexpr int64_t kMaxId = std::numeric_limits<int32_t>::max();
constexpr int64_t kMinId = std::numeric_limits<int32_t>::min();

[[noreturn]] void wrong(const std::string& name, const char* expected, Napi::Value got) {
  fail(ErrorCode::invalid_argument, name, ": expected ", expected, ", got ", describe(got));
}

struct TypedArrayView {
  napi_typedarray_type type;
  const void* data;
  size_t length;
};

bool as_typed_array(Napi::Value value, TypedArrayView& out) {
  if (!value.IsTypedArray()) return false;
  void* data = nullptr;
  size_t offset = 0;
  napi_value buffer = nullptr;
  if (napi_get_typedarray_info(value.Env(), value, &out.type, &out.length, &data, &buffer, &offset) != napi_ok) return false;
  out.data = data;
  if (!data) out.length = 0;
  return true;
}

template <typename T>
std::vector<T> copy_typed_array(Napi::Value value, const std::string& name, napi_typedarray_type type, const char* expected) {
  TypedArrayView view;
  if (!as_typed_array(value, view) || view.type != type) wrong(name, expected, value);
  const T* data = static_cast<const T*>(view.data);
  return std::vector<T>(data, data + view.length);
}

template <typename Convert>
auto map_array(Napi::Value value, const std::string& name, Convert convert) {
  const Napi::Array array = to_array(value, name);
  const uint32_t length = array.Length();
  std::vector<decltype(convert(value, name))> out;
  out.reserve(length);
  for (uint32_t i = 0; i < length; ++i) {
    const Napi::HandleScope scope(value.Env());
    out.push_back(convert(array.Get(i), name + "[" + std::to_string(i) + "]"));
  }
  return out;
}

std::pair<int32_t, float> to_bias(Napi::Value value, const std::string& name) {
  const Napi::Array pair = to_array(value, name);
  expect(pair.Length() == 2, ErrorCode::invalid_argument, name, ": expected [id, bias], got ", pair.Length(), " elements");
  const auto id = static_cast<int32_t>(to_integer(pair.Get(0u), name + "[0]", 0, kMaxId));
  return {id, static_cast<float>(to_number(pair.Get(1u), name + "[1]"))};
}

}  // namespace

std::string describe(Napi::Value value) {
  if (value.IsEmpty()) return "nothing";
  switch (value.Type()) {
    case napi_undefined:
      return "undefined";
    case napi_null:
      return "null";
    case napi_boolean:
      return value.As<Napi::Boolean>().Value() ? "true" : "false";
    case napi_number: {
      std::ostringstream text;
      text.precision(17);
      text << value.As<Napi::Number>().DoubleValue();
      return text.str();
    }
    case napi_string:
      return "a string";
    case napi_symbol:
      return "a symbol";
    case napi_function:
      return "a function";
    case napi_bigint:
      return "a bigint";
    default:
      return value.IsArray() ? "an array" : value.IsTypedArray() ? "a typed array of another type" : "an object";
  }
}

std::string to_text(Napi::Value value, const std::string& name) {
  if (!value.IsString()) wrong(name, "a string", value);
  return value.As<Napi::String>().Utf8Value();
}

bool to_boolean(Napi::Value value, const std::string& name) {
  if (!value.IsBoolean()) wrong(name, "true or false", value);
  return value.As<Napi::Boolean>().Value();
}

double to_number(Napi::Value value, const std::string& name) {
  if (!value.IsNumber()) wrong(name, "a number", value);
  return value.As<Napi::Number>().DoubleValue();
}

int64_t to_integer(Napi::Value value, const std::string& name, int64_t low, int64_t high) {
  if (!value.IsNumber()) wrong(name, "an integer", value);
  const double number = value.As<Napi::Number>().DoubleValue();
  const bool fits = number >= static_cast<double>(low) && number <= static_cast<double>(high) && number == std::trunc(number);
  expect(fits, ErrorCode::invalid_argument, name, ": expected an integer from ", low, " to ", high, ", got ", describe(value));
  return static_cast<int64_t>(number);
}

uint64_t to_seed(Napi::Value value, const std::string& name) {
  if (!value.IsBigInt()) wrong(name, "a bigint", value);
  bool lossless = false;
  const uint64_t seed = value.As<Napi::BigInt>().Uint64Value(&lossless);
  expect(lossless, ErrorCode::invalid_argument, name, ": expected a bigint from 0 to 2^64 - 1");
  return seed;
}

Napi::Object to_object(Napi::Value value, const std::string& name) {
  if (!value.IsObject()) wrong(name, "an object", value);
  return value.As<Napi::Object>();
}

Napi::Function to_function(Napi::Value value, const std::string& name) {
  if (!value.IsFunction()) wrong(name, "a function", value);
  return value.As<Napi::Function>();
}

Napi::Array to_array(Napi::Value value, const std::string& name) {
  if (!value.IsArray()) wrong(name, "an array", value);
  return value.As<Napi::Array>();
}

std::vector<int32_t> to_int32s(Napi::Value value, const std::string& name) {
  return copy_typed_array<int32_t>(value, name, napi_int32_array, "an Int32Array");
}

std::vector<uint32_t> to_uint32s(Napi::Value value, const std::string& name) {
  return copy_typed_array<uint32_t>(value, name, napi_uint32_array, "a Uint32Array");
}

std::vector<float> to_floats(Napi::Value value, const std::string& name) {
  return copy_typed_array<float>(value, name, napi_float32_array, "a Float32Array");
}

std::vector<int32_t> to_ids(Napi::Value value, const std::string& name) {
  TypedArrayView view;
  if (as_typed_array(value, view) && (view.type == napi_int32_array || view.type == napi_uint32_array)) {
    const int32_t* data = static_cast<const int32_t*>(view.data);  // ids above 2^31 turn negative, outside every vocabulary too
    return std::vector<int32_t>(data, data + view.length);
  }
  if (!value.IsObject()) wrong(name, "token ids (an array or an Int32Array)", value);
  const Napi::Object list = value.As<Napi::Object>();
  const int64_t length = to_integer(list.Get("length"), name + ".length", 0, std::numeric_limits<uint32_t>::max());
  std::vector<int32_t> ids;
  for (int64_t i = 0; i < length; ++i) {
    const Napi::HandleScope scope(value.Env());
    const Napi::Value item = list.Get(static_cast<uint32_t>(i));
    double number = std::numeric_limits<double>::quiet_NaN();
    if (item.IsNumber()) number = item.As<Napi::Number>().DoubleValue();
    if (!(number >= kMinId && number <= kMaxId && number == std::trunc(number))) {
      fail(ErrorCode::invalid_argument, name, "[", i, "]: expected a token id, got ", describe(item));
    }
    ids.push_back(static_cast<int32_t>(number));
  }
  return ids;
}

std::vector<std::string> to_texts(Napi::Value value, const std::string& name) { return map_array(value, name, to_text); }

std::map<std::string, std::string> to_text_map(Napi::Value value, const std::string& name) {
  const Napi::Object object = to_object(value, name);
  std::map<std::string, std::string> out;
  for (const std::string& key : to_texts(object.GetPropertyNames(), name)) out[key] = to_text(object.Get(key), name + "." + key);
  return out;
}

std::vector<OwnedPart> to_parts(Napi::Value value, const std::string& name) {
  return map_array(value, name, [](Napi::Value item, const std::string& item_name) {
    const Fields part(item, item_name);
    return OwnedPart{part.text("text"), part.boolean("special")};
  });
}

std::vector<TextPart> views(const std::vector<OwnedPart>& parts) {
  std::vector<TextPart> out;
  for (const OwnedPart& part : parts) out.push_back({part.text, part.special});
  return out;
}

LoadOptions to_load_options(Napi::Value value) {
  const Fields fields(value, "options");
  LoadOptions out;
  out.device = fields.text("device");
  expect(out.device == "cpu" || out.device == "cuda" || out.device == "reference", ErrorCode::invalid_argument,
         "options.device: expected 'cpu', 'cuda' or 'reference', got '", out.device, "'");
  const std::string precision = fields.text("precision");
  expect(precision.empty() || precision == "f32" || precision == "bf16" || precision == "int8", ErrorCode::invalid_argument,
         "options.precision: expected 'f32', 'bf16', 'int8' or '', got '", precision, "'");
  out.default_precision = precision.empty();
  out.engine.precision = precision == "f32" ? Precision::f32 : precision == "int8" ? Precision::int8 : Precision::bf16;
  const std::string kv = fields.text("kvCache");
  expect(kv.empty() || kv == "f32" || kv == "bf16" || kv == "int8", ErrorCode::invalid_argument,
         "options.kvCache: expected 'f32', 'bf16', 'int8' or '', got '", kv, "'");
  if (!kv.empty()) out.engine.kv = kv == "f32" ? DType::f32 : kv == "bf16" ? DType::bf16 : DType::i8;
  const std::string weights = fields.text("weights");
  expect(weights == "as-is" || weights == "bf16" || weights == "int8", ErrorCode::invalid_argument,
         "options.weights: expected 'as-is', 'bf16' or 'int8', got '", weights, "'");
  out.weights = weights == "int8" ? WeightsKind::int8 : weights == "bf16" ? WeightsKind::bf16 : WeightsKind::as_is;
  out.threads = static_cast<int>(fields.integer("threads", 0, 1024));
  out.engine.context = fields.integer("contextTokens", 0, kMaxId);
  out.engine.prefill_chunk = fields.integer("prefillChunk", 0, kMaxId);
  out.engine.max_batch_tokens = fields.integer("maxBatchTokens", 1, kMaxId);
  out.engine.max_running = fields.integer("maxSequences", 1, kMaxId);
  out.engine.kv_limit_bytes = fields.integer("kvLimitBytes", 0, kMaxSafeInteger);
  out.engine.prefix_cache = fields.integer("prefixCache", 0, kMaxId);
  return out;
}

EngineOptions complete_engine(const LoadOptions& options, bool converts_blocks) {
  EngineOptions out = options.engine;
  if (options.default_precision && converts_blocks) out.precision = Precision::int8;
  if (out.prefill_chunk == 0) out.prefill_chunk = std::min<int64_t>(converts_blocks ? 512 : 256, out.max_batch_tokens);
  return out;
}

SamplingSettings to_sampling(Napi::Value value, const std::string& name) {
  const Fields fields(value, name);
  SamplingSettings out;
  out.temperature = static_cast<float>(fields.number("temperature"));
  out.top_k = fields.integer("topK", -kMaxSafeInteger, kMaxSafeInteger);
  out.top_p = static_cast<float>(fields.number("topP"));
  out.min_p = static_cast<float>(fields.number("minP"));
  out.repetition_penalty = static_cast<float>(fields.number("repetitionPenalty"));
  out.presence_penalty = static_cast<float>(fields.number("presencePenalty"));
  out.frequency_penalty = static_cast<float>(fields.number("frequencyPenalty"));
  out.logit_bias = map_array(fields.get("logitBias"), fields.name("logitBias"), to_bias);
  return out;
}

RunRequest to_run_request(const Fields& fields) {
  RunRequest out;
  out.prompt = to_int32s(fields.get("prompt"), fields.name("prompt"));
  out.sampling = to_sampling(fields.get("sampling"), fields.name("sampling"));
  out.seed = to_seed(fields.get("seed"), fields.name("seed"));
  out.max_tokens = fields.integer("maxTokens", -1, kMaxSafeInteger);
  out.ignore_eos = fields.boolean("ignoreEos");
  out.stop_ids = to_ids(fields.get("stopIds"), fields.name("stopIds"));
  out.stop_strings = to_texts(fields.get("stopStrings"), fields.name("stopStrings"));
  out.top_logprobs = static_cast<int32_t>(fields.integer("topLogprobs", -1, kMaxId));
  out.masked = fields.boolean("masked");
  return out;
}

}  // namespace lapidary::addon
