// Attention of one step on the CPU: which thread takes which queries over which keys.
#pragma once

#include <span>
#include <vector>

#include "base/thread_pool.h"
#include "cpu/kernels.h"
#include "ops/ops.h"

namespace lapidary::cpu {

// What each row of the step sees, causally, by the window and in its picture. False: some row's picture lies apart from the keys before
// it, so that what it sees is no single span.
bool find_visible(std::span<const AttentionSpan> spans, const AttentionShape& shape, std::vector<KeySpan>& visible);

// The contract of Backend::attention, given what find_visible found.
void attention(const Kernels& kernels, ThreadPool& pool, const Tensor& q, std::span<const AttentionSpan> spans, const AttentionShape& shape,
               const std::vector<KeySpan>& visible, const Tensor& out);

}  // namespace lapidary::cpu
