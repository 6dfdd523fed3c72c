// NativeCushion: a cushion that was searched, tuned or read, to be saved or tuned further.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "addon/handles.h"
#include "model/cushion.h"

namespace lapidary::addon {

class CushionObject {
 public:
  static constexpr const char* kName = "NativeCushion";
  static constexpr const napi_type_tag& kTag = kCushionTag;
  static std::vector<Method> methods();

  // `report`: JSON.
  CushionObject(std::shared_ptr<const Cushion> cushion, std::string report) : cushion_(std::move(cushion)), report_(std::move(report)) {}
  const std::shared_ptr<const Cushion>& cushion() const { return cushion_; }

 private:
  napi_value tokens(const Napi::CallbackInfo& info);
  napi_value window(const Napi::CallbackInfo& info);
  napi_value fingerprint(const Napi::CallbackInfo& info);
  napi_value report(const Napi::CallbackInfo& info);
  napi_value save(const Napi::CallbackInfo& info);

  const std::shared_ptr<const Cushion> cushion_;
  const std::string report_;
};

}  // namespace lapidary::addon
