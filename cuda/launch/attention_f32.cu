// Launcher of attention in f32.
#include "cuda/api/launchers.h"
#include "cuda/kernels/attention_f32.cuh"
#include "cuda/primitives/launch.cuh"

namespace lapidary::cuda {

Status attention_f32(const AttentionF32Params& p, const LaunchContext& context) {
  if (const char* reason = why_not_attention_f32(p, *context.device)) return Status::refused("attention_f32", reason);
  return launch<AttentionF32Kernel>({p.tokens, p.common.num_heads, 1, 1, AttentionF32Kernel::smem_bytes(p.common.head_dim)}, p, context);
}

}  // namespace lapidary::cuda
