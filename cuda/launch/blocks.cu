// Launchers of the kernels over weights as they are stored: widening and embedding. One dispatch from dtype to instance.
#include "cuda/api/launchers.h"
#include "cuda/launch/blocks_dispatch.h"

namespace lapidary::cuda {

Status dequantize_blocks(const DequantizeBlocksParams& p, const LaunchContext& context) {
  if (const char* why = why_not_dequantize_blocks(p)) return Status::refused("dequantize_blocks", why);
  if (p.n == 0) return {};
  return for_table("dequantize_blocks", p.dtype, p.planes, [&](auto kind, auto type) {
    using Kernel = DequantizeBlocksKernel<kind(), type()>;
    return launch<Kernel>({ceil_div<int64_t>(p.n * p.k / kBlockGroup, Kernel::kThreads)}, p, context);
  });
}

Status embed(const EmbedParams& p, const LaunchContext& context) {
  if (const char* why = why_not_embed(p)) return Status::refused("embed", why);
  if (p.rows == 0) return {};
  return for_table("embed", p.dtype, p.planes, [&](auto kind, auto type) {
    using Kernel = EmbedKernel<kind(), type()>;
    return launch<Kernel>({p.rows, ceil_div(p.dim, Kernel::kBlockElements)}, p, context);
  });
}

}  // namespace lapidary::cuda
