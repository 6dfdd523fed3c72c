// All that the CUDA library offers, as one table of functions: the seam between what nvcc compiles (kernels, launchers) and what the host
// compiler does (backend, tests, benches). The library is a shared object of its own, opened on first use; in the emulated build the same
// launchers are linked in and the table comes from emulated_api().
#pragma once

#include "cuda/api/device_api.h"
#include "cuda/api/launchers.h"

namespace lapidary::cuda {

inline constexpr uint32_t kApiVersion = 1;  // raised when the meaning of something that crosses the seam changes

// FNV-1a over the launchers' names and the sizes of all structs that cross the seam: it differs when one of them changes, with no one to
// remember it.
constexpr uint64_t api_layout() {
  uint64_t hash = 14695981039346656037u;
  const auto mix = [&](uint64_t v) { hash = (hash ^ v) * 1099511628211u; };
  for (const uint64_t size : {sizeof(DeviceApi), sizeof(DeviceFacts), sizeof(LaunchContext), sizeof(Status)}) mix(size);
#define LAPIDARY_MIX(name, Params)                                          \
  for (const char* c = #name; *c; ++c) mix(static_cast<unsigned char>(*c)); \
  mix(sizeof(Params));
  LAPIDARY_LAUNCHERS(LAPIDARY_MIX)
#undef LAPIDARY_MIX
  return hash;
}
inline constexpr uint64_t kApiLayout = api_layout();

struct Api {
  uint32_t version = kApiVersion;
  uint32_t bytes = 0;   // sizeof(Api) of the library
  uint64_t layout = 0;  // kApiLayout of the library
  DeviceApi device;
#define LAPIDARY_DECLARE(name, Params) Status (*name)(const Params& params, const LaunchContext& context);
  LAPIDARY_LAUNCHERS(LAPIDARY_DECLARE)
#undef LAPIDARY_DECLARE
};

}  // namespace lapidary::cuda

// The one symbol that the shared object exports.
extern "C" const lapidary::cuda::Api* lapidary_cuda_api();
