// Kernels over weights of every storage kind as they stand: widening, products for few rows, embedding rows. Eight elements at a time
// (block_formats.cuh).
#pragma once

#include "cuda/api/blocks.h"
#include "cuda/kernels/block_formats.cuh"
#include "cuda/kernels/epilogues.cuh"
#include "cuda/primitives/cluster.cuh"
#include "cuda/primitives/launch.cuh"
#include "cuda/primitives/warp.cuh"

namespace lapidary::cuda {

// Of an element of the plain types; not used for blocks.
template <DType Type>
LAPIDARY_HOST_DEVICE constexpr int plain_bytes() {
  return Type == DType::f32 ? 4 : Type == DType::i8 ? 1 : 2;
}

// How a matrix [n, k] is stored.
enum class TableKind { raw, int8, q8_plane, q4_plane };

// Elements i .. i + 7 of a row. row_bytes: between rows of the plain kinds (raw blocks follow each other); planes lie as plane_layout of
// the whole matrix says.
template <TableKind Kind, DType Type>
LAPIDARY_DEVICE void widen_table(const void* matrix, const float* row_scales, int64_t n, int k, int64_t row_bytes, int64_t row, int i,
                                 Values8& v) {
  const auto* table = static_cast<const std::byte*>(matrix);
  if constexpr (Kind == TableKind::raw) {
    BlockFormat<Type>::widen(table + row * (Type >= DType::q8_0 ? block_row_bytes<Type>(k) : row_bytes), i, v);
  } else if constexpr (Kind == TableKind::int8) {
    const Bytes8 q = load_bytes8<8>(table + row * row_bytes + i);
    const float scale = load_readonly(row_scales + row);
    LAPIDARY_UNROLL
    for (int e = 0; e < 8; ++e) v[e] = static_cast<float>(static_cast<int8_t>(q[e])) * scale;
  } else {
    const int64_t quant_bytes = Kind == TableKind::q8_plane ? k : k / 2, scale_bytes = round_up(k / kPlaneBlock, 8) * 2;
    const std::byte* scales = table + round_up(n * quant_bytes, int64_t{256}) + row * scale_bytes;
    if constexpr (Kind == TableKind::q8_plane) {
      widen_q8_plane(table + row * quant_bytes, scales, i, v);
    } else {
      widen_q4_plane(table + row * quant_bytes, scales, i, v);
    }
  }
}

// A thread widens eight elements: 32 (f32) or 16 (bf16) contiguous bytes of output, lanes side by side.
template <TableKind Kind, DType Type>
struct DequantizeBlocksKernel {
  using Params = DequantizeBlocksParams;
  static constexpr const char* kName = "dequantize_blocks";
  static constexpr Needs kNeeds = Needs::sm80;
  static constexpr int kThreads = 256, kBlocksPerSm = 4;

  static LAPIDARY_DEVICE void run(const Params& p, std::byte*) {
    wait_for_previous_grids();
    allow_next_grid();
    const int64_t groups = p.k / kBlockGroup, group = static_cast<int64_t>(block_x()) * kThreads + thread_index();
    if (group >= p.n * groups) return;
    const int64_t row = group / groups;
    const int i = static_cast<int>(group - row * groups) * kBlockGroup;
    Values8 v;
    widen_table<Kind, Type>(p.blocks, p.row_scales, p.n, static_cast<int>(p.k), p.k * plain_bytes<Type>(), row, i, v);
    const int64_t at = row * p.out_stride + i;
    if (p.out_type == OutType::bf16) {
      const U32x4 pairs = {{pack_bf16(v[0], v[1]), pack_bf16(v[2], v[3]), pack_bf16(v[4], v[5]), pack_bf16(v[6], v[7])}};
      store_global(reinterpret_cast<U32x4*>(static_cast<BFloat16*>(p.out) + at), pairs);
    } else {
      auto* to = reinterpret_cast<F32x4*>(static_cast<float*>(p.out) + at);
      store_global(to, F32x4{{v[0], v[1], v[2], v[3]}});
      store_global(to + 1, F32x4{{v[4], v[5], v[6], v[7]}});
    }
  }
};

// A warp owns WeightRows rows of w and up to XRows rows of x; lane l the elements 8l .. 8l + 7 of every 256. Loads of the rows are
// independent: 32 warps per SM have 32 * WeightRows * 256 elements on their way, 18 to 32 KiB at 4.5 to 8.5 bits. x comes from L1. With
// geglu the rows are gate and up of the same channels.
template <DType Type, int XRows>
struct GemvBlocksKernel {
  using Params = GemvBlocksParams;
  static constexpr const char* kName = "gemv_blocks";
  static constexpr Needs kNeeds = Needs::sm80;
  static constexpr int kThreads = 256, kBlocksPerSm = 2;
  static constexpr int kWeightRows = XRows == 1 ? 4 : 2, kBlockRows = kThreads / kWarp * kWeightRows;

  static LAPIDARY_DEVICE void load_x(const Params& p, int row, int i, Values8& v) {
    if (p.x_type == ActType::bf16) {
      BlockFormat<DType::bf16>::widen(reinterpret_cast<const std::byte*>(static_cast<const BFloat16*>(p.x) + row * p.x_stride), i, v);
    } else {
      BlockFormat<DType::f32>::widen(reinterpret_cast<const std::byte*>(static_cast<const float*>(p.x) + row * p.x_stride), i, v);
    }
  }

  static LAPIDARY_DEVICE void run(const Params& p, std::byte*) {
    wait_for_previous_grids();
    allow_next_grid();
    const bool geglu = p.output.epilogue == Epilogue::geglu;
    const int first = (block_x() * (kThreads / kWarp) + warp()) * kWeightRows, x0 = block_y() * XRows;
    if (first >= p.n) return;
    const std::byte* rows[kWeightRows];
    LAPIDARY_UNROLL
    for (int r = 0; r < kWeightRows; ++r) {
      const int channel = (first + r) / 2;
      const int row = geglu ? channel / 8 * 16 + channel % 8 + r % 2 * 8 : first + r;
      rows[r] = static_cast<const std::byte*>(p.w) + (row < p.n ? row : p.n - 1) * block_row_bytes<Type>(p.k);
    }
    float sums[XRows][kWeightRows] = {};
    for (int i = lane() * kBlockGroup; i < p.k; i += kWarp * kBlockGroup) {
      Values8 w[kWeightRows];
      LAPIDARY_UNROLL
      for (int r = 0; r < kWeightRows; ++r) BlockFormat<Type>::widen(rows[r], i, w[r]);
      LAPIDARY_UNROLL
      for (int t = 0; t < XRows; ++t) {
        if (x0 + t < p.m) {
          Values8 x;
          load_x(p, x0 + t, i, x);
          LAPIDARY_UNROLL
          for (int r = 0; r < kWeightRows; ++r) {
            LAPIDARY_UNROLL
            for (int e = 0; e < kBlockGroup; ++e) sums[t][r] = fma(x[e], w[r][e], sums[t][r]);
          }
        }
      }
    }
    LAPIDARY_UNROLL
    for (int t = 0; t < XRows; ++t) {
      LAPIDARY_UNROLL
      for (int r = 0; r < kWeightRows; ++r) sums[t][r] = warp_reduce(sums[t][r], Sum{});
      if (lane() != 0 || x0 + t >= p.m) continue;
      LAPIDARY_UNROLL
      for (int r = 0; r < kWeightRows; ++r) {
        if (first + r >= p.n) continue;
        if (!geglu) {
          write_element(p.output, x0 + t, first + r, sums[t][r]);
        } else if (r % 2 == 0) {
          write_geglu(p.output, x0 + t, (first + r) / 2, sums[t][r], sums[t][r + 1]);
        }
      }
    }
  }
};

// A block owns 2048 elements of one row of the result.
template <TableKind Kind, DType Type>
struct EmbedKernel {
  using Params = EmbedParams;
  static constexpr const char* kName = "embed";
  static constexpr Needs kNeeds = Needs::sm80;
  static constexpr int kThreads = 256, kBlocksPerSm = 4, kBlockElements = kThreads * kBlockGroup;

  static LAPIDARY_DEVICE void run(const Params& p, std::byte*) {
    wait_for_previous_grids();
    allow_next_grid();
    const int i = (block_y() * kThreads + thread_index()) * kBlockGroup;
    if (i >= p.dim) return;
    const int64_t id = load_readonly(p.ids + block_x());
    Values8 v;
    widen_table<Kind, Type>(p.table, p.row_scales, p.vocab, p.dim, p.row_bytes, id, i, v);
    auto* to = reinterpret_cast<F32x4*>(p.out + static_cast<int64_t>(block_x()) * p.dim + i);
    store_global(to, F32x4{{v[0] * p.scale, v[1] * p.scale, v[2] * p.scale, v[3] * p.scale}});
    store_global(to + 1, F32x4{{v[4] * p.scale, v[5] * p.scale, v[6] * p.scale, v[7] * p.scale}});
  }
};

}  // namespace lapidary::cuda
