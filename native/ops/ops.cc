// Default bodies of the waist: memory on the host, and every stage of a layer as a sequence of primitives.
// A backend that fuses a stage is compared with the body here.
#include "ops/ops.h"

#include <cassert>
#include <cstring>

#include "base/error.h"

namespace lapidary {

namespace {

// The same memory seen with other dimensions; the number of elements stays.
Tensor reshaped(const Tensor& t, std::initializer_list<int64_t> dims) {
  Tensor r(t.data, t.dtype, dims, t.device);
  assert(r.elements() == t.elements());
  return r;
}

}  // namespace

int64_t kv_page_bytes(DType dtype, int64_t num_kv_heads, int64_t head_dim) {
  const int64_t rows = 2 * num_kv_heads * kPageTokens;
  return rows * (dtype_bytes(dtype, head_dim) + (dtype == DType::i8 ? static_cast<int64_t>(sizeof(float)) : 0));
}

Linear for_rows(const Linear& w, DType act, bool is_long) {
  if (w.activations != ActScheme::long_spans) return w;
  Linear met = w;
  met.activations = is_long && act == DType::bf16 ? ActScheme::token : ActScheme::none;
  return met;
}

Buffer Backend::allocate(size_t bytes) { return allocate_host(bytes); }

Buffer Backend::allocate_page(size_t bytes) { return allocate(bytes); }

void Backend::upload(const Tensor& dst, const void* host_src) {
  if (const int64_t bytes = dst.bytes()) std::memcpy(dst.data, host_src, static_cast<size_t>(bytes));
}

void Backend::download(void* host_dst, const Tensor& src) {
  if (const int64_t bytes = src.bytes()) std::memcpy(host_dst, src.data, static_cast<size_t>(bytes));
}

void Backend::copy(const Tensor& dst, const Tensor& src) { upload(dst, src.data); }

void Backend::zero(const Tensor& dst) {
  if (const int64_t bytes = dst.bytes()) std::memset(dst.data, 0, static_cast<size_t>(bytes));
}

Linear Backend::make_linear(const Linear& host) { return host; }

std::optional<Linear> Backend::make_int8(const Linear&) { return std::nullopt; }

Linear Backend::wrap_linear(const Linear& on_device) { return on_device; }

std::vector<Linear> Backend::make_linears(std::span<const Linear> host, Stack) {
  std::vector<Linear> made;
  for (const Linear& linear : host) made.push_back(make_linear(linear));
  return made;
}

void Backend::sample(const Tensor& logits, std::span<const SampleRequest> requests, std::span<SampleResult> results) {
  expect(logits.rank == 2 && logits.shape[0] == static_cast<int64_t>(requests.size()) && requests.size() == results.size(),
         ErrorCode::invalid_argument, "sample: logits ", logits.shape_text(), " for ", requests.size(), " requests and ", results.size(),
         " results");
  const int64_t vocab = logits.shape[1];
  std::vector<float> row(static_cast<size_t>(vocab));
  for (size_t i = 0; i < requests.size(); ++i) {
    download(row.data(), logits.rows(static_cast<int64_t>(i), 1));
    results[i] = sample_token(row, requests[i]);
  }
}

TrainingOps& Backend::training() {
  fail(ErrorCode::unsupported, "the ", name(), " backend cannot train: load the model with device 'cpu'");
}

void Backend::step_linear(const Tensor& x, const Linear& w, const Tensor& out, std::span<const AttentionSpan> spans) {
  if (w.activations == ActScheme::long_spans) {
    return each_row_group(spans, x.shape[0], [&](const RowGroup& group) {
      linear(x.rows(group.first, group.rows), for_rows(w, x.dtype, group.is_long), out.rows(group.first, group.rows));
    });
  }
  if (w.activations != ActScheme::sequence || spans.size() < 2) return linear(x, w, out);
  for (const AttentionSpan& span : spans) linear(x.rows(span.first_row, span.rows), w, out.rows(span.first_row, span.rows));
}

void Backend::self_attention(const Tensor& x, const Norm& norm, const Linear& wq, const Linear& wk, const Linear& wv,
                             const AttendParams& params, Workspace& ws) {
  attention_input(x, norm, wq, wk, wv, ws);
  attend(params, ws);
}

void Backend::attention_input(const Tensor& x, const Norm& norm, const Linear& wq, const Linear& wk, const Linear& wv, Workspace& ws) {
  const int64_t tokens = x.shape[0];
  const Tensor normed = ws.normed.rows(0, tokens);
  rms_norm(x, norm, normed);
  step_linear(normed, wq, ws.q.rows(0, tokens), ws.spans);
  step_linear(normed, wk, ws.k.rows(0, tokens), ws.spans);
  step_linear(normed, wv, ws.v.rows(0, tokens), ws.spans);
}

void Backend::attend(const AttendParams& params, Workspace& ws) {
  const int64_t num_heads = params.shape.num_heads, num_kv_heads = params.shape.num_kv_heads, head_dim = params.shape.head_dim;
  const int64_t tokens = params.cos.shape[0];
  const Tensor q = reshaped(ws.q.rows(0, tokens), {tokens, num_heads, head_dim});
  const Tensor k = reshaped(ws.k.rows(0, tokens), {tokens, num_kv_heads, head_dim});
  const Tensor v = reshaped(ws.v.rows(0, tokens), {tokens, num_kv_heads, head_dim});
  if (params.q_norm) {
    const Tensor q_rows = reshaped(q, {tokens * num_heads, head_dim});
    rms_norm(q_rows, *params.q_norm, q_rows);
  }
  if (params.k_norm) {
    const Tensor k_rows = reshaped(k, {tokens * num_kv_heads, head_dim});
    rms_norm(k_rows, *params.k_norm, k_rows);
  }
  AttentionShape shape = params.shape;
  AttentionExtras extras;
  if (params.prefix_cos) {
    extras = *shape.extras;
    extras.q_prefix = reshaped(ws.q_prefix.rows(0, tokens), {tokens, num_heads, head_dim});
    copy(extras.q_prefix, q);
    rope(extras.q_prefix, params.prefix_cos, params.prefix_sin);
    shape.extras = &extras;
  }
  rope(q, params.cos, params.sin);
  rope(k, params.cos, params.sin);
  append_kv(k, v, params.spans, shape);
  attention(q, params.spans, shape, ws.attended.rows(0, tokens));
}

void Backend::attention_output(const Linear& wo, const Norm& post_norm, const Tensor& x, Workspace& ws) {
  const int64_t tokens = x.shape[0];
  const Tensor branch = ws.branch.rows(0, tokens);
  step_linear(ws.attended.rows(0, tokens), wo, branch, ws.spans);
  rms_norm(branch, post_norm, branch);
  add(x, branch);
}

void Backend::feed_forward(const Tensor& x, const Norm& pre_norm, const Linear& gate, const Linear& up, const Linear& down,
                           const Norm& post_norm, Workspace& ws) {
  const int64_t tokens = x.shape[0];
  const Tensor normed = ws.normed.rows(0, tokens), branch = ws.branch.rows(0, tokens), gated = ws.gated.rows(0, tokens);
  const Tensor gate_out = ws.gate.rows(0, tokens), up_out = ws.up.rows(0, tokens);
  rms_norm(x, pre_norm, normed);
  step_linear(normed, gate, gate_out, ws.spans);
  step_linear(normed, up, up_out, ws.spans);
  geglu(gate_out, up_out, gated);
  step_linear(gated, down, branch, ws.spans);
  rms_norm(branch, post_norm, branch);
  add(x, branch);
}

void Backend::logits(const Tensor& x, const Norm& norm, const Linear& head, float softcap, const Tensor& normed, const Tensor& out) {
  rms_norm(x, norm, normed);
  linear(normed, head, out);
  if (softcap != 0) soft_cap(out, softcap);
}

}  // namespace lapidary
