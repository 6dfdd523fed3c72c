// Rows of x for a skinny product, in shared memory: copied as they are, or made by the block itself from the residual stream (norms,
// rounding, quantisation), with the functions that the row kernels use.
#pragma once

#include "cuda/api/gemv.h"
#include "cuda/kernels/row_ops.cuh"
#include "cuda/primitives/memory.cuh"

namespace lapidary::cuda {

struct GemvInput {
  const std::byte* x;     // [m] rows of row_bytes, stride bytes apart
  const float* x_scales;  // f32 [m]; null: x_scale for every row
  int64_t stride;
  float x_scale;
  int32_t m, k, row_bytes;
};

// Where it goes. Rows are `pitch` bytes apart, zeros from row_bytes to row_end (whole stages).
struct GemvSharedX {
  std::byte* rows;
  float* scales;   // [16]
  float* scratch;  // [kRowSlots]
  float* row;      // [k rounded up to 4], for the prologue
  int32_t pitch, row_end;
};

template <int Threads>
LAPIDARY_DEVICE void copy_x(const GemvInput& in, const GemvSharedX& to) {
  const int chunks = to.row_end / 16;
  for (int i = thread_index(); i < in.m * chunks; i += Threads) {
    const int row = i / chunks, at = i % chunks * 16;
    U32x4 v = {{0, 0, 0, 0}};
    if (at < in.row_bytes) v = load_global(reinterpret_cast<const U32x4*>(in.x + row * in.stride + at));
    store_shared(reinterpret_cast<U32x4*>(to.rows + row * to.pitch + at), v);
  }
  const int row = thread_index();
  if (row < in.m) store_shared(to.scales + row, in.x_scales == nullptr ? in.x_scale : load_global(in.x_scales + row));
}

// `writes_x`: this block writes x_out.
template <int Threads, bool Int8>
LAPIDARY_DEVICE void norm_x(const GemvInput& in, const GemvPrologue& p, const GemvSharedX& to, bool writes_x) {
  const int k = in.k;
  const bool vectorize = rows_vectorize(p.x, k) && rows_vectorize(p.branch, k) && rows_vectorize(p.post_weight, k) &&
                         rows_vectorize(p.next_weight, k) && rows_vectorize(p.x_out, k);
  for (int row = 0; row < in.m; ++row) {
    const int64_t at = static_cast<int64_t>(row) * k;
    const ResidualRow residual = {p.x + at, p.branch == nullptr ? nullptr : p.branch + at, p.post_weight, p.offset, p.eps, k, vectorize};
    const auto keep = [&](int i, const F32x4& v) {
      store_shared(reinterpret_cast<F32x4*>(to.row + i), v);
      if (writes_x) store_row4(p.x_out + at, i, k, vectorize, v);
    };
    const float inverse_norm = residual_row<Threads>(residual, keep, to.scratch);
    const auto value = [&](int i) {
      return normed4(load_shared(reinterpret_cast<const F32x4*>(to.row + i)), inverse_norm, load_row4(p.next_weight, i, k, vectorize),
                     p.offset);
    };
    std::byte* out = to.rows + row * to.pitch;
    if constexpr (Int8) {
      float scale = in.x_scale, inverse = p.inverse_scale;
      if (!(inverse > 0)) {
        scale = int8_scale(row_absmax<Threads>(k, [&](int i, float most) { return absmax4(value(i), most); }, to.scratch));
        inverse = int8_inverse(scale);
      }
      if (thread_index() == 0) store_shared(to.scales + row, scale);
      for_row<Threads>(k, [&](int i) { store_shared(reinterpret_cast<uint32_t*>(out + i), quantize4(value(i), inverse)); });
    } else {
      for_row<Threads>(k, [&](int i) {
        const F32x4 v = value(i);
        store_shared(reinterpret_cast<U32x2*>(out + 2 * i), U32x2{{pack_bf16(v[0], v[1]), pack_bf16(v[2], v[3])}});
      });
    }
    for (int i = in.row_bytes + thread_index() * 4; i < to.row_end; i += Threads * 4)
      store_shared(reinterpret_cast<uint32_t*>(out + i), 0u);
  }
}

}  // namespace lapidary::cuda
