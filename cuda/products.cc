#include "cuda/products.h"

#include <numeric>

#include "cuda/api/blocks.h"

namespace lapidary::cuda {

namespace {

int32_t small(int64_t n) { return static_cast<int32_t>(n); }

bool on_16(const void* p, int64_t stride_bytes) { return reinterpret_cast<uintptr_t>(p) % 16 == 0 && stride_bytes % 16 == 0; }

Int8Product int8_product(const ActRows& x, const DeviceMatrix& w, const ProductOutput& out) {
  Int8Product p;
  p.x = static_cast<const int8_t*>(x.data), p.w = static_cast<const int8_t*>(w.data);
  p.x_scales = x.row_scales, p.w_scales = w.scales;
  p.x_stride = x.k, p.w_stride = w.k;
  p.x_scale = x.scale;
  p.m = small(x.rows), p.n = small(w.n), p.k = small(w.k);
  p.output = out;
  return p;
}

Bf16Product bf16_product(const ActRows& x, const DeviceMatrix& w, const ProductOutput& out) {
  Bf16Product p;
  p.x = static_cast<const uint16_t*>(x.data), p.w = static_cast<const uint16_t*>(w.data);
  p.x_stride = 2 * x.k, p.w_stride = 2 * w.k;
  p.m = small(x.rows), p.n = small(w.n), p.k = small(w.k);
  p.output = out;
  return p;
}

GemvFormat format_of(const DeviceMatrix& w) {
  if (w.dtype == DType::i8) return GemvFormat::int8;
  if (w.form == WeightForm::planes) return w.dtype == DType::q8_0 ? GemvFormat::q8_0 : GemvFormat::q4_0;
  return GemvFormat::bf16;
}

}  // namespace

bool Products::takes_prologue(const DeviceMatrix& w, ActType input, int64_t rows) const {
  const bool int8 = w.dtype == DType::i8 && input == ActType::int8;
  const bool rounded = input == ActType::bf16 && ((w.dtype == DType::bf16 && w.form == WeightForm::rows) || w.form == WeightForm::planes);
  if (rows > kGemvMaxRows || !(int8 || rounded) || !on_16(w.data, w.form == WeightForm::planes ? 0 : w.k * (int8 ? 1 : 2))) return false;
  GemvPlan plan;
  return plan_gemv({format_of(w), small(rows), small(w.n), small(w.k), /*prologue=*/true}, device_->facts(), 0, &plan) == nullptr;
}

void Products::run(const ActRows& x, const DeviceMatrix& w, float* out) {
  ProductOutput o;
  o.out = out;
  o.stride = w.n;
  run(x, w, o);
}

void Products::run(const ActRows& x, const DeviceMatrix& w, const ProductOutput& out, const GemvPrologue& prologue) {
  expect(x.k == w.k, ErrorCode::internal, "cuda: a product of rows of ", x.k, " with a weight of ", w.k);
  if (x.type == ActType::int8) return int8(x, w, out, prologue);
  if (w.dtype == DType::i8) return run(x, dequantized(w, DType::f32), out);  // weight-only
  if (x.type == ActType::bf16) {
    if (w.form == WeightForm::planes) return planes(x, w, out, prologue);
    if (w.dtype == DType::bf16 && on_16(w.data, 2 * w.k)) return bf16(x, w, out, prologue);
    if (is_block_type(w.dtype)) return x.rows <= kGemvMaxRows ? blocks(x, w, out) : bf16(x, dequantized(w, DType::bf16), out, {});
    return f32(widened(x), w, out);
  }
  if (w.form == WeightForm::planes) return f32(x, dequantized(w, DType::f32), out);
  if (is_block_type(w.dtype)) return blocks(x, w, out);
  f32(x, w, out);
}

void Products::int8(const ActRows& x, const DeviceMatrix& w, const ProductOutput& out, const GemvPrologue& prologue) {
  expect(w.dtype == DType::i8, ErrorCode::internal, "cuda: int8 rows need an int8 weight");
  expect(w.k % 16 == 0, ErrorCode::unsupported, "cuda: int8 weights need an input width that is a multiple of 16, this one has ", w.k);
  const DeviceFacts& facts = device_->facts();
  GemvInt8Params v;
  v.product = int8_product(x, w, out);
  v.prologue = prologue;
  if (x.rows <= kGemvMaxRows) {
    v.workspace_bytes = gemv_workspace_bytes(gemv_problem(v), facts);
    v.workspace = gemv_.at_least(static_cast<size_t>(v.workspace_bytes));
    if (supports_gemv_int8(v, facts)) return device_->check(device_->api().gemv_int8(v, context_for(w)));
  }
  GemmInt8Params p;
  p.product = v.product;
  p.workspace_bytes = gemm_int8_workspace_bytes(p.product, facts);
  p.workspace = p.workspace_bytes > 0 ? gemm_.at_least(static_cast<size_t>(p.workspace_bytes)) : nullptr;
  device_->check(device_->api().gemm_int8(p, device_->context()));
}

void Products::bf16(const ActRows& x, const DeviceMatrix& w, const ProductOutput& out, const GemvPrologue& prologue) {
  const DeviceFacts& facts = device_->facts();
  GemvBf16Params v;
  v.product = bf16_product(x, w, out);
  v.prologue = prologue;
  if (x.rows <= kGemvMaxRows) {
    v.workspace_bytes = gemv_workspace_bytes(gemv_problem(v), facts);
    v.workspace = gemv_.at_least(static_cast<size_t>(v.workspace_bytes));
    if (supports_gemv_bf16(v, facts)) return device_->check(device_->api().gemv_bf16(v, context_for(w)));
  }
  GemmBf16Params p;
  p.product = v.product;
  p.workspace_bytes = gemm_bf16_workspace_bytes(p.product, facts);
  p.workspace = p.workspace_bytes > 0 ? gemm_.at_least(static_cast<size_t>(p.workspace_bytes)) : nullptr;
  device_->check(device_->api().gemm_bf16(p, device_->context()));
}

// More rows than the skinny kernel takes: widened to bf16 once, then tiles. Rounding a block's values to bf16 is this path's own error.
void Products::planes(const ActRows& x, const DeviceMatrix& w, const ProductOutput& out, const GemvPrologue& prologue) {
  const DeviceFacts& facts = device_->facts();
  if (x.rows <= kGemvMaxRows) {
    GemvPlanesParams v;
    v.product = {static_cast<const uint16_t*>(x.data),
                 w.data,
                 w.dtype == DType::q8_0 ? PlaneKind::q8_0 : PlaneKind::q4_0,
                 2 * x.k,
                 small(x.rows),
                 small(w.n),
                 small(w.k),
                 out};
    v.prologue = prologue;
    v.workspace_bytes = gemv_workspace_bytes(gemv_problem(v), facts);
    v.workspace = gemv_.at_least(static_cast<size_t>(v.workspace_bytes));
    if (supports_gemv_planes(v, facts)) return device_->check(device_->api().gemv_planes(v, context_for(w)));
  }
  bf16(x, dequantized(w, DType::bf16), out, {});
}

void Products::blocks(const ActRows& x, const DeviceMatrix& w, const ProductOutput& out) {
  GemvBlocksParams p;
  p.x = x.data, p.w = w.data;
  p.x_type = x.type, p.dtype = w.dtype;
  p.x_stride = x.k;
  p.m = small(x.rows), p.n = small(w.n), p.k = small(w.k);
  p.output = out;
  device_->check(device_->api().gemv_blocks(p, device_->context()));
}

void Products::f32(const ActRows& x, const DeviceMatrix& w, const ProductOutput& out) {
  GemmF32Params p;
  p.product.x = static_cast<const float*>(x.data), p.product.w = w.data;
  p.product.w_type = w.dtype == DType::f32 ? WeightType::f32 : w.dtype == DType::bf16 ? WeightType::bf16 : WeightType::f16;
  p.product.x_stride = 4 * x.k, p.product.w_stride = dtype_bytes(w.dtype, w.k);
  p.product.m = small(x.rows), p.product.n = small(w.n), p.product.k = small(w.k);
  p.product.output = out;
  p.workspace_bytes = gemm_f32_workspace_bytes(p.product, device_->facts());
  p.workspace = p.workspace_bytes > 0 ? gemm_.at_least(static_cast<size_t>(p.workspace_bytes)) : nullptr;
  device_->check(device_->api().gemm_f32(p, device_->context()));
}

ActRows Products::widened(const ActRows& x) {
  ActRows wide = {widened_.at_least(static_cast<size_t>(x.rows * x.k) * 4), ActType::f32, nullptr, 1, x.rows, x.k};
  device_->check(device_->api().quantize(
      {x.data, x.type, act_f32(static_cast<float*>(const_cast<void*>(wide.data))), small(x.rows), small(x.k)}, device_->context()));
  return wide;
}

DeviceMatrix Products::dequantized(const DeviceMatrix& w, DType dtype) {
  DeviceMatrix wide = {dtype, WeightForm::rows, nullptr, nullptr, w.n, w.k, ActScheme::none, 0};
  void* memory = weights_.at_least(static_cast<size_t>(dtype_bytes(dtype, w.n * w.k)));
  wide.data = memory;
  DequantizeBlocksParams p;
  p.blocks = w.data, p.out = memory;
  p.row_scales = w.scales;
  p.dtype = w.dtype;
  p.planes = w.form == WeightForm::planes;
  p.out_type = dtype == DType::f32 ? OutType::f32 : OutType::bf16;
  p.out_stride = w.k;
  p.n = w.n, p.k = w.k;
  device_->check(device_->api().dequantize_blocks(p, device_->context()));
  return wide;
}

}  // namespace lapidary::cuda
