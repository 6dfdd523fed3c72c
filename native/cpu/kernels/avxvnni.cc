// The int8 and block products for AVX2 with AVX-VNNI; compiled with those flags.
#if defined(__GNUC__)
#pragma GCC diagnostic ignored "-Wunused-function"  // most of simd/avx2.h and kernels/math.h
#endif

#define LAPIDARY_VNNI
#define LAPIDARY_SIMD_HEADER "cpu/simd/avx2.h"
#define LAPIDARY_SIMD_WORDS_HEADER "cpu/simd/words_avx2.h"
#define LAPIDARY_SIMD_INT_HEADER "cpu/simd/int_avx2.h"
#include "cpu/kernels/packed_blocks_int8.h"
#include "cpu/kernels/packed_int8.h"

namespace lapidary::cpu {
namespace {

constexpr const PackedKernel* kList[] = {&kPackedInt8Kernel, LAPIDARY_BLOCK_KERNELS(kBlocksKernel)};

}  // namespace

extern const PackedKernels kAvxVnniPacked = {kList, sizeof kList / sizeof *kList};

}  // namespace lapidary::cpu
