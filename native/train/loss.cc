// Losses over logits as functions of chunks of rows.
#include "train/loss.h"

#include <memory>
#include <numeric>

#include "base/error.h"

namespace lapidary {

namespace {

double sum(const std::vector<double>& losses) { return std::accumulate(losses.begin(), losses.end(), 0.0); }

}  // namespace

Loss token_loss(TokenLoss targets) {
  const size_t rows = targets.rows.size(), all = rows * static_cast<size_t>(targets.per_row);
  expect(
      targets.weights.size() == rows && targets.ids.size() == all && (targets.probabilities.empty() || targets.probabilities.size() == all),
      ErrorCode::invalid_argument, "token_loss: ", rows, " rows of ", targets.per_row, " targets, but ", targets.ids.size(), " ids, ",
      targets.probabilities.size(), " probabilities and ", targets.weights.size(), " weights");
  Loss loss;
  loss.rows = targets.rows;
  loss.differentiate = [kept = std::make_shared<const TokenLoss>(std::move(targets))](TrainingOps& ops, int64_t first, float softcap,
                                                                                      const Tensor& logits) {
    const auto n = static_cast<size_t>(logits.shape[0]), per_row = static_cast<size_t>(kept->per_row), at = static_cast<size_t>(first);
    TokenTargets part;
    part.ids = std::span(kept->ids).subspan(at * per_row, n * per_row);
    for (int32_t id : part.ids)
      expect(id >= 0 && id < logits.shape[1], ErrorCode::invalid_argument, "target id ", id, " is not in a vocabulary of ",
             logits.shape[1]);
    if (!kept->probabilities.empty()) part.probabilities = std::span(kept->probabilities).subspan(at * per_row, n * per_row);
    part.per_row = kept->per_row;
    part.weights = std::span(kept->weights).subspan(at, n);
    std::vector<double> losses(n);
    ops.cross_entropy(logits, softcap, part, losses);
    return sum(losses);
  };
  return loss;
}

TokenLoss next_tokens(const TrainingBatch& batch) {
  TokenLoss targets;
  int32_t row = 0;
  for (int64_t length : batch.lengths) {
    for (int64_t i = 0; i + 1 < length; ++i) {
      targets.rows.push_back(row + static_cast<int32_t>(i));
      targets.ids.push_back(batch.ids[static_cast<size_t>(row + i + 1)]);
    }
    row += static_cast<int32_t>(length);
  }
  targets.weights.assign(targets.rows.size(), 1.0f / static_cast<float>(targets.rows.size()));
  return targets;
}

Loss distillation_loss(std::vector<int32_t> rows, std::vector<float> weights, float temperature,
                       std::function<Tensor(int64_t first, int64_t n)> teacher) {
  expect(weights.size() == rows.size() && temperature > 0, ErrorCode::invalid_argument, "distillation_loss: ", rows.size(), " rows, ",
         weights.size(), " weights, temperature ", temperature);
  Loss loss;
  loss.rows = std::move(rows);
  loss.differentiate = [weights = std::move(weights), temperature, teacher = std::move(teacher)](TrainingOps& ops, int64_t first,
                                                                                                 float softcap, const Tensor& logits) {
    const int64_t n = logits.shape[0];
    std::vector<double> losses(static_cast<size_t>(n));
    ops.distillation(logits, softcap, teacher(first, n), temperature,
                     std::span(weights).subspan(static_cast<size_t>(first), static_cast<size_t>(n)), losses);
    return sum(losses);
  };
  return loss;
}

}  // namespace lapidary
