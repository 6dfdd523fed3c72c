// The bf16 panels of packed_layout.h: packer and unpacker.
#include <cstring>

#include "base/float16.h"
#include "cpu/packed.h"
#include "cpu/packed_turn.h"

namespace lapidary::cpu {

namespace {

// Columns and bytes of the sixteen groups that are turned at once.
constexpr int64_t kBlockColumns = 32, kBlockBytes = 1024, kRowBytes = 64;

int64_t panel_bytes(int64_t k) { return kPackedRows * packed_bf16_columns(k) * static_cast<int64_t>(sizeof(bf16)); }

void pack(const std::byte* rows, int64_t row_bytes, int64_t count, int64_t k, std::byte* panel) {
  const int64_t whole = count == kPackedRows ? k / kBlockColumns : 0, blocks = packed_bf16_columns(k) / kBlockColumns;
  for (int64_t b = 0; b < whole; ++b) turn_words(rows + b * kRowBytes, row_bytes, panel + b * kBlockBytes);
  for (int64_t b = whole; b < blocks; ++b) {
    std::byte filled[kPackedRows * kRowBytes] = {};
    const int64_t first = b * kBlockColumns, columns = k - first < kBlockColumns ? k - first : kBlockColumns;
    for (int64_t r = 0; r < count; ++r)
      std::memcpy(filled + r * kRowBytes, rows + r * row_bytes + b * kRowBytes, static_cast<size_t>(columns) * 2);
    turn_words(filled, kRowBytes, panel + b * kBlockBytes);
  }
}

void unpack_row(const std::byte* panel, int64_t row, int64_t k, float* out) {
  const bf16* numbers = reinterpret_cast<const bf16*>(panel) + row * kBf16Group;
  for (int64_t i = 0; i < k; ++i) out[i] = to_f32(numbers[i / kBf16Group * kBf16Group * kPackedRows + i % kBf16Group]);
}

}  // namespace

extern const PackedLayout kPackedBf16 = {DType::bf16, panel_bytes, pack, unpack_row};

}  // namespace lapidary::cpu
