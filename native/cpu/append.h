// What a step does to its rows of q, k and v before attention: QK-norm, RoPE, and keys and values into the cache.
#pragma once

#include <span>

#include "base/thread_pool.h"
#include "cpu/kernels.h"
#include "ops/ops.h"

namespace lapidary::cpu {

// The contract of Backend::append_kv.
void append_kv(const Kernels& kernels, ThreadPool& pool, const Tensor& k, const Tensor& v, std::span<const AttentionSpan> spans,
               const AttentionShape& shape);

// QK-norm and RoPE of the spans' rows in place, then append_kv, row by row: the bits are those of the primitives one after another. q
// [tokens, num_heads * head_dim], k and v [tokens, num_kv_heads * head_dim]. q_prefix: like q, where there are prefix angles; the queries
// rotated by those.
void prepare_rows(const Kernels& kernels, ThreadPool& pool, const AttendParams& params, const Tensor& q, const Tensor& k, const Tensor& v,
                  const Tensor& q_prefix);

}  // namespace lapidary::cpu
