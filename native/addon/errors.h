// The one place where C++ errors become JavaScript errors with a `code`, and the addon's only include of Node-API.
#pragma once

#include <napi.h>

#include <exception>
#include <string>
#include <utility>

#include "base/error.h"

namespace lapidary::addon {

// An Error object { message, code } for whatever `error` holds; a JavaScript exception is passed on as it is. Never throws;
// undefined when the environment can no longer make objects.
napi_value error_value(napi_env env, std::exception_ptr error) noexcept;

// Leaves `error` as the pending JavaScript exception.
void throw_into_js(napi_env env, std::exception_ptr error) noexcept;

// Every entry from JavaScript runs in this: no C++ exception crosses the boundary.
template <typename Body>
napi_value guarded(napi_env env, Body&& body) noexcept {
  try {
    return std::forward<Body>(body)();
  } catch (...) {
    throw_into_js(env, std::current_exception());
    return nullptr;
  }
}

}  // namespace lapidary::addon
