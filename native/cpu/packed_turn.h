// Turns sixteen rows of 32-bit words into sixteen-word columns: what packing is for elements of which 32 bits belong together.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>

#ifdef __SSE2__
#include <emmintrin.h>
#endif

namespace lapidary::cpu {

// Words 0 .. 3 of sixteen rows, row_bytes apart and unaligned -> columns [4 words][16 rows].
inline void turn_quads(const std::byte* rows, int64_t row_bytes, std::byte* columns) {
#ifdef __SSE2__
  for (int64_t r = 0; r < 16; r += 4) {
    __m128i q[4];
    for (int i = 0; i < 4; ++i) q[i] = _mm_loadu_si128(reinterpret_cast<const __m128i*>(rows + (r + i) * row_bytes));
    const __m128i a = _mm_unpacklo_epi32(q[0], q[1]), b = _mm_unpackhi_epi32(q[0], q[1]);
    const __m128i d = _mm_unpacklo_epi32(q[2], q[3]), e = _mm_unpackhi_epi32(q[2], q[3]);
    const __m128i turned[4] = {_mm_unpacklo_epi64(a, d), _mm_unpackhi_epi64(a, d), _mm_unpacklo_epi64(b, e), _mm_unpackhi_epi64(b, e)};
    for (int i = 0; i < 4; ++i) _mm_storeu_si128(reinterpret_cast<__m128i*>(columns + i * 64 + r * 4), turned[i]);
  }
#else
  for (int64_t r = 0; r < 16; ++r) {
    for (int64_t c = 0; c < 4; ++c) std::memcpy(columns + c * 64 + r * 4, rows + r * row_bytes + c * 4, 4);
  }
#endif
}

// Words 0 .. 15 -> columns [16 words][16 rows].
inline void turn_words(const std::byte* rows, int64_t row_bytes, std::byte* columns) {
  for (int64_t c = 0; c < 16; c += 4) turn_quads(rows + c * 4, row_bytes, columns + c * 64);
}

}  // namespace lapidary::cpu
