// JavaScript objects that stand for native ones: a type tag per class, checked before any pointer is used, so that a wrong
// `this` or argument is an error and never a crash. Handles live in the thread that made them.
//
// A handle class T has: static constexpr const char* kName; static constexpr napi_type_tag kTag; static std::vector<Method> methods().
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "addon/environment.h"

namespace lapidary::addon {

// The tags of all handle classes: arbitrary, distinct numbers.
inline constexpr napi_type_tag kModelTag = {0x6c61706964617279, 0x01};
inline constexpr napi_type_tag kSequenceTag = {0x6c61706964617279, 0x02};
inline constexpr napi_type_tag kRunTag = {0x6c61706964617279, 0x03};
inline constexpr napi_type_tag kTokenizerTag = {0x6c61706964617279, 0x04};
inline constexpr napi_type_tag kTokenStreamTag = {0x6c61706964617279, 0x05};
inline constexpr napi_type_tag kTensorTag = {0x6c61706964617279, 0x06};
inline constexpr napi_type_tag kKvCacheTag = {0x6c61706964617279, 0x07};
inline constexpr napi_type_tag kQuantizedTag = {0x6c61706964617279, 0x08};
inline constexpr napi_type_tag kCushionTag = {0x6c61706964617279, 0x09};

struct Method {
  const char* name;
  napi_callback call;
  bool getter = false;
};

inline void check_napi(napi_env env, napi_status status) {
  if (status != napi_ok) throw Napi::Error::New(env);
}

// The native object behind `value`, or nullptr when it is none of this class.
template <typename T>
T* find_handle(napi_env env, napi_value value) {
  napi_valuetype type = napi_undefined;
  bool tagged = false;
  void* data = nullptr;
  if (napi_typeof(env, value, &type) != napi_ok || type != napi_object) return nullptr;
  if (napi_check_object_type_tag(env, value, &T::kTag, &tagged) != napi_ok || !tagged) return nullptr;
  return napi_unwrap(env, value, &data) == napi_ok ? static_cast<T*>(data) : nullptr;
}

template <typename T>
T& to_handle(napi_env env, napi_value value, const std::string& name) {
  T* object = find_handle<T>(env, value);
  expect(object != nullptr, ErrorCode::invalid_argument, name, ": expected a ", T::kName,
         " made in this thread (handles cannot be sent to another one)");
  return *object;
}

// Wraps T::member(const Napi::CallbackInfo&) -> napi_value as a callback that checks `this`.
template <typename T, napi_value (T::*member)(const Napi::CallbackInfo&)>
napi_value call_member(napi_env env, napi_callback_info raw) {
  return guarded(env, [&] {
    const Napi::CallbackInfo info(env, raw);
    return (to_handle<T>(env, info.This(), "this").*member)(info);
  });
}

namespace detail {

// Hands the native object over to the constructor call that make_handle is in the middle of.
template <typename T>
inline thread_local std::unique_ptr<T> under_construction;

template <typename T>
napi_value construct(napi_env env, napi_callback_info raw) {
  return guarded(env, [&] {
    napi_value self = nullptr;
    check_napi(env, napi_get_cb_info(env, raw, nullptr, nullptr, &self, nullptr));
    std::unique_ptr<T> object = std::move(under_construction<T>);
    expect(object != nullptr, ErrorCode::invalid_argument, T::kName, " cannot be made with new");
    check_napi(env, napi_type_tag_object(env, self, &T::kTag));
    const auto finalize = [](napi_env, void* data, void*) { delete static_cast<T*>(data); };
    check_napi(env, napi_wrap(env, self, object.get(), finalize, nullptr, nullptr));
    static_cast<void>(object.release());  // finalize owns it
    return self;
  });
}

template <typename T>
napi_value constructor_of(napi_env env) {
  napi_ref& reference = Environment::of(env).constructors[&T::kTag];
  napi_value constructor = nullptr;
  if (!reference) {
    std::vector<napi_property_descriptor> properties;
    for (const Method& m : T::methods()) {
      properties.push_back(
          {m.name, nullptr, m.getter ? nullptr : m.call, m.getter ? m.call : nullptr, nullptr, nullptr, napi_default_method, nullptr});
      if (m.getter) properties.back().attributes = napi_enumerable;
    }
    check_napi(
        env, napi_define_class(env, T::kName, NAPI_AUTO_LENGTH, construct<T>, nullptr, properties.size(), properties.data(), &constructor));
    check_napi(env, napi_create_reference(env, constructor, 1, &reference));
  }
  check_napi(env, napi_get_reference_value(env, reference, &constructor));
  return constructor;
}

}  // namespace detail

// A new JavaScript object that owns `object`; freed when it is collected.
template <typename T>
Napi::Object make_handle(napi_env env, std::unique_ptr<T> object) {
  napi_value made = nullptr;
  detail::under_construction<T> = std::move(object);
  const napi_status status = napi_new_instance(env, detail::constructor_of<T>(env), 0, nullptr, &made);
  detail::under_construction<T>.reset();
  check_napi(env, status);
  return Napi::Object(env, made);
}

}  // namespace lapidary::addon
