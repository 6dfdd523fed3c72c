// Products of int8 rows as plain loops, which compilers vectorise well for the processors that have no simd_int_*.h. Part of
// kernels_impl.h.
#pragma once

#include "cpu/kernels.h"
#include "cpu/simd_common.h"

namespace lapidary::cpu {
namespace {

int64_t int8_row_bytes(int64_t k) { return k; }
size_t int8_scratch_floats(int64_t, int64_t) { return 0; }

int32_t int8_prepare(const int8_t* q, int64_t k, void* row) {
  std::memcpy(row, q, static_cast<size_t>(k));
  return 0;
}

int32_t int8_dot(const int8_t* x, const int8_t* w, int64_t k) {
  int32_t sum = 0;
  for (int64_t i = 0; i < k; ++i) sum += static_cast<int32_t>(x[i]) * w[i];
  return sum;
}

void int8_multiply(const Int8Task& task, int64_t n0, int64_t n1, float*) {
  for (int64_t n = n0; n < n1; ++n) {
    for (int64_t t = 0; t < task.tokens; ++t) {
      const int32_t sum = int8_dot(static_cast<const int8_t*>(task.x) + t * task.k, task.weight + n * task.k, task.k);
      task.out[t * task.out_stride + n] = static_cast<float>(sum) * (task.x_scales[t] * task.w_scales[n]);
    }
  }
}

constexpr Int8Kernels kInt8Kernels{int8_row_bytes,    int8_prepare,  /*direct_tokens=*/4,
                                   /*panel_rows=*/32, int8_multiply, int8_scratch_floats};

}  // namespace
}  // namespace lapidary::cpu
