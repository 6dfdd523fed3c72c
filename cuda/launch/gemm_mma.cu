// Launchers of the mma.sync products.
#include "cuda/kernels/gemm_mma.cuh"
#include "cuda/launch/gemm_launch.h"

namespace lapidary::cuda {

Status gemm_int8_mma(const GemmInt8Params& params, const LaunchContext& context) {
  const Int8Product& p = params.product;
  return with_index<kInt8MmaTileCount>(params.plan.tile, [&](auto index) -> Status {
    constexpr MmaTile kTile = kInt8MmaTiles[index];
    using Kernel = GemmMmaKernel<Int8Element, kTile>;
    if (params.plan.split != 0 && !kTile.may_split) return Status::refused(Kernel::kName, "this tile does not split k");
    const GemmSchedule s = make_schedule(params.plan, p.m, p.n, kTile.m, kTile.n, int8_units(p.k, kTile.k_bytes), params.workspace);
    const int64_t tiles = static_cast<int64_t>(s.tiles_m) * s.tiles_n;
    if (const char* why =
            refuse_plan(params.plan, tiles, s.units, params.workspace_bytes, int8_split_bytes(kTile.m * kTile.n, params.plan.blocks))) {
      return Status::refused(Kernel::kName, why);
    }
    return launch<Kernel>({params.plan.blocks, 1, 1, 1, Kernel::kSmemBytes}, {p, s}, context);
  });
}

Status gemm_bf16_mma(const GemmBf16Params& params, const LaunchContext& context) {
  const Bf16Product& p = params.product;
  return with_index<kBf16MmaTileCount>(params.plan.tile, [&](auto index) -> Status {
    constexpr MmaTile kTile = kBf16MmaTiles[index];
    using Kernel = GemmMmaKernel<Bf16Element, kTile>;
    if (params.plan.split != 0 && !kTile.may_split) return Status::refused(Kernel::kName, "this tile does not split k");
    const GemmSchedule s = make_schedule(params.plan, p.m, p.n, kTile.m, kTile.n, slice_units(p.k), params.workspace);
    const int64_t tiles = static_cast<int64_t>(s.tiles_m) * s.tiles_n;
    if (const char* why =
            refuse_plan(params.plan, tiles, s.units, params.workspace_bytes, sliced_split_bytes(kTile.m * kTile.n, tiles, s.units))) {
      return Status::refused(Kernel::kName, why);
    }
    return launch<Kernel>({params.plan.blocks, 1, 1, 1, Kernel::kSmemBytes}, {p, s}, context);
  });
}

}  // namespace lapidary::cuda
