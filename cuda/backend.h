// What the rest of the library may know of CUDA: whether it can be used here, and why not. No CUDA types in it.
#pragma once

#include <string>

namespace lapidary {

struct CudaStatus {
  bool available = false;
  std::string name;    // of the device, or "CUDA"
  std::string reason;  // one sentence for people when not available, else empty
};

// Cheap: never loads more than the driver's library.
CudaStatus cuda_status();

}  // namespace lapidary
