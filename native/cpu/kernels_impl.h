// All kernels of one instruction set: a kernels_*.cc names its simd headers, includes this, and defines its
// table with LAPIDARY_KERNELS. Everything here has internal linkage; see kernels.h.
#pragma once

#include "cpu/kernels_attention.h"
#include "cpu/kernels_linear.h"
#include "cpu/kernels_math.h"
#ifdef LAPIDARY_SIMD_INT_HEADER
#include "cpu/kernels_int8.h"
#else
#include "cpu/kernels_int8_plain.h"
#endif
#include "cpu/kernels_probe.h"

#define LAPIDARY_KERNELS(name)                                                                                                \
  {name,          widen, round_to_bf16, linear, linear_scratch_floats, rms_norm, scale,  add_rows, soft_cap,    absolute_max, \
   quantize_int8, geglu, rope,          attend, attend_scratch_floats, merge,    finish, kProbes,  kInt8Kernels}
