// All kernels of one instruction set: a kernels_*.cc names its simd header in LAPIDARY_SIMD_HEADER, includes this, and defines its
// table with LAPIDARY_KERNELS. Everything here has internal linkage; see kernels.h.
#pragma once

#include "cpu/kernels_attention.h"
#include "cpu/kernels_linear.h"
#include "cpu/kernels_math.h"

#define LAPIDARY_KERNELS(name)                                                               \
  {name,     widen, round_to_bf16, linear, linear_scratch_floats, rms_norm, scale, add_rows, \
   soft_cap, geglu, rope,          attend, attend_scratch_floats, merge,    finish}
