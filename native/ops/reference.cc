// The reference backend: every primitive as plain loops over f32, for reading and for tests. Sums run in double, so what
// differs from another backend is that backend's rounding. Knows no Gemma.
#include <algorithm>
#include <cassert>
#include <cmath>

#include "base/float16.h"
#include "ops/ops.h"
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

// One side of a KV page (keys or values), [num_kv_heads, kPageTokens, head_dim].
struct PageSide {
  const KvView& kv;
  const AttentionShape& shape;
  int64_t offset;  // elements before this side: 0 for keys, a whole side for values

  Tensor row(int64_t pos, int64_t kv_head) const {
    std::byte* page = static_cast<std::byte*>(kv.pages[(pos / kPageTokens) % kv.num_pages]);
    const int64_t at = offset + (kv_head * kPageTokens + pos % kPageTokens) * shape.head_dim;
    return Tensor(page + dtype_bytes(kv.dtype, at), kv.dtype, {shape.head_dim});
  }
};

PageSide keys_of(const KvView& kv, const AttentionShape& shape) { return {kv, shape, 0}; }
PageSide values_of(const KvView& kv, const AttentionShape& shape) { return {kv, shape, shape.num_kv_heads * kPageTokens * shape.head_dim}; }

// The first key that a query at `pos` sees.
int64_t first_visible(int64_t pos, int64_t window) { return window > pos ? 0 : pos - window + 1; }

class ReferenceBackend final : public Backend {
 public:
  std::string_view name() const override { return "reference"; }

  void embed(std::span<const int32_t> ids, const Linear& table, float scale, const Tensor& out) override {
    const int64_t hidden = table.in();
    for (size_t t = 0; t < ids.size(); ++t) {
      float* row = out.as<float>() + static_cast<int64_t>(t) * hidden;
      dequantize_row(table.weight.dtype, table.weight.rows(ids[t], 1).data, hidden, row);
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
    const int64_t tokens = x.shape[0], in = w.in(), rows = w.out();
    std::vector<float> inputs(static_cast<size_t>(tokens * in)), weights(static_cast<size_t>(in));
    for (int64_t i = 0; i < tokens * in; ++i) inputs[static_cast<size_t>(i)] = load(x, i);
    float* result = out.as<float>();
    for (int64_t o = 0; o < rows; ++o) {
      dequantize_row(w.weight.dtype, w.weight.rows(o, 1).data, in, weights.data());
      for (int64_t t = 0; t < tokens; ++t)
        result[t * rows + o] = static_cast<float>(dot(&inputs[static_cast<size_t>(t * in)], weights.data(), in));
    }
  }

  void rope_angles(std::span<const int32_t> positions, std::span<const float> inv_freq, const Tensor& cos, const Tensor& sin) override {
    const size_t half = inv_freq.size();
    for (size_t t = 0; t < positions.size(); ++t) {
      for (size_t j = 0; j < half; ++j) {
        const float angle = static_cast<float>(positions[t]) * inv_freq[j];
        cos.as<float>()[t * half + j] = std::cos(angle);
        sin.as<float>()[t * half + j] = std::sin(angle);
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
    for (const AttentionSpan& span : spans) {
      const PageSide keys = keys_of(span.kv, shape), values = values_of(span.kv, shape);
      for (int64_t r = 0; r < span.rows; ++r) {
        for (int64_t head = 0; head < shape.num_kv_heads; ++head) {
          const int64_t at = ((span.first_row + r) * shape.num_kv_heads + head) * shape.head_dim;
          const Tensor key = keys.row(span.first_pos + r, head), value = values.row(span.first_pos + r, head);
          for (int64_t i = 0; i < shape.head_dim; ++i) {
            store(key, i, k.as<float>()[at + i]);
            store(value, i, v.as<float>()[at + i]);
          }
        }
      }
    }
  }

  void attention(const Tensor& q, std::span<const AttentionSpan> spans, const AttentionShape& shape, const Tensor& out) override {
    for (const AttentionSpan& span : spans) {
      for (int64_t r = 0; r < span.rows; ++r) {
        const Tensor result = out.rows(span.first_row + r, 1);
        for (int64_t head = 0; head < shape.num_heads; ++head) {
          const float* query = q.as<float>() + ((span.first_row + r) * shape.num_heads + head) * shape.head_dim;
          attend_one(query, span.first_pos + r, head, span.kv, shape, result);
        }
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

 private:
  // One query of one head over the keys visible to it; writes the head's columns of `result`.
  void attend_one(const float* query, int64_t pos, int64_t head, const KvView& kv, const AttentionShape& shape, const Tensor& result) {
    const int64_t kv_head = head / (shape.num_heads / shape.num_kv_heads);
    const int64_t first = first_visible(pos, shape.window), visible = pos - first + 1;
    assert(visible >= 1 && visible <= kv.num_pages * kPageTokens);
    const PageSide keys = keys_of(kv, shape), values = values_of(kv, shape);

    std::vector<double> weight(static_cast<size_t>(visible)), sum(static_cast<size_t>(shape.head_dim));
    double highest = -INFINITY, total = 0;
    for (int64_t i = 0; i < visible; ++i) {
      const Tensor key = keys.row(first + i, kv_head);
      double score = 0;
      for (int64_t d = 0; d < shape.head_dim; ++d) score += static_cast<double>(query[d]) * load(key, d);
      score *= shape.scale;
      if (shape.softcap != 0) score = shape.softcap * std::tanh(score / shape.softcap);
      weight[static_cast<size_t>(i)] = score;
      highest = std::max(highest, score);
    }
    for (double& w : weight) total += w = std::exp(w - highest);
    for (int64_t i = 0; i < visible; ++i) {
      const Tensor value = values.row(first + i, kv_head);
      for (int64_t d = 0; d < shape.head_dim; ++d) sum[static_cast<size_t>(d)] += weight[static_cast<size_t>(i)] * load(value, d);
    }
    for (int64_t d = 0; d < shape.head_dim; ++d)
      store(result, head * shape.head_dim + d, static_cast<float>(sum[static_cast<size_t>(d)] / total));
  }
};

}  // namespace

std::unique_ptr<Backend> make_reference_backend() { return std::make_unique<ReferenceBackend>(); }

}  // namespace lapidary
