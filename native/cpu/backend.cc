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
#include "cpu/append.h"
#include "cpu/attention.h"
#include "cpu/kernels.h"
#include "cpu/packed.h"
#include "cpu/products.h"
#include "cpu/sampling_loops.h"
#include "cpu/scratch.h"
#include "cpu/training.h"
#include "ops/int8.h"
#include "ops/plain.h"

namespace lapidary {

namespace {

using cpu::is_act;
using cpu::Kernels;

using cpu::kWorthAThread;
using cpu::Projection;

class CpuBackend final : public Backend {
 public:
  CpuBackend(const Kernels& kernels, int threads)
      : kernels_(kernels), pool_(ThreadPool::shared(threads)), training_(cpu::make_training_ops(kernels, pool_)) {}

  std::string_view name() const override { return "cpu"; }

  void embed(std::span<const int32_t> ids, const Linear& table, float scale, const Tensor& out) override {
    const int64_t hidden = table.in();
    for_each(static_cast<int64_t>(ids.size()), hidden,
             [&](int64_t t) { widen_row(table, ids[static_cast<size_t>(t)], scale, out.as<float>() + t * hidden); });
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

  // Weights whose type has a packed form here are given it; the file's mapping is no longer needed then.
  Linear make_linear(const Linear& host) override {
    const cpu::PackedLayout* layout = host.packed ? nullptr : cpu::packed_layout(host.weight.dtype);
    return layout && cpu::kernel_for(kernels_, host, DType::f32) ? cpu::pack_linear(*layout, host, *pool_, &kernels_) : host;
  }

  bool has_long_spans() const override { return true; }

  std::optional<Linear> make_int8(const Linear& host) override {
    if (host.weight.dtype == DType::i8 || !cpu::find_packed(kernels_, DType::i8, DType::i8)) return std::nullopt;
    return cpu::pack_as_int8(kernels_, host, *pool_);
  }

  void linear(const Tensor& x, const Linear& w, const Tensor& out) override {
    if (w.activations != ActScheme::long_spans) return project(x, {{w, out}});
    const Linear met = for_rows(w, x.dtype, x.shape[0] >= kLongSpan);
    project(x, {{met, out}});
  }

  void quantize_rows(const Tensor& x, float fixed_scale, const Tensor& q, const Tensor& scales) override {
    cpu::quantize_rows(kernels_, *pool_, x, fixed_scale, q, scales);
  }

  void matmul_int8(const Tensor& x, const Tensor& x_scales, const Linear& w, const Tensor& out) override {
    const cpu::PackedKernel* kernel = cpu::find_packed(kernels_, w.weight.dtype, DType::i8);
    expect(kernel != nullptr, ErrorCode::internal, "matmul_int8: weight ", w.weight.shape_text(), " is not int8");
    cpu::multiply(kernels_, *pool_, cpu::prepare_quantized_input(*pool_, *kernel, x, x_scales), {{w, out}});
  }

  void rope_angles(std::span<const int32_t> positions, std::span<const float> inv_freq, const Tensor& cos, const Tensor& sin) override {
    const int64_t half = static_cast<int64_t>(inv_freq.size());
    for_each(static_cast<int64_t>(positions.size()), 16 * half, [&](int64_t t) {
      kernels_.rope_angles(static_cast<float>(positions[static_cast<size_t>(t)]), inv_freq.data(), half, cos.as<float>() + t * half,
                           sin.as<float>() + t * half);
    });
  }

  void rope(const Tensor& x, const Tensor& cos, const Tensor& sin) override {
    const int64_t tokens = x.shape[0], heads = x.shape[1], half = x.shape[2] / 2;
    for_each(tokens, 2 * heads * half, [&](int64_t t) {
      kernels_.rope(x.as<float>() + t * heads * 2 * half, cos.as<float>() + t * half, sin.as<float>() + t * half, heads, half);
    });
  }

  void append_kv(const Tensor& k, const Tensor& v, std::span<const AttentionSpan> spans, const AttentionShape& shape) override {
    cpu::append_kv(kernels_, *pool_, k, v, spans, shape);
  }

  void attention(const Tensor& q, std::span<const AttentionSpan> spans, const AttentionShape& shape, const Tensor& out) override {
    std::vector<cpu::KeySpan> visible;
    if (cpu::find_visible(spans, shape, visible)) return cpu::attention(kernels_, *pool_, q, spans, shape, visible, out);
    for (const AttentionSpan& span : spans) {
      for_each(span.rows * shape.num_heads, (span.first_pos + span.rows) * shape.head_dim, [&](int64_t i) {
        const int64_t r = i / shape.num_heads, row = span.first_row + r;
        attend_plain(q, row, span.first_pos + r, i % shape.num_heads, span.kv, shape, out.rows(row, 1));
      });
    }
  }

  void attend(const AttendParams& params, Workspace& ws) override {
    const int64_t tokens = params.cos.shape[0];
    const Tensor q = ws.q.rows(0, tokens);
    AttentionShape shape = params.shape;
    AttentionExtras extras;
    if (params.prefix_cos) {
      extras = *shape.extras;
      extras.q_prefix = ws.q_prefix.rows(0, tokens);
      shape.extras = &extras;
    }
    cpu::prepare_rows(kernels_, *pool_, params, q, ws.k.rows(0, tokens), ws.v.rows(0, tokens), extras.q_prefix);
    attention(q, params.spans, shape, ws.attended.rows(0, tokens));
  }

  TrainingOps& training() override { return *training_; }

  void sample(const Tensor& logits, std::span<const SampleRequest> requests, std::span<SampleResult> results) override {
    expect(logits.rank == 2 && logits.shape[0] == static_cast<int64_t>(requests.size()) && requests.size() == results.size(),
           ErrorCode::invalid_argument, "sample: logits ", logits.shape_text(), " for ", requests.size(), " requests and ", results.size(),
           " results");
    const cpu::PoolSamplingLoops loops(kernels_, *pool_);
    const int64_t vocab = logits.shape[1];
    for (size_t i = 0; i < requests.size(); ++i) {
      const float* row = logits.as<float>() + static_cast<int64_t>(i) * vocab;
      results[i] = sample_token({row, static_cast<size_t>(vocab)}, requests[i], loops);
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

  // The norm is taken row by row where the product's input is made.
  void attention_input(const Tensor& x, const Norm& norm, const Linear& wq, const Linear& wk, const Linear& wv, Workspace& ws) override {
    if (has_long_spans({&wq, &wk, &wv})) {
      return each_row_group(ws.spans, x.shape[0], [&](const RowGroup& group) {
        Workspace part = rows_of(ws, group);
        const auto met = [&](const Linear& w) { return for_rows(w, ws.normed.dtype, group.is_long); };
        attention_input(x.rows(group.first, group.rows), norm, met(wq), met(wk), met(wv), part);
      });
    }
    const int64_t tokens = x.shape[0];
    const Tensor normed = ws.normed.rows(0, tokens), q = ws.q.rows(0, tokens), k = ws.k.rows(0, tokens), v = ws.v.rows(0, tokens);
    if (!cpu::same_input(kernels_, wq, wk, normed.dtype) || !cpu::same_input(kernels_, wq, wv, normed.dtype))
      return Backend::attention_input(x, norm, wq, wk, wv, ws);
    if (wq.activations == ActScheme::sequence) {
      const Tensor exact = exact_norm(x, norm, ws);
      return each_sequence(ws, tokens, [&](int64_t first, int64_t n) {
        project(exact.rows(first, n), {{wq, q.rows(first, n)}, {wk, k.rows(first, n)}, {wv, v.rows(first, n)}});
      });
    }
    cpu::multiply(kernels_, *pool_, normed_input(x, norm, wq, normed.dtype), {{wq, q}, {wk, k}, {wv, v}});
  }

  void attention_output(const Linear& wo, const Norm& post_norm, const Tensor& x, Workspace& ws) override {
    const Tensor branch = ws.branch.rows(0, x.shape[0]);
    step_linear(ws.attended.rows(0, x.shape[0]), wo, branch, ws.spans);
    add_normed(x, branch, post_norm);
  }

  void feed_forward(const Tensor& x, const Norm& pre_norm, const Linear& gate, const Linear& up, const Linear& down, const Norm& post_norm,
                    Workspace& ws) override {
    if (has_long_spans({&gate, &up, &down})) {
      return each_row_group(ws.spans, x.shape[0], [&](const RowGroup& group) {
        Workspace part = rows_of(ws, group);
        const auto met = [&](const Linear& w) { return for_rows(w, ws.normed.dtype, group.is_long); };
        feed_forward(x.rows(group.first, group.rows), pre_norm, met(gate), met(up), met(down), post_norm, part);
      });
    }
    const int64_t tokens = x.shape[0];
    const DType act = ws.normed.dtype, gated_act = ws.gated.dtype;
    if (!cpu::same_input(kernels_, gate, up, act) || !cpu::goes_by_panels(down))
      return Backend::feed_forward(x, pre_norm, gate, up, down, post_norm, ws);
    const Tensor gated = ws.gate.rows(0, tokens), branch = ws.branch.rows(0, tokens);
    if (gate.activations == ActScheme::sequence) {
      const Tensor exact = exact_norm(x, pre_norm, ws);
      each_sequence(ws, tokens, [&](int64_t first, int64_t n) {
        cpu::multiply_gated(kernels_, *pool_, rows_input(exact.rows(first, n), gate, act), gate, up, gated.rows(first, n));
      });
    } else {
      cpu::multiply_gated(kernels_, *pool_, normed_input(x, pre_norm, gate, act), gate, up, gated);
    }
    if (down.activations == ActScheme::sequence) {
      each_sequence(ws, tokens, [&](int64_t first, int64_t n) {
        cpu::multiply(kernels_, *pool_, rows_input(gated.rows(first, n), down, gated_act), {{down, branch.rows(first, n)}});
      });
    } else {
      cpu::multiply(kernels_, *pool_, rows_input(gated, down, gated_act), {{down, branch}});
    }
    add_normed(x, branch, post_norm);
  }

  void logits(const Tensor& x, const Norm& norm, const Linear& head, float softcap, const Tensor& normed, const Tensor& out) override {
    if (!cpu::goes_by_panels(head)) return Backend::logits(x, norm, head, softcap, normed, out);
    cpu::multiply(kernels_, *pool_, normed_input(x, norm, head, normed.dtype), {{head, out}});
    if (softcap != 0) soft_cap(out, softcap);
  }

 private:
  template <typename Fn>
  void for_each(int64_t n, int64_t work, const Fn& fn) {
    cpu::for_each(*pool_, n, work, fn);
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

  // One row of an embedding as f32, times `factor`.
  void widen_row(const Linear& table, int64_t row, float factor, float* out) {
    const int64_t dim = table.in();
    const bool int8 = table.weight.dtype == DType::i8;
    if (const cpu::PackedMatrix* m = cpu::packed_matrix(table)) {
      m->layout->unpack_row(m->panel(row / cpu::kPackedRows), row % cpu::kPackedRows, dim, out);
    } else if (int8) {
      const int8_t* q = table.weight.as<int8_t>() + row * dim;
      for (int64_t i = 0; i < dim; ++i) out[i] = static_cast<float>(q[i]);
    } else {
      kernels_.widen(table.weight.dtype, table.weight.data + row * table.weight.row_bytes(), dim, out);
    }
    if (int8) kernels_.scale(out, table.scale.as<float>()[row], dim);
    kernels_.scale(out, factor, dim);
  }

  static bool has_long_spans(std::initializer_list<const Linear*> weights) {
    return std::any_of(weights.begin(), weights.end(), [](const Linear* w) { return w->activations == ActScheme::long_spans; });
  }

  // The scratch of a group's rows, for stages whose weights no longer ask for spans.
  static Workspace rows_of(const Workspace& ws, const RowGroup& group) {
    Workspace part;
    for (Tensor Workspace::* t : {&Workspace::normed, &Workspace::q, &Workspace::k, &Workspace::v, &Workspace::attended, &Workspace::branch,
                                  &Workspace::gate, &Workspace::up, &Workspace::gated})
      part.*t = (ws.*t).rows(group.first, group.rows);
    return part;
  }

  // Rows of x, f32 or bf16, as the input of w.
  cpu::PreparedInput rows_input(const Tensor& x, const Linear& w, DType act) {
    const int64_t dim = x.row_elements(), row_bytes = x.row_bytes();
    expect(is_act(x) && w.in() == dim, ErrorCode::internal, "linear: x ", x.shape_text(), ", weight ", w.weight.shape_text());
    const auto row = [&](int64_t t, float* scratch) -> const float* {
      if (x.dtype == DType::f32) return x.as<float>() + t * dim;
      kernels_.widen(x.dtype, x.data + t * row_bytes, dim, scratch);
      return scratch;
    };
    cpu::InputRule rule = cpu::input_rule(w, act);
    if (w.activations == ActScheme::sequence) rule.fixed_scale = cpu::shared_scale(kernels_, *pool_, x.shape[0], dim, row);
    return cpu::prepare_input(*pool_, *cpu::kernel_for(kernels_, w, act), rule, x.shape[0], dim, 0, row);
  }

  // norm(x) in f32 [tokens, hidden], in ws.branch.
  Tensor exact_norm(const Tensor& x, const Norm& norm, const Workspace& ws) {
    const Tensor out = ws.branch.rows(0, x.shape[0]);
    rms_norm(x, norm, out);
    return out;
  }

  // fn(first row, rows) for every sequence of the step.
  template <typename Fn>
  static void each_sequence(const Workspace& ws, int64_t tokens, const Fn& fn) {
    if (ws.spans.empty()) return fn(0, tokens);
    for (const AttentionSpan& span : ws.spans) fn(span.first_row, span.rows);
  }

  // Rows of norm(x) as the input of w.
  cpu::PreparedInput normed_input(const Tensor& x, const Norm& norm, const Linear& w, DType act) {
    const int64_t dim = norm.weight.elements();
    return cpu::prepare_input(*pool_, *cpu::kernel_for(kernels_, w, act), cpu::input_rule(w, act), x.shape[0], dim, 2 * dim,
                              [&](int64_t t, float* scratch) -> const float* {
                                kernels_.rms_norm(x.as<float>() + t * dim, norm.weight.as<float>(), norm.offset, norm.eps, dim, scratch,
                                                  false);
                                return scratch;
                              });
  }

  // x += norm(branch), row by row.
  void add_normed(const Tensor& x, const Tensor& branch, const Norm& norm) {
    const int64_t dim = norm.weight.elements();
    for_each(x.shape[0], 3 * dim, [&](int64_t t) {
      float* row = branch.as<float>() + t * dim;
      kernels_.rms_norm(row, norm.weight.as<float>(), norm.offset, norm.eps, dim, row, false);
      kernels_.add(x.as<float>() + t * dim, row, dim);
    });
  }

  // Projections of one input share its preparation and one pass over the pool; the bits are those of separate calls.
  void project(const Tensor& x, std::initializer_list<Projection> projections) {
    if (x.shape[0] == 0) return;
    const Linear& first = projections.begin()->weight;
    if (!cpu::goes_by_panels(first)) return cpu::multiply_plain(kernels_, *pool_, x, projections);
    cpu::multiply(kernels_, *pool_, rows_input(x, first, x.dtype), projections);
  }

  const Kernels& kernels_;
  std::shared_ptr<ThreadPool> pool_;
  std::unique_ptr<TrainingOps> training_;
};

}  // namespace

std::unique_ptr<Backend> make_cpu_backend(int threads) {
  expect(threads >= 0, ErrorCode::invalid_argument, "threads must be 0 (one per physical core) or more, got ", threads);
  return std::make_unique<CpuBackend>(cpu::select_kernels(), threads == 0 ? physical_cores() : threads);
}

}  // namespace lapidary
