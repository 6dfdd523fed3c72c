// Token id lists that may be long, as promises of plain arrays: computed off the JavaScript thread, turned into JavaScript
// values in slices, so that no turn of the event loop takes long.
#pragma once

#include <cstdint>
#include <functional>
#include <vector>

#include "addon/errors.h"

namespace lapidary::addon {

using IdLists = std::vector<std::vector<int32_t>>;

napi_value promise_id_lists(napi_env env, const char* name, std::function<IdLists()> make);              // number[][]
napi_value promise_id_list(napi_env env, const char* name, std::function<std::vector<int32_t>()> make);  // number[]

}  // namespace lapidary::addon
