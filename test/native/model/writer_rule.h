// The reference backend with the rounding rule of the compressed-tensors library instead of ours: scale = max / 127.5, at least f32's
// epsilon; q = the quotient clamped to [-128, 127], then rounded to nearest, ties to even. For comparisons with logits of its fake
// quantisation.
#pragma once

#include <cfloat>
#include <cmath>
#include <vector>

#include "base/float16.h"
#include "ops/int8.h"
#include "ops/ops.h"

namespace lapidary::test {

class WriterRuleBackend final : public Backend {
 public:
  std::string_view name() const override { return "reference, writer's rule"; }

  void quantize_rows(const Tensor& x, float fixed_scale, const Tensor& q, const Tensor& scales) override {
    const int64_t dim = x.row_elements();
    for (int64_t r = 0; r < x.shape[0]; ++r) {
      const float* row = x.as<float>() + r * dim;  // tests run in f32
      const float scale = fixed_scale > 0 ? fixed_scale : dynamic_scale(row, dim);
      for (int64_t i = 0; i < dim; ++i) {
        const float quotient = row[i] / scale;
        q.as<int8_t>()[r * dim + i] = static_cast<int8_t>(std::nearbyint(quotient < -128 ? -128 : quotient > 127 ? 127 : quotient));
      }
      scales.as<float>()[r] = scale;
    }
  }
  void linear(const Tensor& x, const Linear& w, const Tensor& out) override {
    if (w.weight.dtype != DType::i8 || w.activations == ActScheme::none) return plain_->linear(x, w, out);
    const int64_t rows = x.shape[0];
    std::vector<int8_t> q(static_cast<size_t>(x.elements()));
    std::vector<float> scales(static_cast<size_t>(rows));
    const Tensor q_rows(q.data(), DType::i8, {rows, w.in()}), row_scales(scales.data(), DType::f32, {rows});
    const float shared = w.activations == ActScheme::sequence ? dynamic_scale(x.as<float>(), x.elements()) : 0;
    quantize_rows(x, w.activations == ActScheme::fixed ? w.input_scale : shared, q_rows, row_scales);
    plain_->matmul_int8(q_rows, row_scales, w, out);
  }

  void embed(std::span<const int32_t> ids, const Linear& table, float scale, const Tensor& out) override {
    plain_->embed(ids, table, scale, out);
  }
  void rms_norm(const Tensor& x, const Norm& norm, const Tensor& out) override { plain_->rms_norm(x, norm, out); }
  void matmul_int8(const Tensor& x, const Tensor& x_scales, const Linear& w, const Tensor& out) override {
    plain_->matmul_int8(x, x_scales, w, out);
  }
  void rope_angles(std::span<const int32_t> positions, std::span<const float> inv_freq, const Tensor& cos, const Tensor& sin) override {
    plain_->rope_angles(positions, inv_freq, cos, sin);
  }
  void rope(const Tensor& x, const Tensor& cos, const Tensor& sin) override { plain_->rope(x, cos, sin); }
  void append_kv(const Tensor& k, const Tensor& v, std::span<const AttentionSpan> spans, const AttentionShape& shape) override {
    plain_->append_kv(k, v, spans, shape);
  }
  void attention(const Tensor& q, std::span<const AttentionSpan> spans, const AttentionShape& shape, const Tensor& out) override {
    plain_->attention(q, spans, shape, out);
  }
  void geglu(const Tensor& gate, const Tensor& up, const Tensor& out) override { plain_->geglu(gate, up, out); }
  void add(const Tensor& x, const Tensor& y) override { plain_->add(x, y); }
  void soft_cap(const Tensor& x, float cap) override { plain_->soft_cap(x, cap); }
  void gather_rows(const Tensor& x, std::span<const int32_t> rows, const Tensor& out) override { plain_->gather_rows(x, rows, out); }

 private:
  static float dynamic_scale(const float* x, int64_t n) { return std::max(absolute_max(x, n) / 127.5f, FLT_EPSILON); }

  const std::unique_ptr<Backend> plain_ = make_reference_backend();
};

}  // namespace lapidary::test
