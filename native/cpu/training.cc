// Splits each training operation into independent pieces for the pool. Sums over rows run over pieces of a fixed length, whose results are
// added in rising order: so nothing depends on the thread count.
#include "cpu/training.h"

#include <algorithm>
#include <cmath>
#include <vector>

#include "base/error.h"
#include "cpu/scratch.h"
#include "ops/int8.h"

namespace lapidary::cpu {

namespace {

// Work, in multiply-adds or their like, below which a second thread costs more than it brings.
constexpr int64_t kLeastWork = 64 * 1024;
// Floats of one side of a product that are packed at a time.
constexpr int64_t kPackedFloats = 4 << 20;
// Rows and columns of c that are one piece of work, about: both sides' slices stay in the second-level cache.
constexpr int64_t kBlockRows = 120, kBlockColumns = 128;
// Rows whose part of a norm weight's derivative is one sum.
constexpr int64_t kNormRows = 32;
constexpr int64_t kSquaresPiece = 64 * 1024;
// Columns of the embedding's derivative that one thread adds up.
constexpr int64_t kTableColumns = 64;

int64_t rounded_up(int64_t n, int64_t unit) { return (n + unit - 1) / unit * unit; }

class CpuTrainingOps final : public TrainingOps {
 public:
  CpuTrainingOps(const Kernels& kernels, std::shared_ptr<ThreadPool> pool)
      : kernels_(kernels), training_(kernels.training), pool_(std::move(pool)) {}

  void matmul(MatmulForm form, const Tensor& a, const Tensor& b, const Tensor& c, bool add_to_c) override;
  void rms_norm_backward(const Tensor& x, const Norm& norm, const Tensor& gy, const Tensor& gx, bool add_to_gx, const Tensor& gw) override;

  void rope_backward(const Tensor& g, const Tensor& cos, const Tensor& sin) override {
    const int64_t heads = g.shape[1], half = g.shape[2] / 2;
    for_each(g.shape[0], 2 * heads * half, [&](int64_t t) {
      training_.rope_backward(g.as<float>() + t * heads * 2 * half, cos.as<float>() + t * half, sin.as<float>() + t * half, heads, half);
    });
  }

  void geglu_backward(const Tensor& gate, const Tensor& up, const Tensor& gout, const Tensor& ggate, const Tensor& gup) override {
    for_each_piece(gate.elements(), 12, [&](int64_t i, int64_t n) {
      training_.geglu_backward(gate.as<float>() + i, up.as<float>() + i, gout.as<float>() + i, n, ggate.as<float>() + i,
                               gup.as<float>() + i);
    });
  }

  void soft_cap_backward(const Tensor& y, float cap, const Tensor& g) override {
    for_each_piece(y.elements(), 4,
                   [&](int64_t i, int64_t n) { training_.soft_cap_backward(y.as<float>() + i, cap, g.as<float>() + i, n); });
  }

  void embed_backward(std::span<const int32_t> ids, float scale, const Tensor& gx, const Tensor& gtable) override {
    const int64_t hidden = gtable.shape[1], tokens = static_cast<int64_t>(ids.size());
    for_each((hidden + kTableColumns - 1) / kTableColumns, tokens * kTableColumns, [&](int64_t piece) {
      const int64_t first = piece * kTableColumns, n = std::min(kTableColumns, hidden - first);
      for (int64_t t = 0; t < tokens; ++t)
        training_.add_scaled(gtable.as<float>() + ids[static_cast<size_t>(t)] * hidden + first, scale, gx.as<float>() + t * hidden + first,
                             n);
    });
  }

  void attention_forward(const TrainingAttention& attention, const Tensor& out, const Tensor& stats) override {
    cpu::attention_forward(training_, *pool_, attention, out, stats);
  }

  void attention_backward(const TrainingAttention& attention, const Tensor& out, const Tensor& stats, const Tensor& gout,
                          const AttentionGradients& gradients) override {
    cpu::attention_backward(training_, *pool_, attention, out, stats, gout, gradients);
  }

  void cross_entropy(const Tensor& logits, float softcap, const TokenTargets& targets, std::span<double> losses) override {
    const int64_t vocab = logits.shape[1];
    for_each(logits.shape[0], 16 * vocab, [&](int64_t r) {
      losses[static_cast<size_t>(r)] =
          cross_entropy_row({logits.as<float>() + r * vocab, vocab, softcap, 1}, targets, r, targets.weights[static_cast<size_t>(r)]);
    });
  }

  void distillation(const Tensor& logits, float softcap, const Tensor& teacher, float temperature, std::span<const float> weights,
                    std::span<double> losses) override {
    const int64_t vocab = logits.shape[1];
    for_each(logits.shape[0], 32 * vocab, [&](int64_t r) {
      const float weight = weights[static_cast<size_t>(r)];
      float* row = logits.as<float>() + r * vocab;
      losses[static_cast<size_t>(r)] = 0;
      if (weight == 0) return void(std::fill_n(row, vocab, 0.0f));
      float* other = thread_scratch(ScratchUse::kernel, static_cast<size_t>(vocab));
      std::copy_n(teacher.as<float>() + r * vocab, vocab, other);
      const LogitsRow student{row, vocab, softcap, temperature};
      const double sum = training_.soften_logits(student), other_sum = training_.soften_logits({other, vocab, 0, temperature});
      losses[static_cast<size_t>(r)] =
          static_cast<double>(weight) * temperature * temperature *
          training_.distillation_backward(student, static_cast<float>(sum), other, static_cast<float>(other_sum), weight * temperature);
    });
  }

  double fake_quantize(const Tensor& x, const FakeQuant& quant, std::span<const SequenceRows> sequences, const Tensor& out,
                       const Tensor& scales) override;
  void fake_quantize_backward(const Tensor& x, const FakeQuant& quant, std::span<const SequenceRows> sequences, const Tensor& scales,
                              float error_weight, QuantErrorGradient kind, const Tensor& g) override;

  double sum_of_squares(const Tensor& x) override {
    const int64_t n = x.elements(), pieces = (n + kSquaresPiece - 1) / kSquaresPiece;
    return sum_in_order(pieces, kSquaresPiece, [&](int64_t i) {
      return training_.sum_of_squares(x.as<float>() + i * kSquaresPiece, std::min(kSquaresPiece, n - i * kSquaresPiece));
    });
  }

  void multiply(const Tensor& x, const Tensor& mask) override {
    for_each_piece(x.elements(), 1, [&](int64_t i, int64_t n) { training_.multiply(x.as<float>() + i, mask.as<float>() + i, n); });
  }

  void adamw(const Tensor& p, const Tensor& g, const Tensor& m, const Tensor& v, const AdamWStep& step) override {
    const double t = static_cast<double>(step.step);
    const AdamConstants constants{step.gradient_scale,
                                  static_cast<float>(1 - static_cast<double>(step.learning_rate) * step.weight_decay),
                                  step.beta1,
                                  step.beta2,
                                  static_cast<float>(1 - static_cast<double>(step.beta1)),
                                  static_cast<float>(1 - static_cast<double>(step.beta2)),
                                  static_cast<float>(step.learning_rate / (1 - std::pow(static_cast<double>(step.beta1), t))),
                                  static_cast<float>(std::sqrt(1 - std::pow(static_cast<double>(step.beta2), t))),
                                  step.eps};
    for_each_piece(p.elements(), 8, [&](int64_t i, int64_t n) {
      training_.adamw(p.as<float>() + i, g.as<float>() + i, m.as<float>() + i, v.as<float>() + i, n, constants);
    });
  }

  void sgd(const Tensor& p, const Tensor& g, const Tensor& momentum, const SgdStep& step) override {
    const SgdConstants constants{step.gradient_scale, step.weight_decay, step.momentum, step.learning_rate, step.first, step.momentum != 0};
    for_each_piece(p.elements(), 4, [&](int64_t i, int64_t n) {
      training_.sgd(p.as<float>() + i, g.as<float>() + i, constants.has_momentum ? momentum.as<float>() + i : nullptr, n, constants);
    });
  }

 private:
  // fn(i) for i in [0, n), each of about `work` multiply-adds.
  template <typename Fn>
  void for_each(int64_t n, int64_t work, const Fn& fn) {
    pool_->parallel_for(n, kLeastWork / std::max<int64_t>(work, 1) + 1, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) fn(i);
    });
  }

  // fn(first, count) over elementwise pieces of n elements, each of about `work` multiply-adds.
  template <typename Fn>
  void for_each_piece(int64_t n, int64_t work, const Fn& fn) {
    pool_->parallel_for(n, padded(kLeastWork / work), [&](int64_t begin, int64_t end) { fn(begin, end - begin); });
  }

  // fn(0) + fn(1) + ..., computed in any order.
  template <typename Fn>
  double sum_in_order(int64_t n, int64_t work, const Fn& fn) {
    std::vector<double> parts(static_cast<size_t>(n));
    for_each(n, work, [&](int64_t i) { parts[static_cast<size_t>(i)] = fn(i); });
    double sum = 0;
    for (double part : parts) sum += part;
    return sum;
  }

  double cross_entropy_row(const LogitsRow& row, const TokenTargets& targets, int64_t r, float weight);
  void multiply_chunk(const MatrixSide& a, int64_t m, const MatrixSide& b, int64_t n, int64_t k, float* c, int64_t c_stride, bool add_to_c);

  const Kernels& kernels_;
  const TrainingKernels& training_;
  std::shared_ptr<ThreadPool> pool_;
};

// Lines [first, ...) of a side.
MatrixSide from_line(const MatrixSide& side, int64_t first) {
  return {side.data + (side.along ? first * side.stride : first), side.stride, side.along};
}

void CpuTrainingOps::matmul(MatmulForm form, const Tensor& a, const Tensor& b, const Tensor& c, bool add_to_c) {
  check_matmul(form, a, b, c);
  const int64_t m = c.shape[0], n = c.shape[1], k = form == MatmulForm::tn ? a.shape[0] : a.shape[1];
  if (m == 0 || n == 0) return;
  if (k == 0) {
    if (!add_to_c) std::fill_n(c.as<float>(), m * n, 0.0f);
    return;
  }
  const MatrixSide left{a.as<float>(), a.shape[1], form != MatmulForm::tn}, right{b.as<float>(), b.shape[1], form == MatmulForm::nt};
  const int64_t rows = std::max(kBlockRows, kPackedFloats / k / kBlockRows * kBlockRows);
  const int64_t columns = std::max(kBlockColumns, kPackedFloats / k / kBlockColumns * kBlockColumns);
  for (int64_t i = 0; i < m; i += rows) {
    for (int64_t j = 0; j < n; j += columns)
      multiply_chunk(from_line(left, i), std::min(rows, m - i), from_line(right, j), std::min(columns, n - j), k, c.as<float>() + i * n + j,
                     n, add_to_c);
  }
}

void CpuTrainingOps::multiply_chunk(const MatrixSide& a, int64_t m, const MatrixSide& b, int64_t n, int64_t k, float* c, int64_t c_stride,
                                    bool add_to_c) {
  const TrainingKernels& kernels = training_;
  const int64_t m_padded = rounded_up(m, kernels.gemm_rows), n_padded = rounded_up(n, kernels.gemm_columns);
  float* a_panels = thread_scratch(ScratchUse::input, static_cast<size_t>(m_padded * k));
  float* b_panels = thread_scratch(ScratchUse::partial, static_cast<size_t>(n_padded * k));
  // Slice s of a side begins at panels + s * kGemmSlice * padded lines.
  const int64_t slices = (k + kGemmSlice - 1) / kGemmSlice;
  const int64_t a_count = m_padded / kernels.gemm_rows, b_count = n_padded / kernels.gemm_columns;
  for_each(slices * (a_count + b_count), std::min(k, kGemmSlice) * kernels.gemm_columns, [&](int64_t i) {
    const int64_t slice = i / (a_count + b_count), panel = i % (a_count + b_count);
    const int64_t k0 = slice * kGemmSlice, depth = std::min(kGemmSlice, k - k0);
    if (panel < a_count) {
      kernels.pack_a(a, m, panel, panel + 1, k0, depth, a_panels + k0 * m_padded + panel * depth * kernels.gemm_rows);
    } else {
      const int64_t p = panel - a_count;
      kernels.pack_b(b, n, p, p + 1, k0, depth, b_panels + k0 * n_padded + p * depth * kernels.gemm_columns);
    }
  });
  const int64_t row_blocks = (m + kBlockRows - 1) / kBlockRows, column_blocks = (n + kBlockColumns - 1) / kBlockColumns;
  for_each(row_blocks * column_blocks, std::min(m, kBlockRows) * std::min(n, kBlockColumns) * k, [&](int64_t block) {
    const int64_t i = block % row_blocks * kBlockRows, j = block / row_blocks * kBlockColumns;
    for (int64_t k0 = 0; k0 < k; k0 += kGemmSlice) {
      const int64_t depth = std::min(kGemmSlice, k - k0);
      kernels.multiply_panels(a_panels + k0 * m_padded + i * depth, b_panels + k0 * n_padded + j * depth, depth,
                              std::min(kBlockRows, m - i), std::min(kBlockColumns, n - j), c + i * c_stride + j, c_stride,
                              add_to_c || k0 > 0);
    }
  });
}

void CpuTrainingOps::rms_norm_backward(const Tensor& x, const Norm& norm, const Tensor& gy, const Tensor& gx, bool add_to_gx,
                                       const Tensor& gw) {
  const int64_t dim = norm.weight.elements(), rows = x.elements() / dim, pieces = (rows + kNormRows - 1) / kNormRows;
  expect(rows * dim == x.elements() && gy.elements() == x.elements() && gx.elements() == x.elements(), ErrorCode::internal,
         "rms_norm_backward: x ", x.shape_text(), ", weight ", norm.weight.shape_text(), ", gy ", gy.shape_text());
  float* parts = gw ? thread_scratch(ScratchUse::partial, static_cast<size_t>(pieces * dim)) : nullptr;
  for_each(pieces, 6 * kNormRows * dim, [&](int64_t piece) {
    float* part = parts ? parts + piece * dim : nullptr;
    if (part) std::fill_n(part, dim, 0.0f);
    for (int64_t r = piece * kNormRows; r < std::min(rows, (piece + 1) * kNormRows); ++r)
      training_.rms_norm_backward(x.as<float>() + r * dim, norm.weight.as<float>(), norm.offset, norm.eps, gy.as<float>() + r * dim, dim,
                                  gx.as<float>() + r * dim, add_to_gx, part);
  });
  for (int64_t piece = 0; gw && piece < pieces; ++piece) kernels_.add(gw.as<float>(), parts + piece * dim, dim);
}

double CpuTrainingOps::cross_entropy_row(const LogitsRow& row, const TokenTargets& targets, int64_t r, float weight) {
  if (weight == 0) {
    std::fill_n(row.logits, row.vocab, 0.0f);
    return 0;
  }
  const double log_sum = training_.soften_logits(row);
  const int32_t* ids = targets.ids.data() + r * targets.per_row;
  const auto probability = [&](int64_t j) {
    return targets.probabilities.empty() ? 1.0f : targets.probabilities[static_cast<size_t>(r * targets.per_row + j)];
  };
  double loss = 0, mass = 0;
  // The targets' own part of the derivative, taken from the capped logits before they are overwritten.
  float* pulls = thread_scratch(ScratchUse::kernel, static_cast<size_t>(targets.per_row));
  for (int64_t j = 0; j < targets.per_row; ++j) {
    const float l = row.logits[ids[j]], p = probability(j), ratio = row.softcap != 0 ? l / row.softcap : 0;
    loss += p * (log_sum - l);
    mass += p;
    pulls[j] = weight * p * (1 - ratio * ratio);
  }
  training_.logits_backward(row, static_cast<float>(log_sum), static_cast<float>(weight * mass));
  for (int64_t j = 0; j < targets.per_row; ++j) row.logits[ids[j]] -= pulls[j];
  return weight * loss;
}

double CpuTrainingOps::fake_quantize(const Tensor& x, const FakeQuant& quant, std::span<const SequenceRows> sequences, const Tensor& out,
                                     const Tensor& scales) {
  expect(quant.scope != QuantScope::none && (quant.scope != QuantScope::fixed || quant.scale > 0), ErrorCode::internal,
         "fake_quantize: no scheme, or a scale of ", quant.scale);
  const int64_t dim = x.row_elements(), rows = x.shape[0];
  float* scale = scales.as<float>();
  for_each(rows, dim, [&](int64_t r) {
    scale[r] = quant.scope == QuantScope::fixed ? quant.scale : kernels_.absolute_max(x.as<float>() + r * dim, dim);
  });
  if (quant.scope == QuantScope::sequence) {
    for (const SequenceRows& s : sequences) {
      float most = 0;
      for (int64_t r = 0; r < s.rows; ++r) most = std::max(most, scale[s.first_row + r]);
      std::fill_n(scale + s.first_row, s.rows, most);
    }
  }
  if (quant.scope != QuantScope::fixed) {
    for (int64_t r = 0; r < rows; ++r) scale[r] = int8_scale(scale[r]);
  }
  return sum_in_order(
      rows, 2 * dim, [&](int64_t r) { return training_.fake_quantize(x.as<float>() + r * dim, dim, scale[r], out.as<float>() + r * dim); });
}

void CpuTrainingOps::fake_quantize_backward(const Tensor& x, const FakeQuant& quant, std::span<const SequenceRows> sequences,
                                            const Tensor& scales, float error_weight, QuantErrorGradient kind, const Tensor& g) {
  // The scale's own derivative takes a search of its own, and is no part of ordinary training.
  if (kind == QuantErrorGradient::through_scale && quant.scope != QuantScope::fixed)
    return TrainingOps::fake_quantize_backward(x, quant, sequences, scales, error_weight, kind, g);
  const int64_t dim = x.row_elements();
  for_each(x.shape[0], 4 * dim, [&](int64_t r) {
    training_.fake_quantize_backward(x.as<float>() + r * dim, dim, scales.as<float>()[r], quant.scope == QuantScope::fixed,
                                     kind == QuantErrorGradient::literal, error_weight, g.as<float>() + r * dim);
  });
}

}  // namespace

std::unique_ptr<TrainingOps> make_training_ops(const Kernels& kernels, std::shared_ptr<ThreadPool> pool) {
  return std::make_unique<CpuTrainingOps>(kernels, std::move(pool));
}

}  // namespace lapidary::cpu
