// The kernels for AVX2 with FMA and F16C; compiled with those flags.
#define LAPIDARY_SIMD_HEADER "cpu/simd_avx2.h"
#define LAPIDARY_SIMD_WORDS_HEADER "cpu/simd_words_avx2.h"
#define LAPIDARY_SIMD_INT_HEADER "cpu/simd_int_avx2.h"
#include "cpu/kernels_impl.h"

namespace lapidary::cpu {

const Kernels kAvx2Kernels = LAPIDARY_KERNELS("avx2");

}  // namespace lapidary::cpu
