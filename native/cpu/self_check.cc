#include "cpu/self_check.h"

#include <algorithm>
#include <vector>

#include "base/float16.h"
#include "cpu/packed.h"

namespace lapidary::cpu {

namespace {

constexpr int64_t kTokens = 19, kRows = 37, kColumns = 150;

// Small integers: products and sums of them are exact in every type.
int weight_at(int64_t row, int64_t column) { return static_cast<int>((row * 7 + column * 3) % 11) - 5; }
int input_at(int64_t token, int64_t column) { return static_cast<int>((token * 5 + column) % 9) - 4; }

template <typename T, typename Make>
std::vector<T> numbers(int64_t rows, const Make& make) {
  std::vector<T> all;
  for (int64_t r = 0; r < rows; ++r)
    for (int64_t c = 0; c < kColumns; ++c) all.push_back(make(r, c));
  return all;
}

Buffer pack_weights(const PackedLayout& layout, const std::byte* rows, int64_t row_bytes) {
  const int64_t bytes = layout.panel_bytes(kColumns), panels = (kRows + kPackedRows - 1) / kPackedRows;
  const Buffer memory = allocate_host(static_cast<size_t>(panels * bytes));
  for (int64_t p = 0; p < panels; ++p) {
    const int64_t first = p * kPackedRows;
    layout.pack(rows + first * row_bytes, row_bytes, std::min(kPackedRows, kRows - first), kColumns, memory.memory.get() + p * bytes);
  }
  return memory;
}

}  // namespace

bool multiplies_rightly(const PackedKernel& kernel) {
  const PackedLayout* layout = packed_layout(kernel.weight);
  const bool int8 = kernel.weight == DType::i8 && kernel.input == DType::i8;
  if (!layout || !(int8 || (kernel.weight == DType::bf16 && kernel.input == DType::bf16))) return false;
  const auto small = numbers<int8_t>(kRows, [](int64_t r, int64_t c) { return static_cast<int8_t>(weight_at(r, c)); });
  const auto wide = numbers<bf16>(kRows, [](int64_t r, int64_t c) { return to_bf16(static_cast<float>(weight_at(r, c))); });
  const std::byte* rows = int8 ? reinterpret_cast<const std::byte*>(small.data()) : reinterpret_cast<const std::byte*>(wide.data());
  const Buffer panels = pack_weights(*layout, rows, dtype_bytes(kernel.weight, kColumns));

  const int64_t input_bytes = kernel.input_bytes(kColumns);
  const Buffer input = allocate_host(static_cast<size_t>(kTokens * input_bytes));
  const auto q = numbers<int8_t>(kTokens, [](int64_t t, int64_t c) { return static_cast<int8_t>(input_at(t, c)); });
  const auto x = numbers<float>(kTokens, [](int64_t t, int64_t c) { return static_cast<float>(input_at(t, c)); });
  for (int64_t t = 0; t < kTokens; ++t) {
    std::byte* row = input.memory.get() + t * input_bytes;
    if (int8) {
      kernel.prepare_quantized(q.data() + t * kColumns, 1, kColumns, row);
    } else {
      kernel.prepare(x.data() + t * kColumns, kColumns, {0, true}, row);
    }
  }

  const std::vector<float> ones(kRows, 1.0f);
  std::vector<float> out(static_cast<size_t>(kTokens * kRows));
  const Buffer scratch = allocate_host(kernel.scratch_floats(kTokens, kColumns) * sizeof(float));
  const PackedTask task = {
      input.memory.get(), kTokens, panels.memory.get(), layout->panel_bytes(kColumns), kRows, kColumns, ones.data(), out.data(), kRows, 0};
  kernel.multiply(task, 0, (kRows + kPackedRows - 1) / kPackedRows, reinterpret_cast<float*>(scratch.memory.get()));
  for (int64_t t = 0; t < kTokens; ++t) {
    for (int64_t r = 0; r < kRows; ++r) {
      int sum = 0;
      for (int64_t c = 0; c < kColumns; ++c) sum += weight_at(r, c) * input_at(t, c);
      if (!(out[static_cast<size_t>(t * kRows + r)] == static_cast<float>(sum))) return false;
    }
  }
  return true;
}

}  // namespace lapidary::cpu
