// NativeQuantized: how a model becomes int8, decided; it is applied when the result is loaded or saved.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "addon/handles.h"
#include "compress/quantize.h"

namespace lapidary::addon {

class QuantizedObject {
 public:
  static constexpr const char* kName = "NativeQuantized";
  static constexpr const napi_type_tag& kTag = kQuantizedTag;
  static std::vector<Method> methods();

  // `original`: the loaded model that this was made of, whose embedding the result shares while both live; `device`: where it is.
  QuantizedObject(std::shared_ptr<QuantizedModel> model, std::weak_ptr<const ModelWeights> original, std::string device)
      : model_(std::move(model)), original_(std::move(original)), device_(std::move(device)) {}

 private:
  napi_value report(const Napi::CallbackInfo& info);
  napi_value save(const Napi::CallbackInfo& info);
  napi_value load(const Napi::CallbackInfo& info);

  const std::shared_ptr<QuantizedModel> model_;
  const std::weak_ptr<const ModelWeights> original_;
  const std::string device_;
};

}  // namespace lapidary::addon
