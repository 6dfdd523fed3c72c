// Rows to bf16 and int8, and the magnitudes that scales are made of.
#pragma once

#include "cuda/kernels/row_ops.cuh"
#include "cuda/primitives/cluster.cuh"

namespace lapidary::cuda {

// A block owns a span of one row (all of it when the row's own scale is wanted).
template <class In>
struct QuantizeKernel {
  using Params = QuantizeParams;
  static constexpr const char* kName = "quantize";
  static constexpr Needs kNeeds = Needs::sm80;
  static constexpr int kThreads = 256, kBlocksPerSm = 4;
  static constexpr size_t kSmemBytes = kRowSlots * sizeof(float);

  static LAPIDARY_DEVICE void run(const Params& p, std::byte* smem) {
    wait_for_previous_grids();
    allow_next_grid();
    const bool vectorize = rows_vectorize(p.x, p.dim) && aligned_16(p.out.data);
    const int spans = row_spans(p.out, p.dim);
    const int64_t row = block_x() / spans;
    const In* x = static_cast<const In*>(p.x) + row * p.dim;
    const auto value = [&](int i) { return load_row4(x, i, p.dim, vectorize); };
    if (spans == 1) return write_act_row<kThreads>(p.out, row, p.dim, vectorize, value, reinterpret_cast<float*>(smem));
    const int first = block_x() % spans * kRowSpan, end = first + kRowSpan < p.dim ? first + kRowSpan : p.dim;
    write_act_span<kThreads>(p.out, row, first, end, p.dim, vectorize, value, known_inverse(p.out, row));
  }
};

// A block owns one row.
template <class In>
struct RowAbsmaxKernel {
  using Params = RowAbsmaxParams;
  static constexpr const char* kName = "row_absmax";
  static constexpr Needs kNeeds = Needs::sm80;
  static constexpr int kThreads = 256, kBlocksPerSm = 4;
  static constexpr size_t kSmemBytes = kRowSlots * sizeof(float);

  static LAPIDARY_DEVICE void run(const Params& p, std::byte* smem) {
    wait_for_previous_grids();
    allow_next_grid();
    const bool vectorize = rows_vectorize(p.x, p.dim);
    const In* x = static_cast<const In*>(p.x) + static_cast<int64_t>(block_x()) * p.dim;
    const auto most = [&](int i, float m) { return absmax4(load_row4(x, i, p.dim, vectorize), m); };
    const float absmax = row_absmax<kThreads>(p.dim, most, reinterpret_cast<float*>(smem));
    if (thread_index() == 0) store_global(p.absmax + block_x(), absmax);
  }
};

// A block owns one sequence, a thread every kThreads-th of its rows.
struct SequenceScalesKernel {
  using Params = SequenceScalesParams;
  static constexpr const char* kName = "sequence_scales";
  static constexpr Needs kNeeds = Needs::sm80;
  static constexpr int kThreads = 256, kBlocksPerSm = 4;
  static constexpr size_t kSmemBytes = kRowSlots * sizeof(float);

  static LAPIDARY_DEVICE void run(const Params& p, std::byte* smem) {
    wait_for_previous_grids();
    allow_next_grid();
    const int first = load_global(p.row_starts + block_x()) + thread_index(), end = load_global(p.row_starts + block_x() + 1);
    float m = 0;
    for (int row = first; row < end; row += kThreads) m = max_f32(m, load_global(p.absmax + row));
    const float scale = int8_scale(block_reduce<kThreads>(m, Max{}, 0.0f, reinterpret_cast<float*>(smem)));
    for (int row = first; row < end; row += kThreads) store_global(p.row_scales + row, scale);
  }
};

}  // namespace lapidary::cuda
