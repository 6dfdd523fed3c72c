// The stages of a layer, fused: what opens and closes the residual stream, which kernels make a product's input, and who quantises it.
//
//   few rows (a decode step):   [add, norm, norm, quantise] qkv gemv -> [QK-norm, RoPE, append] attention -> o gemv
//                               -> [add, norm, norm, quantise] gate-up gemv [GeGLU] -> down gemv            what stands in [] costs no
//                               launch
//   many rows (a prompt):       add_norm -> qkv gemm -> qk_rope_append -> attention -> o gemm -> add_norm -> gate-up gemm [GeGLU] -> down
//   gemm
//
// Backend's default bodies of the stages, run on this backend, are the unfused form that tests compare with.
#include <algorithm>
#include <utility>

#include "cuda/backend_impl.h"

namespace lapidary::cuda {

namespace {

int32_t small(int64_t n) { return static_cast<int32_t>(n); }
ActType act_type(DType dtype) { return dtype == DType::f32 ? ActType::f32 : ActType::bf16; }
size_t act_bytes(ActType type) { return type == ActType::f32 ? 4 : type == ActType::bf16 ? 2 : 1; }

}  // namespace

// --- the residual stream --------------------------------------------------------------------------------------------------

CudaBackend::Open CudaBackend::exchange_open(Open next) {
  const std::lock_guard lock(open_mutex_);
  return std::exchange(open_, std::move(next));
}

bool CudaBackend::is_open(const Tensor& t) {
  const std::lock_guard lock(open_mutex_);
  const std::byte *first = open_.home.data, *end = first + open_.home.bytes();
  return open_.home && t.data < end && t.data + t.bytes() > first;
}

void CudaBackend::complete() {
  const Open state = exchange_open({});
  if (!state.home) return;
  const int64_t tokens = state.home.shape[0], hidden = state.home.row_elements();
  if (state.branch) {
    AddNormParams p = {};
    p.x = state.at, p.branch = state.branch, p.post_weight = state.post_weight;
    p.rows = small(tokens), p.dim = small(hidden);
    p.offset = state.offset, p.eps = state.eps;
    check(api().add_norm(p, context()));
  }
  if (state.at != state.home.as<float>())
    check(api().device.copy_on_device(state.home.data, state.at, static_cast<size_t>(state.home.bytes()), device_->stream()));
}

CudaBackend::Open CudaBackend::take(const Tensor& x) {
  Open state = exchange_open({});
  if (state.home && (state.home.data != x.data || state.home.shape[0] != x.shape[0])) {
    exchange_open(state);
    complete();
    state = {};
  }
  return state.home ? state : Open{x, x.as<float>()};
}

void CudaBackend::leave_open(const Open& state, const Tensor& branch, const Norm& post_norm) {
  Open next = state;
  next.branch = branch.as<float>();
  next.post_weight = post_norm.weight.as<float>();
  next.offset = post_norm.offset;
  next.eps = post_norm.eps;
  exchange_open(next);
}

// --- inputs of products -----------------------------------------------------------------------------------------------------

CudaBackend::Input CudaBackend::normed_input(Open& state, const Norm& norm, std::initializer_list<const DeviceMatrix*> readers,
                                             ActType model, int64_t tokens) {
  const DeviceMatrix& first = **readers.begin();
  const int64_t hidden = first.k;
  const ActType type = Products::input_type(first, model);
  const bool fixed = type == ActType::int8 && first.activations == ActScheme::fixed;
  Input input;
  input.rows = {nullptr, type, nullptr, fixed ? first.input_scale : 1, tokens, hidden};

  const bool same_norms = !state.branch || (state.offset == norm.offset && state.eps == norm.eps);
  const bool prologue =
      same_norms && std::all_of(readers.begin(), readers.end(), [&](const DeviceMatrix* w) {
        return products_.takes_prologue(*w, type, tokens) && w->activations == first.activations && w->input_scale == first.input_scale;
      });
  if (prologue) {
    input.prologue.x = state.at, input.prologue.branch = state.branch;
    input.prologue.post_weight = state.post_weight, input.prologue.next_weight = norm.weight.as<float>();
    input.prologue.offset = norm.offset, input.prologue.eps = norm.eps;
    input.prologue.inverse_scale = fixed ? 1.0f / first.input_scale : 0;
    if (state.branch) {
      float* other = static_cast<float*>(other_.at_least(static_cast<size_t>(tokens * hidden) * 4));
      input.prologue.x_out = state.at == other ? state.home.as<float>() : other;
    }
    return input;
  }

  void* out = normed_.at_least(static_cast<size_t>(tokens * hidden) * act_bytes(type));
  ActOut act = type == ActType::f32 ? act_f32(static_cast<float*>(out)) : act_bf16(out);
  if (fixed) act = act_int8_fixed(static_cast<int8_t*>(out), first.input_scale);
  if (type == ActType::int8 && !fixed) {
    float* scales = static_cast<float*>(scales_.at_least(static_cast<size_t>(tokens) * 4));
    act = act_int8_per_row(static_cast<int8_t*>(out), scales);
    input.rows.row_scales = scales;
  }
  input.rows.data = out;
  if (state.branch && !same_norms) {  // the branch first, on its own
    exchange_open(state);
    complete();
    state = {state.home, state.home.as<float>()};
  }
  if (state.branch) {
    check(api().add_norm(
        {state.at, state.branch, state.post_weight, norm.weight.as<float>(), act, small(tokens), small(hidden), norm.offset, norm.eps},
        context()));
    state.branch = nullptr;
  } else {
    check(api().rms_norm({state.at, norm.weight.as<float>(), act, small(tokens), small(hidden), norm.offset, norm.eps}, context()));
  }
  return input;
}

// After the products that read `input`: a prologue has added the branch.
void CudaBackend::used_prologue(Open& state, const Input& input) {
  if (!input.prologue.x || !state.branch) return;
  state.at = input.prologue.x_out;
  state.branch = nullptr;
}

// For a weight whose input is quantised in a way of its own.
void CudaBackend::normed_product(Open& state, const Norm& norm, const DeviceMatrix& w, float* out, ActType model, int64_t tokens) {
  const Input input = normed_input(state, norm, {&w}, model, tokens);
  products_.run(input.rows, w, store(out, w.n), input.prologue);
  used_prologue(state, input);
}

ActRows CudaBackend::act_rows(const Tensor& x) {
  expect(x.dtype == DType::f32 || x.dtype == DType::bf16, ErrorCode::internal, "cuda: an act tensor is f32 or bf16");
  return {x.data, act_type(x.dtype), nullptr, 1, x.shape[0], x.row_elements()};
}

ActRows CudaBackend::for_weight(const ActRows& x, const DeviceMatrix& w) {
  if (Products::input_type(w, x.type) != ActType::int8 || x.type == ActType::int8) return x;
  ActRows out = {quantized_.at_least(static_cast<size_t>(x.rows * x.k)), ActType::int8, nullptr, 1, x.rows, x.k};
  auto* q = static_cast<int8_t*>(const_cast<void*>(out.data));
  if (w.activations == ActScheme::fixed) {
    out.scale = w.input_scale;
    check(api().quantize({x.data, x.type, act_int8_fixed(q, w.input_scale), small(x.rows), small(x.k)}, context()));
  } else {
    float* scales = static_cast<float*>(scales_.at_least(static_cast<size_t>(x.rows) * 4));
    out.row_scales = scales;
    check(api().quantize({x.data, x.type, act_int8_per_row(q, scales), small(x.rows), small(x.k)}, context()));
  }
  return out;
}

ProductOutput CudaBackend::store(float* out, int64_t n) {
  ProductOutput o;
  o.out = out;
  o.stride = n;
  return o;
}

// --- stages -----------------------------------------------------------------------------------------------------------------

void CudaBackend::self_attention(const Tensor& x, const Norm& norm, const Linear& wq, const Linear& wk, const Linear& wv,
                                 const AttendParams& params, Workspace& ws) {
  enter(/*complete=*/false);
  const int64_t tokens = x.shape[0];
  if (tokens == 0) return;
  const AttentionShape& shape = params.shape;
  const int64_t q_width = shape.num_heads * shape.head_dim, kv_width = shape.num_kv_heads * shape.head_dim, width = q_width + 2 * kv_width;
  const ActType model = act_type(ws.normed.dtype);
  Open state = take(x);

  QkvInput qkv;
  qkv.tokens = tokens;
  float* out = static_cast<float*>(projections_.at_least(static_cast<size_t>(tokens * width) * 4));
  if (const WeightGroup* group = group_of({&wq, &wk, &wv}, Stack::rows)) {
    const Input input = normed_input(state, norm, {&group->matrix}, model, tokens);
    products_.run(input.rows, group->matrix, store(out, width), input.prologue);
    used_prologue(state, input);
    qkv.rows.q = out, qkv.rows.k = out + q_width, qkv.rows.v = out + q_width + kv_width;
    qkv.rows.q_stride = qkv.rows.k_stride = qkv.rows.v_stride = width;
  } else {
    const DeviceMatrix &q = device_weight(wq).matrix, &k = device_weight(wk).matrix, &v = device_weight(wv).matrix;
    const auto same_input = [&](const DeviceMatrix& w) {
      return Products::input_type(w, model) == Products::input_type(q, model) && w.activations == q.activations &&
             w.input_scale == q.input_scale;
    };
    float *k_out = out + tokens * q_width, *v_out = k_out + tokens * kv_width;
    if (same_input(k) && same_input(v)) {
      Input input = normed_input(state, norm, {&q, &k, &v}, model, tokens);
      products_.run(input.rows, q, store(out, q_width), input.prologue);
      GemvPrologue again = input.prologue;
      again.x_out = nullptr;
      products_.run(input.rows, k, store(k_out, kv_width), again);
      products_.run(input.rows, v, store(v_out, kv_width), again);
      used_prologue(state, input);
    } else {
      normed_product(state, norm, q, out, model, tokens);
      normed_product(state, norm, k, k_out, model, tokens);
      normed_product(state, norm, v, v_out, model, tokens);
    }
    qkv.rows.q = out, qkv.rows.k = k_out, qkv.rows.v = v_out;
    qkv.rows.q_stride = q_width, qkv.rows.k_stride = qkv.rows.v_stride = kv_width;
  }
  exchange_open(state);

  const auto head_norm = [](const Norm* n) { return n ? HeadNorm{n->weight.as<float>(), n->offset, n->eps} : HeadNorm{nullptr, 0, 0}; };
  qkv.rows.q_norm = head_norm(params.q_norm), qkv.rows.k_norm = head_norm(params.k_norm);
  qkv.rows.cos = params.cos.as<float>(), qkv.rows.sin = params.sin.as<float>();
  attention_.attend_projections(qkv, params.spans, shape, {ws.attended.data, act_type(ws.attended.dtype), 0});
}

void CudaBackend::attention_output(const Linear& wo, const Norm& post_norm, const Tensor& x, Workspace& ws) {
  enter(/*complete=*/false);
  const int64_t tokens = x.shape[0];
  if (tokens == 0) return;
  Open state = take(x);
  if (state.branch) {  // a caller that adds two branches in a row
    exchange_open(state);
    complete();
    state = {x, x.as<float>()};
  }
  const DeviceMatrix& o = device_weight(wo).matrix;
  const Tensor branch = ws.branch.rows(0, tokens);
  products_.run(for_weight(act_rows(ws.attended.rows(0, tokens)), o), o, branch.as<float>());
  leave_open(state, branch, post_norm);
}

void CudaBackend::feed_forward(const Tensor& x, const Norm& pre_norm, const Linear& gate, const Linear& up, const Linear& down,
                               const Norm& post_norm, Workspace& ws) {
  enter(/*complete=*/false);
  const int64_t tokens = x.shape[0], ffn = gate.out();
  if (tokens == 0) return;
  const ActType model = act_type(ws.normed.dtype), gated_type = act_type(ws.gated.dtype);
  Open state = take(x);
  const DeviceMatrix& d = device_weight(down).matrix;
  const ActType down_input = Products::input_type(d, gated_type);
  const bool fixed_down = down_input == ActType::int8 && d.activations == ActScheme::fixed;

  ActRows gated = {gated_.at_least(static_cast<size_t>(tokens * ffn) * 4), gated_type, nullptr, 1, tokens, ffn};
  if (const WeightGroup* group = group_of({&gate, &up}, Stack::interleaved)) {
    const Input input = normed_input(state, pre_norm, {&group->matrix}, model, tokens);
    ProductOutput out = store(nullptr, ffn);
    out.out = const_cast<void*>(gated.data);
    out.epilogue = Epilogue::geglu;
    out.out_type = fixed_down ? OutType::int8 : gated_type == ActType::f32 ? OutType::f32 : OutType::bf16;
    if (fixed_down) {
      out.inverse_scale = 1.0f / d.input_scale;
      gated.type = ActType::int8, gated.scale = d.input_scale;
    }
    products_.run(input.rows, group->matrix, out, input.prologue);
    used_prologue(state, input);
  } else {
    const DeviceMatrix &g = device_weight(gate).matrix, &u = device_weight(up).matrix;
    expect(g.data && u.data, ErrorCode::internal, "feed_forward: gate and up of one group belong together");
    float* gates = static_cast<float*>(gate_up_.at_least(static_cast<size_t>(2 * tokens * ffn) * 4));
    if (Products::input_type(g, model) == Products::input_type(u, model) && g.activations == u.activations &&
        g.input_scale == u.input_scale) {
      const Input input = normed_input(state, pre_norm, {&g, &u}, model, tokens);
      products_.run(input.rows, g, store(gates, ffn), input.prologue);
      GemvPrologue again = input.prologue;
      again.x_out = nullptr;
      products_.run(input.rows, u, store(gates + tokens * ffn, ffn), again);
      used_prologue(state, input);
    } else {
      normed_product(state, pre_norm, g, gates, model, tokens);
      normed_product(state, pre_norm, u, gates + tokens * ffn, model, tokens);
    }
    ActOut act =
        gated_type == ActType::f32 ? act_f32(static_cast<float*>(const_cast<void*>(gated.data))) : act_bf16(const_cast<void*>(gated.data));
    check(api().geglu({gates, gates + tokens * ffn, act, small(tokens), small(ffn), false}, context()));
  }
  const Tensor branch = ws.branch.rows(0, tokens);
  products_.run(for_weight(gated, d), d, branch.as<float>());
  leave_open(state, branch, post_norm);
}

void CudaBackend::logits(const Tensor& x, const Norm& norm, const Linear& head, float softcap, const Tensor& normed, const Tensor& out) {
  enter();
  const int64_t rows = x.shape[0];
  if (rows == 0) return;
  const DeviceMatrix& w = device_weight(head).matrix;
  Open state{x, x.as<float>()};
  const Input input = normed_input(state, norm, {&w}, act_type(normed.dtype), rows);
  products_.run(input.rows, w, store(out.as<float>(), w.n), input.prologue);
  if (softcap != 0) check(api().soft_cap({out.as<float>(), out.elements(), softcap}, context()));
}

}  // namespace lapidary::cuda
