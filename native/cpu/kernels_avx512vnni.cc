// The int8 products for AVX-512 with VNNI; compiled with those flags.
#if defined(__GNUC__) && !defined(__clang__)
// GCC 12 warns of its own intrinsics.
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#endif

#define LAPIDARY_VNNI
#define LAPIDARY_SIMD_INT_HEADER "cpu/simd_int_avx512.h"
#include "cpu/kernels_int8.h"

namespace lapidary::cpu {

extern const Int8Kernels kAvx512VnniInt8 = kInt8Kernels;

}  // namespace lapidary::cpu
