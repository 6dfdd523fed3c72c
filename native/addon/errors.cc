// C++ exceptions -> JavaScript Error objects.
#include "addon/errors.h"

#include <new>

namespace lapidary::addon {

namespace {

napi_value make_error(napi_env env, std::string_view code, const std::string& message) noexcept {
  napi_value code_value = nullptr, message_value = nullptr, error = nullptr;
  if (napi_create_string_utf8(env, code.data(), code.size(), &code_value) != napi_ok) return nullptr;
  if (napi_create_string_utf8(env, message.data(), message.size(), &message_value) != napi_ok) return nullptr;
  if (napi_create_error(env, code_value, message_value, &error) != napi_ok) return nullptr;
  return error;
}

}  // namespace

napi_value error_value(napi_env env, std::exception_ptr error) noexcept {
  napi_value value = nullptr;
  try {
    std::rethrow_exception(error);
  } catch (const Napi::Error& e) {
    value = e.Value();
  } catch (const Error& e) {
    value = make_error(env, code_name(e.code()), e.what());
  } catch (const std::bad_alloc&) {
    value =
        make_error(env, code_name(ErrorCode::out_of_memory), "the process has run out of memory; close models or choose a smaller context");
  } catch (const std::exception& e) {
    value = make_error(env, code_name(ErrorCode::internal), std::string("internal error: ") + e.what());
  } catch (...) {
    value = make_error(env, code_name(ErrorCode::internal), "internal error of an unknown kind");
  }
  if (!value) napi_get_undefined(env, &value);
  return value;
}

void throw_into_js(napi_env env, std::exception_ptr error) noexcept {
  bool pending = false;
  if (napi_is_exception_pending(env, &pending) == napi_ok && pending) return;
  napi_throw(env, error_value(env, error));  // fails only while the environment ends: nobody is left to see it
}

}  // namespace lapidary::addon
