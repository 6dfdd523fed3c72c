// Launchers of the TMA + wgmma products (sm_90a).
#include "cuda/kernels/gemm_wgmma.cuh"
#include "cuda/launch/gemm_launch.h"
#include "cuda/launch/gemm_maps.h"

namespace lapidary::cuda {

Status gemm_int8_wgmma(const GemmInt8Params& params, const LaunchContext& context) {
  const Int8Product& p = params.product;
  return with_index<kInt8WgmmaTileCount>(params.plan.tile, [&](auto index) -> Status {
    constexpr WgmmaTile kTile = kInt8WgmmaTiles[index];
    using Kernel = GemmWgmmaKernel<Int8WgmmaElement, kTile>;
    const GemmSchedule s = make_schedule(params.plan, p.m, p.n, kTile.m, kTile.n, int8_units(p.k, 128), params.workspace);
    const int64_t tiles = static_cast<int64_t>(s.tiles_m) * s.tiles_n;
    if (const char* why =
            refuse_plan(params.plan, tiles, s.units, params.workspace_bytes, int8_split_bytes(kTile.m * kTile.n, params.plan.blocks))) {
      return Status::refused(Kernel::kName, why);
    }
    typename Kernel::Params kernel = {{}, {}, p, s};
    if (const Status status = make_operand_maps(p, p.k, kTile, params.plan.cluster, &kernel.x, &kernel.w); !status.ok()) return status;
    return launch<Kernel>({params.plan.blocks, 1, 1, params.plan.cluster, Kernel::kSmemBytes}, kernel, context);
  });
}

Status gemm_bf16_wgmma(const GemmBf16Params& params, const LaunchContext& context) {
  const Bf16Product& p = params.product;
  return with_index<kBf16WgmmaTileCount>(params.plan.tile, [&](auto index) -> Status {
    constexpr WgmmaTile kTile = kBf16WgmmaTiles[index];
    using Kernel = GemmWgmmaKernel<Bf16WgmmaElement, kTile>;
    const GemmSchedule s = make_schedule(params.plan, p.m, p.n, kTile.m, kTile.n, slice_units(p.k), params.workspace);
    const int64_t tiles = static_cast<int64_t>(s.tiles_m) * s.tiles_n;
    if (const char* why =
            refuse_plan(params.plan, tiles, s.units, params.workspace_bytes, sliced_split_bytes(kTile.m * kTile.n, tiles, s.units))) {
      return Status::refused(Kernel::kName, why);
    }
    typename Kernel::Params kernel = {{}, {}, p, s};
    if (const Status status = make_operand_maps(p, 2 * static_cast<int64_t>(p.k), kTile, params.plan.cluster, &kernel.x, &kernel.w);
        !status.ok())
      return status;
    return launch<Kernel>({params.plan.blocks, 1, 1, params.plan.cluster, Kernel::kSmemBytes}, kernel, context);
  });
}

}  // namespace lapidary::cuda
