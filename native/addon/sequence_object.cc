// The methods of NativeSequence.
#include "addon/sequence_object.h"

#include "addon/args.h"
#include "addon/promise_worker.h"
#include "addon/results.h"

namespace lapidary::addon {

std::vector<Method> SequenceObject::methods() {
  return {{"length", call_member<SequenceObject, &SequenceObject::length>, true},
          {"bytes", call_member<SequenceObject, &SequenceObject::bytes>, true},
          {"tokens", call_member<SequenceObject, &SequenceObject::tokens>},
          {"fork", call_member<SequenceObject, &SequenceObject::fork>},
          {"rewind", call_member<SequenceObject, &SequenceObject::rewind>},
          {"save", call_member<SequenceObject, &SequenceObject::save>},
          {"close", call_member<SequenceObject, &SequenceObject::close>}};
}

const std::shared_ptr<Sequence>& SequenceObject::sequence() const {
  expect(sequence_ != nullptr, ErrorCode::disposed, "the sequence is closed");
  return sequence_;
}

void SequenceObject::let_go() {
  environment_->release_elsewhere(std::move(sequence_));
  environment_->release_elsewhere(std::move(model_));
}

napi_value SequenceObject::length(const Napi::CallbackInfo& info) {
  return Napi::Number::New(info.Env(), static_cast<double>(sequence()->length()));
}

napi_value SequenceObject::bytes(const Napi::CallbackInfo& info) {
  return Napi::Number::New(info.Env(), static_cast<double>(sequence()->bytes()));
}

napi_value SequenceObject::tokens(const Napi::CallbackInfo& info) { return id_array(info.Env(), sequence()->tokens()); }

napi_value SequenceObject::fork(const Napi::CallbackInfo& info) {
  return make_handle(info.Env(), std::make_unique<SequenceObject>(*environment_, model_, sequence()->fork()));
}

napi_value SequenceObject::rewind(const Napi::CallbackInfo& info) {
  sequence()->rewind(to_integer(info[0], "length", 0, kMaxSafeInteger));
  return info.Env().Undefined();
}

napi_value SequenceObject::save(const Napi::CallbackInfo& info) {
  const auto write = [sequence = sequence(), model = model_, path = to_text(info[0], "path")] {
    sequence->save(path);
    return Nothing{};
  };
  return promise_work(info.Env(), "lapidary save", write, to_undefined);
}

napi_value SequenceObject::close(const Napi::CallbackInfo& info) {
  let_go();
  return info.Env().Undefined();
}

}  // namespace lapidary::addon
