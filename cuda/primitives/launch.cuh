// The one way a kernel starts. A kernel is a struct:
//
//   struct RmsNormKernel {
//     using Params = RmsNormParams;                          // plain data, passed by value
//     static constexpr const char* kName = "rms_norm";       // in errors and in the table of registers and spills
//     static constexpr Needs kNeeds = Needs::sm80;
//     static constexpr int kThreads = 256, kBlocksPerSm = 2; // __launch_bounds__
//     static LAPIDARY_DEVICE void run(const Params& p, std::byte* smem);  // smem: dynamic shared memory, 1024-byte aligned
//   };
#pragma once

#include "cuda/api/status.h"
#include "cuda/primitives/platform.cuh"

#ifndef LAPIDARY_EMULATED
#include <cuda_runtime.h>

#include <atomic>
#endif

namespace lapidary::cuda {

struct Grid {
  int64_t x = 1, y = 1, z = 1;
  int cluster = 1;        // blocks of a cluster, along x
  size_t smem_bytes = 0;  // dynamic shared memory of a block
};

#ifdef LAPIDARY_EMULATED

template <class Kernel>
Status launch(const Grid& grid, const typename Kernel::Params& params, const LaunchContext& context) {
  const emulator::LaunchShape shape = {Kernel::kName,    {grid.x, grid.y, grid.z}, grid.cluster,
                                       Kernel::kThreads, grid.smem_bytes,          static_cast<int>(Kernel::kNeeds)};
  return emulator::launch(shape, context, &params, sizeof params,
                          [](const void* p, std::byte* smem) { Kernel::run(*static_cast<const typename Kernel::Params*>(p), smem); });
}

#else

template <class Kernel>
__global__ void __launch_bounds__(Kernel::kThreads, Kernel::kBlocksPerSm)
    kernel_entry(const __grid_constant__ typename Kernel::Params params) {
  if constexpr (compiled_for(Kernel::kNeeds)) {
    extern __shared__ __align__(1024) std::byte dynamic_smem[];
    Kernel::run(params, dynamic_smem);
  } else {
    __trap();  // started where its instructions do not exist: an error, never a grid that does nothing
  }
}

// Lets the kernel have all of the device's shared memory, once for each device: the limit is the function's, not the launch's, so it is
// never set to what one launch needs.
template <class Kernel>
cudaError_t raise_shared_memory_limit(const DeviceFacts& device) {
  static std::atomic<uint64_t> done{0};
  const uint64_t bit = uint64_t{1} << (device.ordinal % 64);
  if (done.load(std::memory_order_relaxed) & bit) return cudaSuccess;
  const cudaError_t e =
      cudaFuncSetAttribute(kernel_entry<Kernel>, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(device.smem_per_block));
  if (e == cudaSuccess) done.fetch_or(bit, std::memory_order_relaxed);
  return e;
}

template <class Kernel>
Status launch(const Grid& grid, const typename Kernel::Params& params, const LaunchContext& context) {
  static_assert(sizeof(typename Kernel::Params) <= 4096, "kernel parameters are limited to 4 KiB");
  if (grid.x <= 0 || grid.y <= 0 || grid.z <= 0) return {};
  if (grid.x > 0x7fffffff || grid.y > 65535 || grid.z > 65535) return Status::refused(Kernel::kName, "the grid is too large");
  const auto kernel = kernel_entry<Kernel>;
  if (grid.smem_bytes > 48 * 1024) {
    if (static_cast<int64_t>(grid.smem_bytes) > context.device->smem_per_block) {
      return Status::refused(Kernel::kName, "more shared memory than the device has");
    }
    if (const cudaError_t e = raise_shared_memory_limit<Kernel>(*context.device); e != cudaSuccess) {
      (void)cudaGetLastError();
      return Status::cuda(e, Kernel::kName, cudaGetErrorString(e));
    }
  }
  cudaLaunchConfig_t config = {};
  config.gridDim = dim3(static_cast<unsigned>(grid.x), static_cast<unsigned>(grid.y), static_cast<unsigned>(grid.z));
  config.blockDim = dim3(Kernel::kThreads);
  config.dynamicSmemBytes = grid.smem_bytes;
  config.stream = static_cast<cudaStream_t>(context.stream);
  cudaLaunchAttribute attributes[2];
  if (grid.cluster > 1) {
    attributes[config.numAttrs].id = cudaLaunchAttributeClusterDimension;
    attributes[config.numAttrs].val.clusterDim = {static_cast<unsigned>(grid.cluster), 1, 1};
    ++config.numAttrs;
  }
  if (context.dependent) {
    attributes[config.numAttrs].id = cudaLaunchAttributeProgrammaticStreamSerialization;
    attributes[config.numAttrs].val.programmaticStreamSerializationAllowed = 1;
    ++config.numAttrs;
  }
  config.attrs = attributes;
  const cudaError_t e = cudaLaunchKernelEx(&config, kernel, params);
  if (e != cudaSuccess) {
    (void)cudaGetLastError();
    return Status::cuda(e, Kernel::kName, cudaGetErrorString(e));
  }
  return {};
}

#endif

}  // namespace lapidary::cuda
