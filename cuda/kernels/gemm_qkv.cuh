// int8 q, k, v products with the heads finished in the epilogue: scaled f32 sums go through shared memory to one warp per head, which does
// what the qk_rope_append kernel does, by the same functions and so to the same bits. A tile is 256 columns: one, two or four whole heads.
#pragma once

#include "cuda/api/gemm_qkv.h"
#include "cuda/kernels/gemm_mma.cuh"
#include "cuda/kernels/gemm_wgmma.cuh"
#include "cuda/kernels/qk_rope_append.cuh"

namespace lapidary::cuda {

// One head of one token, by a whole warp. `index` counts q heads, then k heads, then v heads.
LAPIDARY_DEVICE void finish_head(const QkRopeAppendParams& p, const float* staged, int token, int index) {
  const HeadRow<true> row = HeadRow<true>::load_staged(staged, p.head_dim);
  if (index < p.num_heads) {
    QkRopeAppendKernel<KvType::bf16, true>::finish_query(p, row, token, index);
    return;
  }
  const TokenPlace place = place_of_token(p.sequences, p.num_sequences, token);
  if (!place.found) return;
  const int kv = index - p.num_heads;
  const bool value = kv >= p.num_kv_heads;
  if (p.kv_type == KvType::bf16) {
    QkRopeAppendKernel<KvType::bf16, true>::finish_append(p, row, place, token, value ? kv - p.num_kv_heads : kv, value);
  } else {
    QkRopeAppendKernel<KvType::int8, true>::finish_append(p, row, place, token, value ? kv - p.num_kv_heads : kv, value);
  }
}

// Stages one row in eight columns a group: the thread's accumulators of `half` (row g or g + 8 of the strip) go to `row`.
template <int Groups, class Sums>
LAPIDARY_DEVICE void stage_row(const Int8Product& p, const Int8Scaling& scaling, int half, int column0, float* row, const Sums& sum) {
  const int t = lane() % 4;
  LAPIDARY_UNROLL
  for (int j = 0; j < Groups; ++j) {
    const F32x2 scales = scaling.columns(column0 + j * 8 + 2 * t, p.n);
    store_shared(reinterpret_cast<F32x2*>(row + j * 8 + 2 * t),
                 F32x2{{scaling.apply(sum(j, 2 * half), half, scales[0]), scaling.apply(sum(j, 2 * half + 1), half, scales[1])}});
  }
}

struct GemmInt8QkvKernelParams {
  GemmParams<Int8Product> gemm;
  QkRopeAppendParams heads;
};

// mma.sync: a block owns 64 tokens x 256 columns; after the main loop 32 rows at a time pass through the stages' memory.
struct GemmInt8QkvMmaKernel {
  using Gemm = GemmMmaKernel<Int8Element, kQkvMmaTile>;
  using Params = GemmInt8QkvKernelParams;
  static constexpr const char* kName = "gemm_int8_qkv_mma";
  static constexpr Needs kNeeds = Needs::sm80;
  static constexpr int kThreads = Gemm::kThreads, kBlocksPerSm = 1;
  static constexpr size_t kSmemBytes = Gemm::kSmemBytes;
  static constexpr int kWarps = kThreads / kWarp, kWarpsM = kQkvMmaTile.m / kQkvMmaTile.warp_m;
  static constexpr int kPassRows = 16 * kWarpsM;
  static_assert(kPassRows * kQkvRowFloats * 4 <= kQkvMmaTile.stages * Gemm::kStageBytes);

  static LAPIDARY_DEVICE void run(const Params& params, std::byte* smem) {
    const Int8Product& p = params.gemm.product;
    const QkRopeAppendParams& heads = params.heads;
    const int warp_m = warp() % kWarpsM, warp_n = warp() / kWarpsM;
    wait_for_previous_grids();
    allow_next_grid();
    int acc[Gemm::kStrips][Gemm::kGroups][4];
    Gemm::compute(p, params.gemm.schedule, {block_x(), 0, params.gemm.schedule.units, 0}, typename Gemm::Reader(warp_m, warp_n), smem, acc);
    const TilePlace tile = tile_place(params.gemm.schedule, block_x());
    const int row0 = tile.m * kQkvMmaTile.m, column0 = tile.n * kQkvMmaTile.n;
    const int heads_of_tile = kQkvMmaTile.n / heads.head_dim, first_head = column0 / heads.head_dim;
    float* staged = reinterpret_cast<float*>(smem);
    LAPIDARY_UNROLL
    for (int i = 0; i < Gemm::kStrips; ++i) {
      const int strip0 = row0 + warp_m * kQkvMmaTile.warp_m + i * 16;
      const Int8Scaling scaling(p, strip0);
      sync_threads();  // nobody reads the last stage, or the rows before, any more
      LAPIDARY_UNROLL
      for (int half = 0; half < 2; ++half) {
        stage_row<Gemm::kGroups>(p, scaling, half, column0 + warp_n * kQkvMmaTile.warp_n,
                                 staged + (warp_m * 16 + lane() / 4 + 8 * half) * kQkvRowFloats + warp_n * kQkvMmaTile.warp_n,
                                 [&](int j, int e) { return acc[i][j][e]; });
      }
      sync_threads();
      for (int task = warp(); task < kPassRows * heads_of_tile; task += kWarps) {
        const int row = task / heads_of_tile, head = task % heads_of_tile;
        const int token = row0 + row / 16 * kQkvMmaTile.warp_m + i * 16 + row % 16, column = column0 + head * heads.head_dim;
        if (token < p.m && column < p.n) finish_head(heads, staged + row * kQkvRowFloats + head * heads.head_dim, token, first_head + head);
      }
    }
  }
};

struct GemmInt8QkvTmaParams {
  GemmTmaParams<Int8Product> gemm;
  QkRopeAppendParams heads;
};

// wgmma: a consumer warp owns 16 tokens x 256 columns, so it finishes its heads alone, eight tokens at a time, in memory of its own: the
// producer goes on loading the next tile.
struct GemmInt8QkvWgmmaKernel {
  using Gemm = GemmWgmmaKernel<Int8WgmmaElement, kQkvWgmmaTile>;
  using Params = GemmInt8QkvTmaParams;
  static constexpr const char* kName = "gemm_int8_qkv_wgmma";
  static constexpr Needs kNeeds = Needs::sm90a;
  static constexpr int kThreads = Gemm::kThreads, kBlocksPerSm = 1;
  static constexpr size_t kStagingAt = round_up<size_t>(Gemm::kSmemBytes, 128);
  static constexpr size_t kSmemBytes = kStagingAt + kQkvStagingBytes;
  static_assert(kSmemBytes <= 227 * 1024);

  static LAPIDARY_DEVICE void run(const Params& params, std::byte* smem) {
    Gemm::run_roles(params.gemm, smem, [&](const TilePlace& tile, int group, const int(&sums)[Gemm::kRegisters]) {
      const Int8Product& p = params.gemm.product;
      const QkRopeAppendParams& heads = params.heads;
      float* staged = reinterpret_cast<float*>(smem + kStagingAt) + warp() * 8 * kQkvRowFloats;
      const int row0 = tile.m * kQkvWgmmaTile.m + group * 64 + warp() % 4 * 16, column0 = tile.n * kQkvWgmmaTile.n;
      const int heads_of_tile = kQkvWgmmaTile.n / heads.head_dim, first_head = column0 / heads.head_dim;
      const Int8Scaling scaling(p, row0);
      LAPIDARY_UNROLL
      for (int half = 0; half < 2; ++half) {
        sync_warp();  // the rows before are read
        stage_row<Gemm::kGroups>(p, scaling, half, column0, staged + lane() / 4 * kQkvRowFloats,
                                 [&](int j, int e) { return sums[4 * j + e]; });
        sync_warp();
        for (int task = 0; task < 8 * heads_of_tile; ++task) {
          const int row = task / heads_of_tile, head = task % heads_of_tile, token = row0 + 8 * half + row;
          if (token < p.m && column0 + head * heads.head_dim < p.n)
            finish_head(heads, staged + row * kQkvRowFloats + head * heads.head_dim, token, first_head + head);
        }
      }
    });
  }
};

}  // namespace lapidary::cuda
