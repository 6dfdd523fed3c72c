// Launcher of the products for few rows straight from stored blocks.
#include "cuda/api/launchers.h"
#include "cuda/launch/blocks_dispatch.h"

namespace lapidary::cuda {

Status gemv_blocks(const GemvBlocksParams& p, const LaunchContext& context) {
  if (const char* why = why_not_gemv_blocks(p)) return Status::refused("gemv_blocks", why);
  return for_weight_type("gemv_blocks", p.dtype, [&](auto type) {
    const auto start = [&](auto x_rows) {
      using Kernel = GemvBlocksKernel<type(), x_rows()>;
      return launch<Kernel>({ceil_div(p.n, Kernel::kBlockRows), ceil_div<int64_t>(p.m, x_rows())}, p, context);
    };
    return p.m == 1 ? start(std::integral_constant<int, 1>()) : start(std::integral_constant<int, 8>());
  });
}

}  // namespace lapidary::cuda
