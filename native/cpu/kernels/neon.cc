// The kernels for 64-bit ARM: NEON as every such processor has it.
#define LAPIDARY_SIMD_HEADER "cpu/simd/neon.h"
#define LAPIDARY_SIMD_WORDS_HEADER "cpu/simd/words_neon.h"
#define LAPIDARY_SIMD_INT_HEADER "cpu/simd/int_neon.h"
#include "cpu/kernels/arm64.h"
#include "cpu/kernels/impl.h"

namespace lapidary::cpu {

const Kernels kNeonKernels = LAPIDARY_KERNELS("neon");

}  // namespace lapidary::cpu
