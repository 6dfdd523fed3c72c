// The int8 products for AVX-512 with VNNI; compiled with those flags.
#if defined(__GNUC__) && !defined(__clang__)
// GCC 12 warns of its own intrinsics.
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#pragma GCC diagnostic ignored "-Wunused-function"  // most of simd/avx512.h and kernels/math.h
#endif

#define LAPIDARY_VNNI
#define LAPIDARY_SIMD_HEADER "cpu/simd/avx512.h"
#define LAPIDARY_SIMD_WORDS_HEADER "cpu/simd/words_avx512.h"
#define LAPIDARY_SIMD_INT_HEADER "cpu/simd/int_avx512.h"
#include "cpu/kernels/packed_blocks_int8.h"
#include "cpu/kernels/packed_int8.h"

namespace lapidary::cpu {

namespace {
constexpr const PackedKernel* kVnniList[] = {&kPackedInt8Kernel, LAPIDARY_BLOCK_KERNELS(kBlocksKernel)};
}
extern const PackedKernels kAvx512VnniPacked = {kVnniList, sizeof kVnniList / sizeof *kVnniList};

}  // namespace lapidary::cpu
