// The plain bodies of TrainingOps' attention: one query of one head after another, sums in double.
#include <algorithm>
#include <cmath>
#include <utility>
#include <vector>

#include "base/error.h"
#include "ops/training.h"

namespace lapidary {

void check_attention(const TrainingAttention& a) {
  const AttentionShape& shape = a.shape;
  expect(shape.num_kv_heads > 0 && shape.num_heads % shape.num_kv_heads == 0 && shape.window >= 1, ErrorCode::internal,
         "attention: ", shape.num_heads, " heads over ", shape.num_kv_heads, " kv heads, window ", shape.window);
  const int64_t tokens = a.q.shape[0], kv = tokens * shape.num_kv_heads * shape.head_dim;
  const int64_t prefix = a.prefix_tokens() * shape.num_kv_heads * shape.head_dim;
  expect(a.q.elements() == tokens * shape.num_heads * shape.head_dim && a.k.elements() == kv && a.v.elements() == kv &&
             (!a.q_prefix || a.q_prefix.elements() == a.q.elements()) && (prefix == 0 || a.prefix_k.elements() == prefix) &&
             (prefix == 0 || a.prefix_v.elements() == prefix),
         ErrorCode::internal, "attention: q ", a.q.shape_text(), ", k ", a.k.shape_text(), ", v ", a.v.shape_text(), ", prefix ",
         a.prefix_k.shape_text(), " and ", a.prefix_v.shape_text());
  for (const SequenceRows& s : a.sequences)
    expect(s.first_row >= 0 && s.rows >= 0 && s.first_row + s.rows <= tokens, ErrorCode::internal, "attention: a sequence has rows ",
           s.first_row, " to ", s.first_row + s.rows, " of ", tokens);
}

namespace {

// One key that a query sees: where it, its value and their derivatives are, and the query it is met with.
struct Seen {
  const float *query, *key, *value;
  double *gquery, *gkey, *gvalue;  // null: not wanted
};

// Sums of derivatives, laid out like the tensors of AttentionGradients.
struct Sums {
  std::vector<double> q, k, v, q_prefix, prefix_k, prefix_v;
};

float* at(const Tensor& t, int64_t i) { return t ? t.as<float>() + i : nullptr; }
double* at(std::vector<double>& sums, int64_t i) { return sums.empty() ? nullptr : &sums[static_cast<size_t>(i)]; }

// The keys of query `row` of `sequence` for one head: the prefix, then the text in rising order.
std::vector<Seen> seen_keys(const TrainingAttention& a, const SequenceRows& sequence, int64_t row, int64_t head, Sums& g) {
  const AttentionShape& shape = a.shape;
  const int64_t dim = shape.head_dim, kv_head = head / (shape.num_heads / shape.num_kv_heads), slots = a.prefix_tokens();
  const int64_t query = ((sequence.first_row + row) * shape.num_heads + head) * dim;
  std::vector<Seen> seen;
  for (int64_t j = 0; j < slots; ++j) {
    if (!sees_prefix(a, sequence.first_pos + row, j)) continue;
    const int64_t key = (kv_head * slots + j) * dim;
    seen.push_back({at(a.q_prefix ? a.q_prefix : a.q, query), at(a.prefix_k, key), at(a.prefix_v, key),
                    at(a.q_prefix ? g.q_prefix : g.q, query), at(g.prefix_k, key), at(g.prefix_v, key)});
  }
  for (int64_t j = shape.window > row ? 0 : row - shape.window + 1; j <= row; ++j) {
    const int64_t key = ((sequence.first_row + j) * shape.num_kv_heads + kv_head) * dim;
    seen.push_back({at(a.q, query), at(a.k, key), at(a.v, key), at(g.q, query), at(g.k, key), at(g.v, key)});
  }
  return seen;
}

double score(const Seen& s, const AttentionShape& shape) {
  double sum = 0;
  for (int64_t d = 0; d < shape.head_dim; ++d) sum += static_cast<double>(s.query[d]) * s.key[d];
  sum *= shape.scale;
  return shape.softcap != 0 ? shape.softcap * std::tanh(sum / shape.softcap) : sum;
}

template <typename Fn>
void each_query(const TrainingAttention& a, const Fn& fn) {
  for (const SequenceRows& sequence : a.sequences) {
    for (int64_t row = 0; row < sequence.rows; ++row) {
      for (int64_t head = 0; head < a.shape.num_heads; ++head) fn(sequence, row, head);
    }
  }
}

}  // namespace

void TrainingOps::attention_forward(const TrainingAttention& a, const Tensor& out, const Tensor& stats) {
  check_attention(a);
  const int64_t dim = a.shape.head_dim;
  Sums none;
  each_query(a, [&](const SequenceRows& sequence, int64_t row, int64_t head) {
    const std::vector<Seen> seen = seen_keys(a, sequence, row, head, none);
    std::vector<double> scores, result(static_cast<size_t>(dim));
    for (const Seen& s : seen) scores.push_back(score(s, a.shape));
    const double highest = *std::max_element(scores.begin(), scores.end());
    double sum = 0;
    for (size_t i = 0; i < seen.size(); ++i) {
      const double weight = std::exp(scores[i] - highest);
      sum += weight;
      for (int64_t d = 0; d < dim; ++d) result[static_cast<size_t>(d)] += weight * seen[i].value[d];
    }
    const int64_t index = (sequence.first_row + row) * a.shape.num_heads + head;
    for (int64_t d = 0; d < dim; ++d) out.as<float>()[index * dim + d] = static_cast<float>(result[static_cast<size_t>(d)] / sum);
    stats.as<float>()[2 * index] = static_cast<float>(highest);
    stats.as<float>()[2 * index + 1] = static_cast<float>(sum);
  });
}

// P = exp(s - max) / sum; D = gout · out; ds = P (gout · v - D); the score before cap and scale: dz = ds (1 - (s / cap)²) scale.
void TrainingOps::attention_backward(const TrainingAttention& a, const Tensor& out, const Tensor& stats, const Tensor& gout,
                                     const AttentionGradients& g) {
  check_attention(a);
  const int64_t dim = a.shape.head_dim;
  Sums sums;
  const std::pair<const Tensor*, std::vector<double>*> targets[] = {{&g.q, &sums.q},
                                                                    {&g.k, &sums.k},
                                                                    {&g.v, &sums.v},
                                                                    {&g.q_prefix, &sums.q_prefix},
                                                                    {&g.prefix_k, &sums.prefix_k},
                                                                    {&g.prefix_v, &sums.prefix_v}};
  for (const auto& [tensor, sum] : targets) sum->assign(static_cast<size_t>(tensor->elements()), 0.0);
  each_query(a, [&](const SequenceRows& sequence, int64_t row, int64_t head) {
    const int64_t index = (sequence.first_row + row) * a.shape.num_heads + head;
    const float* gresult = gout.as<float>() + index * dim;
    const float* result = out.as<float>() + index * dim;
    double along = 0;
    for (int64_t d = 0; d < dim; ++d) along += static_cast<double>(gresult[d]) * result[d];
    for (const Seen& s : seen_keys(a, sequence, row, head, sums)) {
      const double value = score(s, a.shape);
      const double p = std::exp(value - stats.as<float>()[2 * index]) / stats.as<float>()[2 * index + 1];
      double gp = 0;
      for (int64_t d = 0; d < dim; ++d) gp += static_cast<double>(gresult[d]) * s.value[d];
      const double slope = a.shape.softcap != 0 ? 1 - value / a.shape.softcap * (value / a.shape.softcap) : 1;
      const double gz = p * (gp - along) * slope * a.shape.scale;
      for (int64_t d = 0; d < dim; ++d) {
        s.gquery[d] += gz * s.key[d];
        if (s.gkey) s.gkey[d] += gz * s.query[d];
        if (s.gvalue) s.gvalue[d] += p * gresult[d];
      }
    }
  });
  for (const auto& [tensor, sum] : targets) {
    const bool adds = tensor == &g.prefix_k || tensor == &g.prefix_v;
    for (size_t i = 0; i < sum->size(); ++i) {
      float& value = tensor->as<float>()[i];
      value = static_cast<float>(adds ? value + (*sum)[i] : (*sum)[i]);
    }
  }
}

}  // namespace lapidary
