// The kernels for 64-bit ARM: NEON as every such processor has it.
#define LAPIDARY_SIMD_HEADER "cpu/simd_neon.h"
#define LAPIDARY_SIMD_WORDS_HEADER "cpu/simd_words_neon.h"
#define LAPIDARY_SIMD_INT_HEADER "cpu/simd_int_neon.h"
#include "cpu/kernels_arm64.h"
#include "cpu/kernels_impl.h"

namespace lapidary::cpu {

const Kernels kNeonKernels = LAPIDARY_KERNELS("neon");

}  // namespace lapidary::cpu
