// Launcher of the f32 products.
#include "cuda/api/launchers.h"
#include "cuda/kernels/gemm_f32.cuh"
#include "cuda/launch/gemm_launch.h"

namespace lapidary::cuda {

namespace {

template <WeightType kType>
Status start(const GemmF32Params& params, const GemmPlan& plan, const LaunchContext& context) {
  const F32Product& p = params.product;
  return with_index<kF32TileCount>(plan.tile, [&](auto index) -> Status {
    constexpr F32Tile kTile = kF32Tiles[index];
    using Kernel = GemmF32Kernel<kType, kTile>;
    const GemmSchedule s = make_schedule(plan, p.m, p.n, kTile.m, kTile.n, slice_units(p.k), params.workspace);
    const int64_t tiles = static_cast<int64_t>(s.tiles_m) * s.tiles_n;
    if (const char* why =
            refuse_plan(plan, tiles, s.units, params.workspace_bytes, sliced_split_bytes(kTile.m * kTile.n, tiles, s.units))) {
      return Status::refused(Kernel::kName, why);
    }
    return launch<Kernel>({plan.blocks, 1, 1, 1, Kernel::kSmemBytes}, {p, s}, context);
  });
}

}  // namespace

Status gemm_f32(const GemmF32Params& params, const LaunchContext& context) {
  const F32Product& p = params.product;
  if (const char* why = refuse_f32_product(p)) return Status::refused("gemm_f32", why);
  if (p.m == 0 || p.n == 0) return {};
  GemmPlan plan = params.plan;
  if (plan.tile < 0) {
    plan = plan_gemm_f32(p, *context.device, true);
    if (params.workspace_bytes < gemm_f32_workspace_bytes(plan, p)) plan = plan_gemm_f32(p, *context.device, false);
  }
  switch (p.w_type) {
    case WeightType::f32:
      return start<WeightType::f32>(params, plan, context);
    case WeightType::bf16:
      return start<WeightType::bf16>(params, plan, context);
    case WeightType::f16:
      return start<WeightType::f16>(params, plan, context);
  }
  return Status::refused("gemm_f32", "weights are f32, bf16 or f16");
}

}  // namespace lapidary::cuda
