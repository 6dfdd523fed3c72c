// Launcher of the q, k, v product with finished heads.
#include "cuda/api/launchers.h"
#include "cuda/kernels/gemm_qkv.cuh"
#include "cuda/launch/gemm_launch.h"
#include "cuda/launch/gemm_maps.h"

namespace lapidary::cuda {

Status gemm_int8_qkv(const GemmInt8QkvParams& params, const LaunchContext& context) {
  constexpr const char* kName = "gemm_int8_qkv";
  const Int8Product& p = params.product;
  if (const char* why = refuse_gemm_device(*context.device)) return Status::refused(kName, why);
  if (const char* why = refuse_gemm_int8_qkv(params)) return Status::refused(kName, why);
  if (p.m == 0) return {};
  const GemmPlan plan = params.plan.tile < 0 ? plan_gemm_int8_qkv(p, *context.device) : params.plan;
  if (plan.tile != 0 || plan.split != 0) return Status::refused(kName, "no such plan");
  const auto schedule = [&](const auto& tile) {
    return make_schedule(plan, p.m, p.n, tile.m, tile.n, int8_units(p.k, static_cast<int32_t>(tile.unit_bytes())), nullptr);
  };
  if (plan.wgmma == 0) {
    const GemmSchedule s = schedule(kQkvMmaTile);
    if (const char* why = refuse_plan(plan, static_cast<int64_t>(s.tiles_m) * s.tiles_n, s.units, 0, 0)) return Status::refused(kName, why);
    return launch<GemmInt8QkvMmaKernel>({static_cast<int64_t>(s.tiles_m) * s.tiles_n, 1, 1, 1, GemmInt8QkvMmaKernel::kSmemBytes},
                                        {{p, s}, params.heads}, context);
  }
  if (!context.device->has_wgmma()) return Status::refused(kName, "wgmma is of compute capability 9.0 alone");
  const GemmSchedule s = schedule(kQkvWgmmaTile);
  if (const char* why = refuse_plan(plan, static_cast<int64_t>(s.tiles_m) * s.tiles_n, s.units, 0, 0)) return Status::refused(kName, why);
  GemmInt8QkvWgmmaKernel::Params kernel = {{{}, {}, p, s}, params.heads};
  if (const Status status = make_operand_maps(p, p.k, kQkvWgmmaTile, plan.cluster, &kernel.gemm.x, &kernel.gemm.w); !status.ok())
    return status;
  return launch<GemmInt8QkvWgmmaKernel>({plan.blocks, 1, 1, plan.cluster, GemmInt8QkvWgmmaKernel::kSmemBytes}, kernel, context);
}

}  // namespace lapidary::cuda
