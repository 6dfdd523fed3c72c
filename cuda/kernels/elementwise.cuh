// Kernels whose elements have nothing to do with each other: add, soft-cap, fill, row gather, RoPE angles and rotation.
#pragma once

#include "cuda/kernels/accurate_math.cuh"
#include "cuda/kernels/row_ops.cuh"
#include "cuda/primitives/cluster.cuh"

namespace lapidary::cuda {

// A block owns kFlatSpan consecutive elements: four groups of four per thread, so that four loads are in flight.
inline constexpr int kFlatThreads = 256, kFlatGroups = 4;
inline constexpr int64_t kFlatSpan = kFlatThreads * kFlatGroups * 4;

// Calls visit(i, n) for this thread's groups: elements i .. i + n - 1, n 4 except at the end of `count`.
template <class Visit>
LAPIDARY_DEVICE void for_flat(int64_t count, Visit visit) {
  LAPIDARY_UNROLL
  for (int g = 0; g < kFlatGroups; ++g) {
    const int64_t i = block_x() * kFlatSpan + (g * kFlatThreads + thread_index()) * 4;
    if (i < count) visit(i, count - i < 4 ? static_cast<int>(count - i) : 4);
  }
}
LAPIDARY_DEVICE F32x4 load_flat4(const float* p, int64_t i, int n, bool vectorize) { return load_row4(p + i, 0, n, vectorize && n == 4); }
LAPIDARY_DEVICE void store_flat4(float* p, int64_t i, int n, bool vectorize, const F32x4& v) {
  store_row4(p + i, 0, n, vectorize && n == 4, v);
}

struct AddKernel {
  using Params = AddParams;
  static constexpr const char* kName = "add";
  static constexpr Needs kNeeds = Needs::sm80;
  static constexpr int kThreads = kFlatThreads, kBlocksPerSm = 4;

  static LAPIDARY_DEVICE void run(const Params& p, std::byte*) {
    wait_for_previous_grids();
    allow_next_grid();
    const bool vectorize = aligned_16(p.x) && aligned_16(p.y);
    for_flat(p.count, [&](int64_t i, int n) {
      F32x4 v = load_flat4(p.x, i, n, vectorize);
      const F32x4 w = load_flat4(p.y, i, n, vectorize);
      LAPIDARY_UNROLL
      for (int e = 0; e < 4; ++e) v[e] += w[e];
      store_flat4(p.x, i, n, vectorize, v);
    });
  }
};

struct SoftCapKernel {
  using Params = SoftCapParams;
  static constexpr const char* kName = "soft_cap";
  static constexpr Needs kNeeds = Needs::sm80;
  static constexpr int kThreads = kFlatThreads, kBlocksPerSm = 4;

  static LAPIDARY_DEVICE void run(const Params& p, std::byte*) {
    wait_for_previous_grids();
    allow_next_grid();
    const bool vectorize = aligned_16(p.x);
    for_flat(p.count, [&](int64_t i, int n) {
      F32x4 v = load_flat4(p.x, i, n, vectorize);
      LAPIDARY_UNROLL
      for (int e = 0; e < 4; ++e) v[e] = p.cap * tanh_accurate(divide_exact(v[e], p.cap));
      store_flat4(p.x, i, n, vectorize, v);
    });
  }
};

struct FillKernel {
  using Params = FillParams;
  static constexpr const char* kName = "fill";
  static constexpr Needs kNeeds = Needs::sm80;
  static constexpr int kThreads = kFlatThreads, kBlocksPerSm = 4;

  static LAPIDARY_DEVICE void run(const Params& p, std::byte*) {
    wait_for_previous_grids();
    allow_next_grid();
    const bool vectorize = aligned_16(p.x);
    for_flat(p.count, [&](int64_t i, int n) { store_flat4(p.x, i, n, vectorize, F32x4{{p.value, p.value, p.value, p.value}}); });
  }
};

// A block owns one row of the result.
struct GatherRowsKernel {
  using Params = GatherRowsParams;
  static constexpr const char* kName = "gather_rows";
  static constexpr Needs kNeeds = Needs::sm80;
  static constexpr int kThreads = 256, kBlocksPerSm = 4;

  static LAPIDARY_DEVICE void run(const Params& p, std::byte*) {
    wait_for_previous_grids();
    allow_next_grid();
    const bool vectorize = rows_vectorize(p.x, p.dim) && aligned_16(p.out);
    const float* from = p.x + static_cast<int64_t>(load_global(p.rows + block_x())) * p.dim;
    float* to = p.out + static_cast<int64_t>(block_x()) * p.dim;
    for_row<kThreads>(p.dim, [&](int i) { store_row4(to, i, p.dim, vectorize, load_row4(from, i, p.dim, vectorize)); });
  }
};

// A thread owns one angle.
struct RopeAnglesKernel {
  using Params = RopeAnglesParams;
  static constexpr const char* kName = "rope_angles";
  static constexpr Needs kNeeds = Needs::sm80;
  static constexpr int kThreads = 256, kBlocksPerSm = 2;

  static LAPIDARY_DEVICE void run(const Params& p, std::byte*) {
    wait_for_previous_grids();
    allow_next_grid();
    const int64_t i = static_cast<int64_t>(block_x()) * kThreads + thread_index();
    if (i >= static_cast<int64_t>(p.tokens) * p.half) return;
    const SinCos r = sin_cos_accurate(static_cast<float>(load_global(p.positions + i / p.half)) * load_global(p.inv_freq + i % p.half));
    store_global(p.cos + i, r.cos);
    store_global(p.sin + i, r.sin);
  }
};

// A block owns one token, a thread every kThreads-th pair of its heads.
struct RopeKernel {
  using Params = RopeParams;
  static constexpr const char* kName = "rope";
  static constexpr Needs kNeeds = Needs::sm80;
  static constexpr int kThreads = 256, kBlocksPerSm = 4;

  static LAPIDARY_DEVICE void run(const Params& p, std::byte*) {
    wait_for_previous_grids();
    allow_next_grid();
    const int64_t token = block_x();
    float* heads = p.x + token * p.heads * 2 * p.half;
    for (int pair = thread_index(); pair < p.heads * p.half; pair += kThreads) {
      const int head = pair / p.half, j = pair % p.half;
      float* x = heads + static_cast<int64_t>(head) * 2 * p.half + j;
      const float c = load_global(p.cos + token * p.half + j), s = load_global(p.sin + token * p.half + j);
      const float a = load_global(x), b = load_global(x + p.half);
      store_global(x, a * c - b * s);
      store_global(x + p.half, b * c + a * s);
    }
  }
};

}  // namespace lapidary::cuda
