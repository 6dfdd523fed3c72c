// V seen as four rows of four lanes, for kernels/packed_weights.h: fused multiply-adds with four numbers in every row, and the rows' sums.
#pragma once

#include "cpu/kernels/math.h"

namespace lapidary::cpu {
namespace {

// kQuadVectors V and kQuadTokens tokens are a tile; up to kQuadFewTokens tokens read weights as they stream in from memory. The rows' sums
// are (0 + 1) + (2 + 3), those of kQuadVectors V at a time.
#if defined(__AVX512F__)

using Quad = __m512;
constexpr int kQuadVectors = 4, kQuadTokens = 6, kQuadFewTokens = 4;
LAPIDARY_INLINE Quad load_quad(const float* p) { return _mm512_broadcast_f32x4(_mm_loadu_ps(p)); }
LAPIDARY_INLINE V fma_quad(V w, Quad x, V sum) { return {_mm512_fmadd_ps(w.v, x, sum.v)}; }
LAPIDARY_INLINE void store_quad_sums(float* out, const V* sums, const float* scales) {
  __m512 rows[4];
  LAPIDARY_UNROLL for (int i = 0; i < 4; ++i) {
    const __m512 pairs = _mm512_add_ps(sums[i].v, _mm512_permute_ps(sums[i].v, 0xb1));
    rows[i] = _mm512_add_ps(pairs, _mm512_permute_ps(pairs, 0x4e));
  }
  const __m512 a = _mm512_mask_mov_ps(rows[0], 0x2222, rows[1]), b = _mm512_mask_mov_ps(rows[2], 0x8888, rows[3]);
  const __m512 turned = _mm512_mask_mov_ps(a, 0xcccc, b);  // lane 4 i + j: row 4 j + i
  const __m512i order = _mm512_set_epi32(15, 11, 7, 3, 14, 10, 6, 2, 13, 9, 5, 1, 12, 8, 4, 0);
  _mm512_storeu_ps(out, _mm512_mul_ps(_mm512_permutexvar_ps(order, turned), _mm512_loadu_ps(scales)));
}

#elif defined(__AVX2__)

using Quad = __m256;
constexpr int kQuadVectors = 1, kQuadTokens = 6, kQuadFewTokens = 1;
LAPIDARY_INLINE Quad load_quad(const float* p) { return _mm256_broadcast_ps(reinterpret_cast<const __m128*>(p)); }
LAPIDARY_INLINE V fma_quad(V w, Quad x, V sum) { return {_mm256_fmadd_ps(w.lo, x, sum.lo), _mm256_fmadd_ps(w.hi, x, sum.hi)}; }
LAPIDARY_INLINE void store_quad_sums(float* out, const V* sums, const float* scales) {
  const __m256 pairs = _mm256_hadd_ps(sums[0].lo, sums[0].hi);  // rows 0, 2 | 1, 3 by pairs
  const __m256 both = _mm256_add_ps(pairs, _mm256_permute_ps(pairs, 0xb1));
  const __m128 even = _mm256_castps256_ps128(both), odd = _mm256_extractf128_ps(both, 1);
  const __m128 rows = _mm_blend_ps(even, odd, 0xa);  // lanes 0 and 1: rows 0, 1; lanes 2 and 3: rows 2, 3
  _mm_storeu_ps(out, _mm_mul_ps(rows, _mm_loadu_ps(scales)));
}

#elif defined(LAPIDARY_NEON)

using Quad = float32x4_t;
constexpr int kQuadVectors = 1, kQuadTokens = 5, kQuadFewTokens = 1;
LAPIDARY_INLINE Quad load_quad(const float* p) { return vld1q_f32(p); }
LAPIDARY_INLINE V fma_quad(const V& w, Quad x, const V& sum) {
  return each_quad([&](int i) { return vfmaq_f32(sum.q[i], w.q[i], x); });
}
LAPIDARY_INLINE void store_quad_sums(float* out, const V* sums, const float* scales) {
  const V& s = sums[0];
  const float32x4_t rows = vpaddq_f32(vpaddq_f32(s.q[0], s.q[1]), vpaddq_f32(s.q[2], s.q[3]));
  vst1q_f32(out, vmulq_f32(rows, vld1q_f32(scales)));
}

#else

struct Quad {
  float x[4];
};
constexpr int kQuadVectors = 1, kQuadTokens = 2, kQuadFewTokens = 1;
LAPIDARY_INLINE Quad load_quad(const float* p) { return {{p[0], p[1], p[2], p[3]}}; }
LAPIDARY_INLINE V fma_quad(const V& w, const Quad& x, const V& sum) {
  float all[16];
  LAPIDARY_UNROLL for (int i = 0; i < 4; ++i) std::memcpy(all + 4 * i, x.x, sizeof x.x);
  return fma(w, load(all), sum);
}
LAPIDARY_INLINE void store_quad_sums(float* out, const V* sums, const float* scales) {
  float lanes[16];
  store(lanes, sums[0]);
  for (int i = 0; i < 4; ++i) out[i] = ((lanes[4 * i] + lanes[4 * i + 1]) + (lanes[4 * i + 2] + lanes[4 * i + 3])) * scales[i];
}

#endif

}  // namespace
}  // namespace lapidary::cpu
