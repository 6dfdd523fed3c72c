// The sm_90a path of prefill attention: tensor maps over the pool of pages and over the prefix, then the instance of the head_dim.
#include "cuda/kernels/attention_prefill_wgmma.cuh"
#include "cuda/launch/attention_prefill_wgmma.h"
#include "cuda/launch/tensor_map.h"
#include "cuda/primitives/launch.cuh"

namespace lapidary::cuda {

namespace {

// Rows of head_dim bf16, read in boxes of 64 rows and 64 columns.
Status map_rows(TensorMap* map, const void* base, int64_t rows, int64_t head_dim) {
  return make_tensor_map(map, matrix_map(base, TensorMapSpec::Type::bf16, rows, head_dim, head_dim * 2, 64, 64, Swizzle::bytes128));
}

}  // namespace

Status attention_prefill_wgmma(const AttentionPrefillParams& p, const PrefillParams& prefill, const LaunchContext& context) {
  PrefillWgmmaParams params = {};
  params.prefill = prefill;
  params.pool = static_cast<const std::byte*>(p.pool);
  const AttentionCommon& c = p.common;
  if (Status s = map_rows(&params.pages, p.pool, p.pool_bytes / (c.head_dim * 2), c.head_dim); !s.ok()) return s;
  if (c.prefix_tokens > 0) {
    const int64_t rows = static_cast<int64_t>(c.num_kv_heads) * c.prefix_tokens;
    if (Status s = map_rows(&params.prefix_k, c.prefix_k, rows, c.head_dim); !s.ok()) return s;
    if (Status s = map_rows(&params.prefix_v, c.prefix_v, rows, c.head_dim); !s.ok()) return s;
  }
  const auto start = [&]<class Kernel>(Kernel) {
    return launch<Kernel>({p.num_tiles, c.num_kv_heads, 1, 1, Kernel::kSmemBytes}, params, context);
  };
  if (c.head_dim == 128) return start(AttentionPrefillWgmmaKernel<128>{});
  return start(AttentionPrefillWgmmaKernel<256>{});
}

}  // namespace lapidary::cuda
