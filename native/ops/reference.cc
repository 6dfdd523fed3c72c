// The reference backend: every primitive as plain loops over f32, for reading and for tests. Sums run in double, so what
// differs from another backend is that backend's rounding. Knows no Gemma.
#include <algorithm>
#include <cmath>

#include "base/float16.h"
#include "ops/int8.h"
#include "ops/ops.h"
#include "ops/plain.h"
#include "ops/training.h"
#include "tensor/blocks.h"

namespace lapidary {

namespace {

// Element i of a row of f32 or bf16.
float load(const Tensor& row, int64_t i) { return row.dtype == DType::bf16 ? to_f32(row.as<bf16>()[i]) : row.as<float>()[i]; }

void store(const Tensor& row, int64_t i, float value) {
  if (row.dtype == DType::bf16) {
    row.as<bf16>()[i] = to_bf16(value);
  } else {
    row.as<float>()[i] = value;
  }
}

// Σ a[i] * b[i]: eight partial sums, then those in order. The order depends on n alone.
double dot(const float* a, const float* b, int64_t n) {
  double part[8] = {};
  int64_t i = 0;
  for (; i + 8 <= n; i += 8) {
    for (int lane = 0; lane < 8; ++lane) part[lane] += static_cast<double>(a[i + lane]) * b[i + lane];
  }
  for (; i < n; ++i) part[0] += static_cast<double>(a[i]) * b[i];
  double sum = 0;
  for (double p : part) sum += p;
  return sum;
}

class ReferenceBackend final : public Backend {
 public:
  std::string_view name() const override { return "reference"; }

  bool has_long_spans() const override { return true; }

  Linear make_linear(const Linear& host) override {
    if (host.activations != ActScheme::long_spans) return host;
    const int64_t k = host.in();
    struct Kept {
      std::shared_ptr<const void> weight;
      Buffer scales;
    };
    auto kept = std::make_shared<Kept>(Kept{host.keep, allocate_host(static_cast<size_t>(host.out()) * sizeof(float))});
    Linear made = host;
    made.scale = kept->scales.tensor(DType::f32, {host.out()});
    made.keep = std::move(kept);
    std::vector<float> values(static_cast<size_t>(k));
    for (int64_t n = 0; n < host.out(); ++n) {
      widen_row(host, n, values.data());
      made.scale.as<float>()[n] = int8_scale(absolute_max(values.data(), k));
    }
    return made;
  }

  void embed(std::span<const int32_t> ids, const Linear& table, float scale, const Tensor& out) override {
    const int64_t hidden = table.in();
    for (size_t t = 0; t < ids.size(); ++t) {
      float* row = out.as<float>() + static_cast<int64_t>(t) * hidden;
      widen_row(table, ids[t], row);
      for (int64_t i = 0; i < hidden; ++i) row[i] *= scale;
    }
  }

  void rms_norm(const Tensor& x, const Norm& norm, const Tensor& out) override {
    const int64_t dim = x.shape[1];
    const float* weight = norm.weight.as<float>();
    for (int64_t r = 0; r < x.shape[0]; ++r) {
      const float* in = x.rows(r, 1).as<float>();
      const Tensor result = out.rows(r, 1);
      const double mean_square = dot(in, in, dim) / static_cast<double>(dim);
      const float inverse = static_cast<float>(1.0 / std::sqrt(mean_square + norm.eps));
      for (int64_t i = 0; i < dim; ++i) store(result, i, in[i] * inverse * (norm.offset + weight[i]));
    }
  }

  void linear(const Tensor& x, const Linear& w, const Tensor& out) override {
    if (w.activations == ActScheme::long_spans) return linear(x, for_rows(w, x.dtype, x.shape[0] >= kLongSpan), out);
    if (w.activations != ActScheme::none) return w.weight.dtype == DType::i8 ? linear_int8(x, w, out) : linear_rounded(x, w, out);
    const int64_t tokens = x.shape[0], in = w.in(), rows = w.out();
    std::vector<float> inputs(static_cast<size_t>(tokens * in)), weights(static_cast<size_t>(in));
    for (int64_t i = 0; i < tokens * in; ++i) inputs[static_cast<size_t>(i)] = load(x, i);
    float* result = out.as<float>();
    for (int64_t o = 0; o < rows; ++o) {
      widen_row(w, o, weights.data());
      for (int64_t t = 0; t < tokens; ++t)
        result[t * rows + o] = static_cast<float>(dot(&inputs[static_cast<size_t>(t * in)], weights.data(), in));
    }
  }

  void quantize_rows(const Tensor& x, float fixed_scale, const Tensor& q, const Tensor& scales) override {
    const int64_t dim = x.row_elements();
    std::vector<float> row(static_cast<size_t>(dim));
    for (int64_t r = 0; r < x.shape[0]; ++r) {
      for (int64_t i = 0; i < dim; ++i) row[static_cast<size_t>(i)] = load(x, r * dim + i);
      const float scale = fixed_scale > 0 ? fixed_scale : int8_scale(absolute_max(row.data(), dim));
      quantize_int8(row.data(), dim, scale, q.as<int8_t>() + r * dim);
      scales.as<float>()[r] = scale;
    }
  }

  void matmul_int8(const Tensor& x, const Tensor& x_scales, const Linear& w, const Tensor& out) override {
    const int64_t rows = x.shape[0], k = w.in(), n = w.out();
    for (int64_t m = 0; m < rows; ++m) {
      for (int64_t o = 0; o < n; ++o) {
        int32_t sum = 0;
        for (int64_t i = 0; i < k; ++i) sum += static_cast<int32_t>(x.as<int8_t>()[m * k + i]) * w.weight.as<int8_t>()[o * k + i];
        out.as<float>()[m * n + o] = static_cast<float>(sum) * (x_scales.as<float>()[m] * w.scale.as<float>()[o]);
      }
    }
  }

  void rope_angles(std::span<const int32_t> positions, std::span<const float> inv_freq, const Tensor& cos, const Tensor& sin) override {
    const size_t half = inv_freq.size();
    for (size_t t = 0; t < positions.size(); ++t) {
      for (size_t j = 0; j < half; ++j) {
        const double angle = static_cast<float>(positions[t]) * inv_freq[j];  // the f32 product
        cos.as<float>()[t * half + j] = static_cast<float>(std::cos(angle));
        sin.as<float>()[t * half + j] = static_cast<float>(std::sin(angle));
      }
    }
  }

  void rope(const Tensor& x, const Tensor& cos, const Tensor& sin) override {
    const int64_t tokens = x.shape[0], heads = x.shape[1], half = x.shape[2] / 2;
    for (int64_t t = 0; t < tokens; ++t) {
      const float* c = cos.as<float>() + t * half;
      const float* s = sin.as<float>() + t * half;
      for (int64_t h = 0; h < heads; ++h) {
        float* row = x.as<float>() + (t * heads + h) * 2 * half;
        for (int64_t j = 0; j < half; ++j) {
          const float a = row[j], b = row[j + half];
          row[j] = a * c[j] - b * s[j];
          row[j + half] = b * c[j] + a * s[j];
        }
      }
    }
  }

  void append_kv(const Tensor& k, const Tensor& v, std::span<const AttentionSpan> spans, const AttentionShape& shape) override {
    const int64_t width = shape.num_kv_heads * shape.head_dim;
    for (const AttentionSpan& span : spans) {
      for (int64_t r = 0; r < span.rows; ++r) {
        const int64_t at = (span.first_row + r) * width;
        append_kv_plain(k.as<float>() + at, v.as<float>() + at, span.first_pos + r, span.kv, shape);
      }
    }
  }

  void attention(const Tensor& q, std::span<const AttentionSpan> spans, const AttentionShape& shape, const Tensor& out) override {
    for (const AttentionSpan& span : spans) {
      for (int64_t r = 0; r < span.rows; ++r) {
        const int64_t row = span.first_row + r;
        for (int64_t head = 0; head < shape.num_heads; ++head)
          attend_plain(q, row, span.first_pos + r, head, span.kv, shape, out.rows(row, 1));
      }
    }
  }

  void geglu(const Tensor& gate, const Tensor& up, const Tensor& out) override {
    for (int64_t i = 0; i < gate.elements(); ++i) {
      const float x = gate.as<float>()[i];
      const float gelu = 0.5f * x * (1.0f + std::tanh(0.7978845608028654f * (x + 0.044715f * x * x * x)));
      store(out, i, gelu * up.as<float>()[i]);
    }
  }

  void add(const Tensor& x, const Tensor& y) override {
    for (int64_t i = 0; i < x.elements(); ++i) x.as<float>()[i] += y.as<float>()[i];
  }

  void soft_cap(const Tensor& x, float cap) override {
    for (int64_t i = 0; i < x.elements(); ++i) x.as<float>()[i] = cap * std::tanh(x.as<float>()[i] / cap);
  }

  void gather_rows(const Tensor& x, std::span<const int32_t> rows, const Tensor& out) override {
    for (size_t i = 0; i < rows.size(); ++i) {
      const float* from = x.rows(rows[i], 1).as<float>();
      std::copy_n(from, x.row_elements(), out.rows(static_cast<int64_t>(i), 1).as<float>());
    }
  }

  TrainingOps& training() override { return training_; }

 private:
  // Row `n` of a weight as f32.
  static void widen_row(const Linear& w, int64_t n, float* row) {
    const int64_t in = w.in();
    if (w.weight.dtype != DType::i8) return dequantize_row(w.weight.dtype, w.weight.rows(n, 1).data, in, row);
    for (int64_t i = 0; i < in; ++i) row[i] = static_cast<float>(w.weight.as<int8_t>()[n * in + i]) * w.scale.as<float>()[n];
  }

  // The scale for all of x.
  static float tensor_scale(const Tensor& x) {
    std::vector<float> values(static_cast<size_t>(x.elements()));
    for (int64_t i = 0; i < x.elements(); ++i) values[static_cast<size_t>(i)] = load(x, i);
    return int8_scale(absolute_max(values.data(), x.elements()));
  }

  void linear_int8(const Tensor& x, const Linear& w, const Tensor& out) {
    const int64_t tokens = x.shape[0];
    const Buffer q = allocate_host(static_cast<size_t>(tokens * w.in())),
                 scales = allocate_host(static_cast<size_t>(tokens) * sizeof(float));
    const Tensor q_rows = q.tensor(DType::i8, {tokens, w.in()}), row_scales = scales.tensor(DType::f32, {tokens});
    const float fixed = w.activations == ActScheme::fixed ? w.input_scale : w.activations == ActScheme::sequence ? tensor_scale(x) : 0;
    quantize_rows(x, fixed, q_rows, row_scales);
    matmul_int8(q_rows, row_scales, w, out);
  }

  // The weight's rows as int8 numbers of w.scale, then as those.
  void linear_rounded(const Tensor& x, const Linear& w, const Tensor& out) {
    const int64_t rows = w.out(), k = w.in();
    const Buffer numbers = allocate_host(static_cast<size_t>(rows * k));
    Linear rounded = {numbers.tensor(DType::i8, {rows, k}), numbers.memory, w.scale, w.activations};
    std::vector<float> values(static_cast<size_t>(k));
    for (int64_t n = 0; n < rows; ++n) {
      widen_row(w, n, values.data());
      quantize_int8(values.data(), k, w.scale.as<float>()[n], rounded.weight.as<int8_t>() + n * k);
    }
    linear_int8(x, rounded, out);
  }

  TrainingOps training_;
};

}  // namespace

std::unique_ptr<Backend> make_reference_backend() { return std::make_unique<ReferenceBackend>(); }

}  // namespace lapidary
