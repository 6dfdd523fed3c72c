// The single-thread kernels of training, a part of the kernel table (kernels.h, whose rules hold here): f32 products, attention tiles,
// losses, norms' and activations' derivatives, optimiser steps. Every table gives the same bits.
#pragma once

#include <cstddef>
#include <cstdint>

namespace lapidary::cpu {

// One side of a product as it lies in memory: element (i, l) of a, or (l, j) of b, l running along the sum.
struct MatrixSide {
  const float* data;
  int64_t stride;  // floats between rows in memory
  bool along;      // l runs along the rows in memory, else across them
};

// Order of an element of c = a · b: k in slices of kGemmSlice; within a slice one chain of fused multiply-adds in rising k, begun at 0;
// the slices' sums added in rising order, to what c holds where the product is added to it.
inline constexpr int64_t kGemmSlice = 256;

// Queries and keys of an attention tile at most; rows of a tile's matrices stand kKeyTile floats apart.
inline constexpr int64_t kQueryTile = 60, kKeyTile = 64;

// Row i of a tile sees the keys [begin + i * begin_step, end + i * end_step), cut to [0, keys).
struct ScoreTile {
  float* scores;  // [rows, kKeyTile], dot products to begin with
  int64_t rows, keys;
  int64_t begin, begin_step, end, end_step;
  float scale, softcap;
};

// A row of logits: capped (softcap 0: not) and divided by the temperature.
struct LogitsRow {
  float* logits;  // [vocab]
  int64_t vocab;
  float softcap, temperature;
};

struct AdamConstants {
  float gradient_scale, kept, beta1, beta2, rest1, rest2, step_size, root_correction, eps;
};
struct SgdConstants {
  float gradient_scale, weight_decay, momentum, learning_rate;
  bool first, has_momentum;
};

struct TrainingKernels {
  // Products. A panel of `a` is gemm_rows rows of a slice, of `b` gemm_columns columns, zeros beyond the matrix; floats of a panel of k
  // elements: k times that many.
  int64_t gemm_rows, gemm_columns;
  // Panels [p0, p1) of elements [k0, k0 + k) of a side that has `count` rows (of a) or columns (of b) -> consecutive panels.
  void (*pack_a)(const MatrixSide& side, int64_t count, int64_t p0, int64_t p1, int64_t k0, int64_t k, float* panels);
  void (*pack_b)(const MatrixSide& side, int64_t count, int64_t p0, int64_t p1, int64_t k0, int64_t k, float* panels);
  // c [m, n] = or += a · b over one slice of k, m and n as many panels as they need.
  void (*multiply_panels)(const float* a, const float* b, int64_t k, int64_t m, int64_t n, float* c, int64_t c_stride, bool add_to_c);

  // Attention. Dot products -> exp(score - max), 0 where hidden, with the running maximum and sum [rows]; factors[i] brings earlier sums of
  // row i to the new maximum.
  void (*soften)(const ScoreTile& tile, float* maximum, float* sum, float* factors);
  // Row i of x [rows, n], `stride` floats apart, times its factor, or divided by its divisor.
  void (*scale_rows)(float* x, int64_t stride, int64_t rows, int64_t n, const float* factors);
  void (*divide_rows)(const float* x, int64_t stride, int64_t rows, int64_t n, const float* divisors, float* out, int64_t out_stride);
  // Dot products and gp, the derivatives by the probabilities -> the probabilities and, over gp, the derivatives by the dot products. Row i
  // has its maximum and sum at stats + i * stats_stride, and gout · out in along[i].
  void (*soften_backward)(const ScoreTile& tile, const float* stats, int64_t stats_stride, const float* along, float* gp);
  float (*dot)(const float* x, const float* y, int64_t n);

  // gx = or +=; gw += this row's part, null: not wanted.
  void (*rms_norm_backward)(const float* x, const float* weight, float offset, float eps, const float* gy, int64_t dim, float* gx,
                            bool add_to_gx, float* gw);
  void (*rope_backward)(float* g, const float* cos, const float* sin, int64_t heads, int64_t half);
  void (*geglu_backward)(const float* gate, const float* up, const float* gout, int64_t n, float* ggate, float* gup);
  void (*soft_cap_backward)(const float* y, float cap, float* g, int64_t n);
  void (*add_scaled)(float* x, float factor, const float* y, int64_t n);  // x += factor * y, two roundings

  // Losses. Raw logits -> l in place; returns log Σ exp(l).
  double (*soften_logits)(const LogitsRow& row);
  // l -> factor · exp(l - log_sum) · the cap's slope, in place.
  void (*logits_backward)(const LogitsRow& row, float log_sum, float factor);
  // l and the teacher's -> factor · (exp(l - log_sum) - exp(teacher - teacher_sum)) · the cap's slope, in place; returns the divergence.
  double (*distillation_backward)(const LogitsRow& row, float log_sum, const float* teacher, float teacher_sum, float factor);

  // q(x) -> out, the sum of squared errors back.
  double (*fake_quantize)(const float* x, int64_t n, float scale, float* out);
  // See TrainingOps::fake_quantize_backward; clips: |x| > 127 scale has no derivative. literal: else straight through.
  void (*fake_quantize_backward)(const float* x, int64_t n, float scale, bool clips, bool literal, float error_weight, float* g);

  double (*sum_of_squares)(const float* x, int64_t n);
  void (*multiply)(float* x, const float* y, int64_t n);
  void (*adamw)(float* p, const float* g, float* m, float* v, int64_t n, const AdamConstants& c);
  void (*sgd)(float* p, const float* g, float* momentum, int64_t n, const SgdConstants& c);
};

}  // namespace lapidary::cpu
