// Shared by the launchers of tiled products: a kernel of a table by its index, and the schedule of a plan.
#pragma once

#include <utility>

#include "cuda/api/gemm_plan.h"
#include "cuda/primitives/launch.cuh"

namespace lapidary::cuda {

// Calls f(std::integral_constant<int, i>) for i == index; `index` is in [0, Count).
template <int Count, class F>
Status with_index(int index, F f) {
  Status status = Status::refused("gemm", "no such tile");
  [&]<int... I>(std::integer_sequence<int, I...>) {
    (void)((I == index ? (status = f(std::integral_constant<int, I>{}), true) : false) || ...);
  }(std::make_integer_sequence<int, Count>{});
  return status;
}

// The schedule of a plan whose tiles are tile_m x tile_n and whose k makes `units`; counters and parts from the workspace when it splits.
inline GemmSchedule make_schedule(const GemmPlan& plan, int64_t m, int64_t n, int tile_m, int tile_n, int32_t units, void* workspace) {
  GemmSchedule s;
  s.tiles_m = static_cast<int32_t>(gemm_ceil_div(m, int64_t{tile_m} * plan.cluster));  // of a cluster
  s.tiles_n = static_cast<int32_t>(gemm_ceil_div(n, tile_n));
  s.group_m = plan.group_m;
  s.units = units;
  s.split = plan.split;
  s.counters = static_cast<int32_t*>(workspace);
  s.parts = workspace == nullptr ? nullptr : static_cast<std::byte*>(workspace) + kCounterBytes;
  return s;
}

// One path each; the plan is made, the product checked.
Status gemm_int8_mma(const GemmInt8Params& params, const LaunchContext& context);
Status gemm_bf16_mma(const GemmBf16Params& params, const LaunchContext& context);
Status gemm_int8_wgmma(const GemmInt8Params& params, const LaunchContext& context);
Status gemm_bf16_wgmma(const GemmBf16Params& params, const LaunchContext& context);

// Why a plan with `tiles` tiles cannot run; null: it can.
inline const char* refuse_plan(const GemmPlan& plan, int64_t tiles, int64_t units, int64_t workspace_bytes, int64_t wanted_bytes) {
  if (plan.blocks <= 0 || plan.group_m <= 0) return "the plan has no blocks";
  if (plan.cluster != 1 && (plan.cluster != 2 || plan.wgmma == 0 || plan.split != 0 || plan.blocks % 2 != 0))
    return "clusters are pairs of unsplit wgmma blocks";
  if (tiles * units > 0x7fffffff) return "too many tiles";
  if (plan.split == 0) return nullptr;
  if (tiles > kMaxSplitTiles) return "too many tiles to split";
  if (plan.blocks > tiles * units) return "more blocks than parts";
  if (workspace_bytes < wanted_bytes) return "the workspace is too small for this split";
  return nullptr;
}

}  // namespace lapidary::cuda
