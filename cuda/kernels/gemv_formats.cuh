// How the skinny products read one weight format: a stage of 16 rows by 128 bytes from global to shared memory, and its product with the
// rows of x.
//
// Weights are the A operand of the tensor cores (16 rows), rows of x the n8 columns: one column group for up to 8 rows of x, two for 16. A
// thread holds, with g = lane / 4 and t = lane % 4, the sums of weight rows g (e = 0, 1) and g + 8 (e = 2, 3) and x rows 2t + e % 2 of each
// group.
#pragma once

#include <type_traits>

#include "cuda/api/gemv.h"
#include "cuda/primitives/async_copy.cuh"
#include "cuda/primitives/bulk_copy.cuh"
#include "cuda/primitives/math.cuh"
#include "cuda/primitives/memory.cuh"
#include "cuda/primitives/mma.cuh"
#include "cuda/primitives/swizzle.cuh"
#include "cuda/primitives/warp.cuh"

namespace lapidary::cuda {

inline constexpr int kGemvRows = 16;         // weight rows of a row block
inline constexpr int kGemvStageBytes = 128;  // of a weight row, by cp.async
inline constexpr int kGemvQuantBytes = kGemvRows * kGemvStageBytes;
inline constexpr int kGemvBulkBytes = 256;  // of a weight row, by bulk copies
inline constexpr int kGemvBulkPitch = 272;  // 16 more: the eight rows of an ldmatrix phase stand in different banks

// The weight as the kernel sees it.
struct GemvWeight {
  const std::byte* quants;  // [n] rows of row_bytes, stride bytes apart
  const std::byte* scales;  // planes: f16 rows scale_stride bytes apart; int8: f32 [n]
  int64_t stride, scale_stride;
  int32_t n, row_bytes;
};

// Starts the copy of stage `stage` of a row block: 4 x 16 bytes per lane, whole 128-byte lines; zeros beyond the last row and the row's
// end.
LAPIDARY_DEVICE void load_quants(const GemvWeight& w, std::byte* to, int row_block, int stage) {
  const int chunk = lane() % 8, first = lane() / 8, column = stage * kGemvStageBytes + chunk * 16, row0 = row_block * kGemvRows + first;
  const std::byte* from = w.quants + row0 * w.stride + column;
  LAPIDARY_UNROLL
  for (int i = 0; i < 4; ++i) {
    const bool valid = column < w.row_bytes && row0 + 4 * i < w.n;
    copy_async_16(to + swizzled_chunk<kGemvStageBytes>(first + 4 * i, chunk), valid ? from + 4 * i * w.stride : w.quants, valid);
  }
}
// The 16 bytes of scales of each row that hold the stage's.
LAPIDARY_DEVICE void load_scales(const GemvWeight& w, std::byte* to, int row_block, int chunk) {
  const int row = row_block * kGemvRows + lane();
  if (lane() < kGemvRows) {
    const bool valid = row < w.n;
    copy_async_16(to + lane() * 16, valid ? w.scales + row * w.scale_stride + chunk * 16 : w.scales, valid);
  }
}
// Bytes 32 step .. 32 step + 31 of the stage's 16 rows as an A fragment.
LAPIDARY_DEVICE void load_fragment(uint32_t (&a)[4], const std::byte* stage, int step) {
  load_matrix_x4(a, stage + swizzled_chunk<kGemvStageBytes>(lane() % 16, 2 * step + lane() / 16));
}

// The same by bulk copies: a lane per row, counted by the stage's barrier. Rows are whole multiples of 64 bytes and n of 16.
LAPIDARY_DEVICE void load_quants_bulk(const GemvWeight& w, std::byte* to, Barrier* full, int row_block, int stage) {
  const int column = stage * kGemvBulkBytes, left = w.row_bytes - column, bytes = left < kGemvBulkBytes ? left : kGemvBulkBytes;
  if (lane() == 0) barrier_arrive_expect(full, kGemvRows * bytes);
  sync_warp();
  const int row = row_block * kGemvRows + lane();
  if (lane() < kGemvRows) bulk_load(to + lane() * kGemvBulkPitch, w.quants + row * w.stride + column, bytes, full);
}
LAPIDARY_DEVICE void load_fragment_bulk(uint32_t (&a)[4], const std::byte* stage, int step) {
  load_matrix_x4(a, stage + lane() % 16 * kGemvBulkPitch + (2 * step + lane() / 16) * 16);
}

// Where a lane finds its part of the rows of x in shared memory. Columns beyond m read row m - 1: their sums are never looked at.
template <int Groups>
struct GemvX {
  const std::byte* row[Groups];
  LAPIDARY_DEVICE GemvX(const std::byte* x, int pitch, int m, int first, int lane_offset) {
    LAPIDARY_UNROLL
    for (int j = 0; j < Groups; ++j) {
      const int r = first + 8 * j;
      row[j] = x + (r < m ? r : m - 1) * pitch + lane_offset;
    }
  }
};

// int8 and bf16: rows of quants are fragments as they stand, in the order of k; so are rows of x, 64 bytes by one ldmatrix.
template <GemvFormat Format, bool Bulk>
struct GemvNatural {
  static constexpr GemvFormat kFormat = Format;
  static constexpr bool kBulk = Bulk, kOrdered = Format == GemvFormat::bf16;
  static constexpr int kStageBytes = Bulk ? kGemvBulkBytes : kGemvStageBytes;
  using Sum = std::conditional_t<kOrdered, float, int>;

  static LAPIDARY_DEVICE void load_stage(const GemvWeight& w, std::byte* to, int row_block, int stage) {
    load_quants(w, to, row_block, stage);
  }
  template <int Groups>
  static LAPIDARY_DEVICE GemvX<Groups> x_rows(const std::byte* x, int pitch, int m) {
    return {x, pitch, m, lane() % 8, lane() / 8 * 16};
  }
  template <int Groups>
  static LAPIDARY_DEVICE void multiply(Sum (&sum)[Groups][4], const std::byte* stage, const GemvX<Groups>& x, int at, int row_bytes) {
    LAPIDARY_UNROLL
    for (int pair = 0; pair < kStageBytes / 64; ++pair) {
      if (Bulk && at * kStageBytes + pair * 64 >= row_bytes) break;  // the rest of the stage was not written
      uint32_t b[Groups][4];
      LAPIDARY_UNROLL
      for (int j = 0; j < Groups; ++j) load_matrix_x4(b[j], x.row[j] + at * kStageBytes + pair * 64);
      LAPIDARY_UNROLL
      for (int half = 0; half < 2; ++half) {
        uint32_t a[4];
        if constexpr (Bulk) {
          load_fragment_bulk(a, stage, 2 * pair + half);
        } else {
          load_fragment(a, stage, 2 * pair + half);
        }
        LAPIDARY_UNROLL
        for (int j = 0; j < Groups; ++j) {
          const uint32_t column[2] = {b[j][2 * half], b[j][2 * half + 1]};
          if constexpr (kOrdered) {
            mma_bf16(sum[j], a, column);
          } else {
            mma_s8(sum[j], a, column);
          }
        }
      }
    }
  }
};

// One block of 32: its quants (two fragments of k16, in any order of k that x follows) from zero, then times the rows' scales.
template <int Groups>
LAPIDARY_DEVICE void add_block(float (&sum)[4], const uint32_t (&low)[4], const uint32_t (&high)[4], const uint32_t (&x)[4], float d0,
                               float d1) {
  float block[4] = {0, 0, 0, 0};
  const uint32_t first[2] = {x[0], x[1]}, second[2] = {x[2], x[3]};
  mma_bf16(block, low, first);
  mma_bf16(block, high, second);
  sum[0] = fma(block[0], d0, sum[0]);
  sum[1] = fma(block[1], d0, sum[1]);
  sum[2] = fma(block[2], d1, sum[2]);
  sum[3] = fma(block[3], d1, sum[3]);
}

// Q8_0 planes. A lane's four bytes of a 16-byte chunk are elements 4t .. 4t + 3 of 16: the first two take the fragment's low k, the others
// the high.
struct GemvQ8 {
  static constexpr GemvFormat kFormat = GemvFormat::q8_0;
  static constexpr bool kBulk = false, kOrdered = true;
  using Sum = float;

  static LAPIDARY_DEVICE void load_stage(const GemvWeight& w, std::byte* to, int row_block, int stage) {
    load_quants(w, to, row_block, stage);
    load_scales(w, to + kGemvQuantBytes, row_block, stage / 2);
  }
  template <int Groups>
  static LAPIDARY_DEVICE GemvX<Groups> x_rows(const std::byte* x, int pitch, int m) {
    return {x, pitch, m, lane() / 4, lane() % 4 * 8};
  }
  // q = (128 + low seven bits) - (128 or, when negative, 256): both exact in bf16, and so is q.
  static LAPIDARY_DEVICE uint32_t widen(uint32_t two_bytes) {
    return add_bf16x2((two_bytes & 0x007f007fu) | 0x43004300u, (two_bytes & 0x00800080u) | 0xc300c300u);
  }
  static LAPIDARY_DEVICE uint32_t widen_low(uint32_t word) { return widen(byte_permute(word, 0, 0x4140)); }
  static LAPIDARY_DEVICE uint32_t widen_high(uint32_t word) { return widen(byte_permute(word, 0, 0x4342)); }

  template <int Groups>
  static LAPIDARY_DEVICE void multiply(Sum (&sum)[Groups][4], const std::byte* stage, const GemvX<Groups>& x, int at, int) {
    using Halves = Vec<Half, 4>;
    const auto* scales = reinterpret_cast<const Halves*>(stage + kGemvQuantBytes) + at % 2;
    const Halves d0 = load_shared(scales + lane() / 4 * 2), d1 = load_shared(scales + (lane() / 4 + 8) * 2);
    LAPIDARY_UNROLL
    for (int block = 0; block < 4; ++block) {
      uint32_t q[4];
      load_fragment(q, stage, block);
      const uint32_t low[4] = {widen_low(q[0]), widen_low(q[1]), widen_high(q[0]), widen_high(q[1])};
      const uint32_t high[4] = {widen_low(q[2]), widen_low(q[3]), widen_high(q[2]), widen_high(q[3])};
      LAPIDARY_UNROLL
      for (int j = 0; j < Groups; ++j) {
        const auto* from = reinterpret_cast<const U32x2*>(x.row[j] + at * 256 + block * 64);
        const U32x2 first = load_shared(from), second = load_shared(from + 4);
        const uint32_t column[4] = {first[0], first[1], second[0], second[1]};
        add_block<Groups>(sum[j], low, high, column, to_f32(d0[block]), to_f32(d1[block]));
      }
    }
  }
};

// Q4_0 planes. A lane's word of a block's 16 bytes is elements 8t .. 8t + 7 (block_planes.h).
struct GemvQ4 {
  static constexpr GemvFormat kFormat = GemvFormat::q4_0;
  static constexpr bool kBulk = false, kOrdered = true;
  using Sum = float;

  static LAPIDARY_DEVICE void load_stage(const GemvWeight& w, std::byte* to, int row_block, int stage) {
    load_quants(w, to, row_block, stage);
    load_scales(w, to + kGemvQuantBytes, row_block, stage);
  }
  template <int Groups>
  static LAPIDARY_DEVICE GemvX<Groups> x_rows(const std::byte* x, int pitch, int m) {
    return {x, pitch, m, lane() / 4, lane() % 4 * 16};
  }
  // (128 + nibble) - 136, exact in bf16.
  static LAPIDARY_DEVICE uint32_t widen(uint32_t nibbles) { return add_bf16x2((nibbles & 0x000f000fu) | 0x43004300u, 0xc308c308u); }

  template <int Groups>
  static LAPIDARY_DEVICE void multiply(Sum (&sum)[Groups][4], const std::byte* stage, const GemvX<Groups>& x, int at, int) {
    using Halves = Vec<Half, 8>;
    const auto* scales = reinterpret_cast<const Halves*>(stage + kGemvQuantBytes);
    const Halves d0 = load_shared(scales + lane() / 4), d1 = load_shared(scales + lane() / 4 + 8);
    LAPIDARY_UNROLL
    for (int pair = 0; pair < 4; ++pair) {
      uint32_t q[4];
      load_fragment(q, stage, pair);
      LAPIDARY_UNROLL
      for (int i = 0; i < 2; ++i) {
        const uint32_t top = q[2 * i], bottom = q[2 * i + 1];  // of rows g and g + 8
        const uint32_t low[4] = {widen(top), widen(bottom), widen(top >> 4), widen(bottom >> 4)};
        const uint32_t high[4] = {widen(top >> 8), widen(bottom >> 8), widen(top >> 12), widen(bottom >> 12)};
        const int block = 2 * pair + i;
        LAPIDARY_UNROLL
        for (int j = 0; j < Groups; ++j) {
          const U32x4 v = load_shared(reinterpret_cast<const U32x4*>(x.row[j] + at * 512 + block * 64));
          const uint32_t column[4] = {v[0], v[1], v[2], v[3]};
          add_block<Groups>(sum[j], low, high, column, to_f32(d0[block]), to_f32(d1[block]));
        }
      }
    }
  }
};

}  // namespace lapidary::cuda
