// Matrix products y = x · wᵀ: what the tiled (gemm_*) and skinny (gemv_*) launchers take. Weights are stored once, row-major, for both.
// of them.
#pragma once

#include "cuda/api/status.h"

namespace lapidary::cuda {

// bf16 products: k is cut in slices of this many elements, from k = 0. Within a slice one f32 chain of mma steps in rising k, started at 0;
// the slices' sums are added in rising order. So the bits of an output element depend on its row of x and its row of w alone.
inline constexpr int kBf16SliceK = 512;
// Gate and up are one stacked weight [2 * ffn, k] whose rows alternate in blocks of 8: g0-7, u0-7, g8-15, u8-15, ...
inline constexpr int kGegluBlock = 8;

enum class OutType : int32_t { f32, bf16, int8, int32 };

enum class Epilogue : int32_t {
  store,  // out[r][c] = y[r][c]: f32 or bf16
  add,    // out[r][c] = residual[r][c] + y[r][c]: f32
  geglu,  // out[r][c] = gelu_tanh(gate c) * (up c), c < n / 2: f32, bf16 or int8; n a multiple of 16
  raw,    // out[r][c] = the int32 sums of an int8 product
};

// What becomes of the product y [m, n]. int8 out: q = to_int8(v * inverse_scale).
struct ProductOutput {
  void* out = nullptr;              // out_type [m, n] (geglu [m, n / 2]), aligned to its element
  const float* residual = nullptr;  // f32 [m, n], for `add`; may be `out`
  int64_t stride = 0;               // of out, in elements
  int64_t residual_stride = 0;      // in elements
  float inverse_scale = 1;
  Epilogue epilogue = Epilogue::store;
  OutType out_type = OutType::f32;
};

// y[r][c] = float(sum over k of x[r][k] * w[c][k]) * (sx[r] * w_scales[c]).
struct Int8Product {
  const int8_t* x = nullptr;           // int8 [m, k], rows x_stride bytes apart
  const int8_t* w = nullptr;           // int8 [n, k], rows w_stride bytes apart
  const float* x_scales = nullptr;     // f32 [m]; null: x_scale for every row
  const float* w_scales = nullptr;     // f32 [n], 8-byte aligned
  int64_t x_stride = 0, w_stride = 0;  // bytes, multiples of 16, as the addresses of x and w
  float x_scale = 1;
  int32_t m = 0, n = 0, k = 0;  // k a multiple of 16
  ProductOutput output;
};

struct Bf16Product {
  const uint16_t* x = nullptr;         // bf16 [m, k], rows x_stride bytes apart
  const uint16_t* w = nullptr;         // bf16 [n, k], rows w_stride bytes apart
  int64_t x_stride = 0, w_stride = 0;  // bytes, multiples of 16, as the addresses of x and w
  int32_t m = 0, n = 0, k = 0;         // k a multiple of 8
  ProductOutput output;
};

enum class WeightType : int32_t { f32, bf16, f16 };

// f32 products: slices of k as in bf16 products; within a slice one chain of fused multiply-adds in rising k. Weights are widened exactly.
struct F32Product {
  const float* x = nullptr;            // f32 [m, k], rows x_stride bytes apart
  const void* w = nullptr;             // w_type [n, k], rows w_stride bytes apart
  int64_t x_stride = 0, w_stride = 0;  // bytes, multiples of the element
  int32_t m = 0, n = 0, k = 0;
  WeightType w_type = WeightType::f32;
  ProductOutput output;
};

// How a tiled product runs. The plan_* functions of gemm_plan.h choose one; a test or a bench may make its own.
struct GemmPlan {
  int32_t tile = -1;     // index in the path's table of tiles; -1: the launcher chooses everything
  int32_t blocks = 0;    // of the grid
  int32_t split = 0;     // 1: blocks own equal ranges of k of all tiles (stream-k); wants workspace
  int32_t group_m = 8;   // rows of tiles that are walked together
  int32_t cluster = 1;   // blocks that share weights by multicast: 1 or 2 (wgmma, not split); divides blocks
  int32_t wgmma = 0;     // 1: the sm_90a kernels and their table; 0: mma.sync
  const char* why = "";  // the choice in words
};

struct GemmInt8Params {
  Int8Product product;
  GemmPlan plan;
  void* workspace = nullptr;  // gemm_int8_workspace_bytes() bytes, 256-byte aligned, zero at first use; null: never split
  int64_t workspace_bytes = 0;
};

struct GemmBf16Params {
  Bf16Product product;
  GemmPlan plan;
  void* workspace = nullptr;  // gemm_bf16_workspace_bytes() bytes, as above
  int64_t workspace_bytes = 0;
};

struct GemmF32Params {
  F32Product product;
  GemmPlan plan;
  void* workspace = nullptr;  // gemm_f32_workspace_bytes() bytes, as above
  int64_t workspace_bytes = 0;
};

}  // namespace lapidary::cuda
