// Launchers of the skinny products over int8 and bf16 weights.
#include "cuda/api/launchers.h"
#include "cuda/launch/gemv_launch.h"

namespace lapidary::cuda {

Status gemv_int8(const GemvInt8Params& p, const LaunchContext& context) {
  GemvPlan plan;
  if (const char* why = why_not_gemv_int8(p, *context.device, &plan)) return Status::refused("gemv_int8", why);
  GemvArguments a = gemv_arguments(p, plan);
  a.in.x_scales = p.product.x_scales;
  a.in.x_scale = p.product.x_scale;
  a.in.row_bytes = p.product.k;
  a.w.quants = reinterpret_cast<const std::byte*>(p.product.w);
  a.w.scales = reinterpret_cast<const std::byte*>(p.product.w_scales);
  a.w.stride = p.product.w_stride;
  a.w.row_bytes = p.product.k;
  return plan.bulk ? launch_gemv<GemvNatural<GemvFormat::int8, true>>(a, plan, context)
                   : launch_gemv<GemvNatural<GemvFormat::int8, false>>(a, plan, context);
}

Status gemv_bf16(const GemvBf16Params& p, const LaunchContext& context) {
  GemvPlan plan;
  if (const char* why = why_not_gemv_bf16(p, *context.device, &plan)) return Status::refused("gemv_bf16", why);
  GemvArguments a = gemv_arguments(p, plan);
  a.in.row_bytes = p.product.k * 2;
  a.w.quants = reinterpret_cast<const std::byte*>(p.product.w);
  a.w.stride = p.product.w_stride;
  a.w.row_bytes = p.product.k * 2;
  return plan.bulk ? launch_gemv<GemvNatural<GemvFormat::bf16, true>>(a, plan, context)
                   : launch_gemv<GemvNatural<GemvFormat::bf16, false>>(a, plan, context);
}

}  // namespace lapidary::cuda
