// The kernels in plain C++: the table that every processor can run.
#define LAPIDARY_SIMD_HEADER "cpu/simd/scalar.h"
#include "cpu/kernels/impl.h"

namespace lapidary::cpu {

const Kernels kScalarKernels = LAPIDARY_KERNELS("scalar");

}  // namespace lapidary::cpu
