// One head of one token in the registers of a warp: load, QK-norm, RoPE, and the ways it is stored. The row kernel and the prologue of the
// fused decode attention call the same functions, so a head has the same bits whichever way it is prepared.
#pragma once

#include "cuda/api/qk_rope_append.h"
#include "cuda/kernels/kv_page.cuh"
#include "cuda/kernels/row_ops.cuh"

namespace lapidary::cuda {

// A lane holds up to four pairs (j, j + head_dim / 2) that RoPE rotates: j = 4 lane .. 4 lane + 3 when Wide (head_dim a multiple of 8,
// everything aligned to 16 bytes), else j = lane, lane + 32, lane + 64, lane + 96. head_dim up to 256. Pairs that do not exist are zeros.
template <bool Wide>
struct HeadRow {
  float low[4], high[4];  // elements j, elements j + head_dim / 2

  static LAPIDARY_DEVICE int pair(int i) { return Wide ? 4 * lane() + i : lane() + kWarp * i; }

  static LAPIDARY_DEVICE HeadRow load(const float* from, int head_dim) {
    HeadRow row;
    get(row.low, from, head_dim / 2);
    get(row.high, from + head_dim / 2, head_dim / 2);
    return row;
  }
  // From shared memory.
  static LAPIDARY_DEVICE HeadRow load_staged(const float* from, int head_dim) {
    static_assert(Wide);
    HeadRow row = {};
    if (pair(0) >= head_dim / 2) return row;
    const F32x4 first = load_shared(reinterpret_cast<const F32x4*>(from + pair(0)));
    const F32x4 second = load_shared(reinterpret_cast<const F32x4*>(from + head_dim / 2 + pair(0)));
    LAPIDARY_UNROLL
    for (int i = 0; i < 4; ++i) row.low[i] = first[i], row.high[i] = second[i];
    return row;
  }

  LAPIDARY_DEVICE void norm(const HeadNorm& n, int head_dim) {
    if (n.weight == nullptr) return;
    float sum = 0;
    LAPIDARY_UNROLL
    for (int i = 0; i < 4; ++i) sum = fma(high[i], high[i], fma(low[i], low[i], sum));
    const float inverse = inverse_rms(warp_reduce(sum, Sum{}), head_dim, n.eps);
    float low_weight[4], high_weight[4];
    get(low_weight, n.weight, head_dim / 2);
    get(high_weight, n.weight + head_dim / 2, head_dim / 2);
    LAPIDARY_UNROLL
    for (int i = 0; i < 4; ++i) {
      low[i] = low[i] * inverse * (n.offset + low_weight[i]);
      high[i] = high[i] * inverse * (n.offset + high_weight[i]);
    }
  }

  // Two products and a sum, unfused. cos, sin: this token's rows [head_dim / 2]; null: the row as it is.
  LAPIDARY_DEVICE HeadRow rotated(const float* cos, const float* sin, int head_dim) const {
    if (cos == nullptr) return *this;
    float c[4], s[4];
    get(c, cos, head_dim / 2);
    get(s, sin, head_dim / 2);
    HeadRow out;
    LAPIDARY_UNROLL
    for (int i = 0; i < 4; ++i) {
      out.low[i] = low[i] * c[i] - high[i] * s[i];
      out.high[i] = high[i] * c[i] + low[i] * s[i];
    }
    return out;
  }

  // The int8 scale of the row: the whole warp gets it.
  LAPIDARY_DEVICE float scale() const {
    float most = 0;
    LAPIDARY_UNROLL
    for (int i = 0; i < 4; ++i) most = max_f32(most, max_f32(abs_f32(low[i]), abs_f32(high[i])));
    return int8_scale(warp_reduce(most, Max{}));
  }

  // Calls put(element, values) for what this lane holds: four neighbouring elements when Wide, else one.
  template <class Put>
  LAPIDARY_DEVICE void each(int head_dim, Put put) const {
    const int half = head_dim / 2;
    if constexpr (Wide) {
      if (pair(0) >= half) return;
      put(pair(0), F32x4{{low[0], low[1], low[2], low[3]}});
      put(half + pair(0), F32x4{{high[0], high[1], high[2], high[3]}});
    } else {
      LAPIDARY_UNROLL
      for (int i = 0; i < 4; ++i) {
        if (pair(i) >= half) continue;
        put(pair(i), Vec<float, 1>{{low[i]}});
        put(half + pair(i), Vec<float, 1>{{high[i]}});
      }
    }
  }

 private:
  static LAPIDARY_DEVICE void get(float (&to)[4], const float* from, int half) {
    if constexpr (Wide) {
      F32x4 v = {};
      if (pair(0) < half) v = load_global(reinterpret_cast<const F32x4*>(from + pair(0)));
      LAPIDARY_UNROLL
      for (int i = 0; i < 4; ++i) to[i] = v[i];
    } else {
      LAPIDARY_UNROLL
      for (int i = 0; i < 4; ++i) to[i] = pair(i) < half ? load_global(from + pair(i)) : 0.0f;
    }
  }
};

// Elements as the cache and the queries hold them.
template <int N>
LAPIDARY_DEVICE Vec<BFloat16, N> rounded(const Vec<float, N>& v) {
  Vec<BFloat16, N> r;
  LAPIDARY_UNROLL
  for (int i = 0; i < N; ++i) r[i] = to_bf16(v[i]);
  return r;
}
template <int N>
LAPIDARY_DEVICE Vec<int8_t, N> quantized(const Vec<float, N>& v, float inverse) {
  Vec<int8_t, N> r;
  LAPIDARY_UNROLL
  for (int i = 0; i < N; ++i) r[i] = to_int8(v[i] * inverse);
  return r;
}

// One access of what a lane holds.
template <typename T, int N>
LAPIDARY_DEVICE void put_global(std::byte* to, const Vec<T, N>& v) {
  store_global(reinterpret_cast<Vec<T, N>*>(to), v);
}
template <typename T, int N>
LAPIDARY_DEVICE void put_shared(std::byte* to, const Vec<T, N>& v) {
  store_shared(reinterpret_cast<Vec<T, N>*>(to), v);
}

// Writes a row to its place `to`, in the cache's type; int8: and its scale to `scale_to`.
template <KvType Kv, bool Wide>
LAPIDARY_DEVICE void store_row(const HeadRow<Wide>& row, std::byte* to, std::byte* scale_to, int head_dim) {
  if constexpr (Kv == KvType::int8) {
    const float scale = row.scale(), inverse = int8_inverse(scale);
    row.each(head_dim, [&](int at, const auto& v) { put_global(to + at, quantized(v, inverse)); });
    if (lane() == 0) put_global(scale_to, Vec<float, 1>{{scale}});
  } else if constexpr (Kv == KvType::bf16) {
    row.each(head_dim, [&](int at, const auto& v) { put_global(to + at * 2, rounded(v)); });
  } else {
    row.each(head_dim, [&](int at, const auto& v) { put_global(to + at * 4, v); });
  }
}

}  // namespace lapidary::cuda
