// The int8 panels of packed_layout.h: packer and unpacker.
#include <cstring>

#if defined(__SSE2__)
#include <emmintrin.h>
#endif

#include "cpu/packed.h"

namespace lapidary::cpu {

namespace {

int64_t panel_bytes(int64_t k) { return kPackedRows * packed_int8_columns(k) + kPackedRows * static_cast<int64_t>(sizeof(int32_t)); }

// The first `columns` columns, a multiple of 16, of sixteen rows, and their sums; gives the number of columns done.
#if defined(__SSE2__)
int64_t pack_blocks(const int8_t* rows, int64_t row_bytes, int64_t columns, int8_t* panel, int32_t* sums) {
  const __m128i low = _mm_setzero_si128(), up = _mm_set1_epi8(-128);
  for (int64_t quad = 0; quad < kPackedRows; quad += 4) {
    __m128i totals[4] = {low, low, low, low};
    const int8_t* from = rows + quad * row_bytes;
    for (int64_t i = 0; i < columns; i += 16) {
      __m128i r[4];
      for (int j = 0; j < 4; ++j) {
        r[j] = _mm_loadu_si128(reinterpret_cast<const __m128i*>(from + j * row_bytes + i));
        totals[j] = _mm_add_epi64(totals[j], _mm_sad_epu8(_mm_xor_si128(r[j], up), low));
      }
      const __m128i a = _mm_unpacklo_epi32(r[0], r[1]), c = _mm_unpacklo_epi32(r[2], r[3]);
      const __m128i e = _mm_unpackhi_epi32(r[0], r[1]), g = _mm_unpackhi_epi32(r[2], r[3]);
      const __m128i groups[4] = {_mm_unpacklo_epi64(a, c), _mm_unpackhi_epi64(a, c), _mm_unpacklo_epi64(e, g), _mm_unpackhi_epi64(e, g)};
      int8_t* to = panel + i * kPackedRows + quad * kInt8Group;
      for (int j = 0; j < 4; ++j) _mm_storeu_si128(reinterpret_cast<__m128i*>(to + j * kInt8Group * kPackedRows), groups[j]);
    }
    for (int j = 0; j < 4; ++j)
      sums[quad + j] = static_cast<int32_t>(_mm_cvtsi128_si64(totals[j]) + _mm_cvtsi128_si64(_mm_srli_si128(totals[j], 8)) - 128 * columns);
  }
  return columns;
}
#else
int64_t pack_blocks(const int8_t*, int64_t, int64_t, int8_t*, int32_t*) { return 0; }
#endif

void pack(const std::byte* rows, int64_t row_bytes, int64_t count, int64_t k, std::byte* panel) {
  const int64_t columns = packed_int8_columns(k);
  int32_t sums[kPackedRows] = {};
  const int8_t* numbers = reinterpret_cast<const int8_t*>(rows);
  const int64_t done = count == kPackedRows ? pack_blocks(numbers, row_bytes, k / 16 * 16, reinterpret_cast<int8_t*>(panel), sums) : 0;
  for (int64_t r = 0; r < kPackedRows; ++r) {
    std::byte* to = panel + r * kInt8Group;
    const int8_t* from = numbers + r * row_bytes;
    for (int64_t i = done; i < columns; i += kInt8Group) {
      int8_t group[kInt8Group] = {};
      for (int64_t j = 0; r < count && j < kInt8Group && i + j < k; ++j) sums[r] += group[j] = from[i + j];
      std::memcpy(to + i * kPackedRows, group, kInt8Group);
    }
  }
  std::memcpy(panel + kPackedRows * columns, sums, sizeof sums);
}

void unpack_row(const std::byte* panel, int64_t row, int64_t k, float* out) {
  const int8_t* numbers = reinterpret_cast<const int8_t*>(panel) + row * kInt8Group;
  for (int64_t i = 0; i < k; ++i) out[i] = numbers[i / kInt8Group * kInt8Group * kPackedRows + i % kInt8Group];
}

}  // namespace

extern const PackedLayout kPackedInt8 = {DType::i8, panel_bytes, pack, unpack_row};

}  // namespace lapidary::cpu
