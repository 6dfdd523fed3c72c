// The tiled matrix products: checks, and the choice of kernel.
#include "cuda/api/launchers.h"
#include "cuda/launch/gemm_launch.h"

namespace lapidary::cuda {

Status gemm_int8(const GemmInt8Params& params, const LaunchContext& context) {
  if (const char* why = refuse_gemm_device(*context.device)) return Status::refused("gemm_int8", why);
  if (const char* why = refuse_int8_product(params.product)) return Status::refused("gemm_int8", why);
  if (params.product.m == 0 || params.product.n == 0) return {};
  GemmInt8Params planned = params;
  if (params.plan.tile < 0) {
    planned.plan = plan_gemm_int8(params.product, *context.device, true);
    if (params.workspace_bytes < gemm_int8_workspace_bytes(planned.plan, params.product)) {
      planned.plan = plan_gemm_int8(params.product, *context.device, false);
    }
  }
  if (planned.plan.wgmma == 0) return gemm_int8_mma(planned, context);
  return context.device->has_wgmma() ? gemm_int8_wgmma(planned, context)
                                     : Status::refused("gemm_int8", "wgmma is of compute capability 9.0 alone");
}

Status gemm_bf16(const GemmBf16Params& params, const LaunchContext& context) {
  if (const char* why = refuse_gemm_device(*context.device)) return Status::refused("gemm_bf16", why);
  if (const char* why = refuse_bf16_product(params.product)) return Status::refused("gemm_bf16", why);
  if (params.product.m == 0 || params.product.n == 0) return {};
  GemmBf16Params planned = params;
  if (params.plan.tile < 0) {
    planned.plan = plan_gemm_bf16(params.product, *context.device, true);
    if (params.workspace_bytes < gemm_bf16_workspace_bytes(planned.plan, params.product)) {
      planned.plan = plan_gemm_bf16(params.product, *context.device, false);
    }
  }
  if (planned.plan.wgmma == 0) return gemm_bf16_mma(planned, context);
  return context.device->has_wgmma() ? gemm_bf16_wgmma(planned, context)
                                     : Status::refused("gemm_bf16", "wgmma is of compute capability 9.0 alone");
}

}  // namespace lapidary::cuda
