// The packed products that every instruction set has: one file per weight type, listed here. Part of kernels/impl.h.
#pragma once

#include "cpu/kernels/packed_bf16.h"
#include "cpu/kernels/packed_blocks.h"
#include "cpu/kernels/packed_blocks_f32.h"
#include "cpu/kernels/packed_blocks_int8.h"
#include "cpu/kernels/packed_int8.h"
#include "cpu/kernels/packed_weights.h"

namespace lapidary::cpu {
namespace {

constexpr const PackedKernel* kPackedList[] = {&kPackedBf16Kernel,
                                               &kPackedInt8Kernel,
                                               &kPackedWeightsKernel,
                                               LAPIDARY_BLOCK_KERNELS(kBlocksKernel),
                                               LAPIDARY_BLOCK_KERNELS(kBlocksF32Kernel),
                                               &kPackedF16Kernel};
constexpr PackedKernels kPackedKernels = {kPackedList, sizeof kPackedList / sizeof *kPackedList};

}  // namespace
}  // namespace lapidary::cpu
