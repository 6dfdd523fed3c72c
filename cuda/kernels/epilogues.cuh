// What happens to a product before it is stored: scales, residual, GeGLU, rounding. One element at a time for skinny kernels, and for
// accumulator fragments of the tensor cores (mma.sync and wgmma hold a 16-row strip alike), with full-sector stores.
#pragma once

#include "cuda/api/gemm.h"
#include "cuda/primitives/math.cuh"
#include "cuda/primitives/memory.cuh"
#include "cuda/primitives/warp.cuh"

namespace lapidary::cuda {

// The one order in which int8 sums are scaled.
LAPIDARY_DEVICE float scale_sum(int sum, float x_scale, float w_scale) { return static_cast<float>(sum) * (x_scale * w_scale); }

// g / (1 + exp(-2u)), u = sqrt(2/pi) * (g + 0.044715 g^3): the same function as 0.5 g (1 + tanh u). Relative error a few ulp of f32.
LAPIDARY_DEVICE float gelu_tanh(float g) {
  const float u = 0.7978845608028654f * fma(0.044715f * g * g, g, g);
  return g * reciprocal_fast(1.0f + exp2_fast(-2.0f * kLog2e * u));
}

// --- one element ----------------------------------------------------------------------------------------------------------

LAPIDARY_DEVICE void store_element(const ProductOutput& o, int64_t at, float v) {
  switch (o.out_type) {
    case OutType::f32:
      store_global(static_cast<float*>(o.out) + at, v);
      break;
    case OutType::bf16:
      store_global(static_cast<BFloat16*>(o.out) + at, to_bf16(v));
      break;
    case OutType::int8:
      store_global(static_cast<int8_t*>(o.out) + at, to_int8(v * o.inverse_scale));
      break;
    case OutType::int32:
      break;
  }
}
// y of (row, column), for `store` and `add`.
LAPIDARY_DEVICE void write_element(const ProductOutput& o, int64_t row, int64_t column, float y) {
  if (o.epilogue == Epilogue::add) y = load_global(o.residual + row * o.residual_stride + column) + y;
  store_element(o, row * o.stride + column, y);
}
// Of a channel in [0, n / 2).
LAPIDARY_DEVICE void write_geglu(const ProductOutput& o, int64_t row, int64_t channel, float gate, float up) {
  store_element(o, row * o.stride + channel, gelu_tanh(gate) * up);
}

// --- fragments ------------------------------------------------------------------------------------------------------------

// 4 x 4 over four neighbouring lanes: r[i] of lane t becomes what was r[t] of lane i.
LAPIDARY_DEVICE void transpose_quad(uint32_t (&r)[4]) {
  const bool odd = (lane() & 1) != 0, high = (lane() & 2) != 0;
  LAPIDARY_UNROLL
  for (int i = 0; i < 4; i += 2) {
    const uint32_t other = shuffle_xor(odd ? r[i] : r[i + 1], 1);
    r[i] = odd ? other : r[i];
    r[i + 1] = odd ? r[i + 1] : other;
  }
  LAPIDARY_UNROLL
  for (int i = 0; i < 2; ++i) {
    const uint32_t other = shuffle_xor(high ? r[i] : r[i + 2], 2);
    r[i] = high ? other : r[i];
    r[i + 2] = high ? r[i + 2] : other;
  }
}

// Scales of an int8 strip: of the thread's two rows, and of columns on demand.
struct Int8Scaling {
  float row[2];
  const float* w_scales;

  LAPIDARY_DEVICE Int8Scaling(const Int8Product& p, int row0) : w_scales(p.w_scales) {
    LAPIDARY_UNROLL
    for (int half = 0; half < 2; ++half) {
      const int r = row0 + lane() / 4 + 8 * half;
      row[half] = p.x_scales == nullptr ? p.x_scale : r < p.m ? load_readonly(p.x_scales + r) : 0.0f;
    }
  }
  // Of columns c and c + 1, c even.
  LAPIDARY_DEVICE F32x2 columns(int c, int n) const {
    if (c + 1 < n) return load_readonly(reinterpret_cast<const F32x2*>(w_scales + c));
    return {{c < n ? load_readonly(w_scales + c) : 0.0f, 0.0f}};
  }
  LAPIDARY_DEVICE float apply(int sum, int half, float w_scale) const { return scale_sum(sum, row[half], w_scale); }
};
// Brings the scales of Columns columns from column0 into L1 while the products are computed: the values are loaded again when they are
// wanted. Called by threads 0 .. Threads - 1.
template <int Columns, int Threads>
LAPIDARY_DEVICE void warm_scales(const Int8Product& p, int column0, int thread) {
  if (p.output.epilogue == Epilogue::raw) return;
  LAPIDARY_UNROLL
  for (int c = 0; c < Columns; c += Threads) {
    const int column = column0 + c + thread;
    if (c + thread < Columns && column < p.n) (void)load_readonly(p.w_scales + column);
  }
}
struct NoScaling {
  LAPIDARY_DEVICE F32x2 columns(int, int) const { return {{1.0f, 1.0f}}; }
  LAPIDARY_DEVICE float apply(float sum, int, float) const { return sum; }
};

// Where a strip lands: rows row0..row0+15 of [rows, columns] elements, this thread's rows being row0 + lane / 4 (+ 8).
struct StripPlace {
  int row0, rows, columns;
  bool whole_groups;  // columns is a multiple of 8 and every row of out (and residual) starts on 16 bytes: groups of 8 columns are all in
                      // or all out
};
LAPIDARY_DEVICE bool output_is_aligned(const ProductOutput& o, int columns) {
  const int size = o.out_type == OutType::f32 || o.out_type == OutType::int32 ? 4 : o.out_type == OutType::bf16 ? 2 : 1;
  const bool residual =
      o.epilogue != Epilogue::add || ((reinterpret_cast<uintptr_t>(o.residual) | static_cast<uintptr_t>(o.residual_stride * 4)) & 15) == 0;
  return residual && columns % 8 == 0 && ((reinterpret_cast<uintptr_t>(o.out) | static_cast<uintptr_t>(o.stride * size)) & 15) == 0;
}

// Two groups of 8 columns from `column` (a multiple of 8) on: v[group][2 * half + {0, 1}] = row g + 8 * half, columns 2t, 2t + 1 of the
// group.
LAPIDARY_DEVICE void store_two_groups(const ProductOutput& o, const StripPlace& place, int column, const float (&v)[2][4]) {
  const int g = lane() / 4, t = lane() % 4;
  if (!place.whole_groups) {
    // Rare, so short: the value is selected, since registers have no index.
    LAPIDARY_ROLLED
    for (int i = 0; i < 8; ++i) {
      float value = v[0][0];
      LAPIDARY_UNROLL
      for (int e = 1; e < 8; ++e) value = e == i ? v[e / 4][e % 4] : value;
      const int row = place.row0 + g + i % 4 / 2 * 8, c = column + i / 4 * 8 + 2 * t + i % 2;
      if (row < place.rows && c < place.columns) store_element(o, row * o.stride + c, value);
    }
    return;
  }
  if (o.out_type == OutType::f32) {
    LAPIDARY_UNROLL
    for (int i = 0; i < 4; ++i) {
      const int row = place.row0 + g + i % 2 * 8, c = column + i / 2 * 8;
      if (row < place.rows && c < place.columns) {
        store_global(reinterpret_cast<F32x2*>(static_cast<float*>(o.out) + row * o.stride + c + 2 * t),
                     F32x2{{v[i / 2][i % 2 * 2], v[i / 2][i % 2 * 2 + 1]}});
      }
    }
    return;
  }
  // Narrow types: lane t of a quad gathers eight columns of group t / 2 in row g + 8 * (t % 2).
  uint32_t r[4];
  LAPIDARY_UNROLL
  for (int i = 0; i < 4; ++i) {
    const float a = v[i / 2][i % 2 * 2], b = v[i / 2][i % 2 * 2 + 1];
    r[i] = o.out_type == OutType::bf16 ? pack_bf16(a, b) : pack_int8(to_int8(a * o.inverse_scale), to_int8(b * o.inverse_scale), 0, 0);
  }
  transpose_quad(r);
  const int row = place.row0 + g + t % 2 * 8, c = column + t / 2 * 8;
  if (row >= place.rows || c >= place.columns) return;
  if (o.out_type == OutType::bf16) {
    store_global(reinterpret_cast<U32x4*>(static_cast<BFloat16*>(o.out) + row * o.stride + c), U32x4{{r[0], r[1], r[2], r[3]}});
  } else {
    store_global(reinterpret_cast<U32x2*>(static_cast<int8_t*>(o.out) + row * o.stride + c), U32x2{{r[0] | r[1] << 16, r[2] | r[3] << 16}});
  }
}

// A strip of 16 rows and Groups * 8 columns of y from (row0, column0): sum(j, e) is the thread's accumulator e (0..3) of group j, scaled by
// `scaling`. column0 and Groups * 8 are multiples of 32. Called by whole warps.
template <int Groups, class Scaling, class Sums>
LAPIDARY_DEVICE void write_strip(const ProductOutput& o, int m, int n, int row0, int column0, const Scaling& scaling, const Sums& sum) {
  static_assert(Groups % 4 == 0);
  const int g = lane() / 4, t = lane() % 4;
  const bool geglu = o.epilogue == Epilogue::geglu;
  const int columns = geglu ? n / 2 : n;
  const StripPlace place = {row0, m, columns, output_is_aligned(o, columns)};
  LAPIDARY_UNROLL
  for (int j = 0; j < Groups; j += 4) {
    float v[4][4];
    LAPIDARY_UNROLL
    for (int i = 0; i < 4; ++i) {
      const F32x2 scales = scaling.columns(column0 + (j + i) * 8 + 2 * t, n);
      LAPIDARY_UNROLL
      for (int e = 0; e < 4; ++e) v[i][e] = scaling.apply(sum(j + i, e), e / 2, scales[e % 2]);
    }
    if (o.epilogue == Epilogue::add) {
      LAPIDARY_UNROLL
      for (int i = 0; i < 8; ++i) {
        const int row = row0 + g + i % 2 * 8, c = column0 + (j + i / 2) * 8 + 2 * t;
        const float* from = o.residual + row * o.residual_stride + c;
        float* to = &v[i / 2][i % 2 * 2];
        if (place.whole_groups && row < m && c < n) {
          const F32x2 r = load_global(reinterpret_cast<const F32x2*>(from));
          to[0] = r[0] + to[0];
          to[1] = r[1] + to[1];
        } else if (row < m) {
          if (c < n) to[0] = load_global(from) + to[0];
          if (c + 1 < n) to[1] = load_global(from + 1) + to[1];
        }
      }
    }
    float low[2][4], high[2][4];
    LAPIDARY_UNROLL
    for (int i = 0; i < 8; ++i) {
      low[i / 4][i % 4] = geglu ? gelu_tanh(v[i / 4 * 2][i % 4]) * v[i / 4 * 2 + 1][i % 4] : v[i / 4][i % 4];
      high[i / 4][i % 4] = v[2 + i / 4][i % 4];
    }
    store_two_groups(o, place, geglu ? column0 / 2 + j * 4 : column0 + j * 8, low);
    if (!geglu) store_two_groups(o, place, column0 + j * 8 + 16, high);
  }
}

// The int32 sums themselves.
template <int Groups, class Sums>
LAPIDARY_DEVICE void write_raw_strip(const ProductOutput& o, int m, int n, int row0, int column0, const Sums& sum) {
  LAPIDARY_UNROLL
  for (int j = 0; j < Groups; ++j) {
    LAPIDARY_UNROLL
    for (int e = 0; e < 4; ++e) {
      const int row = row0 + lane() / 4 + e / 2 * 8, c = column0 + j * 8 + lane() % 4 * 2 + e % 2;
      if (row < m && c < n) store_global(static_cast<int*>(o.out) + row * o.stride + c, static_cast<int>(sum(j, e)));
    }
  }
}

}  // namespace lapidary::cuda
