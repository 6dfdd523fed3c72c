#include "cuda/loader.h"

#include <cstdlib>
#include <filesystem>
#include <system_error>

#include "cuda/backend.h"

#ifndef _WIN32
#include <dlfcn.h>
#endif

namespace lapidary {

namespace cuda {

namespace {

constexpr const char* kNoLibrary = "cuda: this build has no CUDA library (npm run build:cuda)";

#ifndef _WIN32

// The folder of the shared object or program that this function was linked into; empty when the system does not tell.
std::filesystem::path own_folder() {
  std::error_code ignored;
  Dl_info info = {};
  if (dladdr(reinterpret_cast<const void*>(&own_folder), &info) && info.dli_fname) {
    const std::filesystem::path file = info.dli_fname;
    if (file.is_absolute()) return file.parent_path();
  }
  return std::filesystem::read_symlink("/proc/self/exe", ignored).parent_path();  // a program started by a relative name
}

bool driver_is_installed() {
  void* driver = dlopen("libcuda.so.1", RTLD_LAZY | RTLD_LOCAL);
  if (!driver) return false;
  dlclose(driver);
  return true;
}

#endif

Library find_library() {
#ifdef _WIN32
  return {nullptr, "cuda: not supported on Windows yet"};
#else
  if (const char* named = std::getenv("LAPIDARY_CUDA_LIBRARY"); named && *named) return open_library(named);
  if (!driver_is_installed()) return {nullptr, "cuda: no NVIDIA driver found"};
  const std::filesystem::path file = own_folder() / "lapidary_cuda.so";
  std::error_code ignored;
  if (!std::filesystem::exists(file, ignored)) return {nullptr, kNoLibrary};
  return open_library(file.string());
#endif
}

}  // namespace

Library open_library(const std::string& file) {
#ifdef _WIN32
  return {nullptr, "cuda: not supported on Windows yet"};
#else
  void* handle = dlopen(file.c_str(), RTLD_NOW | RTLD_LOCAL);
  if (!handle) {
    const char* said = dlerror();
    return {nullptr, "cuda: the CUDA library cannot be loaded: " + std::string(said ? said : file)};
  }
  const auto entry = reinterpret_cast<const Api* (*)()>(dlsym(handle, "lapidary_cuda_api"));
  const Api* api = entry ? entry() : nullptr;
  if (!api) {
    dlclose(handle);
    return {nullptr, "cuda: " + file + " is not a CUDA library of lapidary"};
  }
  if (!fits_this_build(*api)) {
    dlclose(handle);
    return {nullptr, "cuda: " + file + " was built from other sources than this program (npm run build:cuda)"};
  }
  return {api, ""};
#endif
}

// These three come first in every version of the struct.
bool fits_this_build(const Api& api) { return api.version == kApiVersion && api.bytes == sizeof(Api) && api.layout == kApiLayout; }

const Library& library() {
  static const Library found = find_library();
  return found;
}

bool find_device(const Api& api, DeviceFacts* facts, std::string* reason) {
  const auto refuse = [&](std::string text) {
    *reason = "cuda: " + std::move(text);
    return false;
  };
  int count = 0;
  if (const Status s = api.device.device_count(&count); !s.ok()) return refuse(s.what);
  if (count == 0) return refuse("no NVIDIA GPU found");
  for (int ordinal = 0; ordinal < count; ++ordinal) {
    if (const Status s = api.device.device_facts(ordinal, facts); !s.ok()) return refuse(s.what);
    if (facts->major >= 8) return true;
  }
  return refuse(std::string(facts->name) + " has compute capability " + std::to_string(facts->major) + "." + std::to_string(facts->minor) +
                "; 8.0 or newer is needed");
}

}  // namespace cuda

CudaStatus cuda_status() {
  CudaStatus status;
  const cuda::Library& library = cuda::library();
  cuda::DeviceFacts facts;
  if (!library.api) {
    status.reason = library.reason;
  } else if (cuda::find_device(*library.api, &facts, &status.reason)) {
    status.available = true;
    status.name = facts.name;
    status.ordinal = facts.ordinal;
    status.architecture = "sm_" + std::to_string(facts.major) + std::to_string(facts.minor);
    status.memory_bytes = facts.memory_bytes;
  }
  return status;
}

}  // namespace lapidary
