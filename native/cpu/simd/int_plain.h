// I, sixteen int32 lanes, a row each, as an array in plain C++, for kernels/packed_int8.h on processors that have no header of their own.
// The same names as the other simd/int_*.h.
#pragma once

#include "cpu/simd/common.h"

namespace lapidary::cpu {
namespace {

struct I {
  int32_t l[16];
};

// Numbers of one input group: [kIntGroup] IntNumber.
using IntNumber = int8_t;
// kIntVectors I are the sums of a panel; a tile is kIntTileVectors I times kIntTileTokens tokens, work is shared in kIntUnitPanels panels.
// Up to kIntFewTokens tokens read the panel as it streams in from memory, up to kIntPieceTokens in two passes. int_store_rows takes
// kIntJoined I at once.
constexpr int kIntVectors = 1, kIntTileVectors = 1, kIntTileTokens = 2, kIntUnitPanels = 1, kIntFewTokens = 2, kIntPieceTokens = 0,
              kIntJoined = 1;
// Whether weights are turned into operands beforehand when there are many tokens.
constexpr bool kIntWidens = false;

LAPIDARY_INLINE I int_zero() { return {}; }
LAPIDARY_INLINE I int_load(const void* p) {
  I a;
  std::memcpy(a.l, p, sizeof a.l);
  return a;
}
LAPIDARY_INLINE void int_store(void* p, const I& a) { std::memcpy(p, a.l, sizeof a.l); }
LAPIDARY_INLINE I int_add(const I& a, const I& b) {
  I sum;
  for (int i = 0; i < 16; ++i) sum.l[i] = a.l[i] + b.l[i];
  return sum;
}
LAPIDARY_INLINE IntNumber int_number(int8_t q) { return q; }
// Vector v of a group of panel columns.
LAPIDARY_INLINE I int_weights(const int8_t* group, int) { return int_load(group); }
// A group of an input row in every lane.
LAPIDARY_INLINE I int_input(const IntNumber* p) {
  I a;
  for (int i = 0; i < 16; ++i) std::memcpy(&a.l[i], p, 4);
  return a;
}
LAPIDARY_INLINE I int_multiply_add(const I& sum, const I& weights, const I& x) {
  int8_t w[64], q[4];
  std::memcpy(w, weights.l, sizeof w);
  std::memcpy(q, x.l, sizeof q);
  I result;
  for (int i = 0; i < 16; ++i) result.l[i] = sum.l[i] + q[0] * w[4 * i] + q[1] * w[4 * i + 1] + q[2] * w[4 * i + 2] + q[3] * w[4 * i + 3];
  return result;
}
// float(sum) * (x_scale * w_scale) of the rows of kIntJoined vectors.
LAPIDARY_INLINE void int_store_rows(float* out, const I* sums, const int32_t*, float x_scale, const float* w_scales) {
  for (int i = 0; i < 16; ++i) out[i] = static_cast<float>(sums[0].l[i]) * (x_scale * w_scales[i]);
}

}  // namespace
}  // namespace lapidary::cpu
