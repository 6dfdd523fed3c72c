// RMSNorm of rows, alone and at the seam between two branches of a layer. A block owns one row; a thread owns every Threads-th group of
// four elements, from the first pass to the last (row_ops.cuh), so only the reductions need barriers.
#pragma once

#include "cuda/kernels/row_ops.cuh"
#include "cuda/primitives/cluster.cuh"

namespace lapidary::cuda {

// The longest row that is kept in shared memory between passes: with the scratch, within the 48 KiB that need no opt-in. Longer rows are
// read again from where they are.
inline constexpr int kSharedRowDim = (48 * 1024 - kRowSlots * static_cast<int>(sizeof(float))) / static_cast<int>(sizeof(float));

inline constexpr size_t row_smem_bytes(bool shared, int dim) {
  return kRowSlots * sizeof(float) + (shared ? static_cast<size_t>(round_up(dim, 4)) * sizeof(float) : 0);
}

// Pipeline: read x, sum of squares -> scale; int8 per row: largest magnitude -> write.
template <int Threads, bool Shared>
struct RmsNormKernel {
  using Params = RmsNormParams;
  static constexpr const char* kName = "rms_norm";
  static constexpr Needs kNeeds = Needs::sm80;
  static constexpr int kThreads = Threads, kBlocksPerSm = 1024 / Threads;

  static LAPIDARY_DEVICE void run(const Params& p, std::byte* smem) {
    wait_for_previous_grids();
    allow_next_grid();
    float* scratch = reinterpret_cast<float*>(smem);
    const bool vectorize = rows_vectorize(p.x, p.dim) && aligned_16(p.weight) && aligned_16(p.out.data);
    const int64_t row = block_x();
    const float* x = p.x + row * p.dim;
    const RowBuffer<Shared> buffer = {Shared ? scratch + kRowSlots : const_cast<float*>(x), p.dim, vectorize};
    const auto add = [&](int i, float sum) {
      const F32x4 v = load_row4(x, i, p.dim, vectorize);
      if constexpr (Shared) buffer.store(i, v);
      return squares4(v, sum);
    };
    const float inverse = inverse_rms(row_sum<Threads>(p.dim, add, scratch), p.dim, p.eps);
    const auto value = [&](int i) { return normed4(buffer.load(i), inverse, load_row4(p.weight, i, p.dim, vectorize), p.offset); };
    write_act_row<Threads>(p.out, row, p.dim, vectorize, value, scratch);
  }
};

// Pipeline: sum of squares of the branch -> x + post_norm(branch), written, and its sum of squares -> int8 per row: largest magnitude ->
// write.
template <int Threads, bool Shared>
struct AddNormKernel {
  using Params = AddNormParams;
  static constexpr const char* kName = "add_norm";
  static constexpr Needs kNeeds = Needs::sm80;
  static constexpr int kThreads = Threads, kBlocksPerSm = 1024 / Threads;

  static LAPIDARY_DEVICE void run(const Params& p, std::byte* smem) {
    wait_for_previous_grids();
    allow_next_grid();
    float* scratch = reinterpret_cast<float*>(smem);
    const bool vectorize = rows_vectorize(p.x, p.dim) && aligned_16(p.branch) && aligned_16(p.post_weight) && aligned_16(p.next_weight) &&
                           (!p.next_weight || aligned_16(p.out.data));
    const int64_t row = block_x();
    float* x = p.x + row * p.dim;
    const RowBuffer<Shared> buffer = {Shared ? scratch + kRowSlots : x, p.dim, vectorize};
    const auto keep = [&](int i, const F32x4& v) {
      store_row4(x, i, p.dim, vectorize, v);
      if constexpr (Shared) buffer.store(i, v);
    };
    const float inverse =
        residual_row<Threads>({x, p.branch + row * p.dim, p.post_weight, p.offset, p.eps, p.dim, vectorize}, keep, scratch);
    if (!p.next_weight) return;
    const auto value = [&](int i) { return normed4(buffer.load(i), inverse, load_row4(p.next_weight, i, p.dim, vectorize), p.offset); };
    write_act_row<Threads>(p.out, row, p.dim, vectorize, value, scratch);
  }
};

}  // namespace lapidary::cuda
