// Products of int8 panels with f32 inputs ("weight-only"): weights widened in registers, f32 fused multiply-adds. Part of kernels/impl.h.
//
// The order: four chains per element, chain j over the inputs i with i mod 4 = j in rising i; then (0 + 1) + (2 + 3), then times the row's
// scale. A vector of sums is four rows of a panel, four lanes each.
//
// A prepared row: 64 bytes of nothing, then f32, padded with zeros to the panel's columns.
#pragma once

#include "cpu/kernels/math.h"
#include "cpu/kernels/packed_panels.h"
#include "cpu/simd/quads.h"

namespace lapidary::cpu {
namespace {

struct WeightsForm {
  using Sum = V;
  using Number = float;
  static constexpr int kVectors = 4, kTileVectors = kQuadVectors, kTileTokens = kQuadTokens, kUnitPanels = 1, kFewTokens = kQuadFewTokens,
                       kPieceTokens = 0, kJoined = kQuadVectors;
  static constexpr bool kWidens = true, kAnyOrder = false;

  static LAPIDARY_INLINE int64_t input_bytes(int64_t k) { return 64 + packed_int8_columns(k) * 4; }
  static LAPIDARY_INLINE Sum zero() { return cpu::zero(); }
  static LAPIDARY_INLINE Sum load(const void* p) { return cpu::load(p); }
  static LAPIDARY_INLINE void store(void* p, const Sum& a) { cpu::store(static_cast<float*>(p), a); }
  static LAPIDARY_INLINE Sum add(const Sum& a, const Sum& b) { return cpu::add(a, b); }
  static LAPIDARY_INLINE Sum weights(const int8_t* group, int v) { return load_i8(group + 16 * v); }
  static LAPIDARY_INLINE Quad input(const Number* x) { return load_quad(x); }
  static LAPIDARY_INLINE Sum multiply_add(const Sum& sum, const Sum& w, const Quad& x) { return fma_quad(w, x, sum); }
  static LAPIDARY_INLINE void store_rows(float* out, const Sum* sums, const int32_t*, const std::byte*, const float* w_scales) {
    store_quad_sums(out, sums, w_scales);
  }
};

int64_t packed_weights_input_bytes(int64_t k) { return WeightsForm::input_bytes(k); }

void packed_weights_prepare(const float* x, int64_t k, const InputRule& rule, std::byte* row) {
  float* to = reinterpret_cast<float*>(row + 64);
  for (int64_t i = 0; i < k; i += 16) {
    const int64_t n = lanes_left(i, k);
    V a = load_lanes(x + i, n);
    if (rule.round_to_bf16) {
      uint16_t rounded[16];
      store_bf16(rounded, a);
      a = load_bf16(rounded);
    }
    store(to + i, a);
  }
  for (int64_t i = padded(k); i < packed_int8_columns(k); i += 16) store(to + i, zero());
}

constexpr PackedKernel kPackedWeightsKernel = {DType::i8,
                                               DType::f32,
                                               WeightsForm::kUnitPanels,
                                               packed_weights_input_bytes,
                                               packed_weights_prepare,
                                               nullptr,
                                               multiply_panels<WeightsForm>,
                                               panels_scratch_floats<WeightsForm>,
                                               WeightsForm::kFewTokens};

}  // namespace
}  // namespace lapidary::cpu
