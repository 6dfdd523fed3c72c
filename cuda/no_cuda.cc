// The answers of a build without CUDA kernels: absence is this file, not an #ifdef elsewhere.
#include "cuda/backend.h"

#ifndef _WIN32
#include <dlfcn.h>
#endif

namespace lapidary {

namespace {

bool driver_is_installed() {
#ifdef _WIN32
  return false;
#else
  void* driver = dlopen("libcuda.so.1", RTLD_LAZY | RTLD_LOCAL);
  if (!driver) return false;
  dlclose(driver);
  return true;
#endif
}

}  // namespace

CudaStatus cuda_status() {
  return {false, "CUDA", driver_is_installed() ? "cuda: this build has no CUDA backend yet" : "cuda: no NVIDIA driver found"};
}

}  // namespace lapidary
