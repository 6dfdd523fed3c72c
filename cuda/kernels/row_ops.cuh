// What a block does with one row: load, sum of squares, RMS norm, largest magnitude, int8. Row kernels and the prologues of the skinny
// products call the same functions, so a row has the same bits wherever it is normed or quantised.
//
// Order of a sum over a row, whatever the number of threads: the row is cut in chunks of 128 elements, lane l of a warp takes elements
// 4l .. 4l + 3 of a chunk in rising order; chunk c belongs to slot c % 16, a slot's lanes run on from chunk to chunk; the 32 lanes of a
// slot and then the 16 slots are added by a butterfly. A block of 1 to 16 warps (a power of two) takes 16 / warps slots per warp.
#pragma once

#include "cuda/api/rows.h"
#include "cuda/primitives/math.cuh"
#include "cuda/primitives/warp.cuh"

namespace lapidary::cuda {

inline constexpr int kRowSlots = 16;  // floats of shared memory that the sums and maxima below take as `scratch`

LAPIDARY_DEVICE bool aligned_16(const void* p) { return reinterpret_cast<uintptr_t>(p) % 16 == 0; }

// Rows of `dim` elements from `p` on may be read four elements at a time (p of float; of bf16 and int8 too: then accesses are smaller).
LAPIDARY_DEVICE bool rows_vectorize(const void* p, int64_t dim) { return dim % 4 == 0 && aligned_16(p); }

// Elements i .. i + 3 of a row, zeros from `dim` on. i is a multiple of 4.
LAPIDARY_DEVICE F32x4 load_row4(const float* row, int i, int dim, bool vectorize) {
  if (vectorize) return load_global(reinterpret_cast<const F32x4*>(row + i));
  F32x4 r;
  LAPIDARY_UNROLL
  for (int e = 0; e < 4; ++e) r[e] = i + e < dim ? load_global(row + i + e) : 0.0f;
  return r;
}
LAPIDARY_DEVICE F32x4 load_row4(const BFloat16* row, int i, int dim, bool vectorize) {
  F32x4 r;
  if (vectorize) {
    const U32x2 pairs = load_global(reinterpret_cast<const U32x2*>(row + i));
    r[0] = low_bf16(pairs[0]), r[1] = high_bf16(pairs[0]), r[2] = low_bf16(pairs[1]), r[3] = high_bf16(pairs[1]);
    return r;
  }
  LAPIDARY_UNROLL
  for (int e = 0; e < 4; ++e) r[e] = i + e < dim ? to_f32(load_global(row + i + e)) : 0.0f;
  return r;
}
LAPIDARY_DEVICE void store_row4(float* row, int i, int dim, bool vectorize, const F32x4& v) {
  if (vectorize) return store_global(reinterpret_cast<F32x4*>(row + i), v);
  LAPIDARY_UNROLL
  for (int e = 0; e < 4; ++e)
    if (i + e < dim) store_global(row + i + e, v[e]);
}
LAPIDARY_DEVICE void store_row4(BFloat16* row, int i, int dim, bool vectorize, const F32x4& v) {
  if (vectorize) return store_global(reinterpret_cast<U32x2*>(row + i), U32x2{{pack_bf16(v[0], v[1]), pack_bf16(v[2], v[3])}});
  LAPIDARY_UNROLL
  for (int e = 0; e < 4; ++e)
    if (i + e < dim) store_global(row + i + e, to_bf16(v[e]));
}
// q = to_int8(v * inverse).
LAPIDARY_DEVICE uint32_t quantize4(const F32x4& v, float inverse) {
  return pack_int8(to_int8(v[0] * inverse), to_int8(v[1] * inverse), to_int8(v[2] * inverse), to_int8(v[3] * inverse));
}
LAPIDARY_DEVICE void store_row4(int8_t* row, int i, int dim, bool vectorize, const F32x4& v, float inverse) {
  if (vectorize) return store_global(reinterpret_cast<uint32_t*>(row + i), quantize4(v, inverse));
  LAPIDARY_UNROLL
  for (int e = 0; e < 4; ++e)
    if (i + e < dim) store_global(row + i + e, to_int8(v[e] * inverse));
}

// The int8 rule: of a scale's domain with largest magnitude `absmax`.
LAPIDARY_DEVICE float int8_scale(float absmax) { return divide_exact(max_f32(absmax, kInt8MinAbsmax), 127.0f); }
LAPIDARY_DEVICE float int8_inverse(float scale) { return divide_exact(1.0f, scale); }

LAPIDARY_DEVICE float squares4(const F32x4& v, float sum) {
  LAPIDARY_UNROLL
  for (int e = 0; e < 4; ++e) sum = fma(v[e], v[e], sum);
  return sum;
}
LAPIDARY_DEVICE float absmax4(const F32x4& v, float most) {
  return max_f32(max_f32(max_f32(abs_f32(v[0]), abs_f32(v[1])), max_f32(abs_f32(v[2]), abs_f32(v[3]))), most);
}

// Calls visit(i) for every group of four elements that this thread owns, in rising order. All functions here share this ownership, so what
// a thread stores for a row needs no barrier before the same thread reads it.
template <int Threads, class Visit>
LAPIDARY_DEVICE void for_row(int dim, Visit visit) {
  for (int i = thread_index() * 4; i < dim; i += Threads * 4) visit(i);
}

// The sum over a row in the order above; every thread gets it. add(i, sum) gives `sum` plus the terms of elements i .. i + 3, one by one.
// `scratch`: kRowSlots floats of shared memory, free again at the end.
template <int Threads, class Add>
LAPIDARY_DEVICE float row_sum(int dim, Add add, float* scratch) {
  constexpr int kWarps = Threads / kWarp, kOwn = kRowSlots / kWarps;
  static_assert(kWarps * kOwn == kRowSlots, "1, 2, 4, 8 or 16 warps");
  float sums[kOwn] = {};
  for (int first = thread_index() * 4; first < dim; first += kOwn * Threads * 4) {
    LAPIDARY_UNROLL
    for (int s = 0; s < kOwn; ++s) {
      const int i = first + s * Threads * 4;
      if (i < dim) sums[s] = add(i, sums[s]);
    }
  }
  LAPIDARY_UNROLL
  for (int s = 0; s < kOwn; ++s) {
    const float sum = warp_reduce(sums[s], Sum{});
    if (lane() == 0) store_shared(scratch + warp() + s * kWarps, sum);
  }
  sync_threads();
  const float total = warp_reduce<kRowSlots>(load_shared(scratch + lane() % kRowSlots), Sum{});
  sync_threads();
  return total;
}

// The largest of most(i, m), which gives the larger of m and the magnitudes of elements i .. i + 3; 0 for an empty row.
template <int Threads, class Most>
LAPIDARY_DEVICE float row_absmax(int dim, Most most, float* scratch) {
  float m = 0;
  for_row<Threads>(dim, [&](int i) { m = most(i, m); });
  return block_reduce<Threads>(m, Max{}, 0.0f, scratch);
}

// 1 / sqrt(mean of squares + eps), every step rounded to nearest.
LAPIDARY_DEVICE float inverse_rms(float sum_of_squares, int dim, float eps) {
  return divide_exact(1.0f, sqrt_exact(divide_exact(sum_of_squares, static_cast<float>(dim)) + eps));
}
// (x · inverse) · (offset + weight) of elements i .. i + 3.
LAPIDARY_DEVICE F32x4 normed4(const F32x4& x, float inverse, const F32x4& weight, float offset) {
  F32x4 y;
  LAPIDARY_UNROLL
  for (int e = 0; e < 4; ++e) y[e] = x[e] * inverse * (offset + weight[e]);
  return y;
}

// A row of f32 that the block works on: in shared memory (16-byte aligned, room for dim rounded up to 4), or left in global memory.
template <bool Shared>
struct RowBuffer {
  float* row;
  int dim;
  bool vectorize;  // of the global row
  LAPIDARY_DEVICE F32x4 load(int i) const {
    if constexpr (Shared) return load_shared(reinterpret_cast<const F32x4*>(row + i));
    return load_row4(row, i, dim, vectorize);
  }
  LAPIDARY_DEVICE void store(int i, const F32x4& v) const {
    if constexpr (Shared) return store_shared(reinterpret_cast<F32x4*>(row + i), v);
    store_row4(row, i, dim, vectorize, v);
  }
};

// The residual stream of one row at the seam between two branches: x + post_norm(branch).
struct ResidualRow {
  const float* x;            // [dim]
  const float* branch;       // [dim]; null: x stays as it is
  const float* post_weight;  // [dim]; null: the branch is added as it is
  float offset, eps;
  int dim;
  bool vectorize;  // all of these four elements at a time
};

// Gives element group i of the new residual row to keep(i, v), which stores it where it is wanted, and returns the row's inverse RMS.
template <int Threads, class Keep>
LAPIDARY_DEVICE float residual_row(const ResidualRow& r, Keep keep, float* scratch) {
  float post = 1;
  if (r.branch && r.post_weight) {
    const auto add = [&](int i, float sum) { return squares4(load_row4(r.branch, i, r.dim, r.vectorize), sum); };
    post = inverse_rms(row_sum<Threads>(r.dim, add, scratch), r.dim, r.eps);
  }
  const auto add = [&](int i, float sum) {
    F32x4 v = load_row4(r.x, i, r.dim, r.vectorize);
    if (r.branch) {
      F32x4 b = load_row4(r.branch, i, r.dim, r.vectorize);
      if (r.post_weight) b = normed4(b, post, load_row4(r.post_weight, i, r.dim, r.vectorize), r.offset);
      LAPIDARY_UNROLL
      for (int e = 0; e < 4; ++e) v[e] += b[e];
    }
    keep(i, v);
    return squares4(v, sum);
  };
  return inverse_rms(row_sum<Threads>(r.dim, add, scratch), r.dim, r.eps);
}

inline constexpr int kRowSpan = 4096;  // elements of a block where rows may be cut: 4 groups of four for each of 256 threads
// Into how many spans, of a block each, the rows of an elementwise kernel are cut.
LAPIDARY_HOST_DEVICE int row_spans(const ActOut& out, int dim) {
  return out.type == ActType::int8 && out.scaling == ActScaling::per_row ? 1 : ceil_div(dim, kRowSpan);
}

// Writes elements [first, end) of a row of act elements given by value(i) (f32), whose scale, for int8, is known. `row` is the row's
// number, first a multiple of 4, end one too or dim.
template <int Threads, class Value>
LAPIDARY_DEVICE void write_act_span(const ActOut& out, int64_t row, int first, int end, int dim, bool vectorize, Value value,
                                    float inverse) {
  const int64_t at = row * dim;
  const int begin = first + thread_index() * 4;
  if (out.type == ActType::int8) {
    int8_t* to = static_cast<int8_t*>(out.data) + at;
    for (int i = begin; i < end; i += Threads * 4) store_row4(to, i, dim, vectorize, value(i), inverse);
  } else if (out.type == ActType::bf16) {
    BFloat16* to = static_cast<BFloat16*>(out.data) + at;
    for (int i = begin; i < end; i += Threads * 4) store_row4(to, i, dim, vectorize, value(i));
  } else {
    float* to = static_cast<float*>(out.data) + at;
    for (int i = begin; i < end; i += Threads * 4) store_row4(to, i, dim, vectorize, value(i));
  }
}
// What an int8 row is multiplied by when its scale is not its own to find: fixed, or given. 0 for other types.
LAPIDARY_DEVICE float known_inverse(const ActOut& out, int64_t row) {
  if (out.type != ActType::int8) return 0;
  return out.scaling == ActScaling::given ? int8_inverse(load_global(out.row_scales + row)) : out.inverse_scale;
}

// Writes a whole row, as ActOut says: for int8 with a scale of its own, value(i) is called twice for each group.
template <int Threads, class Value>
LAPIDARY_DEVICE void write_act_row(const ActOut& out, int64_t row, int dim, bool vectorize, Value value, float* scratch) {
  float inverse;
  if (out.type == ActType::int8 && out.scaling == ActScaling::per_row) {
    const float scale = int8_scale(row_absmax<Threads>(dim, [&](int i, float m) { return absmax4(value(i), m); }, scratch));
    inverse = int8_inverse(scale);
    if (thread_index() == 0) store_global(out.row_scales + row, scale);
  } else {
    inverse = known_inverse(out, row);
  }
  write_act_span<Threads>(out, row, 0, dim, dim, vectorize, value, inverse);
}

}  // namespace lapidary::cuda
