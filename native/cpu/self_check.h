// Whether a kernel does on this processor what it was written to do: asked once for instructions that a hypervisor or a system may promise
// and not keep.
#pragma once

#include "cpu/kernels.h"

namespace lapidary::cpu {

// A small product with remainders in every dimension, exact in int32 and f32 whatever the order, compared with plain loops. For int8 and
// bf16 weights with inputs of the same type.
bool multiplies_rightly(const PackedKernel& kernel);

}  // namespace lapidary::cpu
