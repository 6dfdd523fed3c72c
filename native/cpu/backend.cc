// The CPU backend: checks, splits each primitive into independent pieces, and runs the pieces' kernels on the pool.
// How the work is split never changes a bit of the result: every output element is the work of one kernel call, or of calls
// whose order is fixed by positions (attention.cc).
#include "cpu/backend.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <initializer_list>

#include "base/error.h"
#include "base/float16.h"
#include "base/thread_pool.h"
#include "cpu/attention.h"
#include "cpu/kernels.h"
#include "cpu/scratch.h"
#include "ops/int8.h"
#include "ops/plain.h"

namespace lapidary {

namespace {

using cpu::Kernels;

// Work, in multiply-adds or their like, below which a second thread costs more than it brings.
constexpr int64_t kWorthAThread = 64 * 1024;

struct Projection {
  const Linear& weight;
  const Tensor& out;  // f32 [tokens, weight.out()]
};

bool is_act(const Tensor& t) { return t.dtype == DType::f32 || t.dtype == DType::bf16; }

bool has_int8(std::initializer_list<Projection> projections) {
  return std::any_of(projections.begin(), projections.end(), [](const Projection& p) { return p.weight.weight.dtype == DType::i8; });
}

// Whether all are int8 and want the input quantised in one and the same way.
bool share_quantised_input(std::initializer_list<Projection> projections) {
  const Linear& first = projections.begin()->weight;
  return std::all_of(projections.begin(), projections.end(), [&](const Projection& p) {
    const Linear& w = p.weight;
    return w.weight.dtype == DType::i8 && w.activations != ActScheme::none && w.activations == first.activations &&
           (w.activations != ActScheme::fixed || w.input_scale == first.input_scale);
  });
}

class CpuBackend final : public Backend {
 public:
  CpuBackend(const Kernels& kernels, int threads) : kernels_(kernels), pool_(ThreadPool::shared(threads)) {}

  std::string_view name() const override { return "cpu"; }

  void embed(std::span<const int32_t> ids, const Linear& table, float scale, const Tensor& out) override {
    const int64_t hidden = table.in(), row_bytes = table.weight.row_bytes();
    for_each(static_cast<int64_t>(ids.size()), hidden, [&](int64_t t) {
      float* row = out.as<float>() + t * hidden;
      if (table.weight.dtype == DType::i8) return widen_int8(table, ids[static_cast<size_t>(t)], scale, row);
      kernels_.widen(table.weight.dtype, table.weight.data + ids[static_cast<size_t>(t)] * row_bytes, hidden, row);
      kernels_.scale(row, scale, hidden);
    });
  }

  void rms_norm(const Tensor& x, const Norm& norm, const Tensor& out) override {
    const int64_t dim = norm.weight.elements(), rows = x.elements() / dim;
    expect(rows * dim == x.elements() && out.elements() == x.elements(), ErrorCode::internal, "rms_norm: x ", x.shape_text(), ", weight ",
           norm.weight.shape_text(), ", out ", out.shape_text());
    const int64_t out_bytes = dtype_bytes(out.dtype, dim);
    for_each(rows, 2 * dim, [&](int64_t r) {
      kernels_.rms_norm(x.as<float>() + r * dim, norm.weight.as<float>(), norm.offset, norm.eps, dim, out.data + r * out_bytes,
                        out.dtype == DType::bf16);
    });
  }

  void linear(const Tensor& x, const Linear& w, const Tensor& out) override { project(x, {{w, out}}); }

  void quantize_rows(const Tensor& x, float fixed_scale, const Tensor& q, const Tensor& scales) override {
    const int64_t dim = x.row_elements(), row_bytes = dtype_bytes(x.dtype, dim);
    for_each(x.shape[0], dim, [&](int64_t r) {
      const float* row = x.as<float>() + r * dim;
      if (x.dtype != DType::f32) {
        float* wide = cpu::thread_scratch(cpu::ScratchUse::kernel, static_cast<size_t>(dim));
        kernels_.widen(x.dtype, x.data + r * row_bytes, dim, wide);
        row = wide;
      }
      const float scale = fixed_scale > 0 ? fixed_scale : int8_scale(kernels_.absolute_max(row, dim));
      kernels_.quantize_int8(row, dim, 1.0f / scale, q.as<int8_t>() + r * dim);
      scales.as<float>()[r] = scale;
    });
  }

  void matmul_int8(const Tensor& x, const Tensor& x_scales, const Linear& w, const Tensor& out) override {
    multiply_int8(x, x_scales, {{w, out}});
  }

  void rope_angles(std::span<const int32_t> positions, std::span<const float> inv_freq, const Tensor& cos, const Tensor& sin) override {
    const int64_t half = static_cast<int64_t>(inv_freq.size());
    for_each(static_cast<int64_t>(positions.size()), 40 * half, [&](int64_t t) {
      for (int64_t j = 0; j < half; ++j) {
        const float angle = static_cast<float>(positions[static_cast<size_t>(t)]) * inv_freq[static_cast<size_t>(j)];
        cos.as<float>()[t * half + j] = std::cos(angle);
        sin.as<float>()[t * half + j] = std::sin(angle);
      }
    });
  }

  void rope(const Tensor& x, const Tensor& cos, const Tensor& sin) override {
    const int64_t tokens = x.shape[0], heads = x.shape[1], half = x.shape[2] / 2;
    for_each(tokens, 2 * heads * half, [&](int64_t t) {
      kernels_.rope(x.as<float>() + t * heads * 2 * half, cos.as<float>() + t * half, sin.as<float>() + t * half, heads, half);
    });
  }

  void append_kv(const Tensor& k, const Tensor& v, std::span<const AttentionSpan> spans, const AttentionShape& shape) override {
    const int64_t heads = shape.num_kv_heads, dim = shape.head_dim;
    for (const AttentionSpan& span : spans) {
      if (span.kv.dtype == DType::i8) {
        for_each(span.rows, 8 * heads * dim, [&](int64_t r) {
          const int64_t at = (span.first_row + r) * heads * dim;
          append_kv_plain(k.as<float>() + at, v.as<float>() + at, span.first_pos + r, span.kv, shape);
        });
        continue;
      }
      const int64_t row_bytes = dtype_bytes(span.kv.dtype, dim), side_bytes = heads * kPageTokens * row_bytes;
      for_each(span.rows, 2 * heads * dim, [&](int64_t r) {
        const int64_t pos = span.first_pos + r;
        std::byte* page = static_cast<std::byte*>(span.kv.pages[pos / kPageTokens % span.kv.num_pages]);
        for (int64_t h = 0; h < heads; ++h) {
          const int64_t from = ((span.first_row + r) * heads + h) * dim;
          std::byte* to = page + (h * kPageTokens + pos % kPageTokens) * row_bytes;
          store(span.kv.dtype, k.as<float>() + from, dim, to);
          store(span.kv.dtype, v.as<float>() + from, dim, to + side_bytes);
        }
      });
    }
  }

  void attention(const Tensor& q, std::span<const AttentionSpan> spans, const AttentionShape& shape, const Tensor& out) override {
    if (!is_plain_case(spans, shape)) return cpu::attention(kernels_, *pool_, q, spans, shape, out);
    for (const AttentionSpan& span : spans) {
      for_each(span.rows * shape.num_heads, (span.first_pos + span.rows) * shape.head_dim, [&](int64_t i) {
        const int64_t r = i / shape.num_heads, row = span.first_row + r;
        attend_plain(q, row, span.first_pos + r, i % shape.num_heads, span.kv, shape, out.rows(row, 1));
      });
    }
  }

  void geglu(const Tensor& gate, const Tensor& up, const Tensor& out) override {
    const bool bf16 = out.dtype == DType::bf16;
    for_each_piece(gate.elements(), 8, [&](int64_t i, int64_t n) {
      kernels_.geglu(gate.as<float>() + i, up.as<float>() + i, n, out.data + dtype_bytes(out.dtype, i), bf16);
    });
  }

  void add(const Tensor& x, const Tensor& y) override {
    for_each_piece(x.elements(), 1, [&](int64_t i, int64_t n) { kernels_.add(x.as<float>() + i, y.as<float>() + i, n); });
  }

  void soft_cap(const Tensor& x, float cap) override {
    for_each_piece(x.elements(), 8, [&](int64_t i, int64_t n) { kernels_.soft_cap(x.as<float>() + i, cap, n); });
  }

  void gather_rows(const Tensor& x, std::span<const int32_t> rows, const Tensor& out) override {
    const int64_t dim = x.row_elements();
    for_each(static_cast<int64_t>(rows.size()), dim, [&](int64_t i) {
      std::memcpy(out.as<float>() + i * dim, x.as<float>() + rows[static_cast<size_t>(i)] * dim, static_cast<size_t>(dim) * sizeof(float));
    });
  }

  // Projections of one input share its widening and one pass over the pool; the bits are those of separate calls.
  void attention_input(const Tensor& x, const Norm& norm, const Linear& wq, const Linear& wk, const Linear& wv, Workspace& ws) override {
    const int64_t tokens = x.shape[0];
    const Tensor normed = ws.normed.rows(0, tokens), q = ws.q.rows(0, tokens), k = ws.k.rows(0, tokens), v = ws.v.rows(0, tokens);
    rms_norm(x, norm, normed);
    project(normed, {{wq, q}, {wk, k}, {wv, v}});
  }

  void feed_forward(const Tensor& x, const Norm& pre_norm, const Linear& gate, const Linear& up, const Linear& down, const Norm& post_norm,
                    Workspace& ws) override {
    const int64_t tokens = x.shape[0];
    const Tensor normed = ws.normed.rows(0, tokens), gates = ws.gate.rows(0, tokens), ups = ws.up.rows(0, tokens);
    const Tensor gated = ws.gated.rows(0, tokens), branch = ws.branch.rows(0, tokens);
    rms_norm(x, pre_norm, normed);
    project(normed, {{gate, gates}, {up, ups}});
    geglu(gates, ups, gated);
    linear(gated, down, branch);
    rms_norm(branch, post_norm, branch);
    add(x, branch);
  }

 private:
  // fn(i) for i in [0, n), each of about `work` multiply-adds.
  template <typename Fn>
  void for_each(int64_t n, int64_t work, const Fn& fn) {
    pool_->parallel_for(n, kWorthAThread / std::max<int64_t>(work, 1) + 1, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) fn(i);
    });
  }

  // fn(first, count) over elementwise pieces of n elements, each of about `work` multiply-adds.
  template <typename Fn>
  void for_each_piece(int64_t n, int64_t work, const Fn& fn) {
    pool_->parallel_for(n, cpu::padded(kWorthAThread / work), [&](int64_t begin, int64_t end) { fn(begin, end - begin); });
  }

  void store(DType dtype, const float* from, int64_t n, std::byte* to) {
    if (dtype == DType::bf16) {
      kernels_.round_to_bf16(from, n, to);
    } else {
      std::memcpy(to, from, static_cast<size_t>(n) * sizeof(float));
    }
  }

  static void widen_int8(const Linear& table, int64_t row, float factor, float* out) {
    const int64_t dim = table.in();
    const int8_t* q = table.weight.as<int8_t>() + row * dim;
    const float scale = table.scale.as<float>()[row];
    for (int64_t i = 0; i < dim; ++i) out[i] = static_cast<float>(q[i]) * scale * factor;
  }

  // The input of a product as f32: itself, or widened into memory of the calling thread.
  const float* widened(const Tensor& x) {
    if (x.dtype == DType::f32) return x.as<float>();
    const int64_t n = x.elements();
    float* wide = cpu::thread_scratch(cpu::ScratchUse::input, static_cast<size_t>(n));
    for_each_piece(n, 1, [&](int64_t i, int64_t count) { kernels_.widen(x.dtype, x.data + dtype_bytes(x.dtype, i), count, wide + i); });
    return wide;
  }

  void project(const Tensor& x, std::initializer_list<Projection> projections);
  void project_int8(const Tensor& x, std::initializer_list<Projection> projections);
  void project_widened(const Tensor& x, const Linear& w, const Tensor& out);
  void multiply_int8(const Tensor& x, const Tensor& x_scales, std::initializer_list<Projection> projections);

  const Kernels& kernels_;
  std::shared_ptr<ThreadPool> pool_;
};

// One product cut into units of kLinearRows (few tokens: fewer) weight rows times kLinearTokens tokens; the units that share
// weight rows follow each other.
struct Product {
  cpu::LinearTask task;
  int64_t rows, unit_rows, token_blocks, units;

  void run(const Kernels& kernels, int64_t unit, float* scratch) const {
    const int64_t t0 = unit % token_blocks * cpu::kLinearTokens, n0 = unit / token_blocks * unit_rows;
    cpu::LinearTask part = task;
    part.x += t0 * task.x_stride;
    part.out += t0 * task.out_stride;
    part.tokens = std::min(task.tokens - t0, cpu::kLinearTokens);
    kernels.linear(part, n0, std::min(n0 + unit_rows, rows), scratch);
  }
};

// One int8 product cut into units of `unit_rows` weight rows times `unit_tokens` tokens; the units that share tokens follow each other,
// since the weight rows of the next unit are fetched ahead.
struct Int8Product {
  cpu::Int8Task task;
  int64_t row_bytes, rows, unit_rows, unit_tokens, row_units, units;

  void run(const Kernels& kernels, int64_t unit, float* scratch) const {
    const int64_t t0 = unit / row_units * unit_tokens, n0 = unit % row_units * unit_rows;
    cpu::Int8Task part = task;
    part.x = static_cast<const std::byte*>(task.x) + t0 * row_bytes;
    part.x_offsets += t0;
    part.x_scales += t0;
    part.out += t0 * task.out_stride;
    part.tokens = std::min(task.tokens - t0, unit_tokens);
    kernels.int8.multiply(part, n0, std::min(n0 + unit_rows, rows), scratch);
  }
};

// How int8 products are cut. Many tokens share the rearranging of a unit's weights, and at most this many are still in the second-level
// cache when the next unit's come; fewer where that leaves threads without work.
constexpr int64_t kInt8Tokens = 512, kLeastInt8Tokens = 64, kInt8DirectRows = 16, kUnitsPerThread = 4;

// The exact products of quantised rows with several weights, in one pass over the pool.
void CpuBackend::multiply_int8(const Tensor& x, const Tensor& x_scales, std::initializer_list<Projection> projections) {
  const cpu::Int8Kernels& int8 = kernels_.int8;
  const int64_t tokens = x.shape[0], k = x.row_elements(), row_bytes = int8.row_bytes(k), threads = pool_->threads();
  if (tokens == 0) return;
  const size_t offset_floats = static_cast<size_t>(cpu::padded(tokens));
  float* memory = cpu::thread_scratch(cpu::ScratchUse::input, offset_floats + static_cast<size_t>(tokens * row_bytes + 3) / 4);
  int32_t* offsets = reinterpret_cast<int32_t*>(memory);
  std::byte* rows = reinterpret_cast<std::byte*>(memory + offset_floats);
  for_each(tokens, k / 8, [&](int64_t t) { offsets[t] = int8.prepare(x.as<int8_t>() + t * k, k, rows + t * row_bytes); });

  const bool direct = tokens <= int8.direct_tokens;
  const int64_t unit_rows = direct ? kInt8DirectRows : int8.panel_rows;
  int64_t row_units = 0;
  for (const auto& [weight, out] : projections) row_units += (weight.out() + unit_rows - 1) / unit_rows;
  const int64_t wanted = (threads * kUnitsPerThread + row_units - 1) / row_units;  // blocks of tokens, so that every thread has units
  const int64_t most_blocks = std::max<int64_t>(tokens / kLeastInt8Tokens, 1), fewest_blocks = (tokens + kInt8Tokens - 1) / kInt8Tokens;
  const int64_t blocks = std::max(std::min(wanted, most_blocks), fewest_blocks);
  const int64_t unit_tokens = cpu::padded((tokens + blocks - 1) / blocks), token_blocks = (tokens + unit_tokens - 1) / unit_tokens;
  Int8Product products[4];
  int count = 0;
  for (const auto& [weight, out] : projections) {
    const int64_t n = weight.out(), units = (n + unit_rows - 1) / unit_rows;
    expect(weight.in() == k && out.dtype == DType::f32 && out.elements() == tokens * n && weight.scale.elements() == n, ErrorCode::internal,
           "int8 product: x ", x.shape_text(), ", weight ", weight.weight.shape_text(), ", scales ", weight.scale.shape_text(), ", out ",
           out.shape_text());
    products[count++] = {.task = {.x = rows,
                                  .x_offsets = offsets,
                                  .x_scales = x_scales.as<float>(),
                                  .tokens = tokens,
                                  .weight = weight.weight.as<int8_t>(),
                                  .w_scales = weight.scale.as<float>(),
                                  .k = k,
                                  .out = out.as<float>(),
                                  .out_stride = n},
                         .row_bytes = row_bytes,
                         .rows = n,
                         .unit_rows = unit_rows,
                         .unit_tokens = unit_tokens,
                         .row_units = units,
                         .units = units * token_blocks};
  }
  const int64_t units = row_units * token_blocks, unit_work = unit_rows * k * std::min(tokens, unit_tokens) / 4;
  const int64_t grain = std::max(units / (threads * kUnitsPerThread), kWorthAThread / std::max<int64_t>(unit_work, 1) + 1);
  const size_t scratch_floats = direct ? 0 : int8.scratch_floats(std::min(tokens, unit_tokens), k);
  pool_->parallel_for(units, grain, [&](int64_t begin, int64_t end) {
    float* scratch = cpu::thread_scratch(cpu::ScratchUse::kernel, scratch_floats);
    int64_t first = 0;  // unit of the current product
    for (int p = 0; p < count; first += products[p++].units) {
      const int64_t last = std::min(end, first + products[p].units);
      for (int64_t u = std::max(begin, first); u < last; ++u) products[p].run(kernels_, u - first, scratch);
    }
  });
}

// The input is quantised, once for all that want it alike; the products are exact.
void CpuBackend::project_int8(const Tensor& x, std::initializer_list<Projection> projections) {
  const int64_t tokens = x.shape[0], k = x.row_elements();
  const Linear& first = projections.begin()->weight;
  expect(is_act(x), ErrorCode::internal, "linear: x is ", dtype_info(x.dtype).name);
  const size_t q_floats = static_cast<size_t>(tokens * k + 3) / 4;
  float* memory = cpu::thread_scratch(cpu::ScratchUse::partial, q_floats + static_cast<size_t>(tokens));
  const Tensor q(memory, DType::i8, {tokens, k}), scales(memory + q_floats, DType::f32, {tokens});
  quantize_rows(x, first.activations == ActScheme::fixed ? first.input_scale : 0, q, scales);
  multiply_int8(q, scales, projections);
}

// Weight-only int8: rows are widened a block at a time and multiplied as f32.
void CpuBackend::project_widened(const Tensor& x, const Linear& w, const Tensor& out) {
  const int64_t tokens = x.shape[0], k = w.in(), n = w.out();
  expect(is_act(x) && x.row_elements() == k && out.elements() == tokens * n && w.scale.elements() == n, ErrorCode::internal, "linear: x ",
         x.shape_text(), ", i8 weight ", w.weight.shape_text(), ", scales ", w.scale.shape_text(), ", out ", out.shape_text());
  const float* input = widened(x);
  const size_t scratch_floats = kernels_.linear_scratch_floats(std::min(tokens, cpu::kLinearTokens), k);
  const int64_t blocks = (n + cpu::kLinearRows - 1) / cpu::kLinearRows;
  for_each(blocks, cpu::kLinearRows * k * tokens, [&](int64_t block) {
    float* scratch = cpu::thread_scratch(cpu::ScratchUse::kernel, scratch_floats + static_cast<size_t>(cpu::kLinearRows * k));
    float* rows = scratch + scratch_floats;
    const int64_t first = block * cpu::kLinearRows, count = std::min(cpu::kLinearRows, n - first);
    for (int64_t r = 0; r < count; ++r) widen_int8(w, first + r, 1, rows + r * k);
    for (int64_t t = 0; t < tokens; t += cpu::kLinearTokens) {
      const int64_t part = std::min(tokens - t, cpu::kLinearTokens);
      kernels_.linear({input + t * k, part, k, rows, k * 4, DType::f32, k, out.as<float>() + t * n + first, n}, 0, count, scratch);
    }
  });
}

void CpuBackend::project(const Tensor& x, std::initializer_list<Projection> projections) {
  const int64_t tokens = x.shape[0], k = x.row_elements();
  if (tokens == 0) return;
  if (has_int8(projections)) {
    if (share_quantised_input(projections)) return project_int8(x, projections);
    if (projections.size() > 1) {
      for (const auto& p : projections) project(x, {p});
      return;
    }
    const auto& [weight, out] = *projections.begin();
    return project_widened(x, weight, out);
  }
  const float* input = widened(x);
  Product products[4];
  int count = 0;
  int64_t units = 0;
  const int64_t unit_rows = tokens <= 4 ? 8 : cpu::kLinearRows;
  for (const auto& [weight, out] : projections) {
    const int64_t rows = weight.out();
    expect(is_act(x) && weight.in() == k && out.dtype == DType::f32 && out.elements() == tokens * rows, ErrorCode::internal, "linear: x ",
           x.shape_text(), ", weight ", weight.weight.shape_text(), ", out ", out.shape_text());
    const DType dtype = weight.weight.dtype;
    expect(dtype != DType::i8 && dtype != DType::i32 && dtype != DType::u8, ErrorCode::unsupported,
           "linear: the cpu backend has no product with ", dtype_info(dtype).name, " weights; use f32, bf16, f16 or a GGUF block type");
    const int64_t token_blocks = (tokens + cpu::kLinearTokens - 1) / cpu::kLinearTokens;
    Product& product = products[count++];
    product = {
        {input, tokens, k, weight.weight.data, dtype_bytes(dtype, k), dtype, k, out.as<float>(), rows}, rows, unit_rows, token_blocks, 0};
    product.units = (rows + unit_rows - 1) / unit_rows * token_blocks;
    units += product.units;
  }
  const int64_t block_tokens = std::min(tokens, cpu::kLinearTokens);
  const int64_t unit_work = unit_rows * k * std::max<int64_t>(block_tokens, 1);
  const size_t scratch_floats = kernels_.linear_scratch_floats(block_tokens, k);
  pool_->parallel_for(units, kWorthAThread / std::max<int64_t>(unit_work, 1) + 1, [&](int64_t begin, int64_t end) {
    float* scratch = cpu::thread_scratch(cpu::ScratchUse::kernel, scratch_floats);
    int64_t first = 0;  // unit of the current product
    for (int p = 0; p < count; first += products[p++].units) {
      const int64_t last = std::min(end, first + products[p].units);
      for (int64_t u = std::max(begin, first); u < last; ++u) products[p].run(kernels_, u - first, scratch);
    }
  });
}

}  // namespace

std::unique_ptr<Backend> make_cpu_backend(int threads) {
  expect(threads >= 0, ErrorCode::invalid_argument, "threads must be 0 (one per physical core) or more, got ", threads);
  return std::make_unique<CpuBackend>(cpu::select_kernels(), threads == 0 ? physical_cores() : threads);
}

}  // namespace lapidary
