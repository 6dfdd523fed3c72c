// Products of bf16 panels with f32 inputs: weights are widened in registers. Part of kernels/impl.h.
//
// A prepared row: f32, padded with zeros to the panel's columns; rounded to bf16 where the rule wants it.
#pragma once

#include "cpu/kernels/packed_tiles.h"

namespace lapidary::cpu {
namespace {

// Pairs of bf16, even element first.
struct WidenedPairs {
  static constexpr int64_t kInputBytes = 2 * sizeof(float);  // of a word's elements

  template <typename RowAt, int T, int P>
  static LAPIDARY_INLINE void multiply(const RowAt& row, const V (&words)[P], V (&sums)[T][P]) {
    V w[P];
    LAPIDARY_UNROLL for (int p = 0; p < P; ++p) w[p] = bf16_low(words[p]);
    add_products(row, 0, w, sums);
    LAPIDARY_UNROLL for (int p = 0; p < P; ++p) w[p] = bf16_high(words[p]);
    add_products(row, 1, w, sums);
  }

 private:
  template <typename RowAt, int T, int P>
  static LAPIDARY_INLINE void add_products(const RowAt& row, int element, const V (&w)[P], V (&sums)[T][P]) {
    LAPIDARY_UNROLL for (int t = 0; t < T; ++t) fma_each(reinterpret_cast<const float*>(row(t)) + element, w, sums[t]);
  }
};

// An odd number of cache lines: rows that lay a power of two apart would share a few sets of the first-level cache.
int64_t packed_bf16_input_bytes(int64_t k) { return packed_bf16_columns(k) * 4 | 64; }

void packed_bf16_prepare(const float* x, int64_t k, const InputRule& rule, std::byte* row) {
  float* to = reinterpret_cast<float*>(row);
  if (!rule.round_to_bf16) {
    std::memcpy(to, x, static_cast<size_t>(k) * 4);
  } else {
    for (int64_t i = 0; i < k; i += 16) {
      const int64_t n = lanes_left(i, k);
      uint16_t rounded[16];
      store_bf16(rounded, load_lanes(x + i, n));
      store_lanes(to + i, load_bf16(rounded), n);
    }
  }
  std::memset(to + k, 0, static_cast<size_t>(packed_bf16_input_bytes(k) - k * 4));
}

void packed_bf16_multiply(const PackedTask& task, int64_t p0, int64_t p1, float*) {
  multiply_panels_of<WidenedPairs>(task, packed_bf16_input_bytes(task.k), packed_bf16_columns(task.k) / kBf16Group, p0, p1);
}

constexpr PackedKernel kPackedBf16Kernel = {DType::bf16, DType::f32,           2,         packed_bf16_input_bytes, packed_bf16_prepare,
                                            nullptr,     packed_bf16_multiply, no_scratch};

}  // namespace
}  // namespace lapidary::cpu
