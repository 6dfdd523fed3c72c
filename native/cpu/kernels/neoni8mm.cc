// Products of 64-bit ARM with the matrix instructions for int8 and bf16 (SMMLA, BFMMLA); compiled with their flags. Both take two rows of
// eight bytes on either side and add to two by two sums. In the panels, whose groups of four bytes stand for 4 numbers or 2, the halves of
// such a row lie in neighbouring groups: one zip brings them together.
//
// bf16, order of an element: one sum from 0 over k in steps of four, BFMMLA's own order within a step, for any number of tokens.
#if defined(__GNUC__)
#pragma GCC diagnostic ignored "-Wunused-function"  // most of simd/neon.h and kernels/math.h
#endif

#define LAPIDARY_DOT
#define LAPIDARY_SIMD_HEADER "cpu/simd/neon.h"
#define LAPIDARY_SIMD_INT_HEADER "cpu/simd/int_neon.h"
#include "cpu/kernels/arm64.h"
#include "cpu/kernels/packed_int8.h"

namespace lapidary::cpu {
namespace {

struct MatrixInt8 {
  using Sums = int32x4_t;
  static LAPIDARY_INLINE Sums zero() { return vdupq_n_s32(0); }
  static LAPIDARY_INLINE Sums add(Sums sums, int8x16_t w, int8x16_t x) { return vmmlaq_s32(sums, x, w); }
  static LAPIDARY_INLINE int64_t row_bytes(int64_t k) { return packed_int8_columns(k); }
  static LAPIDARY_INLINE const int8_t* row(const PackedTask& task, int64_t t) { return input_numbers<Int8Form>(task, t, 0); }
  // Token t's sums of four rows from `row` of panel p on.
  static LAPIDARY_INLINE void store(const PackedTask& task, int64_t t, int64_t p, int64_t row, Sums sums) {
    const I joined{sums};
    store_results<Int8Form>(task, &joined, t, p, row);
  }
};

struct MatrixBf16 {
  using Sums = float32x4_t;
  static LAPIDARY_INLINE Sums zero() { return vdupq_n_f32(0); }
  static LAPIDARY_INLINE Sums add(Sums sums, int8x16_t w, int8x16_t x) {
    return vbfmmlaq_f32(sums, vreinterpretq_bf16_s8(x), vreinterpretq_bf16_s8(w));
  }
  static LAPIDARY_INLINE int64_t row_bytes(int64_t k) { return 2 * packed_bf16_columns(k); }
  static LAPIDARY_INLINE const int8_t* row(const PackedTask& task, int64_t t) {
    return reinterpret_cast<const int8_t*>(task.input + t * row_bytes(task.k));
  }
  static LAPIDARY_INLINE void store(const PackedTask& task, int64_t t, int64_t p, int64_t row, Sums sums) {
    const int64_t n = p * kPackedRows + row, left = task.n - n;
    if (left <= 0) return;
    float* out = task.out + t * task.out_stride + n - task.out_first;
    if (left >= 4) return vst1q_f32(out, sums);
    float lanes[4];
    vst1q_f32(lanes, sums);
    std::memcpy(out, lanes, static_cast<size_t>(left) * 4);
  }
};

// A tile is up to kMostPairs pairs of tokens and eight rows, half a panel: 20 sums of two by two in 32 registers. A slice of a panel stays
// in the first-level cache while all tiles pass by; the sums wait in memory between slices.
constexpr int kMostPairs = 5, kHalfSums = 4;
constexpr int64_t kSliceRowBytes = 1024;

// Rows of `pairs` pairs of tokens from t on: [row_bytes / 8][pairs][2][8 bytes]; a last row without a second stands twice.
template <class M>
LAPIDARY_NOINLINE void pair_rows(const PackedTask& task, int64_t t, int64_t pairs, int8_t* to) {
  const int64_t bytes = M::row_bytes(task.k);
  for (int64_t i = 0; i < pairs; ++i) {
    const int64_t first = t + 2 * i, second = first + 1 < task.tokens ? first + 1 : first;
    const int8_t *a = M::row(task, first), *b = M::row(task, second);
    int8_t* pair = to + 16 * i;
    for (int64_t k = 0; k < bytes; k += 16, pair += 32 * pairs) {
      const int64x2_t x = vreinterpretq_s64_s8(vld1q_s8(a + k)), y = vreinterpretq_s64_s8(vld1q_s8(b + k));
      vst1q_s8(pair, vreinterpretq_s8_s64(vzip1q_s64(x, y)));
      vst1q_s8(pair + 16 * pairs, vreinterpretq_s8_s64(vzip2q_s64(x, y)));
    }
  }
}

struct MatrixSlice {
  int64_t p, half;        // rows from 8 * half of panel p on
  int64_t bytes;          // of a row
  const int8_t* weights;  // of those rows
  bool is_first, is_last;
};

// P pairs of tokens from t on, of which x are the rows. `waiting`: their sums, [P][kHalfSums].
template <class M, int P>
LAPIDARY_NOINLINE void matrix_tile(const PackedTask& task, const MatrixSlice& slice, const int8_t* x, int64_t t, int8_t* waiting) {
  using Sums = typename M::Sums;
  Sums sums[P][kHalfSums];
  LAPIDARY_UNROLL for (int i = 0; i < P; ++i) { LAPIDARY_UNROLL for (int j = 0; j < kHalfSums; ++j) sums[i][j] = M::zero(); }
  if (!slice.is_first) std::memcpy(sums, waiting, sizeof sums);
  const int8_t* weights = slice.weights;
  for (int64_t k = 0; k < slice.bytes; k += 8, weights += 2 * kGroupBytes, x += 16 * P) {
    int8x16_t w[kHalfSums];
    LAPIDARY_UNROLL for (int j = 0; j < 2; ++j) {
      const int32x4_t a = vreinterpretq_s32_s8(vld1q_s8(weights + 16 * j));
      const int32x4_t b = vreinterpretq_s32_s8(vld1q_s8(weights + kGroupBytes + 16 * j));
      w[2 * j] = vreinterpretq_s8_s32(vzip1q_s32(a, b));
      w[2 * j + 1] = vreinterpretq_s8_s32(vzip2q_s32(a, b));
    }
    LAPIDARY_UNROLL for (int i = 0; i < P; ++i) {
      const int8x16_t pair = vld1q_s8(x + 16 * i);
      LAPIDARY_UNROLL for (int j = 0; j < kHalfSums; ++j) sums[i][j] = M::add(sums[i][j], w[j], pair);
    }
  }
  std::memcpy(waiting, sums, sizeof sums);
  if (!slice.is_last) return;
  // Two by two: the first token with two rows, then the second.
  float pairs[P][kHalfSums][2][2];
  std::memcpy(pairs, waiting, sizeof pairs);
  for (int i = 0; i < 2 * P && t + i < task.tokens; ++i) {
    for (int j = 0; j < 2; ++j) {
      Sums rows;
      float four[4];
      std::memcpy(four, pairs[i / 2][2 * j][i % 2], 8);
      std::memcpy(four + 2, pairs[i / 2][2 * j + 1][i % 2], 8);
      std::memcpy(&rows, four, sizeof rows);
      M::store(task, t + i, slice.p, 8 * slice.half + 4 * j, rows);
    }
  }
}

template <class M, int P = kMostPairs>
LAPIDARY_INLINE void matrix_pairs(const PackedTask& task, const MatrixSlice& slice, const int8_t* x, int64_t t, int64_t pairs,
                                  int8_t* waiting) {
  if constexpr (P > 0) {
    if (pairs < P) return matrix_pairs<M, P - 1>(task, slice, x, t, pairs, waiting);
    matrix_tile<M, P>(task, slice, x, t, waiting);
  }
}

template <class M>
void matrix_multiply(const PackedTask& task, int64_t p0, int64_t p1, float* scratch) {
  constexpr int64_t kSumBytes = kHalfSums * 16;
  const int64_t pairs = (task.tokens + 1) / 2, tiles = (pairs + kMostPairs - 1) / kMostPairs, row_bytes = M::row_bytes(task.k);
  int8_t* rows = reinterpret_cast<int8_t*>(scratch);
  int8_t* waiting = rows + pairs * 2 * row_bytes;  // [2 halves][pairs]
  // The first pair of a tile.
  const auto first = [&](int64_t tile) { return tile * pairs / tiles; };
  for (int64_t i = 0; i < tiles; ++i) pair_rows<M>(task, 2 * first(i), first(i + 1) - first(i), rows + first(i) * 2 * row_bytes);
  for (int64_t p = p0; p < p1; ++p) {
    const int64_t halves = task.n - p * kPackedRows > kPackedRows / 2 ? 2 : 1;
    for (int64_t k = 0; k < row_bytes; k += kSliceRowBytes) {
      const int64_t bytes = row_bytes - k < kSliceRowBytes ? row_bytes - k : kSliceRowBytes;
      const int8_t* weights = reinterpret_cast<const int8_t*>(task.panels + p * task.panel_bytes) + k * kPackedRows;
      for (int64_t i = 0; i < tiles; ++i) {
        const int64_t count = first(i + 1) - first(i);
        const int8_t* x = rows + first(i) * 2 * row_bytes + k * 2 * count;
        for (int64_t half = 0; half < halves; ++half) {
          const MatrixSlice slice{p, half, bytes, weights + half * kGroupBytes / 2, k == 0, k + bytes == row_bytes};
          matrix_pairs<M>(task, slice, x, 2 * first(i), count, waiting + (half * pairs + first(i)) * kSumBytes);
        }
      }
    }
  }
}

template <class M>
size_t matrix_scratch_floats(int64_t tokens, int64_t k) {
  const int64_t pairs = (tokens + 1) / 2;
  return static_cast<size_t>(pairs * 2 * (M::row_bytes(k) + kHalfSums * 16)) / 4;
}

// One token or two need no zip: weights come from memory no faster than the dot product takes them.
void multiply_int8(const PackedTask& task, int64_t p0, int64_t p1, float* scratch) {
  if (task.tokens <= 2) return multiply_panels<Int8Form>(task, p0, p1, scratch);
  matrix_multiply<MatrixInt8>(task, p0, p1, scratch);
}

int64_t bf16_input_bytes(int64_t k) { return MatrixBf16::row_bytes(k); }

// To nearest, ties to even; NaN stays NaN.
void prepare_bf16(const float* x, int64_t k, const InputRule&, std::byte* row) {
  for (int64_t i = 0; i < packed_bf16_columns(k); i += 16) store_bf16(row + 2 * i, i < k ? load_lanes(x + i, lanes_left(i, k)) : zero());
}

// --- probes, see kernels/probe.h ------------------------------------------------------------------------------------------

constexpr int kProbeSums = 16;

template <class M, typename Total>
LAPIDARY_INLINE double matrix_probe(const void* data, int64_t rounds, const Total& total_of) {
  const int8x16_t x = load128(data, 0);
  typename M::Sums sums[kProbeSums];
  std::memcpy(sums, static_cast<const int8_t*>(data) + kProbeBytes, sizeof sums);
  for (int64_t r = 0; r < rounds; ++r) {
    for (int i = 0; i < kProbeBytes / 16; ++i) {
      const int8x16_t w = load128(data, i);
      LAPIDARY_UNROLL for (int j = 0; j < kProbeSums; ++j) sums[j] = M::add(sums[j], w, x);
    }
  }
  double total = 0;
  for (const auto& lanes : sums) total += total_of(lanes);
  return total;
}
double int8_matrix_probe(const void* data, int64_t rounds) {
  return matrix_probe<MatrixInt8>(data, rounds, [](int32x4_t lanes) { return static_cast<double>(vaddlvq_s32(lanes)); });
}
double bf16_matrix_probe(const void* data, int64_t rounds) {
  return matrix_probe<MatrixBf16>(data, rounds, [](float32x4_t lanes) { return static_cast<double>(vaddvq_f32(lanes)); });
}

constexpr PackedKernel kInt8 = {DType::i8,
                                DType::i8,
                                4,
                                packed_int8_input_bytes,
                                packed_int8_prepare,
                                packed_int8_prepare_quantized,
                                multiply_int8,
                                matrix_scratch_floats<MatrixInt8>};
constexpr PackedKernel kBf16 = {
    DType::bf16, DType::bf16, 4, bf16_input_bytes, prepare_bf16, nullptr, matrix_multiply<MatrixBf16>, matrix_scratch_floats<MatrixBf16>};
constexpr const PackedKernel* kList[] = {&kInt8, &kBf16};

}  // namespace

extern const PackedKernels kNeonI8mmPacked = {kList, sizeof kList / sizeof *kList};
// An instruction is 32 multiplications of int8, 16 of bf16.
extern const ProbeLoop kNeonI8mmProbe = {Feature::none, DType::i8, 2 * 2 * kProbeSums* kProbeBytes, int8_matrix_probe};
extern const ProbeLoop kNeonBf16Probe = {Feature::none, DType::bf16, 2 * kProbeSums* kProbeBytes, bf16_matrix_probe};

}  // namespace lapidary::cpu
