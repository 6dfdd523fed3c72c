// Launchers of the row kernel before prefill attention: QK-norm, RoPE and append; append alone.
#include "cuda/api/launchers.h"
#include "cuda/kernels/qk_rope_append.cuh"
#include "cuda/primitives/launch.cuh"

namespace lapidary::cuda {

namespace {

template <KvType Kv, bool Wide>
Status start(const QkRopeAppendParams& p, const LaunchContext& context) {
  using Kernel = QkRopeAppendKernel<Kv, Wide>;
  const int64_t warps = static_cast<int64_t>(p.tokens) * Kernel::heads_of_token(p);
  if (warps == 0) return {};
  return launch<Kernel>({ceil_div<int64_t>(warps, Kernel::kWarps)}, p, context);
}

template <KvType Kv>
Status start(const QkRopeAppendParams& p, bool wide, const LaunchContext& context) {
  return wide ? start<Kv, true>(p, context) : start<Kv, false>(p, context);
}

// Four elements at a time: every half of a head begins on 16 bytes in every f32 array. (Pages begin on 16 bytes.)
bool rows_are_wide(const QkRopeAppendParams& p) {
  const QkvRows& r = p.rows;
  uintptr_t bits = 0;
  for (const void* pointer :
       {static_cast<const void*>(r.q), static_cast<const void*>(r.k), static_cast<const void*>(r.v),
        static_cast<const void*>(r.q_norm.weight), static_cast<const void*>(r.k_norm.weight), static_cast<const void*>(r.cos),
        static_cast<const void*>(r.sin), static_cast<const void*>(r.prefix_cos), static_cast<const void*>(r.prefix_sin),
        static_cast<const void*>(p.q_out), static_cast<const void*>(p.q_prefix_out)})
    bits |= reinterpret_cast<uintptr_t>(pointer);
  return bits % 16 == 0 && r.q_stride % 4 == 0 && r.k_stride % 4 == 0 && r.v_stride % 4 == 0 && p.head_dim % 8 == 0;
}

}  // namespace

Status qk_rope_append(const QkRopeAppendParams& p, const LaunchContext& context) {
  if (const char* reason = why_not_qk_rope_append(p)) return Status::refused("qk_rope_append", reason);
  const bool wide = rows_are_wide(p);
  switch (p.kv_type) {
    case KvType::f32:
      return start<KvType::f32>(p, wide, context);
    case KvType::bf16:
      return start<KvType::bf16>(p, wide, context);
    case KvType::int8:
      return start<KvType::int8>(p, wide, context);
  }
  return Status::refused("qk_rope_append", "the cache is f32, bf16 or int8");
}

Status append_kv(const AppendKvParams& p, const LaunchContext& context) {
  if (!p.k || !p.v) return Status::refused("append_kv", "k and v must be given");
  QkRopeAppendParams all = {};
  const int64_t stride = static_cast<int64_t>(p.num_kv_heads) * p.head_dim;
  all.rows.k = p.k, all.rows.v = p.v, all.rows.k_stride = stride, all.rows.v_stride = stride;
  all.tokens = p.tokens, all.num_kv_heads = p.num_kv_heads, all.head_dim = p.head_dim;
  all.kv_type = p.kv_type, all.sequences = p.sequences, all.num_sequences = p.num_sequences;
  return qk_rope_append(all, context);
}

}  // namespace lapidary::cuda
