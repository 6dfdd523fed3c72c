// The sm_90a path of attention_prefill: its own translation unit, since it compiles for one architecture alone.
#pragma once

#include "cuda/kernels/attention_rows.cuh"

namespace lapidary::cuda {

// p.shape.wgmma holds and p is checked; params is what attention_prefill made of p.
Status attention_prefill_wgmma(const AttentionPrefillParams& p, const PrefillParams& params, const LaunchContext& context);

}  // namespace lapidary::cuda
