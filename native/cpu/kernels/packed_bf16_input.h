// Inputs rounded to bf16, for products of bf16 panels with bf16 inputs: rows padded with zeros to the panel's columns.
#pragma once

#include "cpu/kernels/math.h"
#include "cpu/packed_layout.h"

namespace lapidary::cpu {
namespace {

// An odd number of cache lines: rows that lay a power of two apart would share a few sets of the first-level cache.
int64_t bf16_input_bytes(int64_t k) { return packed_bf16_columns(k) * 2 | 64; }

void bf16_prepare(const float* x, int64_t k, const InputRule&, std::byte* row) {
  for (int64_t i = 0; i < k; i += 16) store_act(row, true, i, load_lanes(x + i, lanes_left(i, k)), lanes_left(i, k));
  std::memset(row + 2 * k, 0, static_cast<size_t>(bf16_input_bytes(k) - 2 * k));
}

}  // namespace
}  // namespace lapidary::cpu
