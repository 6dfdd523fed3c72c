// Turns plain rows into panels, on all threads: each panel is read from the file's mapping once and written once.
#include "cpu/packed.h"

#include <algorithm>
#include <cstring>

#include "base/error.h"
#include "cpu/kernels.h"
#include "cpu/scratch.h"
#include "ops/int8.h"

namespace lapidary::cpu {

const PackedLayout* packed_layout(DType dtype) {
  switch (dtype) {
    case DType::i8:
      return &kPackedInt8;
    case DType::bf16:
      return &kPackedBf16;
    case DType::f16:
      return &kPackedF16;
    case DType::q8_0:
      return &kPackedQ8_0;
    case DType::q4_0:
      return &kPackedQ4_0;
    case DType::q4_1:
      return &kPackedQ4_1;
    case DType::q5_0:
      return &kPackedQ5_0;
    case DType::q5_1:
      return &kPackedQ5_1;
    case DType::q4_k:
      return &kPackedQ4_K;
    case DType::q5_k:
      return &kPackedQ5_K;
    case DType::q6_k:
      return &kPackedQ6_K;
    default:
      return nullptr;
  }
}

namespace {

std::shared_ptr<PackedMatrix> empty_matrix(const PackedLayout& layout, int64_t n, int64_t k) {
  auto matrix = std::make_shared<PackedMatrix>();
  matrix->layout = &layout;
  matrix->n = n;
  matrix->k = k;
  matrix->panel_bytes = layout.panel_bytes(k);
  matrix->memory = allocate_streamed(static_cast<size_t>(matrix->panels() * matrix->panel_bytes));
  return matrix;
}

// fn(first row, rows, panel) for every panel.
template <typename Fn>
void for_each_panel(const PackedMatrix& matrix, ThreadPool& pool, const Fn& fn) {
  pool.parallel_for(matrix.panels(), 1 + (int64_t{1} << 20) / matrix.panel_bytes, [&](int64_t begin, int64_t end) {
    for (int64_t p = begin; p < end; ++p) {
      const int64_t first = p * kPackedRows;
      fn(first, std::min(kPackedRows, matrix.n - first), matrix.memory.memory.get() + p * matrix.panel_bytes);
    }
  });
}

}  // namespace

Linear pack_linear(const PackedLayout& layout, const Linear& host, ThreadPool& pool, const Kernels* kernels) {
  std::shared_ptr<PackedMatrix> matrix = empty_matrix(layout, host.out(), host.in());
  const int64_t row_bytes = host.weight.row_bytes(), k = matrix->k;
  const bool scales_rows = host.activations == ActScheme::long_spans;
  Linear result = host;
  result.weight.data = nullptr;
  result.keep = nullptr;
  // The scales are few: what held them together with the rows can go.
  if (host.scale || scales_rows) {
    const Buffer scales = allocate_host(static_cast<size_t>(host.out()) * sizeof(float));
    if (!scales_rows) std::memcpy(scales.memory.get(), host.scale.data, static_cast<size_t>(host.scale.bytes()));
    result.scale = scales.tensor(DType::f32, {host.out()});
    result.keep = scales.memory;
  }
  for_each_panel(*matrix, pool, [&](int64_t first, int64_t count, std::byte* panel) {
    const std::byte* rows = host.weight.data + first * row_bytes;
    layout.pack(rows, row_bytes, count, k, panel);
    for (int64_t r = 0; scales_rows && r < count; ++r) {
      float* values = thread_scratch(ScratchUse::kernel, static_cast<size_t>(k));
      kernels->widen(host.weight.dtype, rows + r * row_bytes, k, values);
      result.scale.as<float>()[first + r] = int8_scale(kernels->absolute_max(values, k));
    }
  });
  result.packed = std::move(matrix);
  return result;
}

Linear pack_as_int8(const Kernels& kernels, const Linear& host, ThreadPool& pool) {
  const int64_t n = host.out(), k = host.in(), row_bytes = host.weight.row_bytes(), stride = (k + 63) / 64 * 64;
  const Buffer scales = allocate_host(static_cast<size_t>(n) * sizeof(float));
  Linear result = {Tensor(nullptr, DType::i8, {n, k}), scales.memory, scales.tensor(DType::f32, {n}), ActScheme::token};
  std::shared_ptr<PackedMatrix> matrix = empty_matrix(kPackedInt8, n, k);
  for_each_panel(*matrix, pool, [&](int64_t first, int64_t count, std::byte* panel) {
    // One row widened, and the panel's rows quantised: both stay in the caches.
    float* values = thread_scratch(ScratchUse::kernel, static_cast<size_t>(stride + kPackedRows * stride / 4));
    int8_t* rows = reinterpret_cast<int8_t*>(values + stride);
    for (int64_t r = 0; r < count; ++r) {
      kernels.widen(host.weight.dtype, host.weight.data + (first + r) * row_bytes, k, values);
      const float scale = int8_scale(kernels.absolute_max(values, k));
      result.scale.as<float>()[first + r] = scale;
      kernels.quantize_int8(values, k, 1.0f / scale, rows + r * stride);
    }
    kPackedInt8.pack(reinterpret_cast<const std::byte*>(rows), stride, count, k, panel);
  });
  result.packed = std::move(matrix);
  return result;
}

}  // namespace lapidary::cpu
