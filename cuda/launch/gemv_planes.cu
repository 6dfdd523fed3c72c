// Launcher of the skinny products over Q8_0 and Q4_0 planes.
#include "cuda/api/launchers.h"
#include "cuda/launch/gemv_launch.h"

namespace lapidary::cuda {

// Rows first .. first + count - 1 of the problem, as many as there are.
static GemvPlanesParams rows_of(const GemvPlanesParams& all, int32_t first, int32_t count) {
  GemvPlanesParams p = all;
  ProductOutput& o = p.product.output;
  const int64_t size = o.out_type == OutType::f32 ? 4 : o.out_type == OutType::bf16 ? 2 : 1;
  p.product.m = std::min(all.product.m - first, count);
  if (first == 0) return p;
  p.product.x = reinterpret_cast<const uint16_t*>(reinterpret_cast<const std::byte*>(all.product.x) + first * all.product.x_stride);
  o.out = static_cast<std::byte*>(o.out) + first * o.stride * size;
  if (o.residual) o.residual += first * o.residual_stride;
  return p;
}

Status gemv_planes(const GemvPlanesParams& all, const LaunchContext& context) {
  GemvPlan plan;
  if (const char* why = why_not_gemv_planes(all, *context.device, &plan)) return Status::refused("gemv_planes", why);
  const PlaneLayout layout = plane_layout(all.product.kind, all.product.n, all.product.k);
  for (int32_t first = 0; first < all.product.m; first += plan.rows) {
    GemvArguments a = gemv_arguments(rows_of(all, first, plan.rows), plan);
    a.in.row_bytes = all.product.k * 2;
    a.w.quants = static_cast<const std::byte*>(all.product.planes);
    a.w.scales = a.w.quants + layout.scales_offset;
    a.w.stride = layout.quant_row_bytes;
    a.w.row_bytes = static_cast<int32_t>(layout.quant_row_bytes);
    a.w.scale_stride = layout.scale_stride * 2;
    const Status s = all.product.kind == PlaneKind::q8_0 ? launch_gemv<GemvQ8>(a, plan, context) : launch_gemv<GemvQ4>(a, plan, context);
    if (!s.ok()) return s;
  }
  return {};
}

}  // namespace lapidary::cuda
