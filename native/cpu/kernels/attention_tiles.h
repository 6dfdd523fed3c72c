// The softmax of attention tiles in training, forwards and backwards, over V; their products are those of kernels/gemm_f32.h. Part of
// kernels/impl.h. A row's probabilities are exp(score - max) / sum with the max and the sum over all its tiles.
#pragma once

#include "cpu/kernels/training.h"

namespace lapidary::cpu {
namespace {

constexpr int kKeyVectors = kKeyTile / 16;

struct SeenKeys {
  int64_t begin, end;
};

LAPIDARY_INLINE SeenKeys seen_keys(const ScoreTile& tile, int64_t row) {
  const int64_t begin = tile.begin + row * tile.begin_step, end = tile.end + row * tile.end_step;
  return {begin < 0 ? 0 : begin, end > tile.keys ? tile.keys : end};
}

LAPIDARY_INLINE int lane_bound(int64_t bound) { return bound < 0 ? 0 : bound > 16 ? 16 : static_cast<int>(bound); }

// Vector j of a row, `other` in lanes of keys that are not seen.
LAPIDARY_INLINE V keep_seen(V a, SeenKeys seen, int j, V other) {
  const int begin = lane_bound(seen.begin - 16 * j), end = lane_bound(seen.end - 16 * j);
  return begin == 0 && end == 16 ? a : begin < end ? keep_range(a, begin, end, other) : other;
}

LAPIDARY_INLINE V score_of(V product, const ScoreTile& tile) {
  const V s = mul(product, set1(tile.scale));
  return tile.softcap != 0 ? capped(s, set1(tile.softcap)) : s;
}

void soften(const ScoreTile& tile, float* maximum, float* sum, float* factors) {
  const V hidden = set1(-__builtin_inff());
  for (int64_t row = 0; row < tile.rows; ++row) {
    float* scores = tile.scores + row * kKeyTile;
    const SeenKeys seen = seen_keys(tile, row);
    factors[row] = 1;
    if (seen.begin >= seen.end) {
      LAPIDARY_UNROLL for (int j = 0; j < kKeyVectors; ++j) store(scores + 16 * j, zero());
      continue;
    }
    V s[kKeyVectors], highest = hidden;
    LAPIDARY_UNROLL for (int j = 0; j < kKeyVectors; ++j) {
      s[j] = keep_seen(score_of(load(scores + 16 * j), tile), seen, j, hidden);
      highest = max(highest, s[j]);
    }
    const float most = reduce_max(highest), now = most > maximum[row] ? most : maximum[row];
    factors[row] = exp1(maximum[row] - now);
    V total = zero();
    LAPIDARY_UNROLL for (int j = 0; j < kKeyVectors; ++j) {
      const V p = exp(sub(s[j], set1(now)));
      store(scores + 16 * j, p);
      total = add(total, p);
    }
    maximum[row] = now;
    sum[row] = __builtin_fmaf(sum[row], factors[row], reduce_add(total));
  }
}

void soften_backward(const ScoreTile& tile, const float* stats, int64_t stats_stride, const float* along, float* gp) {
  for (int64_t row = 0; row < tile.rows; ++row) {
    const SeenKeys seen = seen_keys(tile, row);
    const V most = set1(stats[row * stats_stride]), inverse = set1(1.0f / stats[row * stats_stride + 1]);
    LAPIDARY_UNROLL for (int j = 0; j < kKeyVectors; ++j) {
      float* scores = tile.scores + row * kKeyTile + 16 * j;
      float* derivatives = gp + row * kKeyTile + 16 * j;
      const V s = score_of(load(scores), tile);
      const V p = mul(exp(sub(s, most)), inverse);
      V gz = mul(mul(p, sub(load(derivatives), set1(along[row]))), set1(tile.scale));
      if (tile.softcap != 0) gz = mul(gz, cap_slope(s, set1(tile.softcap)));
      store(scores, keep_seen(p, seen, j, zero()));
      store(derivatives, keep_seen(gz, seen, j, zero()));
    }
  }
}

void scale_rows(float* x, int64_t stride, int64_t rows, int64_t n, const float* factors) {
  for (int64_t row = 0; row < rows; ++row) {
    if (factors[row] != 1) ::lapidary::cpu::scale(x + row * stride, factors[row], n);
  }
}

void divide_rows(const float* x, int64_t stride, int64_t rows, int64_t n, const float* divisors, float* out, int64_t out_stride) {
  for (int64_t row = 0; row < rows; ++row) {
    for (int64_t i = 0; i < n; ++i) out[row * out_stride + i] = x[row * stride + i] / divisors[row];
  }
}

constexpr TrainingKernels kTrainingKernels = {kGemmRows,
                                              kGemmColumns,
                                              pack_panels<kGemmRows>,
                                              pack_panels<kGemmColumns>,
                                              multiply_panels,
                                              soften,
                                              scale_rows,
                                              divide_rows,
                                              soften_backward,
                                              dot_rows,
                                              rms_norm_backward,
                                              rope_backward,
                                              geglu_backward,
                                              soft_cap_backward,
                                              add_scaled,
                                              soften_logits,
                                              logits_backward,
                                              distillation_backward,
                                              fake_quantize,
                                              fake_quantize_backward,
                                              sum_of_squares,
                                              multiply_rows,
                                              adamw,
                                              sgd};

}  // namespace
}  // namespace lapidary::cpu
