// Attention of one step on the CPU: which thread takes which queries over which keys.
#pragma once

#include <span>

#include "base/thread_pool.h"
#include "cpu/kernels.h"
#include "ops/ops.h"

namespace lapidary::cpu {

// The contract of Backend::attention.
void attention(const Kernels& kernels, ThreadPool& pool, const Tensor& q, std::span<const AttentionSpan> spans, const AttentionShape& shape,
               const Tensor& out);

}  // namespace lapidary::cpu
