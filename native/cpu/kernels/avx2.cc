// The kernels for AVX2 with FMA and F16C; compiled with those flags.
#define LAPIDARY_SIMD_HEADER "cpu/simd/avx2.h"
#define LAPIDARY_SIMD_WORDS_HEADER "cpu/simd/words_avx2.h"
#define LAPIDARY_SIMD_INT_HEADER "cpu/simd/int_avx2.h"
#include "cpu/kernels/impl.h"

namespace lapidary::cpu {

const Kernels kAvx2Kernels = LAPIDARY_KERNELS("avx2");

}  // namespace lapidary::cpu
