// Matrix products of the backend: which kernel computes x · wᵀ for what kinds of x and w, with its scratch memory. The order of choice is
// in products.cc, one line a kernel.
#pragma once

#include "cuda/api/gemm_plan.h"
#include "cuda/api/gemv.h"
#include "cuda/weights.h"

namespace lapidary::cuda {

// The input of a product.
struct ActRows {
  const void* data = nullptr;  // [rows, k] of `type`
  ActType type = ActType::f32;
  const float* row_scales = nullptr;  // int8: f32 [rows]; null: `scale` for all
  float scale = 1;
  int64_t rows = 0, k = 0;
};

class Products {
 public:
  explicit Products(std::shared_ptr<DeviceState> device)
      : device_(std::move(device)),
        gemm_(device_, Scratch::Holds::counters),
        gemv_(device_, Scratch::Holds::counters),
        widened_(device_),
        weights_(device_) {}

  // What the product reads best: int8 where the weight quantises its input, else what the model computes in.
  static ActType input_type(const DeviceMatrix& w, ActType model) {
    return w.dtype == DType::i8 && w.activations != ActScheme::none ? ActType::int8 : model;
  }
  // Whether `rows` rows of this product can make their input themselves (GemvPrologue), x being of input_type.
  bool takes_prologue(const DeviceMatrix& w, ActType input, int64_t rows) const;

  // out: f32 or what the epilogue gives. `prologue`: only where it is taken; x.data is then not read.
  void run(const ActRows& x, const DeviceMatrix& w, const ProductOutput& out, const GemvPrologue& prologue = {});
  // Into f32 [rows, n], one row after another.
  void run(const ActRows& x, const DeviceMatrix& w, float* out);

 private:
  // Skinny kernels load weights before they wait for the previous grid: only where no grid can have made them.
  const LaunchContext& context_for(const DeviceMatrix& w) const { return w.constant ? device_->chained() : device_->context(); }
  void int8(const ActRows& x, const DeviceMatrix& w, const ProductOutput& out, const GemvPrologue& prologue);
  void bf16(const ActRows& x, const DeviceMatrix& w, const ProductOutput& out, const GemvPrologue& prologue);
  void planes(const ActRows& x, const DeviceMatrix& w, const ProductOutput& out, const GemvPrologue& prologue);
  void blocks(const ActRows& x, const DeviceMatrix& w, const ProductOutput& out);
  void f32(const ActRows& x, const DeviceMatrix& w, const ProductOutput& out);
  // x as f32, w as rows of `dtype`, in scratch memory.
  ActRows widened(const ActRows& x);
  DeviceMatrix dequantized(const DeviceMatrix& w, DType dtype);

  std::shared_ptr<DeviceState> device_;
  Scratch gemm_, gemv_, widened_, weights_;
};

}  // namespace lapidary::cuda
