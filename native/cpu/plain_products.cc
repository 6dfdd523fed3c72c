// Products with plain rows of all types but int8: weights without a packed form, and matrices that callers bring along. Rows are widened on
// the way, again for each call.
#include <cstring>

#include "base/error.h"
#include "cpu/products.h"
#include "ops/int8.h"

namespace lapidary::cpu {

namespace {

// The input of a product as f32: itself, or widened into memory of the calling thread.
const float* widened(const Kernels& kernels, ThreadPool& pool, const Tensor& x) {
  if (x.dtype == DType::f32) return x.as<float>();
  const int64_t dim = x.row_elements();
  float* wide = thread_scratch(ScratchUse::input, static_cast<size_t>(x.elements()));
  for_each(pool, x.shape[0], dim, [&](int64_t t) { kernels.widen(x.dtype, x.data + t * x.row_bytes(), dim, wide + t * dim); });
  return wide;
}

// One product cut into units of kLinearRows (few tokens: fewer) weight rows times kLinearTokens tokens; the units that share
// weight rows follow each other.
struct Product {
  LinearTask task;
  int64_t rows, unit_rows, token_blocks, units;

  void run(const Kernels& kernels, int64_t unit, float* scratch) const {
    const int64_t t0 = unit % token_blocks * kLinearTokens, n0 = unit / token_blocks * unit_rows;
    LinearTask part = task;
    part.x += t0 * task.x_stride;
    part.out += t0 * task.out_stride;
    part.tokens = std::min(task.tokens - t0, kLinearTokens);
    kernels.linear(part, n0, std::min(n0 + unit_rows, rows), scratch);
  }
};

}  // namespace

void quantize_rows(const Kernels& kernels, ThreadPool& pool, const Tensor& x, float fixed_scale, const Tensor& q, const Tensor& scales) {
  const int64_t dim = x.row_elements(), row_bytes = dtype_bytes(x.dtype, dim);
  for_each(pool, x.shape[0], dim, [&](int64_t r) {
    const float* row = x.as<float>() + r * dim;
    if (x.dtype != DType::f32) {
      float* wide = thread_scratch(ScratchUse::kernel, static_cast<size_t>(dim));
      kernels.widen(x.dtype, x.data + r * row_bytes, dim, wide);
      row = wide;
    }
    const float scale = fixed_scale > 0 ? fixed_scale : int8_scale(kernels.absolute_max(row, dim));
    kernels.quantize_int8(row, dim, 1.0f / scale, q.as<int8_t>() + r * dim);
    scales.as<float>()[r] = scale;
  });
}

void multiply_plain(const Kernels& kernels, ThreadPool& pool, const Tensor& x, std::initializer_list<Projection> projections) {
  const int64_t tokens = x.shape[0], k = x.row_elements();
  if (tokens == 0) return;
  const float* input = widened(kernels, pool, x);
  Product products[4];
  int count = 0;
  int64_t units = 0;
  const int64_t unit_rows = tokens <= 4 ? 8 : kLinearRows;
  for (const auto& [weight, out] : projections) {
    const int64_t rows = weight.out();
    expect(is_act(x) && weight.in() == k && out.dtype == DType::f32 && out.elements() == tokens * rows, ErrorCode::internal, "linear: x ",
           x.shape_text(), ", weight ", weight.weight.shape_text(), ", out ", out.shape_text());
    const DType dtype = weight.weight.dtype;
    expect(dtype != DType::i8 && dtype != DType::i32 && dtype != DType::u8, ErrorCode::unsupported,
           "linear: the cpu backend has no product with ", dtype_info(dtype).name, " weights; use f32, bf16, f16 or a GGUF block type");
    const int64_t token_blocks = (tokens + kLinearTokens - 1) / kLinearTokens;
    if (k == 0) std::memset(out.data, 0, static_cast<size_t>(out.bytes()));  // no columns: the kernels have nothing to begin with
    Product& product = products[count++];
    product = {
        {input, tokens, k, weight.weight.data, dtype_bytes(dtype, k), dtype, k, out.as<float>(), rows}, rows, unit_rows, token_blocks, 0};
    product.units = (rows + unit_rows - 1) / unit_rows * token_blocks;
    units += product.units;
  }
  if (k == 0) return;
  const int64_t block_tokens = std::min(tokens, kLinearTokens);
  const int64_t unit_work = unit_rows * k * std::max<int64_t>(block_tokens, 1);
  const size_t scratch_floats = kernels.linear_scratch_floats(block_tokens, k);
  pool.parallel_for(units, kWorthAThread / std::max<int64_t>(unit_work, 1) + 1, [&](int64_t begin, int64_t end) {
    float* scratch = thread_scratch(ScratchUse::kernel, scratch_floats);
    int64_t first = 0;  // unit of the current product
    for (int p = 0; p < count; first += products[p++].units) {
      const int64_t last = std::min(end, first + products[p].units);
      for (int64_t u = std::max(begin, first); u < last; ++u) products[p].run(kernels, u - first, scratch);
    }
  });
}

}  // namespace lapidary::cpu
