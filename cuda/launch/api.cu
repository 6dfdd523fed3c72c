// The table of everything in this library, and the one symbol it exports.
#include "cuda/api/api.h"

using namespace lapidary::cuda;

extern "C" __attribute__((visibility("default"))) const Api* lapidary_cuda_api() {
  static const Api api = {kApiVersion, sizeof(Api), kApiLayout, device_api(),
#define LAPIDARY_ENTRY(name, Params) name,
                          LAPIDARY_LAUNCHERS(LAPIDARY_ENTRY)
#undef LAPIDARY_ENTRY
  };
  return &api;
}
