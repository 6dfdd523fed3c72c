// Launcher of the 2:4 sparse int8 product.
#include "cuda/api/launchers.h"
#include "cuda/kernels/gemm_sparse_int8.cuh"
#include "cuda/launch/gemm_launch.h"

namespace lapidary::cuda {

Status gemm_sparse_int8(const GemmSparseInt8Params& params, const LaunchContext& context) {
  constexpr const char* kName = "gemm_sparse_int8";
  const SparseInt8Product& p = params.product;
  if (const char* why = refuse_gemm_device(*context.device)) return Status::refused(kName, why);
  if (const char* why = refuse_gemm_sparse_int8(p)) return Status::refused(kName, why);
  if (p.m == 0 || p.n == 0) return {};
  const GemmPlan plan = params.plan.tile < 0 ? plan_gemm_sparse_int8(p, *context.device) : params.plan;
  if (plan.split != 0 || plan.wgmma != 0) return Status::refused(kName, "no such plan");
  return with_index<kSparseTileCount>(plan.tile, [&](auto index) -> Status {
    constexpr SparseTile kTile = kSparseTiles[index];
    using Kernel = GemmSparseInt8Kernel<kTile>;
    const GemmSchedule s = make_schedule(plan, p.m, p.n, kTile.m, kTile.n, int8_units(p.k, kSparseK), nullptr);
    const int64_t tiles = static_cast<int64_t>(s.tiles_m) * s.tiles_n;
    if (const char* why = refuse_plan(plan, tiles, s.units, 0, 0)) return Status::refused(kName, why);
    return launch<Kernel>({tiles, 1, 1, 1, Kernel::kSmemBytes}, {p, s}, context);
  });
}

}  // namespace lapidary::cuda
