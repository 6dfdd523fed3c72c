// Opens the CUDA library, the shared object with everything that nvcc compiled, on first use. The core never links CUDA.
#pragma once

#include <string>

#include "cuda/api/api.h"

namespace lapidary::cuda {

struct Library {
  const Api* api = nullptr;
  std::string reason;  // one sentence for people when api is null
};

// The library of this process: looked for once, by whichever thread asks first, and never closed. LAPIDARY_CUDA_LIBRARY names one file and
// nothing else is tried; else it is lapidary_cuda.so in the folder of the binary that contains this code (the addon, a test program).
const Library& library();

// Opens `file` and checks that it is of this build's layout. Not remembered: for tests and tools.
Library open_library(const std::string& file);

// Whether a library's table is the one that this program was compiled with.
bool fits_this_build(const Api& api);

// The first device that the kernels run on (compute capability 8.0 and up), else the reason in `reason`.
bool find_device(const Api& api, DeviceFacts* facts, std::string* reason);

}  // namespace lapidary::cuda
