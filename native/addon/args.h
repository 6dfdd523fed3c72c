// JavaScript values -> plain values. Every failure is Error(invalid_argument) naming the value, what was expected and what came.
#pragma once

#include <cstdint>
#include <map>
#include <span>
#include <string>
#include <vector>

#include "addon/errors.h"
#include "ops/sampling.h"
#include "runtime/engine.h"
#include "runtime/tokenizer.h"

namespace lapidary::addon {

inline constexpr int64_t kMaxSafeInteger = (int64_t{1} << 53) - 1;

std::string describe(Napi::Value value);  // "a string", "undefined", "3.5"

std::string to_text(Napi::Value value, const std::string& name);
bool to_boolean(Napi::Value value, const std::string& name);
double to_number(Napi::Value value, const std::string& name);
int64_t to_integer(Napi::Value value, const std::string& name, int64_t low, int64_t high);
uint64_t to_seed(Napi::Value value, const std::string& name);  // a bigint of 64 bits
Napi::Object to_object(Napi::Value value, const std::string& name);
Napi::Function to_function(Napi::Value value, const std::string& name);
Napi::Array to_array(Napi::Value value, const std::string& name);

// Copies; the typed array may be detached or changed afterwards.
std::vector<int32_t> to_int32s(Napi::Value value, const std::string& name);
std::vector<uint32_t> to_uint32s(Napi::Value value, const std::string& name);
std::vector<float> to_floats(Napi::Value value, const std::string& name);
// Token ids: an Int32Array, a Uint32Array, or anything with length and integers.
std::vector<int32_t> to_ids(Napi::Value value, const std::string& name);
std::vector<std::string> to_texts(Napi::Value value, const std::string& name);
std::map<std::string, std::string> to_text_map(Napi::Value value, const std::string& name);

// Reads the fields of one options object.
class Fields {
 public:
  Fields(Napi::Value value, std::string name) : name_(std::move(name)), object_(to_object(value, name_)) {}
  Napi::Value get(const char* key) const { return object_.Get(key); }
  std::string name(const char* key) const { return name_ + "." + key; }
  std::string text(const char* key) const { return to_text(get(key), name(key)); }
  bool boolean(const char* key) const { return to_boolean(get(key), name(key)); }
  double number(const char* key) const { return to_number(get(key), name(key)); }
  int64_t integer(const char* key, int64_t low, int64_t high) const { return to_integer(get(key), name(key), low, high); }

 private:
  std::string name_;
  Napi::Object object_;
};

// A TextPart that owns its text.
struct OwnedPart {
  std::string text;
  bool special = false;
};
std::vector<OwnedPart> to_parts(Napi::Value value, const std::string& name);
std::vector<TextPart> views(const std::vector<OwnedPart>& parts);

struct LoadOptions {
  std::string device;
  WeightsKind weights = WeightsKind::as_is;
  int threads = 0;
  bool default_precision = false;  // engine.precision is int8 where that makes a difference to the model, else bf16
  EngineOptions engine;
};
LoadOptions to_load_options(Napi::Value value);
// Whether the options want block weights to be made int8 for long spans, where the backend can do so.
inline bool wants_long_spans(const LoadOptions& options) {
  return options.default_precision || options.engine.precision == Precision::int8;
}
// With what was left open: precision, and a prefill chunk of 0. Blocks that become int8 do so anew for every chunk, which few rows do not
// repay.
EngineOptions complete_engine(const LoadOptions& options, bool converts_blocks);
SamplingSettings to_sampling(Napi::Value value, const std::string& name);
// Everything of a generate request but sequence and observer.
RunRequest to_run_request(const Fields& fields);

}  // namespace lapidary::addon
