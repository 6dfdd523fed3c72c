// The products that AMX has. A kernels file names its simd header, includes this and lists the kernels.
//
// bf16 times bf16: the sum of an element is one chain of additions over steps of 32 in rising k, each step as the instruction sums it
// (docs/numerics.md); any number of tokens goes this way, so that a row's bits do not depend on the rows beside it. int8 is exact, so the
// choice between this and the instruction for few tokens never shows.
#pragma once

#include "cpu/kernels/amx_tiles.h"
#include "cpu/kernels/packed_bf16_input.h"

namespace lapidary::cpu {
namespace {

struct Bf16Dot {
  static constexpr int64_t kInputStart = 0;
  static int64_t input_bytes(int64_t k) { return bf16_input_bytes(k); }
  static int64_t panel_tiles(int64_t k) { return packed_bf16_columns(k) / 32; }
  template <int C, int A, int B>
  static LAPIDARY_INLINE void step() {
    tile_dot_bf16<C, A, B>();
  }
  static void finish(const PackedTask& task, int64_t p, int64_t token, int64_t tokens, const float* sums) {
    float* out = task.out + token * task.out_stride + p * 16 - task.out_first;
    const int64_t columns = lanes_left(p * 16, task.n);
    for (int64_t t = 0; t < tokens; ++t) store_lanes(out + t * task.out_stride, load(sums + 16 * t), columns);
  }
};

// Prepared rows as the VNNI products have them: f32 scale, padded to 64 bytes; then the numbers moved up by 128.
struct Int8Dot {
  static constexpr int64_t kInputStart = 64;
  static int64_t input_bytes(int64_t k) { return 64 + packed_int8_columns(k); }
  static int64_t panel_tiles(int64_t k) { return packed_int8_columns(k) / 64; }
  template <int C, int A, int B>
  static LAPIDARY_INLINE void step() {
    tile_dot_u8_i8<C, A, B>();
  }
  // float(sum - 128 * row sum) * (scale * w_scale), modulo 2^32 until the last.
  static void finish(const PackedTask& task, int64_t p, int64_t token, int64_t tokens, const float* sums) {
    const int64_t columns = lanes_left(p * 16, task.n);
    uint32_t row_sums[16], totals[16];
    std::memcpy(row_sums, task.panels + p * task.panel_bytes + packed_int8_columns(task.k) * 16, sizeof row_sums);
    float w_scales[16] = {};
    std::memcpy(w_scales, task.w_scales + p * 16, static_cast<size_t>(columns) * sizeof(float));
    for (int64_t t = 0; t < tokens; ++t) {
      float scale, out[16];
      std::memcpy(&scale, task.input + (token + t) * input_bytes(task.k), sizeof scale);
      std::memcpy(totals, sums + 16 * t, sizeof totals);
      for (int i = 0; i < 16; ++i) out[i] = static_cast<float>(static_cast<int32_t>(totals[i] - 128 * row_sums[i])) * (scale * w_scales[i]);
      store_lanes(task.out + (token + t) * task.out_stride + p * 16 - task.out_first, load(out), columns);
    }
  }
};

void amx_int8_prepare_quantized(const int8_t* q, float scale, int64_t k, std::byte* row) {
  std::memcpy(row, &scale, sizeof scale);
  uint8_t* to = reinterpret_cast<uint8_t*>(row + Int8Dot::kInputStart);
  for (int64_t i = 0; i < k; ++i) to[i] = static_cast<uint8_t>(q[i] ^ -128);
  std::memset(to + k, 0, static_cast<size_t>(packed_int8_columns(k) - k));
}

void amx_int8_prepare(const float* x, int64_t k, const InputRule& rule, std::byte* row) {
  const float most = rule.fixed_scale > 0 ? 0 : absolute_max(x, k);
  const float scale = rule.fixed_scale > 0 ? rule.fixed_scale : (most > 1e-8f ? most : 1e-8f) / 127.0f;
  int8_t* to = reinterpret_cast<int8_t*>(row + Int8Dot::kInputStart);
  quantize_int8(x, k, 1.0f / scale, to);
  amx_int8_prepare_quantized(to, scale, k, row);
}

constexpr PackedKernel kAmxBf16Kernel = {
    DType::bf16, DType::bf16, 2, bf16_input_bytes, bf16_prepare, nullptr, multiply_tiles<Bf16Dot>, tiles_scratch_floats<Bf16Dot>};

// Few::multiply takes fewer than Few::kTokens tokens, whose prepared rows have the same form.
template <typename Few>
void amx_int8_multiply(const PackedTask& task, int64_t p0, int64_t p1, float* scratch) {
  task.tokens < Few::kTokens ? Few::multiply(task, p0, p1, scratch) : multiply_tiles<Int8Dot>(task, p0, p1, scratch);
}
// The last piece of many tokens may be one of few.
template <typename Few>
size_t amx_int8_scratch_floats(int64_t tokens, int64_t k) {
  const int64_t most_few = tokens < Few::kTokens ? tokens : Few::kTokens - 1;
  const size_t few = Few::scratch_floats(most_few, k), tiles = tiles_scratch_floats<Int8Dot>(tokens, k);
  return few > tiles ? few : tiles;
}
template <typename Few>
constexpr PackedKernel kAmxInt8Kernel = {DType::i8,
                                         DType::i8,
                                         2,
                                         Int8Dot::input_bytes,
                                         amx_int8_prepare,
                                         amx_int8_prepare_quantized,
                                         amx_int8_multiply<Few>,
                                         amx_int8_scratch_floats<Few>};

}  // namespace
}  // namespace lapidary::cpu
