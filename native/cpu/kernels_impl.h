// All kernels of one instruction set: a kernels_*.cc includes its simd header, then this, and defines its table with
// LAPIDARY_KERNELS. Everything here has internal linkage; see kernels.h.
#pragma once

#include "cpu/kernels.h"
#include "tensor/blocks.h"

#include "cpu/kernels_math.h"
#include "cpu/kernels_linear.h"
#include "cpu/kernels_attention.h"

#define LAPIDARY_KERNELS(name)                                                                                                     \
  {                                                                                                                                \
    name, widen, round_to_bf16, linear, linear_scratch_floats, rms_norm, scale, add_rows, soft_cap, geglu, rope, attend,           \
        attend_scratch_floats, merge, finish                                                                                       \
  }
