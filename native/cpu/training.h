// TrainingOps on the CPU: the kernels of training_kernels.h on the pool. Results do not depend on the thread count or instruction set.
#pragma once

#include <memory>

#include "base/thread_pool.h"
#include "cpu/kernels.h"
#include "ops/training.h"

namespace lapidary::cpu {

// `kernels` outlives the result.
std::unique_ptr<TrainingOps> make_training_ops(const Kernels& kernels, std::shared_ptr<ThreadPool> pool);

void attention_forward(const TrainingKernels& kernels, ThreadPool& pool, const TrainingAttention& attention, const Tensor& out,
                       const Tensor& stats);
void attention_backward(const TrainingKernels& kernels, ThreadPool& pool, const TrainingAttention& attention, const Tensor& out,
                        const Tensor& stats, const Tensor& gout, const AttentionGradients& gradients);

}  // namespace lapidary::cpu
