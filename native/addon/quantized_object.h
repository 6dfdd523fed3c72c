// NativeQuantized: how a model becomes int8, decided; it is applied when the result is loaded or saved.
#pragma once

#include <memory>
#include <vector>

#include "addon/handles.h"
#include "compress/quantize.h"

namespace lapidary::addon {

class QuantizedObject {
 public:
  static constexpr const char* kName = "NativeQuantized";
  static constexpr const napi_type_tag& kTag = kQuantizedTag;
  static std::vector<Method> methods();

  explicit QuantizedObject(std::shared_ptr<QuantizedModel> model) : model_(std::move(model)) {}

 private:
  napi_value report(const Napi::CallbackInfo& info);
  napi_value save(const Napi::CallbackInfo& info);
  napi_value load(const Napi::CallbackInfo& info);

  const std::shared_ptr<QuantizedModel> model_;
};

}  // namespace lapidary::addon
