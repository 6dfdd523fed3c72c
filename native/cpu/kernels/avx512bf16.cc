// The bf16 products for AVX-512 with BF16; compiled with those flags.
#if defined(__GNUC__) && !defined(__clang__)
// GCC 12 warns of its own intrinsics.
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#pragma GCC diagnostic ignored "-Wunused-function"  // most of simd/avx512.h and kernels/math.h
#endif

#define LAPIDARY_SIMD_HEADER "cpu/simd/avx512.h"
#include "cpu/kernels/packed_bf16_input.h"
#include "cpu/kernels/packed_tiles.h"

namespace lapidary::cpu {

namespace {

// Pairs of bf16 on either side: one instruction adds both products, the odd one first, subnormal numbers counting as zeros.
struct DotPairs {
  static constexpr int64_t kInputBytes = 4;

  template <typename RowAt, int T, int P>
  static LAPIDARY_INLINE void multiply(const RowAt& row, const V (&words)[P], V (&sums)[T][P]) {
    static_assert(P == 2);
    LAPIDARY_UNROLL for (int t = 0; t < T; ++t) {
#if defined(__GNUC__) || defined(__clang__)
      // As fma_each: left to itself, gcc 12 runs out of registers.
      __m512 all;
      asm("vbroadcastss %3, %2\n\tvdpbf16ps %4, %2, %0\n\tvdpbf16ps %5, %2, %1"
          : "+v"(sums[t][0].v), "+v"(sums[t][1].v), "=&v"(all)
          : "m"(*reinterpret_cast<const float*>(row(t))), "v"(words[0].v), "v"(words[1].v));
#else
      const __m512i x = _mm512_set1_epi32(*reinterpret_cast<const int32_t*>(row(t)));
      LAPIDARY_UNROLL for (int p = 0; p < P; ++p) sums[t][p].v =
          _mm512_dpbf16_ps(sums[t][p].v, reinterpret_cast<const __m512bh&>(x), reinterpret_cast<const __m512bh&>(words[p].v));
#endif
    }
  }
};

void multiply(const PackedTask& task, int64_t p0, int64_t p1, float*) {
  multiply_panels_of<DotPairs>(task, bf16_input_bytes(task.k), packed_bf16_columns(task.k) / kBf16Group, p0, p1);
}

constexpr PackedKernel kKernel = {DType::bf16, DType::bf16, 2, bf16_input_bytes, bf16_prepare, nullptr, multiply, no_scratch};
constexpr const PackedKernel* kList[] = {&kKernel};

}  // namespace

extern const PackedKernels kAvx512Bf16Packed = {kList, 1};

}  // namespace lapidary::cpu
