// Launchers of prefill attention and of the vision tower's attention: params, choice of the instance, grid.
#include "cuda/api/launchers.h"
#include "cuda/kernels/attention_prefill.cuh"
#include "cuda/launch/attention_prefill_wgmma.h"
#include "cuda/primitives/launch.cuh"

namespace lapidary::cuda {

namespace {

// One row of a block per tile, one block per KV head. The longest tiles come first: x runs fastest.
template <class Kernel>
Status start(const PrefillParams& params, int64_t tiles, const AttentionTileShape& shape, const LaunchContext& context) {
  if (Kernel::kRows != shape.rows || Kernel::kKeys != shape.keys) return Status::refused(Kernel::kName, "no instance has this tile shape");
  return launch<Kernel>({tiles, params.num_kv_heads, 1, 1, Kernel::kSmemBytes}, params, context);
}

// head_dim, 16-row tiles a warp, warps, keys, source, blocks per SM. Two row tiles a warp halve the shared-memory reads per product; at
// head_dim 256 the output of one row tile takes 128 registers, so there is room for one.
template <KvSource Source>
Status start_paged(const PrefillParams& params, int64_t tiles, const AttentionTileShape& shape, const LaunchContext& context) {
  if (params.head_dim <= 32) return start<AttentionPrefillKernel<32, 1, 4, 64, Source, 2>>(params, tiles, shape, context);
  if (params.head_dim <= 64) return start<AttentionPrefillKernel<64, 2, 4, 64, Source, 2>>(params, tiles, shape, context);
  if (params.head_dim <= 128) {  // int8 has no registers left for the second row tile
    constexpr int kRowTiles = Source == KvSource::int8_pages ? 1 : 2;
    return start<AttentionPrefillKernel<128, kRowTiles, 8 / kRowTiles, 64, Source, 1>>(params, tiles, shape, context);
  }
  if (shape.rows == 128) return start<AttentionPrefillKernel<256, 1, 8, 64, Source, 1>>(params, tiles, shape, context);
  return start<AttentionPrefillKernel<256, 1, 4, Source == KvSource::int8_pages ? 32 : 64, Source, 1>>(params, tiles, shape, context);
}

}  // namespace

Status attention_prefill(const AttentionPrefillParams& p, const LaunchContext& context) {
  if (const char* reason = why_not_attention_prefill(p, *context.device)) return Status::refused("attention_prefill", reason);
  const AttentionCommon& c = p.common;
  const PrefillParams params = {
      .q = p.q,
      .q_prefix = p.q_prefix,
      .images = p.images,
      .tiles = p.tiles,
      .sequences = c.sequences,
      .prefix_k = c.prefix_k,
      .prefix_v = c.prefix_v,
      .k = nullptr,
      .v = nullptr,
      .out = p.out,
      .score = score_scale(c.scale, c.softcap),
      .out_inverse_scale = p.out_inverse_scale,
      .out_type = p.out_type,
      .num_heads = c.num_heads,
      .num_kv_heads = c.num_kv_heads,
      .group = c.num_heads / c.num_kv_heads,
      .head_dim = c.head_dim,
      .q_stride = c.num_heads * c.head_dim,
      .kv_stride = 0,
      .window = c.window,
      .prefix_tokens = c.prefix_tokens,
  };
  if (p.shape.wgmma) return attention_prefill_wgmma(p, params, context);
  if (c.kv_type == KvType::int8) return start_paged<KvSource::int8_pages>(params, p.num_tiles, p.shape, context);
  return start_paged<KvSource::bf16_pages>(params, p.num_tiles, p.shape, context);
}

Status attention_full(const AttentionFullParams& p, const LaunchContext& context) {
  if (const char* reason = why_not_attention_full(p, *context.device)) return Status::refused("attention_full", reason);
  const PrefillParams params = {
      .q = p.q,
      .q_prefix = nullptr,
      .images = nullptr,
      .tiles = p.tiles,
      .sequences = p.sequences,
      .prefix_k = nullptr,
      .prefix_v = nullptr,
      .k = p.k,
      .v = p.v,
      .out = p.out,
      .score = score_scale(p.scale, 0),
      .out_inverse_scale = p.out_inverse_scale,
      .out_type = p.out_type,
      .num_heads = p.num_heads,
      .num_kv_heads = p.num_heads,
      .group = 1,
      .head_dim = p.head_dim,
      .q_stride = p.q_stride,
      .kv_stride = p.kv_stride,
      .window = kNoWindow,
      .prefix_tokens = 0,
  };
  return start<AttentionPrefillKernel<80, 2, 4, 64, KvSource::full, 1>>(params, p.num_tiles, p.shape, context);
}

}  // namespace lapidary::cuda
