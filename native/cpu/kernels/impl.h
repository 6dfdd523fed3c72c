// All kernels of one instruction set: a kernels/*.cc names its simd headers, includes this, and defines its
// table with LAPIDARY_KERNELS. Everything here has internal linkage; see kernels.h.
#pragma once

#include "cpu/kernels/angles.h"
#include "cpu/kernels/attention.h"
#include "cpu/kernels/attention_tiles.h"
#include "cpu/kernels/linear.h"
#include "cpu/kernels/math.h"
#include "cpu/kernels/packed.h"
#include "cpu/kernels/probe.h"
#include "cpu/kernels/sampling.h"

#define LAPIDARY_KERNELS(name)                                                          \
  {name,          widen,        round_to_bf16, linear,           linear_scratch_floats, \
   rms_norm,      scale,        add_rows,      soft_cap,         absolute_max,          \
   quantize_int8, geglu,        rope,          rope_angles,      block_maxima,          \
   block_units,   bucket_units, find_between,  attend,           attend_scratch_floats, \
   merge,         finish,       kProbes,       {kPackedKernels}, kTrainingKernels}
