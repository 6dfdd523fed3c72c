// The plain bodies of TrainingOps, attention apart: loops over host memory, sums in double.
#include "ops/training.h"

#include <algorithm>
#include <cmath>
#include <vector>

#include "base/error.h"

namespace lapidary {

namespace {

constexpr double kGeluFactor = 0.7978845608028654, kGeluCubic = 0.044715;

}  // namespace

void check_matmul(MatmulForm form, const Tensor& a, const Tensor& b, const Tensor& c) {
  const bool a_turned = form == MatmulForm::tn, b_turned = form == MatmulForm::nt;
  expect(a.rank == 2 && b.rank == 2 && c.rank == 2 && a.dtype == DType::f32 && b.dtype == DType::f32 && c.dtype == DType::f32 &&
             a.shape[a_turned] == c.shape[0] && b.shape[!b_turned] == c.shape[1] && a.shape[!a_turned] == b.shape[b_turned],
         ErrorCode::internal, "matmul: a ", a.shape_text(), ", b ", b.shape_text(), ", c ", c.shape_text());
}

void TrainingOps::matmul(MatmulForm form, const Tensor& a, const Tensor& b, const Tensor& c, bool add_to_c) {
  check_matmul(form, a, b, c);
  const int64_t m = c.shape[0], n = c.shape[1], k = form == MatmulForm::tn ? a.shape[0] : a.shape[1];
  const int64_t a_row = form == MatmulForm::tn ? 1 : k, a_step = form == MatmulForm::tn ? m : 1;
  const int64_t b_column = form == MatmulForm::nt ? k : 1, b_step = form == MatmulForm::nt ? 1 : n;
  for (int64_t i = 0; i < m; ++i) {
    for (int64_t j = 0; j < n; ++j) {
      const float* x = a.as<float>() + i * a_row;
      const float* y = b.as<float>() + j * b_column;
      double sum = 0;
      for (int64_t l = 0; l < k; ++l) sum += static_cast<double>(x[l * a_step]) * y[l * b_step];
      float& out = c.as<float>()[i * n + j];
      out = static_cast<float>(add_to_c ? out + sum : sum);
    }
  }
}

void TrainingOps::rms_norm_backward(const Tensor& x, const Norm& norm, const Tensor& gy, const Tensor& gx, bool add_to_gx,
                                    const Tensor& gw) {
  const int64_t dim = norm.weight.elements(), rows = x.elements() / dim;
  const float* weight = norm.weight.as<float>();
  std::vector<double> sums(static_cast<size_t>(dim));
  for (int64_t r = 0; r < rows; ++r) {
    const float* in = x.as<float>() + r * dim;
    const float* up = gy.as<float>() + r * dim;
    float* out = gx.as<float>() + r * dim;
    double squares = 0, along = 0;  // Σ x², Σ x · gy · (offset + weight)
    for (int64_t i = 0; i < dim; ++i) {
      squares += static_cast<double>(in[i]) * in[i];
      along += static_cast<double>(in[i]) * up[i] * (norm.offset + weight[i]);
    }
    const double inverse = 1 / std::sqrt(squares / static_cast<double>(dim) + norm.eps);
    const double pull = inverse * inverse * inverse * along / static_cast<double>(dim);
    for (int64_t i = 0; i < dim; ++i) {
      sums[static_cast<size_t>(i)] += up[i] * (in[i] * inverse);
      const double g = inverse * up[i] * (norm.offset + weight[i]) - pull * in[i];
      out[i] = static_cast<float>(add_to_gx ? out[i] + g : g);
    }
  }
  if (!gw) return;
  for (int64_t i = 0; i < dim; ++i) gw.as<float>()[i] = static_cast<float>(gw.as<float>()[i] + sums[static_cast<size_t>(i)]);
}

void TrainingOps::rope_backward(const Tensor& g, const Tensor& cos, const Tensor& sin) {
  const int64_t tokens = g.shape[0], heads = g.shape[1], half = g.shape[2] / 2;
  for (int64_t t = 0; t < tokens; ++t) {
    const float* c = cos.as<float>() + t * half;
    const float* s = sin.as<float>() + t * half;
    for (int64_t h = 0; h < heads; ++h) {
      float* row = g.as<float>() + (t * heads + h) * 2 * half;
      for (int64_t j = 0; j < half; ++j) {
        const float a = row[j], b = row[j + half];
        row[j] = a * c[j] + b * s[j];
        row[j + half] = b * c[j] - a * s[j];
      }
    }
  }
}

void TrainingOps::geglu_backward(const Tensor& gate, const Tensor& up, const Tensor& gout, const Tensor& ggate, const Tensor& gup) {
  for (int64_t i = 0; i < gate.elements(); ++i) {
    const double a = gate.as<float>()[i], b = up.as<float>()[i], g = gout.as<float>()[i];
    const double t = std::tanh(kGeluFactor * (a + kGeluCubic * a * a * a));
    const double slope = 0.5 * (1 + t) + 0.5 * a * (1 - t * t) * kGeluFactor * (1 + 3 * kGeluCubic * a * a);
    ggate.as<float>()[i] = static_cast<float>(g * b * slope);
    gup.as<float>()[i] = static_cast<float>(g * 0.5 * a * (1 + t));
  }
}

void TrainingOps::soft_cap_backward(const Tensor& y, float cap, const Tensor& g) {
  for (int64_t i = 0; i < y.elements(); ++i) {
    const double ratio = static_cast<double>(y.as<float>()[i]) / cap;
    g.as<float>()[i] = static_cast<float>(g.as<float>()[i] * (1 - ratio * ratio));
  }
}

void TrainingOps::embed_backward(std::span<const int32_t> ids, float scale, const Tensor& gx, const Tensor& gtable) {
  const int64_t hidden = gtable.shape[1];
  for (size_t t = 0; t < ids.size(); ++t) {
    const float* from = gx.as<float>() + static_cast<int64_t>(t) * hidden;
    float* to = gtable.as<float>() + ids[t] * hidden;
    for (int64_t i = 0; i < hidden; ++i) to[i] += scale * from[i];
  }
}

namespace {

// What a row of raw logits becomes under the cap, and log Σ exp of that.
double capped_row(const float* z, int64_t vocab, float softcap, double temperature, std::vector<double>& capped) {
  double highest = -INFINITY, sum = 0;
  for (int64_t i = 0; i < vocab; ++i) {
    const double l = softcap != 0 ? softcap * std::tanh(static_cast<double>(z[i]) / softcap) : z[i];
    capped[static_cast<size_t>(i)] = l / temperature;
    highest = std::max(highest, l / temperature);
  }
  for (double l : capped) sum += std::exp(l - highest);
  return highest + std::log(sum);
}

double cap_slope(double capped, float softcap) { return softcap != 0 ? 1 - capped / softcap * (capped / softcap) : 1; }

}  // namespace

void TrainingOps::cross_entropy(const Tensor& logits, float softcap, const TokenTargets& targets, std::span<double> losses) {
  const int64_t vocab = logits.shape[1];
  std::vector<double> capped(static_cast<size_t>(vocab)), wanted(static_cast<size_t>(vocab));
  for (int64_t r = 0; r < logits.shape[0]; ++r) {
    float* row = logits.as<float>() + r * vocab;
    const double weight = targets.weights[static_cast<size_t>(r)];
    const double log_sum = capped_row(row, vocab, softcap, 1, capped);
    double loss = 0, mass = 0;
    std::fill(wanted.begin(), wanted.end(), 0.0);
    for (int64_t j = 0; j < targets.per_row; ++j) {
      const size_t at = static_cast<size_t>(r * targets.per_row + j), id = static_cast<size_t>(targets.ids[at]);
      const double p = targets.probabilities.empty() ? 1 : targets.probabilities[at];
      loss += p * (log_sum - capped[id]);
      wanted[id] += p, mass += p;
    }
    losses[static_cast<size_t>(r)] = weight == 0 ? 0 : weight * loss;
    for (int64_t i = 0; i < vocab; ++i) {
      const double l = capped[static_cast<size_t>(i)];
      row[i] = static_cast<float>(
          weight == 0 ? 0 : weight * (mass * std::exp(l - log_sum) - wanted[static_cast<size_t>(i)]) * cap_slope(l, softcap));
    }
  }
}

void TrainingOps::distillation(const Tensor& logits, float softcap, const Tensor& teacher, float temperature,
                               std::span<const float> weights, std::span<double> losses) {
  const int64_t vocab = logits.shape[1];
  std::vector<double> student(static_cast<size_t>(vocab)), other(static_cast<size_t>(vocab));
  for (int64_t r = 0; r < logits.shape[0]; ++r) {
    float* row = logits.as<float>() + r * vocab;
    const double weight = weights[static_cast<size_t>(r)], t = temperature;
    const double log_sum = capped_row(row, vocab, softcap, t, student);
    const double other_sum = capped_row(teacher.as<float>() + r * vocab, vocab, 0, t, other);
    double loss = 0;
    for (int64_t i = 0; i < vocab; ++i) {
      const double s = student[static_cast<size_t>(i)] - log_sum, q = other[static_cast<size_t>(i)] - other_sum;
      if (std::exp(q) > 0) loss += std::exp(q) * (q - s);
      const double slope = cap_slope(student[static_cast<size_t>(i)] * t, softcap);
      row[i] = static_cast<float>(weight == 0 ? 0 : weight * t * (std::exp(s) - std::exp(q)) * slope);
    }
    losses[static_cast<size_t>(r)] = weight == 0 ? 0 : weight * t * t * loss;
  }
}

double TrainingOps::sum_of_squares(const Tensor& x) {
  double sum = 0;
  for (int64_t i = 0; i < x.elements(); ++i) sum += static_cast<double>(x.as<float>()[i]) * x.as<float>()[i];
  return sum;
}

void TrainingOps::multiply(const Tensor& x, const Tensor& mask) {
  for (int64_t i = 0; i < x.elements(); ++i) x.as<float>()[i] *= mask.as<float>()[i];
}

void TrainingOps::adamw(const Tensor& p, const Tensor& g, const Tensor& m, const Tensor& v, const AdamWStep& step) {
  const double beta1 = step.beta1, beta2 = step.beta2, lr = step.learning_rate;
  const double correction1 = 1 - std::pow(beta1, static_cast<double>(step.step));
  const double correction2 = std::sqrt(1 - std::pow(beta2, static_cast<double>(step.step)));
  for (int64_t i = 0; i < p.elements(); ++i) {
    const double gradient = static_cast<double>(g.as<float>()[i]) * step.gradient_scale;
    const double first = beta1 * m.as<float>()[i] + (1 - beta1) * gradient;
    const double second = beta2 * v.as<float>()[i] + (1 - beta2) * gradient * gradient;
    const double kept = p.as<float>()[i] * (1 - lr * step.weight_decay);
    m.as<float>()[i] = static_cast<float>(first);
    v.as<float>()[i] = static_cast<float>(second);
    p.as<float>()[i] = static_cast<float>(kept - lr / correction1 * first / (std::sqrt(second) / correction2 + step.eps));
  }
}

void TrainingOps::sgd(const Tensor& p, const Tensor& g, const Tensor& momentum, const SgdStep& step) {
  for (int64_t i = 0; i < p.elements(); ++i) {
    float& value = p.as<float>()[i];
    double move = static_cast<double>(g.as<float>()[i]) * step.gradient_scale + static_cast<double>(step.weight_decay) * value;
    if (step.momentum != 0) {
      float& kept = momentum.as<float>()[i];
      if (!step.first) move += static_cast<double>(kept) * step.momentum;
      kept = static_cast<float>(move);
    }
    value = static_cast<float>(value - static_cast<double>(step.learning_rate) * move);
  }
}

}  // namespace lapidary
