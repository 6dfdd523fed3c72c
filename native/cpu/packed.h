// Weights as the CPU's products read them: panels of sixteen rows, so that rows lie in the lanes of a register and a product streams
// through memory in the order in which it lies, for one token and for many. One layout per weight type, the same on every
// instruction set; packed_layout.h has the pictures.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>

#include "base/thread_pool.h"
#include "cpu/packed_layout.h"
#include "ops/ops.h"
#include "tensor/tensor.h"

namespace lapidary::cpu {

// How the rows of one weight type lie in a panel. Rows beyond the last one of the matrix are zeros.
struct PackedLayout {
  DType dtype;
  int64_t (*panel_bytes)(int64_t k);  // a multiple of 64
  // `count` <= 16 rows as they are in a file, row_bytes apart, unaligned -> one panel.
  void (*pack)(const std::byte* rows, int64_t row_bytes, int64_t count, int64_t k, std::byte* panel);
  // Row `row` of the panel as f32, exactly as the format defines it (i8: the numbers, their scale left out).
  void (*unpack_row)(const std::byte* panel, int64_t row, int64_t k, float* out);
};

// Null: this type is computed on as plain rows.
const PackedLayout* packed_layout(DType dtype);

// A weight [n, k] in panels; what `Linear::packed` points to. `Linear::weight` then has its type and shape, and no memory.
struct PackedMatrix final : PackedWeight {
  const PackedLayout* layout = nullptr;
  int64_t n = 0, k = 0, panel_bytes = 0;
  Buffer memory;

  int64_t panels() const { return (n + kPackedRows - 1) / kPackedRows; }
  const std::byte* panel(int64_t i) const { return memory.memory.get() + i * panel_bytes; }
};

struct Kernels;
// The packed form of a host weight; throws Error(out_of_memory). The scheme long_spans needs kernels.
Linear pack_linear(const PackedLayout& layout, const Linear& host, ThreadPool& pool, const Kernels* kernels = nullptr);

// The int8 panels of a host weight of another type: rows quantised by the int8 rule, each with its own scale; inputs per token.
Linear pack_as_int8(const Kernels& kernels, const Linear& host, ThreadPool& pool);

// Null when the weight is plain rows.
inline const PackedMatrix* packed_matrix(const Linear& w) { return static_cast<const PackedMatrix*>(w.packed.get()); }

}  // namespace lapidary::cpu
