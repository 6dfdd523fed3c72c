// Rows are independent of each other: a thread takes a row through everything while it is in its cache.
#include "cpu/append.h"

#include <cstring>
#include <vector>

#include "ops/int8.h"

namespace lapidary::cpu {

namespace {

// Multiply-adds or their like below which a second thread costs more than it brings.
constexpr int64_t kWorthAThread = 64 * 1024;

struct Row {
  const AttentionSpan* span;
  int64_t pos;
  int64_t index;  // in the step
};

// fn(Row) for every row of the spans, each of about `work` multiply-adds.
template <typename Fn>
void for_each_row(ThreadPool& pool, std::span<const AttentionSpan> spans, int64_t work, const Fn& fn) {
  std::vector<Row> rows;
  for (const AttentionSpan& span : spans) {
    for (int64_t r = 0; r < span.rows; ++r) rows.push_back({&span, span.first_pos + r, span.first_row + r});
  }
  pool.parallel_for(static_cast<int64_t>(rows.size()), kWorthAThread / work + 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) fn(rows[static_cast<size_t>(i)]);
  });
}

void store_row(const Kernels& kernels, DType dtype, const float* x, int64_t dim, std::byte* to, float* scale) {
  if (dtype == DType::bf16) return kernels.round_to_bf16(x, dim, to);
  if (dtype == DType::f32) {
    std::memcpy(to, x, static_cast<size_t>(dim) * sizeof(float));
    return;
  }
  *scale = int8_scale(kernels.absolute_max(x, dim));
  kernels.quantize_int8(x, dim, 1.0f / *scale, reinterpret_cast<int8_t*>(to));
}

// k, v [num_kv_heads, head_dim] of one position.
void append_row(const Kernels& kernels, const float* k, const float* v, const Row& row, const AttentionShape& shape) {
  const KvView& kv = row.span->kv;
  const int64_t dim = shape.head_dim, heads = shape.num_kv_heads, row_bytes = dtype_bytes(kv.dtype, dim), side = heads * kPageTokens;
  std::byte* page = static_cast<std::byte*>(kv.pages[row.pos / kPageTokens % kv.num_pages]);
  float* scales = reinterpret_cast<float*>(page + 2 * side * row_bytes);  // i8 only
  for (int64_t h = 0; h < heads; ++h) {
    const int64_t slot = h * kPageTokens + row.pos % kPageTokens;
    store_row(kernels, kv.dtype, k + h * dim, dim, page + slot * row_bytes, scales + slot);
    store_row(kernels, kv.dtype, v + h * dim, dim, page + (side + slot) * row_bytes, scales + side + slot);
  }
}

void norm_heads(const Kernels& kernels, float* x, int64_t heads, int64_t dim, const Norm* norm) {
  if (!norm) return;
  for (int64_t h = 0; h < heads; ++h)
    kernels.rms_norm(x + h * dim, norm->weight.as<float>(), norm->offset, norm->eps, dim, x + h * dim, /*out_bf16=*/false);
}

}  // namespace

void append_kv(const Kernels& kernels, ThreadPool& pool, const Tensor& k, const Tensor& v, std::span<const AttentionSpan> spans,
               const AttentionShape& shape) {
  const int64_t width = shape.num_kv_heads * shape.head_dim;
  for_each_row(pool, spans, 2 * width, [&](const Row& row) {
    append_row(kernels, k.as<float>() + row.index * width, v.as<float>() + row.index * width, row, shape);
  });
}

void prepare_rows(const Kernels& kernels, ThreadPool& pool, const AttendParams& params, const Tensor& q, const Tensor& k, const Tensor& v,
                  const Tensor& q_prefix) {
  const AttentionShape& shape = params.shape;
  const int64_t dim = shape.head_dim, half = dim / 2, q_width = shape.num_heads * dim, kv_width = shape.num_kv_heads * dim;
  for_each_row(pool, params.spans, 4 * (q_width + kv_width), [&](const Row& row) {
    const int64_t angle = row.index * half;
    float *own_q = q.as<float>() + row.index * q_width, *own_k = k.as<float>() + row.index * kv_width;
    norm_heads(kernels, own_q, shape.num_heads, dim, params.q_norm);
    norm_heads(kernels, own_k, shape.num_kv_heads, dim, params.k_norm);
    if (params.prefix_cos) {
      float* seen = q_prefix.as<float>() + row.index * q_width;
      std::memcpy(seen, own_q, static_cast<size_t>(q_width) * sizeof(float));
      kernels.rope(seen, params.prefix_cos.as<float>() + angle, params.prefix_sin.as<float>() + angle, shape.num_heads, half);
    }
    kernels.rope(own_q, params.cos.as<float>() + angle, params.sin.as<float>() + angle, shape.num_heads, half);
    kernels.rope(own_k, params.cos.as<float>() + angle, params.sin.as<float>() + angle, shape.num_kv_heads, half);
    append_row(kernels, own_k, v.as<float>() + row.index * kv_width, row, shape);
  });
}

}  // namespace lapidary::cpu
