// What the rest of the library may know of CUDA: whether it can be used here, and why not. No CUDA types in it.
#pragma once

#include <cstdint>
#include <memory>
#include <string>

#include "ops/ops.h"

namespace lapidary {

namespace cuda {
struct Api;
}

struct CudaStatus {
  bool available = false;
  std::string name = "CUDA";  // of the device when available
  std::string reason;         // one sentence for people when not available, else empty
  std::string architecture;   // "sm_90"; this and what follows: when available
  int ordinal = 0;            // of the device that is used: the first one that the kernels run on
  int64_t memory_bytes = 0;
};

// Opens the CUDA library on a machine that has a driver, and asks it. Makes no context on a device.
CudaStatus cuda_status();

// On the device that cuda_status() names; Error(cuda) with its reason when there is none.
std::unique_ptr<Backend> make_cuda_backend();
// On a device of a library that is open already: tests and benches.
std::unique_ptr<Backend> make_cuda_backend(const cuda::Api& api, int ordinal);

}  // namespace lapidary
