// Attention as plain loops over one query: the truth in tests, and what a backend without a kernel for a case falls back to. Sums run in
// double. Cases: every cache dtype, prefix blocks, image blocks.
#pragma once

#include "ops/ops.h"

namespace lapidary {

// Stores k, v f32 [num_kv_heads, head_dim] of one token at `pos`.
void append_kv_plain(const float* k, const float* v, int64_t pos, const KvView& kv, const AttentionShape& shape);

// One query of one head; `row` is its row in the step. Writes the head's columns of `result`, act [num_heads * head_dim].
void attend_plain(const Tensor& q, int64_t row, int64_t pos, int64_t head, const KvView& kv, const AttentionShape& shape,
                  const Tensor& result);

}  // namespace lapidary
