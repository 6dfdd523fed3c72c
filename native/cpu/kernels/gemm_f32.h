// f32 products of packed panels over V. Part of kernels/impl.h; the order of an element is in training_kernels.h.
//
// A panel of a holds, element by element of the sum, kGemmRows rows; one of b kGemmVectors vectors of columns. A tile of both is the
// registers' product: one broadcast and kGemmVectors fused multiply-adds per row.
#pragma once

#include "cpu/kernels/math.h"
#include "cpu/training_kernels.h"

namespace lapidary::cpu {
namespace {

// 24 sums of sixteen lanes where 32 such registers exist; 6 elsewhere, two registers each on AVX2.
constexpr int kGemmVectors = kTileTokens * kTileRows >= 16 ? 2 : 1;
constexpr int kGemmRows = kGemmVectors == 2 ? 12 : 6;
constexpr int kGemmColumns = 16 * kGemmVectors;

// `width` lines of a side from `line`, elements [k0, k0 + k) of the sum, as [k, width]; lines from `count` on are zeros.
template <int kWidth>
LAPIDARY_INLINE void pack_panel(const MatrixSide& side, int64_t count, int64_t line, int64_t k0, int64_t k, float* panel) {
  const int64_t lines = count - line < kWidth ? count - line : kWidth;
  if (!side.along) {
    const float* from = side.data + k0 * side.stride + line;
    if (lines == kWidth) {
      for (int64_t l = 0; l < k; ++l) std::memcpy(panel + l * kWidth, from + l * side.stride, kWidth * sizeof(float));
      return;
    }
    std::memset(panel, 0, static_cast<size_t>(k * kWidth) * sizeof(float));
    for (int64_t l = 0; l < k; ++l) std::memcpy(panel + l * kWidth, from + l * side.stride, static_cast<size_t>(lines) * sizeof(float));
    return;
  }
  if (lines < kWidth) std::memset(panel, 0, static_cast<size_t>(k * kWidth) * sizeof(float));
  const float* from = side.data + line * side.stride + k0;
  // Eight elements of every line at a time: whole cache lines are written while they are near.
  constexpr int64_t kAtOnce = 8;
  for (int64_t l = 0; l < k; l += kAtOnce) {
    const int64_t n = k - l < kAtOnce ? k - l : kAtOnce;
    for (int64_t i = 0; i < lines; ++i) {
      const float* row = from + i * side.stride + l;
      float* to = panel + l * kWidth + i;
      if (n == kAtOnce) {
        LAPIDARY_UNROLL for (int64_t j = 0; j < kAtOnce; ++j) to[j * kWidth] = row[j];
      } else {
        for (int64_t j = 0; j < n; ++j) to[j * kWidth] = row[j];
      }
    }
  }
}

template <int kWidth>
void pack_panels(const MatrixSide& side, int64_t count, int64_t p0, int64_t p1, int64_t k0, int64_t k, float* panels) {
  for (int64_t p = p0; p < p1; ++p) pack_panel<kWidth>(side, count, p * kWidth, k0, k, panels + (p - p0) * k * kWidth);
}

template <bool kWhole>
LAPIDARY_INLINE void gemm_tile(const float* a, const float* b, int64_t k, int64_t rows, int64_t columns, float* c, int64_t c_stride,
                               bool add_to_c) {
  V sums[kGemmRows][kGemmVectors];
  LAPIDARY_UNROLL for (int r = 0; r < kGemmRows; ++r) { LAPIDARY_UNROLL for (int v = 0; v < kGemmVectors; ++v) sums[r][v] = zero(); }
  for (int64_t l = 0; l < k; ++l, a += kGemmRows, b += kGemmColumns) {
    V w[kGemmVectors];
    LAPIDARY_UNROLL for (int v = 0; v < kGemmVectors; ++v) w[v] = load(b + 16 * v);
    LAPIDARY_UNROLL for (int r = 0; r < kGemmRows; ++r) {
      const V x = set1(a[r]);
      LAPIDARY_UNROLL for (int v = 0; v < kGemmVectors; ++v) sums[r][v] = fma(x, w[v], sums[r][v]);
    }
  }
  LAPIDARY_UNROLL for (int r = 0; r < kGemmRows; ++r) {
    if (!kWhole && r >= rows) break;
    LAPIDARY_UNROLL for (int v = 0; v < kGemmVectors; ++v) {
      const int64_t n = kWhole ? 16 : lanes_left(16 * v, columns);
      if (!kWhole && n <= 0) break;
      float* to = c + r * c_stride + 16 * v;
      store_lanes(to, add_to_c ? add(load_lanes(to, n), sums[r][v]) : sums[r][v], n);
    }
  }
}

void multiply_panels(const float* a, const float* b, int64_t k, int64_t m, int64_t n, float* c, int64_t c_stride, bool add_to_c) {
  for (int64_t j = 0; j < n; j += kGemmColumns) {
    for (int64_t i = 0; i < m; i += kGemmRows) {
      const float* rows = a + i * k;
      const float* columns = b + j * k;
      float* to = c + i * c_stride + j;
      if (m - i >= kGemmRows && n - j >= kGemmColumns) {
        gemm_tile<true>(rows, columns, k, kGemmRows, kGemmColumns, to, c_stride, add_to_c);
      } else {
        gemm_tile<false>(rows, columns, k, m - i, n - j, to, c_stride, add_to_c);
      }
    }
  }
}

}  // namespace
}  // namespace lapidary::cpu
