// What a step is trained for: which rows' logits, and a function that turns logits into losses and derivatives, a chunk of rows at a time.
#pragma once

#include <functional>
#include <span>
#include <vector>

#include "model/config.h"
#include "ops/training.h"

namespace lapidary {

// Sequences of ids, one after another.
struct TrainingBatch {
  std::span<const int32_t> ids;      // [tokens]
  std::span<const int64_t> lengths;  // of the sequences; their sum is tokens
};

struct Loss {
  // Rows of the batch whose logits the loss wants, ascending.
  std::vector<int32_t> rows;
  // logits: f32 [n, vocab] of rows[first .. first + n), before the soft-cap `softcap` (0: none). Returns the loss of these rows, a sum, and
  // leaves its derivative by the logits in their place.
  std::function<double(TrainingOps& ops, int64_t first, float softcap, const Tensor& logits)> differentiate;
};

// Cross-entropy with hard or sparse soft targets. ids, probabilities as in TokenTargets; weights [rows] multiply the rows' losses.
struct TokenLoss {
  std::vector<int32_t> rows, ids;
  std::vector<float> probabilities;  // empty: 1
  int64_t per_row = 1;
  std::vector<float> weights;
};
Loss token_loss(TokenLoss targets);

// Mean cross-entropy of each token given those before it in its sequence.
TokenLoss next_tokens(const TrainingBatch& batch);

// Distillation from a teacher's logits of the same rows: Σ weights[r] · t² · KL(teacher ‖ student) at temperature t. `teacher(first, n)`
// gives logits [n, vocab] after the teacher's own cap, on the student's backend, valid until its next call.
Loss distillation_loss(std::vector<int32_t> rows, std::vector<float> weights, float temperature,
                       std::function<Tensor(int64_t first, int64_t n)> teacher);

}  // namespace lapidary
