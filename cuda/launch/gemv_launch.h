// From params and plan to a launch of the skinny kernel: shared by its launchers. Included by .cu files alone.
#pragma once

#include "cuda/kernels/gemv_stream.cuh"

namespace lapidary::cuda {

// What does not depend on the weight's format.
template <class GemvParams>
GemvArguments gemv_arguments(const GemvParams& p, const GemvPlan& plan) {
  GemvArguments a = {};
  const auto& x = p.product;
  a.prologue = p.prologue;
  a.output = x.output;
  a.in.x = reinterpret_cast<const std::byte*>(x.x);
  a.in.stride = x.x_stride;
  a.in.m = x.m;
  a.in.k = x.k;
  a.w.n = x.n;
  auto* workspace = static_cast<std::byte*>(p.workspace);
  a.counters = reinterpret_cast<uint32_t*>(workspace);
  a.sums = reinterpret_cast<int*>(workspace + kGemvCounterBytes);
  a.slots = reinterpret_cast<float*>(workspace + kGemvZeroBytes);
  a.stages = plan.stages;
  a.units = plan.units;
  a.ring = plan.ring;
  a.slots_per_warp = plan.slots;
  a.x_pitch = static_cast<int32_t>(plan.x_stride);
  const int64_t items = plan.whole_row_blocks ? plan.row_blocks : int64_t{plan.row_blocks} * plan.units;
  a.share = static_cast<int32_t>(items / plan.blocks);
  a.extra = static_cast<int32_t>(items % plan.blocks);
  a.whole_row_blocks = plan.whole_row_blocks;
  a.shared_slots = plan.shared_slots;
  return a;
}

template <class Format>
Status launch_gemv(const GemvArguments& a, const GemvPlan& plan, const LaunchContext& context) {
  const Grid grid = {plan.blocks, 1, 1, 1, static_cast<size_t>(plan.smem_bytes)};
  return a.in.m <= 8 ? launch<GemvKernel<Format, 1>>(grid, a, context) : launch<GemvKernel<Format, 2>>(grid, a, context);
}

}  // namespace lapidary::cuda
