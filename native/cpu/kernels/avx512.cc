// The kernels for AVX-512 F, BW, VL and DQ; compiled with those flags.
#if defined(__GNUC__) && !defined(__clang__)
// GCC 12 warns of its own intrinsics.
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#endif

#define LAPIDARY_SIMD_HEADER "cpu/simd/avx512.h"
#define LAPIDARY_SIMD_WORDS_HEADER "cpu/simd/words_avx512.h"
#define LAPIDARY_SIMD_INT_HEADER "cpu/simd/int_avx512.h"
#include "cpu/kernels/impl.h"

namespace lapidary::cpu {

const Kernels kAvx512Kernels = LAPIDARY_KERNELS("avx512bw");

}  // namespace lapidary::cpu
