// Products of int8 panels with int8 inputs, exact in int32 (modulo 2^32, so k < 2^17). Part of kernels/impl.h, and of the files of further
// instruction sets.
//
// A prepared row: f32 scale, padded to 64 bytes; then the inputs as the instruction set multiplies them, padded to the panel's columns,
// whose weights are zeros there.
#pragma once

#ifdef LAPIDARY_SIMD_INT_HEADER
#include LAPIDARY_SIMD_INT_HEADER
#else
#include "cpu/simd/int_plain.h"
#endif

#include "cpu/kernels/math.h"
#include "cpu/kernels/packed_panels.h"

namespace lapidary::cpu {
namespace {

struct Int8Form {
  using Sum = I;
  using Number = IntNumber;
  static constexpr int kVectors = kIntVectors, kTileVectors = kIntTileVectors, kTileTokens = kIntTileTokens, kUnitPanels = kIntUnitPanels,
                       kFewTokens = kIntFewTokens, kPieceTokens = kIntPieceTokens, kJoined = kIntJoined;
  static constexpr bool kWidens = kIntWidens, kAnyOrder = true;

  static LAPIDARY_INLINE int64_t input_bytes(int64_t k) { return 64 + packed_int8_columns(k) * static_cast<int64_t>(sizeof(Number)); }
  static LAPIDARY_INLINE Sum zero() { return int_zero(); }
  static LAPIDARY_INLINE Sum load(const void* p) { return int_load(p); }
  static LAPIDARY_INLINE void store(void* p, const Sum& a) { int_store(p, a); }
  static LAPIDARY_INLINE Sum add(const Sum& a, const Sum& b) { return int_add(a, b); }
  static LAPIDARY_INLINE Sum weights(const int8_t* group, int v) { return int_weights(group, v); }
  static LAPIDARY_INLINE Sum input(const Number* x) { return int_input(x); }
  static LAPIDARY_INLINE Sum multiply_add(const Sum& sum, const Sum& w, const Sum& x) { return int_multiply_add(sum, w, x); }
  static LAPIDARY_INLINE void store_rows(float* out, const Sum* sums, const int32_t* row_sums, const std::byte* input,
                                         const float* w_scales) {
    float scale;
    std::memcpy(&scale, input, sizeof scale);
    int_store_rows(out, sums, row_sums, scale, w_scales);
  }
};

void packed_int8_prepare_quantized(const int8_t* q, float scale, int64_t k, std::byte* row) {
  std::memcpy(row, &scale, sizeof scale);
  IntNumber* to = reinterpret_cast<IntNumber*>(row + 64);
  for (int64_t i = 0; i < k; ++i) to[i] = int_number(q[i]);
  for (int64_t i = k; i < packed_int8_columns(k); ++i) to[i] = 0;
}

void packed_int8_prepare(const float* x, int64_t k, const InputRule& rule, std::byte* row) {
  const float most = rule.fixed_scale > 0 ? 0 : absolute_max(x, k);
  const float scale = rule.fixed_scale > 0 ? rule.fixed_scale : (most > 1e-8f ? most : 1e-8f) / 127.0f, inverse = 1.0f / scale;
  std::memcpy(row, &scale, sizeof scale);
  IntNumber* to = reinterpret_cast<IntNumber*>(row + 64);
  constexpr int64_t kPiece = 256;
  int8_t q[kPiece];
  for (int64_t i = 0; i < k; i += kPiece) {
    const int64_t n = k - i < kPiece ? k - i : kPiece;
    quantize_int8(x + i, n, inverse, q);
    for (int64_t j = 0; j < n; ++j) to[i + j] = int_number(q[j]);
  }
  for (int64_t i = k; i < packed_int8_columns(k); ++i) to[i] = 0;
}

int64_t packed_int8_input_bytes(int64_t k) { return Int8Form::input_bytes(k); }

constexpr PackedKernel kPackedInt8Kernel = {DType::i8,
                                            DType::i8,
                                            kIntUnitPanels,
                                            packed_int8_input_bytes,
                                            packed_int8_prepare,
                                            packed_int8_prepare_quantized,
                                            multiply_panels<Int8Form>,
                                            panels_scratch_floats<Int8Form>,
                                            Int8Form::kFewTokens};

}  // namespace
}  // namespace lapidary::cpu
