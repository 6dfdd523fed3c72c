// Launchers of the probes.
#include "cuda/api/launchers.h"
#include "cuda/api/probe.h"
#include "cuda/kernels/probe.cuh"
#include "cuda/primitives/launch.cuh"

namespace lapidary::cuda {

Status memory_probe(const MemoryProbeParams& p, const LaunchContext& context) {
  if (p.bytes < 0 || p.bytes % 16 != 0) return Status::refused("memory_probe", "bytes must be a multiple of 16");
  if (p.blocks <= 0) return Status::refused("memory_probe", "at least one block");
  return launch<MemoryProbeKernel>({p.blocks, 1, 1, 1, MemoryProbeKernel::kSmemBytes}, p, context);
}

Status matrix_probe(const MatrixProbeParams& p, const LaunchContext& context) {
  if (!supports_matrix_probe(p, *context.device)) return Status::refused("matrix_probe", "wgmma needs compute capability 9.0");
  switch (p.unit) {
    case MatrixUnit::mma_s8:
      return launch<MmaProbeKernel<true>>({p.blocks}, p, context);
    case MatrixUnit::mma_bf16:
      return launch<MmaProbeKernel<false>>({p.blocks}, p, context);
    case MatrixUnit::wgmma_s8:
      return launch<WgmmaProbeKernel<true>>({p.blocks, 1, 1, 1, WgmmaProbeKernel<true>::kSmemBytes}, p, context);
    case MatrixUnit::wgmma_bf16:
      return launch<WgmmaProbeKernel<false>>({p.blocks, 1, 1, 1, WgmmaProbeKernel<false>::kSmemBytes}, p, context);
  }
  return Status::refused("matrix_probe", "an unknown unit");
}

}  // namespace lapidary::cuda
