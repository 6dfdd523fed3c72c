// The running state of a softmax over keys that arrive in pieces, in base 2: what prefill, decode and their merges agree on.
//
// A score t here is in units of log2: t = log2(e) · score, so a weight is 2^(t - m). A key that is not visible has score -infinity. The
// maximum m starts at a finite huge negative value, never -infinity, so no difference of maxima is NaN: a piece without a visible key
// leaves {kNegativeHuge, 0, 0}, contributes exactly nothing to a merge, and a row that saw no key at all gives zeros.
#pragma once

#include "cuda/primitives/math.cuh"

namespace lapidary::cuda {

inline constexpr float kMaskedScore = -__builtin_huge_valf();

struct SoftmaxRow {
  float m = kNegativeHuge;  // maximum so far
  float l = 0;              // sum of 2^(t - m)

  // Makes room for scores up to `highest`; returns the factor for everything accumulated under the old maximum (l is scaled here, o by the
  // caller).
  LAPIDARY_DEVICE float raise(float highest) {
    const float raised = max_f32(m, highest);
    const float factor = exp2_fast(m - raised);
    m = raised;
    l *= factor;
    return factor;
  }
  // 1 / l, and 0 for a row that saw no key.
  LAPIDARY_DEVICE float inverse() const { return l == 0 ? 0.0f : divide_exact(1.0f, l); }
};

// With N of the output's elements, not yet divided by l.
template <int N>
struct SoftmaxState : SoftmaxRow {
  float o[N] = {};

  // Adds what another set of keys gave. Not associative in its last bits: merge in a fixed order.
  LAPIDARY_DEVICE void merge(const SoftmaxRow& other, const float (&other_o)[N]) {
    const float raised = max_f32(m, other.m);
    const float mine = exp2_fast(m - raised), theirs = exp2_fast(other.m - raised);
    m = raised;
    l = fma(other.l, theirs, l * mine);
    LAPIDARY_UNROLL
    for (int i = 0; i < N; ++i) o[i] = fma(other_o[i], theirs, o[i] * mine);
  }
  LAPIDARY_DEVICE void merge(const SoftmaxState& other) { merge(other, other.o); }
};

// Scores q·k to base-2 softmax units. One of two forms, chosen on the host: t = factor · x, or with a soft-cap
// t = cap·log2(e)·tanh(x · scale / cap) = outer - 2·outer / (1 + 2^(inner · x)).
struct ScoreScale {
  float factor;        // without soft-cap: scale · log2(e); with one: 1, after cap()
  float inner, outer;  // 2·log2(e)·scale / softcap and softcap·log2(e); outer 0: no soft-cap

  // For a thread that is about to multiply by `factor`.
  LAPIDARY_DEVICE float cap(float x) const { return fma(-2.0f * outer, reciprocal_fast(1.0f + exp2_fast(inner * x)), outer); }
};
inline ScoreScale score_scale(float scale, float softcap) {
  if (softcap == 0) return {scale * kLog2e, 0, 0};
  return {1, 2 * kLog2e * scale / softcap, softcap * kLog2e};
}

}  // namespace lapidary::cuda
