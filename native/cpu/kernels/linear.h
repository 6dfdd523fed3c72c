// Matrix products over V. Part of kernels/impl.h.
//
// dot16, the one order of every dot product: element i is multiplied and added with one rounding into lane i % 16, i ascending,
// the last vector filled up with zeros; then the lanes are summed by the tree of reduce_add. The tiles below only decide how
// many such sums are in flight, never their order.
#pragma once

#include "cpu/kernels/blocks.h"
#include "cpu/kernels/math.h"

namespace lapidary::cpu {
namespace {

// Storage formats that the inner loop reads directly. kStep elements at a time into kStep / 16 vectors; block rows are whole blocks.
struct LoadF32 {
  using Element = float;
  static constexpr int kBits = 32;
  static constexpr int kStep = 16;
  static LAPIDARY_INLINE void read(const uint8_t* row, int64_t i, V* w) { w[0] = load(row + i * 4); }
  static LAPIDARY_INLINE V read_part(const uint8_t* row, int64_t i, int64_t n) { return load_part(row + i * 4, n); }
};

template <V (*kLoad)(const void*)>
struct LoadHalf {
  using Element = uint16_t;
  static constexpr int kBits = 16;
  static constexpr int kStep = 16;
  static LAPIDARY_INLINE void read(const uint8_t* row, int64_t i, V* w) { w[0] = kLoad(row + i * 2); }
  static LAPIDARY_INLINE V read_part(const uint8_t* row, int64_t i, int64_t n) {
    uint16_t lanes[16] = {};
    std::memcpy(lanes, row + i * 2, static_cast<size_t>(n) * 2);
    return kLoad(lanes);
  }
};
using LoadBf16 = LoadHalf<load_bf16>;
using LoadF16 = LoadHalf<load_f16>;

LAPIDARY_INLINE V load_scale(const uint8_t* d) {
  uint16_t bits;
  std::memcpy(&bits, d, 2);
  return set1(f16_to_f32(bits));
}

struct LoadQ8_0 {
  static constexpr int kBits = 9;  // 34 bytes in 32 elements, about
  static constexpr int kStep = 32;
  static LAPIDARY_INLINE void read(const uint8_t* row, int64_t i, V* w) {
    const uint8_t* block = row + i / 32 * 34;
    const V d = load_scale(block);
    w[0] = mul(d, load_i8(block + 2));
    w[1] = mul(d, load_i8(block + 18));
  }
  static LAPIDARY_INLINE V read_part(const uint8_t*, int64_t, int64_t) { return zero(); }
};

struct LoadQ4_0 {
  static constexpr int kBits = 5;
  static constexpr int kStep = 32;
  static LAPIDARY_INLINE void read(const uint8_t* row, int64_t i, V* w) {
    const uint8_t* block = row + i / 32 * 18;
    const V d = load_scale(block);
    load_i4(block + 2, w[0], w[1]);
    w[0] = mul(d, w[0]);
    w[1] = mul(d, w[1]);
  }
  static LAPIDARY_INLINE V read_part(const uint8_t*, int64_t, int64_t) { return zero(); }
};

template <class W>
void widen_row(const uint8_t* src, int64_t n, float* dst) {
  constexpr int kVectors = W::kStep / 16;
  int64_t i = 0;
  for (; i + W::kStep <= n; i += W::kStep) {
    V w[kVectors];
    W::read(src, i, w);
    LAPIDARY_UNROLL for (int v = 0; v < kVectors; ++v) store(dst + i + 16 * v, w[v]);
  }
  if (i < n) store_part(dst + i, W::read_part(src, i, n - i), n - i);
}

void widen(DType dtype, const void* src, int64_t n, float* dst) {
  const uint8_t* row = static_cast<const uint8_t*>(src);
  switch (dtype) {
    case DType::f32:
      std::memcpy(dst, src, static_cast<size_t>(n) * 4);
      return;
    case DType::bf16:
      return widen_row<LoadBf16>(row, n, dst);
    case DType::f16:
      return widen_row<LoadF16>(row, n, dst);
    case DType::q8_0:
      return widen_row<LoadQ8_0>(row, n, dst);
    case DType::q4_0:
      return widen_row<LoadQ4_0>(row, n, dst);
    case DType::q4_k:
      return widen_blocks<BlockQ4_K, widen_q4_k>(row, n, dst);
    case DType::q5_k:
      return widen_blocks<BlockQ5_K, widen_q5_k>(row, n, dst);
    case DType::q6_k:
      return widen_blocks<BlockQ6_K, widen_q6_k>(row, n, dst);
    default:
      return dequantize_row(dtype, src, n, dst);
  }
}

// sums[t][r] += x_t · w_r over k elements, lane by lane. x rows x_stride floats apart, w rows row_bytes apart. kAhead: the R rows
// that follow are wanted next, from memory.
template <class W, int T, int R, bool kAhead>
LAPIDARY_INLINE void dot_tile(const float* x, int64_t x_stride, const uint8_t* w, int64_t row_bytes, int64_t k, V (&sums)[T][R]) {
  constexpr int kVectors = W::kStep / 16;
  int64_t i = 0;
  for (; i + W::kStep <= k; i += W::kStep) {
    V weights[R][kVectors];
    LAPIDARY_UNROLL for (int r = 0; r < R; ++r) {
      W::read(w + r * row_bytes, i, weights[r]);
      if constexpr (kAhead) LAPIDARY_PREFETCH(w + (r + R) * row_bytes + i * W::kBits / 8);
    }
    LAPIDARY_UNROLL for (int v = 0; v < kVectors; ++v) {
      LAPIDARY_UNROLL for (int t = 0; t < T; ++t) {
        const V a = load(x + t * x_stride + i + 16 * v);
        LAPIDARY_UNROLL for (int r = 0; r < R; ++r) sums[t][r] = fma(a, weights[r][v], sums[t][r]);
      }
    }
  }
  if (i < k) {
    LAPIDARY_UNROLL for (int r = 0; r < R; ++r) {
      const V weight = W::read_part(w + r * row_bytes, i, k - i);
      LAPIDARY_UNROLL for (int t = 0; t < T; ++t) sums[t][r] = fma(load_part(x + t * x_stride + i, k - i), weight, sums[t][r]);
    }
  }
}

template <int T, int R>
LAPIDARY_INLINE void clear(V (&sums)[T][R]) {
  LAPIDARY_UNROLL for (int t = 0; t < T; ++t) { LAPIDARY_UNROLL for (int r = 0; r < R; ++r) sums[t][r] = zero(); }
}

// --- few tokens: weights go from memory to registers once, in their storage format ---------------------------------

template <class W, int T, int R>
LAPIDARY_INLINE void direct_tile(const LinearTask& task, int64_t n) {
  V sums[T][R];
  clear(sums);
  dot_tile<W, T, R, /*kAhead=*/true>(task.x, task.x_stride, static_cast<const uint8_t*>(task.weight) + n * task.row_bytes, task.row_bytes,
                                     task.k, sums);
  LAPIDARY_UNROLL for (int t = 0; t < T; ++t) reduce_add_to(sums[t], task.out + t * task.out_stride + n);
}

template <class W, int T>
void linear_direct(const LinearTask& task, int64_t n0, int64_t n1) {
  constexpr int R = direct_rows(T);
  int64_t n = n0;
  for (; n + R <= n1; n += R) direct_tile<W, T, R>(task, n);
  for (; n < n1; ++n) direct_tile<W, T, 1>(task, n);
}

constexpr int64_t kDirectTokens = 4;

template <class W>
void linear_direct(const LinearTask& task, int64_t n0, int64_t n1) {
  switch (task.tokens) {
    case 1:
      return linear_direct<W, 1>(task, n0, n1);
    case 2:
      return linear_direct<W, 2>(task, n0, n1);
    case 3:
      return linear_direct<W, 3>(task, n0, n1);
    default:
      return linear_direct<W, 4>(task, n0, n1);
  }
}

// --- more tokens: kTileRows weight rows at a time are widened into a panel that stays in the first-level cache --------

// Columns per pass over the tokens, so that a panel takes at most 24 KiB; the lanes' sums wait in memory between passes.
// A multiple of every block's elements.
int64_t pass_columns(int64_t k) {
  constexpr int64_t kMost = 1536;
  if (k <= kMost) return k;
  const int64_t passes = (k + kMost - 1) / kMost;
  return ((k + passes - 1) / passes + 255) / 256 * 256;
}

struct Pass {
  const float* panel;  // f32 [kTileRows, panel_stride]
  int64_t panel_stride, columns;
  bool is_first, is_last;
  int64_t rows;  // of the panel that exist
};

template <int T>
LAPIDARY_NOINLINE void panel_tile(const float* x, int64_t x_stride, const Pass& pass, float* waiting, float* out, int64_t out_stride) {
  constexpr int R = kTileRows;
  V sums[T][R];
  if (pass.is_first) {
    clear(sums);
  } else {
    LAPIDARY_UNROLL for (int t = 0; t < T; ++t) {
      LAPIDARY_UNROLL for (int r = 0; r < R; ++r) sums[t][r] = load(waiting + (t * R + r) * 16);
    }
  }
  dot_tile<LoadF32, T, R, /*kAhead=*/false>(x, x_stride, reinterpret_cast<const uint8_t*>(pass.panel), pass.panel_stride * 4, pass.columns,
                                            sums);
  if (!pass.is_last) {
    LAPIDARY_UNROLL for (int t = 0; t < T; ++t) {
      LAPIDARY_UNROLL for (int r = 0; r < R; ++r) store(waiting + (t * R + r) * 16, sums[t][r]);
    }
  } else if (pass.rows == R) {
    LAPIDARY_UNROLL for (int t = 0; t < T; ++t) reduce_add_to(sums[t], out + t * out_stride);
  } else {
    float results[T][R];
    LAPIDARY_UNROLL for (int t = 0; t < T; ++t) reduce_add_to(sums[t], results[t]);
    for (int t = 0; t < T; ++t) std::memcpy(out + t * out_stride, results[t], static_cast<size_t>(pass.rows) * 4);
  }
}

// All tokens against one panel.
void panel_tokens(const LinearTask& task, int64_t k0, const Pass& pass, float* waiting, float* out) {
  constexpr int64_t T = kTileTokens;
  for (int64_t t = 0; t < task.tokens; t += T) {
    const float* x = task.x + t * task.x_stride + k0;
    float* to = out + t * task.out_stride;
    float* sums = waiting + t * kTileRows * 16;
    switch (task.tokens - t < T ? task.tokens - t : T) {
      case 1:
        panel_tile<1>(x, task.x_stride, pass, sums, to, task.out_stride);
        break;
      case 2:
        panel_tile<2>(x, task.x_stride, pass, sums, to, task.out_stride);
        break;
      case 3:
        panel_tile < kTileTokens<3 ? kTileTokens : 3>(x, task.x_stride, pass, sums, to, task.out_stride);
        break;
      default:
        panel_tile<kTileTokens>(x, task.x_stride, pass, sums, to, task.out_stride);
    }
  }
}

size_t linear_scratch_floats(int64_t tokens, int64_t k) {
  const int64_t columns = pass_columns(k);
  const int64_t row_tiles = (kLinearRows + kTileRows - 1) / kTileRows;
  const int64_t waiting = columns == k ? 0 : row_tiles * kTileRows * tokens * 16;
  return static_cast<size_t>(kTileRows * padded(columns) + waiting);
}

void linear_panels(const LinearTask& task, int64_t n0, int64_t n1, float* scratch) {
  const DTypeInfo& info = dtype_info(task.dtype);
  const int64_t columns = pass_columns(task.k), stride = padded(columns);
  float* waiting = scratch + kTileRows * stride;  // [row tiles, tokens, kTileRows, 16]
  for (int64_t k0 = 0; k0 < task.k; k0 += columns) {
    Pass pass{scratch, stride, task.k - k0 < columns ? task.k - k0 : columns, k0 == 0, k0 + columns >= task.k, 0};
    const int64_t offset = k0 / info.block_elements * info.block_bytes;
    for (int64_t n = n0; n < n1; n += kTileRows) {
      pass.rows = n1 - n < kTileRows ? n1 - n : kTileRows;
      for (int64_t r = 0; r < kTileRows; ++r) {
        const int64_t row = n + (r < pass.rows ? r : 0);  // rows that do not exist: any numbers, their sums are not stored
        widen(task.dtype, static_cast<const uint8_t*>(task.weight) + row * task.row_bytes + offset, pass.columns, scratch + r * stride);
      }
      panel_tokens(task, k0, pass, waiting + (n - n0) * task.tokens * 16, task.out + n);
    }
  }
}

void linear(const LinearTask& task, int64_t n0, int64_t n1, float* scratch) {
  if (task.tokens <= kDirectTokens) {
    switch (task.dtype) {
      case DType::f32:
        return linear_direct<LoadF32>(task, n0, n1);
      case DType::bf16:
        return linear_direct<LoadBf16>(task, n0, n1);
      case DType::f16:
        return linear_direct<LoadF16>(task, n0, n1);
      case DType::q8_0:
        return linear_direct<LoadQ8_0>(task, n0, n1);
      case DType::q4_0:
        return linear_direct<LoadQ4_0>(task, n0, n1);
      default:
        break;
    }
  }
  linear_panels(task, n0, n1, scratch);
}

}  // namespace
}  // namespace lapidary::cpu
