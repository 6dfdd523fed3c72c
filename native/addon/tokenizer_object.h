// NativeTokenizer and its incremental decoder.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "addon/handles.h"
#include "runtime/tokenizer.h"

namespace lapidary::addon {

class TokenizerObject {
 public:
  static constexpr const char* kName = "NativeTokenizer";
  static constexpr const napi_type_tag& kTag = kTokenizerTag;
  static std::vector<Method> methods();

  TokenizerObject(Environment& environment, std::shared_ptr<const Tokenizer> tokenizer);
  ~TokenizerObject() { dispose(); }
  // A model's tokenizer goes with the model.
  void dispose();

 private:
  const std::shared_ptr<const Tokenizer>& tokenizer() const;  // Error(disposed) after dispose
  napi_value encode(const Napi::CallbackInfo& info);
  napi_value encode_async(const Napi::CallbackInfo& info);
  napi_value encode_batch(const Napi::CallbackInfo& info);
  napi_value decode(const Napi::CallbackInfo& info);
  napi_value piece(const Napi::CallbackInfo& info);
  napi_value find(const Napi::CallbackInfo& info);
  napi_value is_control(const Napi::CallbackInfo& info);
  napi_value stream(const Napi::CallbackInfo& info);
  napi_value size(const Napi::CallbackInfo& info);
  napi_value bos_id(const Napi::CallbackInfo& info);
  napi_value eos_id(const Napi::CallbackInfo& info);
  napi_value pad_id(const Napi::CallbackInfo& info);
  napi_value unk_id(const Napi::CallbackInfo& info);
  napi_value add_bos(const Napi::CallbackInfo& info);
  napi_value chat_template(const Napi::CallbackInfo& info);
  int32_t id_argument(const Napi::CallbackInfo& info) const;

  std::shared_ptr<Environment> environment_;
  std::shared_ptr<const Tokenizer> tokenizer_;
};

Napi::Object make_tokenizer(Napi::Env env, std::shared_ptr<const Tokenizer> tokenizer);

}  // namespace lapidary::addon
