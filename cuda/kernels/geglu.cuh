// GeGLU: gelu_tanh(gate) * up, rounded or quantised. A block owns a span of one row (all of it when the row's own scale is wanted), a
// thread every Threads-th group of four channels of it.
#pragma once

#include "cuda/kernels/accurate_math.cuh"
#include "cuda/kernels/row_ops.cuh"
#include "cuda/primitives/cluster.cuh"

namespace lapidary::cuda {

// Four channels from i on (a multiple of 4) of a row of gate and up.
struct GegluRow {
  const float* gate;
  const float* up;
  int ffn;
  bool interleaved, vectorize;

  LAPIDARY_DEVICE F32x4 operator()(int i) const {
    // Interleaved by 8: channel c lies at c / 8 * 16 + c % 8, its up 8 further; a group of four never crosses a block of 8.
    const int at = interleaved ? i / 8 * 16 + i % 8 : i, dim = interleaved ? 2 * ffn : ffn;
    const F32x4 g = load_row4(gate, at, dim, vectorize),
                u = interleaved ? load_row4(gate, at + 8, dim, vectorize) : load_row4(up, at, dim, vectorize);
    F32x4 y;
    LAPIDARY_UNROLL
    for (int e = 0; e < 4; ++e) y[e] = gelu_accurate(g[e]) * u[e];
    return y;
  }
};

struct GegluKernel {
  using Params = GegluParams;
  static constexpr const char* kName = "geglu";
  static constexpr Needs kNeeds = Needs::sm80;
  static constexpr int kThreads = 256, kBlocksPerSm = 4;
  static constexpr size_t kSmemBytes = kRowSlots * sizeof(float);

  static LAPIDARY_DEVICE void run(const Params& p, std::byte* smem) {
    wait_for_previous_grids();
    allow_next_grid();
    const bool vectorize = rows_vectorize(p.gate, p.ffn) && aligned_16(p.up) && aligned_16(p.out.data);
    const int spans = row_spans(p.out, p.ffn);
    const int64_t row = block_x() / spans;
    const int span = block_x() % spans;
    const GegluRow value = {p.gate + row * p.ffn * (p.interleaved ? 2 : 1), p.up + (p.interleaved ? 0 : row * p.ffn), p.ffn, p.interleaved,
                            vectorize};
    if (spans == 1) return write_act_row<kThreads>(p.out, row, p.ffn, vectorize, value, reinterpret_cast<float*>(smem));
    const int first = span * kRowSpan, end = first + kRowSpan < p.ffn ? first + kRowSpan : p.ffn;
    write_act_span<kThreads>(p.out, row, first, end, p.ffn, vectorize, value, known_inverse(p.out, row));
  }
};

}  // namespace lapidary::cuda
