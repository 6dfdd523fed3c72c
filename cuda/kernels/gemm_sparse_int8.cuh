// int8 products with 2:4 sparse weights (mma.sp), for sm_80 and later: half the multiplications of a dense product, exact int32 sums.
//
// The sparse operand comes first in mma.sp, so a tile's rows are channels and its columns tokens. A block owns tile.n channels x tile.m
// tokens, a warp warp_n x warp_m of them. Stages of 128 k's: stored values (64 bytes a channel) and x (128 bytes a token) by cp.async into
// swizzled rows, ldmatrix into registers; metadata goes from memory straight to registers, one coalesced word a lane for each 16 channels
// and 64 k's, a stage ahead.
#pragma once

#include "cuda/api/sparse_weight.h"
#include "cuda/kernels/epilogues.cuh"
#include "cuda/kernels/gemm_schedule.cuh"
#include "cuda/primitives/async_copy.cuh"
#include "cuda/primitives/cluster.cuh"
#include "cuda/primitives/launch.cuh"
#include "cuda/primitives/mma_sparse.cuh"
#include "cuda/primitives/swizzle.cuh"

namespace lapidary::cuda {

struct GemmSparseKernelParams {
  SparseInt8Product product;
  GemmSchedule schedule;
};

template <SparseTile kTile>
struct GemmSparseInt8Kernel {
  using Params = GemmSparseKernelParams;
  static constexpr const char* kName = "gemm_sparse_int8";
  static constexpr Needs kNeeds = Needs::sm80;
  static constexpr int kThreads = kTile.threads(), kBlocksPerSm = kTile.blocks_per_sm;
  static constexpr size_t kSmemBytes = kTile.smem_bytes();

  static constexpr int kStages = kTile.stages, kStageBytes = static_cast<int>(kTile.stage_bytes());
  static constexpr int kXRowBytes = kSparseK, kWRowBytes = kSparseK / 2, kXBytes = kTile.m * kXRowBytes;
  static constexpr int kSteps = kSparseK / kSparseStepK;
  static constexpr int kStrips = kTile.warp_n / 16, kGroups = kTile.warp_m / 8;  // of a warp: of 16 channels, of 8 tokens
  static constexpr int kXRowStep = kThreads / (kXRowBytes / 16), kWRowStep = kThreads / (kWRowBytes / 16);
  static_assert(kTile.m % kXRowStep == 0 && kTile.n % kWRowStep == 0 && kXRowStep % 8 == 0 && kWRowStep % 16 == 0,
                "copies keep their swizzle from pass to pass");
  static_assert(kStages >= 3);

  struct Metadata {
    uint32_t words[kSteps][kStrips];
  };
  struct Sums {
    int v[kStrips][kGroups][4];
  };

  static LAPIDARY_DEVICE void copy_stage(const SparseInt8Product& p, const TilePlace& tile, std::byte* to, int stage) {
    {
      const int row = thread_index() / (kXRowBytes / 16), chunk = thread_index() % (kXRowBytes / 16);
      const int64_t at = static_cast<int64_t>(stage) * kXRowBytes + chunk * 16;
      const int first = tile.m * kTile.m + row;
      const int8_t* from = p.x + first * p.x_stride + at;
      LAPIDARY_UNROLL
      for (int i = 0; i < kTile.m / kXRowStep; ++i) {
        copy_async_16(to + swizzled_chunk<kXRowBytes>(row, chunk) + i * kXRowStep * kXRowBytes, from + i * (kXRowStep * p.x_stride),
                      first + i * kXRowStep < p.m && at < p.k);
      }
    }
    {
      const int row = thread_index() / (kWRowBytes / 16), chunk = thread_index() % (kWRowBytes / 16);
      const int64_t stride = round_up(p.k, kSparseK) / 2, at = static_cast<int64_t>(stage) * kWRowBytes + chunk * 16;
      const int first = tile.n * kTile.n + row;
      const int8_t* from = p.values + first * stride + at;
      LAPIDARY_UNROLL
      for (int i = 0; i < kTile.n / kWRowStep; ++i) {
        copy_async_16(to + kXBytes + swizzled_chunk<kWRowBytes>(row, chunk) + i * kWRowStep * kWRowBytes, from + i * (kWRowStep * stride),
                      first + i * kWRowStep < p.n);
      }
    }
  }

  // Of the warp's channels, which begin at `first_channel`.
  static LAPIDARY_DEVICE Metadata load_metadata(const SparseInt8Product& p, int first_channel, int stage) {
    Metadata m;
    const int steps = ceil_div(p.k, kSparseK) * kSteps;
    LAPIDARY_UNROLL
    for (int step = 0; step < kSteps; ++step) {
      LAPIDARY_UNROLL
      for (int i = 0; i < kStrips; ++i) {
        const int channel = first_channel + i * kSparseRows;
        m.words[step][i] =
            channel < p.n
                ? load_readonly(p.metadata + (static_cast<int64_t>(channel / kSparseRows) * steps + stage * kSteps + step) * 32 + lane())
                : kSparsePlaces01;
      }
    }
    return m;
  }

  static LAPIDARY_DEVICE void multiply_stage(const std::byte* stage, int warp_m, int warp_n, const Metadata& metadata, Sums& sums) {
    LAPIDARY_UNROLL
    for (int step = 0; step < kSteps; ++step) {
      uint32_t w[kStrips][4], x[kGroups][4];
      LAPIDARY_UNROLL
      for (int i = 0; i < kStrips; ++i) {
        load_matrix_x4(w[i],
                       stage + kXBytes + swizzled_chunk<kWRowBytes>(warp_n * kTile.warp_n + i * 16 + lane() % 16, step * 2 + lane() / 16));
      }
      LAPIDARY_UNROLL
      for (int j = 0; j < kGroups; ++j) {
        load_matrix_x4(x[j], stage + swizzled_chunk<kXRowBytes>(warp_m * kTile.warp_m + j * 8 + lane() % 8, step * 4 + lane() / 8));
      }
      LAPIDARY_UNROLL
      for (int i = 0; i < kStrips; ++i) {
        LAPIDARY_UNROLL
        for (int j = 0; j < kGroups; ++j) mma_sparse_s8(sums.v[i][j], w[i], x[j], metadata.words[step][i]);
      }
    }
  }

  static LAPIDARY_DEVICE void run(const Params& params, std::byte* smem) {
    const SparseInt8Product& p = params.product;
    constexpr int kWarpsM = kTile.m / kTile.warp_m;
    const int warp_m = warp() % kWarpsM, warp_n = warp() / kWarpsM;
    const TilePlace tile = tile_place(params.schedule, block_x());
    const int first_channel = tile.n * kTile.n + warp_n * kTile.warp_n;
    const int stages = ceil_div(p.k, kSparseK);
    wait_for_previous_grids();
    allow_next_grid();

    LAPIDARY_UNROLL
    for (int s = 0; s < kStages - 1; ++s) {
      if (s < stages) copy_stage(p, tile, smem + s * kStageBytes, s);
      copy_async_commit();
    }
    Metadata metadata = load_metadata(p, first_channel, 0);
    Sums sums;
    LAPIDARY_UNROLL
    for (int i = 0; i < kStrips * kGroups * 4; ++i) sums.v[i / (kGroups * 4)][i / 4 % kGroups][i % 4] = 0;
    int now = 0, next_copy = kStages - 1;
    for (int stage = 0; stage < stages; ++stage) {
      copy_async_wait<kStages - 2>();
      sync_threads();  // the stage has landed, and nobody reads the one before any more: its buffer is the next to be filled
      if (stage + kStages - 1 < stages) copy_stage(p, tile, smem + next_copy * kStageBytes, stage + kStages - 1);
      copy_async_commit();
      const Metadata current = metadata;
      if (stage + 1 < stages) metadata = load_metadata(p, first_channel, stage + 1);
      multiply_stage(smem + now * kStageBytes, warp_m, warp_n, current, sums);
      now = now + 1 == kStages ? 0 : now + 1;
      next_copy = next_copy + 1 == kStages ? 0 : next_copy + 1;
    }
    write(p, tile.m * kTile.m + warp_m * kTile.warp_m, first_channel, sums);
  }

  // The thread's accumulators: channels g (c[0], c[1]) and g + 8 (c[2], c[3]) of a strip, tokens 2t and 2t + 1 of a group. Eight
  // neighbouring channels of a token are written together.
  static LAPIDARY_DEVICE void write(const SparseInt8Product& p, int first_token, int first_channel, const Sums& sums) {
    const int g = lane() / 4, t = lane() % 4;
    LAPIDARY_UNROLL
    for (int i = 0; i < kStrips; ++i) {
      const int channel = first_channel + i * 16 + g;
      const bool has_low = channel < p.n, has_high = channel + 8 < p.n;
      float low = 0, high = 0;  // scales
      if (p.output.epilogue != Epilogue::raw) {
        if (has_low) low = load_readonly(p.w_scales + channel);
        if (has_high) high = load_readonly(p.w_scales + channel + 8);
      }
      LAPIDARY_UNROLL
      for (int j = 0; j < kGroups; ++j) {
        LAPIDARY_UNROLL
        for (int e = 0; e < 2; ++e) {
          const int token = first_token + j * 8 + 2 * t + e;
          if (token >= p.m) continue;
          const int first = sums.v[i][j][e], second = sums.v[i][j][2 + e];
          if (p.output.epilogue == Epilogue::raw) {
            int* out = static_cast<int*>(p.output.out) + token * p.output.stride + channel;
            if (has_low) store_global(out, first);
            if (has_high) store_global(out + 8, second);
            continue;
          }
          const float x_scale = p.x_scales == nullptr ? p.x_scale : load_readonly(p.x_scales + token);
          if (p.output.epilogue == Epilogue::geglu) {
            if (has_high)
              write_geglu(p.output, token, (first_channel + i * 16) / 2 + g, scale_sum(first, x_scale, low),
                          scale_sum(second, x_scale, high));
            continue;
          }
          if (has_low) write_element(p.output, token, channel, scale_sum(first, x_scale, low));
          if (has_high) write_element(p.output, token, channel + 8, scale_sum(second, x_scale, high));
        }
      }
    }
  }
};

}  // namespace lapidary::cuda
