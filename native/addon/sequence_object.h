// NativeSequence: a conversation's tokens and cache.
#pragma once

#include <memory>
#include <vector>

#include "addon/handles.h"
#include "addon/model_state.h"

namespace lapidary::addon {

class SequenceObject {
 public:
  static constexpr const char* kName = "NativeSequence";
  static constexpr const napi_type_tag& kTag = kSequenceTag;
  static std::vector<Method> methods();

  SequenceObject(Environment& environment, std::shared_ptr<ModelState> model, std::shared_ptr<Sequence> sequence)
      : environment_(environment.shared_from_this()), model_(std::move(model)), sequence_(std::move(sequence)) {}
  ~SequenceObject() { let_go(); }

  const ModelState* model() const { return model_.get(); }
  const std::shared_ptr<Sequence>& sequence() const;  // Error(disposed) after close

 private:
  napi_value length(const Napi::CallbackInfo& info);
  napi_value bytes(const Napi::CallbackInfo& info);
  napi_value tokens(const Napi::CallbackInfo& info);
  napi_value fork(const Napi::CallbackInfo& info);
  napi_value rewind(const Napi::CallbackInfo& info);
  napi_value save(const Napi::CallbackInfo& info);
  napi_value close(const Napi::CallbackInfo& info);
  void let_go();

  std::shared_ptr<Environment> environment_;
  std::shared_ptr<ModelState> model_;  // kept alive by its sequences
  std::shared_ptr<Sequence> sequence_;
};

}  // namespace lapidary::addon
