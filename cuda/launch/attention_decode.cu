// Launcher of decode attention: plan, choice of the instance, grid.
#include "cuda/api/launchers.h"
#include "cuda/kernels/attention_decode.cuh"
#include "cuda/primitives/launch.cuh"

namespace lapidary::cuda {

namespace {

template <int HeadDim, KvType Kv, int Columns>
Status start(const DecodeParams& p, const LaunchContext& context) {
  using Kernel = AttentionDecodeKernel<HeadDim, Kv, Columns>;
  const AttentionCommon& c = p.problem.common;
  const AttentionDecodePlan& plan = p.plan;
  return launch<Kernel>(
      {plan.splits, c.num_kv_heads * plan.row_groups, c.num_sequences, plan.cluster ? plan.splits : 1, Kernel::kSmemBytes}, p, context);
}

template <int HeadDim, KvType Kv>
Status start_columns(const DecodeParams& p, const LaunchContext& context) {
  switch (p.plan.columns) {
    case 1:
      return start<HeadDim, Kv, 1>(p, context);
    case 2:
      return start<HeadDim, Kv, 2>(p, context);
    case 4:
      return start<HeadDim, Kv, 4>(p, context);
  }
  return Status::refused("attention_decode", "no instance has this many rows");
}

template <KvType Kv>
Status start_head_dim(const DecodeParams& p, const LaunchContext& context) {
  switch (p.problem.common.head_dim) {
    case 32:
      return start_columns<32, Kv>(p, context);
    case 64:
      return start_columns<64, Kv>(p, context);
    case 128:
      return start_columns<128, Kv>(p, context);
    case 256:
      return start_columns<256, Kv>(p, context);
  }
  return Status::refused("attention_decode", "no instance has this head_dim");
}

bool aligned(const void* p) { return reinterpret_cast<uintptr_t>(p) % 16 == 0; }

// What depends on pointers; the rest is why_not_attention_decode.
const char* why_not_pointers(const AttentionDecodeParams& p, const AttentionDecodePlan& plan) {
  const QkvRows& r = p.rows;
  if (!p.q) {
    if (!r.q || !r.k || !r.v) return "without q the projections of q, k and v must be given";
    if (!r.cos != !r.sin || !r.prefix_cos != !r.prefix_sin) return "cos and sin come together";
    if (r.q_stride % 4 != 0 || r.k_stride % 4 != 0 || r.v_stride % 4 != 0) return "rows of projections must begin on 16 bytes";
    for (const float* f : {r.q, r.k, r.v, r.q_norm.weight, r.k_norm.weight, r.cos, r.sin, r.prefix_cos, r.prefix_sin})
      if (!aligned(f)) return "projections, norm weights and angles must begin on 16 bytes";
  }
  if (!aligned(p.q) || !aligned(p.q_prefix) || !aligned(p.out)) return "q, q_prefix and out must begin on 16 bytes";
  if (p.common.prefix_tokens > 0 && (!p.common.prefix_k || !p.common.prefix_v)) return "the prefix has no keys or values";
  if (p.common.prefix_tokens > 0 && (!aligned(p.common.prefix_k) || !aligned(p.common.prefix_v)))
    return "the prefix must begin on 16 bytes";
  if (!plan.cluster && plan.splits > 1 && (!p.partials || !aligned(p.partials) || !p.counters))
    return "several splits need partials (on 16 bytes) and counters";
  return nullptr;
}

}  // namespace

Status attention_decode(const AttentionDecodeParams& p, const LaunchContext& context) {
  if (const char* reason = why_not_attention_decode(p, *context.device)) return Status::refused("attention_decode", reason);
  const DecodeParams params = {p, attention_decode_plan(p, *context.device), score_scale(p.common.scale, p.common.softcap)};
  if (const char* reason = why_not_pointers(p, params.plan)) return Status::refused("attention_decode", reason);
  if (p.common.num_sequences == 0) return {};
  return p.common.kv_type == KvType::int8 ? start_head_dim<KvType::int8>(params, context) : start_head_dim<KvType::bf16>(params, context);
}

}  // namespace lapidary::cuda
