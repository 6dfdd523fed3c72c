// The end of decode attention: the splits of a row group are added up in their order and written out. Where the partial results lie (this
// block's shared memory, the cluster's, global memory) does not matter to the sums.
#pragma once

#include "cuda/kernels/attention_decode_block.cuh"
#include "cuda/primitives/cluster.cuh"

namespace lapidary::cuda {

// One row's partial result of one split, without the sums.
using SplitState = F32x2;  // m, l

// In the shared memory of the cluster's blocks: block s has split s. One split: this block's own.
template <class Layout>
struct ClusterPartials {
  const std::byte* smem;
  int rank, size;

  LAPIDARY_DEVICE SplitState state(int split, int row) const {
    return get(split, reinterpret_cast<const SplitState*>(smem + Layout::kState) + row);
  }
  LAPIDARY_DEVICE F32x4 sums(int split, int row, int dim) const {
    return get(split, reinterpret_cast<const F32x4*>(reinterpret_cast<const float*>(smem) + Layout::sum(row, dim)));
  }

 private:
  template <typename T>
  LAPIDARY_DEVICE T get(int split, const T* at) const {
    return size == 1 ? load_shared(at) : load_remote(at, split);
  }
};

// In global memory, of one sequence, KV head and row group: sums [splits][rows][head_dim], states [splits][rows]. `rows` is the most a
// group has.
struct GlobalPartials {
  float* sums_at;
  SplitState* states_at;
  int rows, head_dim;
  const SplitState* staged;  // shared memory [splits][staged_rows] from row staged_first on; states are read once per thread otherwise
  int staged_first, staged_rows;

  LAPIDARY_DEVICE SplitState state(int split, int row) const { return load_shared(staged + split * staged_rows + row - staged_first); }
  LAPIDARY_DEVICE F32x4 sums(int split, int row, int dim) const {
    return load_coherent(reinterpret_cast<const F32x4*>(sums_at + (static_cast<int64_t>(split) * rows + row) * head_dim + dim));
  }
};

LAPIDARY_DEVICE GlobalPartials global_partials(const DecodeBlock& b, int head_dim) {
  const DecodeParams& p = b.params;
  const AttentionCommon& c = p.problem.common;
  const int64_t rows = static_cast<int64_t>(p.plan.group_tokens) * b.group,
                groups = static_cast<int64_t>(c.num_kv_heads) * p.plan.row_groups;
  const int64_t block = block_z() * groups + block_y(), blocks = c.num_sequences * groups;
  SplitState* states = reinterpret_cast<SplitState*>(p.problem.partials + blocks * p.plan.splits * rows * head_dim);
  return {p.problem.partials + block * p.plan.splits * rows * head_dim,
          states + block * p.plan.splits * rows,
          static_cast<int>(rows),
          head_dim,
          nullptr,
          0,
          0};
}

LAPIDARY_DEVICE void store_result(const DecodeBlock& b, int row, int dim, int head_dim, const F32x4& y) {
  const AttentionDecodeParams& p = b.params.problem;
  const int64_t at = b.query_row(row) * head_dim + dim;
  if (p.out_type == ActType::f32) {
    put_global(static_cast<std::byte*>(p.out) + at * 4, y);
  } else if (p.out_type == ActType::bf16) {
    put_global(static_cast<std::byte*>(p.out) + at * 2, rounded(y));
  } else {
    put_global(static_cast<std::byte*>(p.out) + at, quantized(y, p.out_inverse_scale));
  }
}

// O = sum of o_i 2^(m_i - M) over sum of l_i 2^(m_i - M), M the largest m, i rising. Thread `thread` of `threads` takes every threads-th
// group of four dims of rows [first_row, first_row + rows). A split without a visible key has m = kNegativeHuge and zeros: it adds nothing,
// exactly.
template <int HeadDim, class Partials>
LAPIDARY_DEVICE void merge_splits(const DecodeBlock& b, const Partials& from, int first_row, int rows, int thread, int threads) {
  constexpr int kBatch =
      16;  // loads in flight per thread: 32 KiB per block, what the latency of L2 asks for at one SM's share of its bandwidth
  for (int i = thread; i < rows * (HeadDim / 4); i += threads) {
    const int row = first_row + i / (HeadDim / 4), dim = i % (HeadDim / 4) * 4;
    float most = kNegativeHuge;
    for (int split = 0; split < b.splits; ++split) most = max_f32(most, from.state(split, row)[0]);
    float total = 0;
    F32x4 sum = {};
    for (int first = 0; first < b.splits; first += kBatch) {
      F32x4 part[kBatch];
      LAPIDARY_UNROLL
      for (int j = 0; j < kBatch; ++j)
        if (first + j < b.splits) part[j] = from.sums(first + j, row, dim);
      LAPIDARY_UNROLL
      for (int j = 0; j < kBatch; ++j) {
        if (first + j >= b.splits) break;
        const SplitState state = from.state(first + j, row);
        const float weight = exp2_fast(state[0] - most);
        total = fma(state[1], weight, total);
        LAPIDARY_UNROLL
        for (int e = 0; e < 4; ++e) sum[e] = fma(part[j][e], weight, sum[e]);
      }
    }
    const float inverse = total == 0 ? 0.0f : divide_exact(1.0f, total);
    LAPIDARY_UNROLL
    for (int e = 0; e < 4; ++e) sum[e] *= inverse;
    store_result(b, row, dim, HeadDim, sum);
  }
}

// True in all threads of the block that came last of the group's: then every partial result is there to read. Resets the counter.
LAPIDARY_DEVICE bool arrived_last(const DecodeBlock& b, int32_t* flag) {
  fence_device();
  sync_threads();
  if (thread_index() == 0) {
    const AttentionCommon& c = b.params.problem.common;
    int32_t* counter = b.params.problem.counters + static_cast<int64_t>(block_z()) * c.num_kv_heads * b.params.plan.row_groups + block_y();
    const bool last = atomic_add_global(counter, 1) == b.splits - 1;
    if (last) store_global(counter, 0);
    store_shared(flag, static_cast<int32_t>(last));
  }
  sync_threads();
  const bool last = load_shared(flag) != 0;
  if (last) fence_device();
  return last;
}

// By the last block: states through shared memory (`scratch` bytes of it), as many rows at a time as fit.
template <int HeadDim>
LAPIDARY_DEVICE void merge_global(const DecodeBlock& b, GlobalPartials from, int scratch) {
  SplitState* staged = reinterpret_cast<SplitState*>(b.smem);
  const int fitting = scratch / static_cast<int>(sizeof(SplitState)) / b.splits, rows_at_once = fitting < b.rows() ? fitting : b.rows();
  for (int first = 0; first < b.rows(); first += rows_at_once) {
    const int rows = b.rows() - first < rows_at_once ? b.rows() - first : rows_at_once;
    if (first > 0) sync_threads();
    for (int i = thread_index(); i < b.splits * rows; i += kDecodeThreads)
      store_shared(staged + i, load_coherent(from.states_at + static_cast<int64_t>(i / rows) * from.rows + first + i % rows));
    sync_threads();
    from.staged = staged, from.staged_first = first, from.staged_rows = rows;
    merge_splits<HeadDim>(b, from, first, rows, thread_index(), kDecodeThreads);
  }
}

}  // namespace lapidary::cuda
