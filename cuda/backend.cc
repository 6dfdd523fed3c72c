// Memory and primitives: shapes are checked here, then one launch each.
#include <algorithm>

#include "cuda/api/blocks.h"
#include "cuda/backend_impl.h"
#include "cuda/loader.h"

namespace lapidary {

namespace cuda {

namespace {

// What one step tells its kernels: ids, positions, page tables, masks. Larger steps make it grow.
constexpr size_t kStagingBytes = size_t{4} << 20;

int32_t small(int64_t n) { return static_cast<int32_t>(n); }

ActType act_type(const Tensor& t) {
  expect(t.dtype == DType::f32 || t.dtype == DType::bf16, ErrorCode::internal, "cuda: an act tensor is f32 or bf16, got ",
         dtype_info(t.dtype).name);
  return t.dtype == DType::f32 ? ActType::f32 : ActType::bf16;
}

ActOut act_out(const Tensor& t) { return act_type(t) == ActType::f32 ? act_f32(t.as<float>()) : act_bf16(t.data); }

}  // namespace

CudaBackend::CudaBackend(const Api& api, int ordinal)
    : device_(std::make_shared<DeviceState>(api, ordinal)),
      staging_(device_, kStagingBytes),
      products_(device_),
      attention_(device_, staging_),
      sampler_(device_, staging_),
      quantized_(device_),
      scales_(device_),
      projections_(device_),
      normed_(device_),
      gated_(device_),
      gate_up_(device_),
      other_(device_) {}

CudaBackend::~CudaBackend() = default;

void CudaBackend::enter(bool complete_open) {
  device_->enter();
  staging_.begin();
  if (complete_open) complete();
}

// --- memory -------------------------------------------------------------------------------------------------------------

Buffer CudaBackend::allocate(size_t bytes) { return device_->allocate(bytes); }

Buffer CudaBackend::allocate_page(size_t bytes) {
  const Buffer whole = device_->allocate(bytes + kPageAlignment);
  const auto at = reinterpret_cast<uintptr_t>(whole.memory.get());
  return {std::shared_ptr<std::byte>(whole.memory, whole.memory.get() + ((at + kPageAlignment - 1) / kPageAlignment * kPageAlignment - at)),
          bytes, Device::cuda};
}

void CudaBackend::upload(const Tensor& dst, const void* host_src) { device_->upload(dst.data, host_src, static_cast<size_t>(dst.bytes())); }

void CudaBackend::download(void* host_dst, const Tensor& src) {
  device_->enter();
  if (is_open(src)) complete();
  device_->download(host_dst, src.data, static_cast<size_t>(src.bytes()));
}

void CudaBackend::copy(const Tensor& dst, const Tensor& src) {
  device_->enter();
  check(api().device.copy_on_device(dst.data, src.data, static_cast<size_t>(dst.bytes()), device_->stream()));
}

void CudaBackend::zero(const Tensor& dst) {
  device_->enter();
  if (dst.bytes() > 0) check(api().device.fill(dst.data, 0, static_cast<size_t>(dst.bytes()), device_->stream()));
}

Linear CudaBackend::make_linear(const Linear& host) { return make_device_linear(*device_, host); }

Linear CudaBackend::wrap_linear(const Linear& on_device) { return wrap_device_linear(on_device); }

std::vector<Linear> CudaBackend::make_linears(std::span<const Linear> host, Stack stack) {
  return make_device_linears(*device_, host, stack);
}

// --- primitives ---------------------------------------------------------------------------------------------------------

void CudaBackend::embed(std::span<const int32_t> ids, const Linear& table, float scale, const Tensor& out) {
  discard();
  enter();
  if (ids.empty()) return;
  const DeviceMatrix& w = device_weight(table).matrix;
  EmbedParams p;
  p.ids = staging_.put(ids);
  p.table = w.data, p.row_scales = w.scales;
  p.out = out.as<float>();
  p.dtype = w.dtype, p.planes = w.form == WeightForm::planes;
  p.row_bytes = p.planes ? 0 : dtype_bytes(w.dtype, w.k);
  p.vocab = w.n;
  p.rows = small(static_cast<int64_t>(ids.size())), p.dim = small(w.k);
  p.scale = scale;
  check(api().embed(p, context()));
}

void CudaBackend::rms_norm(const Tensor& x, const Norm& norm, const Tensor& out) {
  enter();
  const int64_t dim = norm.weight.elements(), rows = x.elements() / dim;
  if (rows > 0)
    check(
        api().rms_norm({x.as<float>(), norm.weight.as<float>(), act_out(out), small(rows), small(dim), norm.offset, norm.eps}, context()));
}

void CudaBackend::linear(const Tensor& x, const Linear& w, const Tensor& out) {
  enter();
  const DeviceMatrix& matrix = device_weight(w).matrix;
  expect(x.row_elements() == w.in() && out.dtype == DType::f32 && out.elements() == x.shape[0] * w.out(), ErrorCode::internal, "linear: x ",
         x.shape_text(), ", weight ", w.weight.shape_text(), ", out ", out.shape_text());
  expect(matrix.data != nullptr, ErrorCode::internal, "linear: interleaved weights are for feed_forward");
  if (x.shape[0] > 0) products_.run(for_weight(act_rows(x), matrix), matrix, out.as<float>());
}

void CudaBackend::quantize_rows(const Tensor& x, float fixed_scale, const Tensor& q, const Tensor& scales) {
  enter();
  const int64_t rows = x.shape[0], dim = x.row_elements();
  if (rows == 0) return;
  const ActOut out = fixed_scale > 0 ? act_int8_fixed(q.as<int8_t>(), fixed_scale) : act_int8_per_row(q.as<int8_t>(), scales.as<float>());
  check(api().quantize({x.data, act_type(x), out, small(rows), small(dim)}, context()));
  if (fixed_scale > 0) check(api().fill({scales.as<float>(), rows, fixed_scale}, context()));
}

void CudaBackend::matmul_int8(const Tensor& x, const Tensor& x_scales, const Linear& w, const Tensor& out) {
  enter();
  const DeviceMatrix& matrix = device_weight(w).matrix;
  expect(x.dtype == DType::i8 && matrix.dtype == DType::i8 && x.row_elements() == w.in() && out.elements() == x.shape[0] * w.out(),
         ErrorCode::internal, "matmul_int8: x ", x.shape_text(), ", weight ", w.weight.shape_text(), ", out ", out.shape_text());
  if (x.shape[0] > 0) products_.run({x.data, ActType::int8, x_scales.as<float>(), 1, x.shape[0], w.in()}, matrix, out.as<float>());
}

void CudaBackend::rope_angles(std::span<const int32_t> positions, std::span<const float> inv_freq, const Tensor& cos, const Tensor& sin) {
  enter(/*complete_open=*/false);
  if (positions.empty()) return;
  check(api().rope_angles({staging_.put(positions), staging_.put(inv_freq), cos.as<float>(), sin.as<float>(),
                           small(static_cast<int64_t>(positions.size())), small(static_cast<int64_t>(inv_freq.size()))},
                          context()));
}

void CudaBackend::rope(const Tensor& x, const Tensor& cos, const Tensor& sin) {
  enter();
  if (x.elements() > 0)
    check(api().rope({x.as<float>(), cos.as<float>(), sin.as<float>(), small(x.shape[0]), small(x.shape[1]), small(x.shape[2] / 2)},
                     context()));
}

void CudaBackend::append_kv(const Tensor& k, const Tensor& v, std::span<const AttentionSpan> spans, const AttentionShape& shape) {
  enter();
  attention_.append(k.as<float>(), v.as<float>(), k.elements() / (shape.num_kv_heads * shape.head_dim), spans, shape);
}

void CudaBackend::attention(const Tensor& q, std::span<const AttentionSpan> spans, const AttentionShape& shape, const Tensor& out) {
  enter();
  attention_.attend(q.as<float>(), q.elements() / (shape.num_heads * shape.head_dim), spans, shape, {out.data, act_type(out), 0});
}

void CudaBackend::geglu(const Tensor& gate, const Tensor& up, const Tensor& out) {
  enter();
  if (gate.elements() == 0) return;
  const int64_t rows = gate.shape[0];
  check(api().geglu({gate.as<float>(), up.as<float>(), act_out(out), small(rows), small(gate.elements() / rows), false}, context()));
}

void CudaBackend::add(const Tensor& x, const Tensor& y) {
  enter();
  if (x.elements() > 0) check(api().add({x.as<float>(), y.as<float>(), x.elements()}, context()));
}

void CudaBackend::soft_cap(const Tensor& x, float cap) {
  enter();
  if (x.elements() > 0) check(api().soft_cap({x.as<float>(), x.elements(), cap}, context()));
}

void CudaBackend::gather_rows(const Tensor& x, std::span<const int32_t> rows, const Tensor& out) {
  enter();
  if (rows.empty()) return;
  check(api().gather_rows(
      {x.as<float>(), staging_.put(rows), out.as<float>(), small(static_cast<int64_t>(rows.size())), small(x.row_elements())}, context()));
}

void CudaBackend::sample(const Tensor& logits, std::span<const SampleRequest> requests, std::span<SampleResult> results) {
  expect(logits.rank == 2 && logits.shape[0] == static_cast<int64_t>(requests.size()) && requests.size() == results.size(),
         ErrorCode::invalid_argument, "sample: logits ", logits.shape_text(), " for ", requests.size(), " requests and ", results.size(),
         " results");
  if (!Sampler::takes(requests)) return Backend::sample(logits, requests, results);
  enter();
  sampler_.sample(logits, requests, results);
}

}  // namespace cuda

std::unique_ptr<Backend> make_cuda_backend(const cuda::Api& api, int ordinal) { return std::make_unique<cuda::CudaBackend>(api, ordinal); }

std::unique_ptr<Backend> make_cuda_backend() {
  const cuda::Library& library = cuda::library();
  expect(library.api != nullptr, ErrorCode::cuda, library.reason);
  cuda::DeviceFacts facts;
  std::string reason;
  expect(cuda::find_device(*library.api, &facts, &reason), ErrorCode::cuda, reason);
  return make_cuda_backend(*library.api, facts.ordinal);
}

}  // namespace lapidary
