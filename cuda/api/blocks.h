// GGUF blocks in device memory as they stand in the file: widening them, products for few rows straight from them, and rows of an embedding
// table of any kind. Rows are whole blocks, one after another; memory starts on 16 bytes.
#pragma once

#include "cuda/api/block_planes.h"
#include "cuda/api/gemm.h"
#include "cuda/api/rows.h"

namespace lapidary::cuda {

// Elements that a thread widens at a time: rows are multiples of it.
inline constexpr int kBlockGroup = 8;

// f32, bf16, f16 and every block kind.
inline bool is_weight_type(DType t) { return t == DType::f32 || t == DType::bf16 || t == DType::f16 || is_block_type(t); }

// out = the values of the blocks, bit-equal to dequantize_row of native/tensor/blocks.h (bf16: rounded to nearest even).
struct DequantizeBlocksParams {
  const void* blocks = nullptr;       // dtype [n, k]; with `planes`: block_planes.h
  void* out = nullptr;                // out_type [n, k], rows out_stride elements apart, 16-byte aligned
  DType dtype = DType::q8_0;          // f32, bf16, f16, i8 or a block kind
  OutType out_type = OutType::f32;    // f32 or bf16
  int64_t out_stride = 0;             // a multiple of 8
  int64_t n = 0, k = 0;               // k a multiple of 8 and of the block
  bool planes = false;                // q8_0 or q4_0 as planes
  const float* row_scales = nullptr;  // f32 [n], of i8 rows
};

// y = x · dequantised wᵀ in f32 by fused multiply-adds, any number of rows of x; w is read once for every 8 of them.
// Order of a sum: lane l of 32 takes elements 8l .. 8l + 7 of every 256 in rising order; the lanes are added by a butterfly.
struct GemvBlocksParams {
  const void* x = nullptr;        // x_type [m, k], rows x_stride elements apart, 16-byte aligned
  const void* w = nullptr;        // dtype [n, k]
  ActType x_type = ActType::f32;  // f32 or bf16
  DType dtype = DType::q8_0;
  int64_t x_stride = 0;         // a multiple of 8
  int32_t m = 0, n = 0, k = 0;  // k as above
  ProductOutput output;
};

// out[t] = table[ids[t]] * scale.
struct EmbedParams {
  const int32_t* ids = nullptr;       // [rows], each in [0, vocab)
  const void* table = nullptr;        // dtype [vocab, dim]; with `planes`: block_planes.h
  const float* row_scales = nullptr;  // f32 [vocab], of an i8 table
  float* out = nullptr;               // f32 [rows, dim], 16-byte aligned
  DType dtype = DType::f32;           // f32, bf16, f16, i8 or a block kind
  bool planes = false;                // q8_0 or q4_0 as planes
  int64_t row_bytes = 0;              // between rows of the table: a multiple of 16 for f32, bf16, f16 and i8; not used otherwise
  int64_t vocab = 0;
  int32_t rows = 0, dim = 0;  // dim a multiple of 8 and of the block
  float scale = 1;
};

namespace detail {

inline const char* why_not_blocks(DType t, int64_t k) {
  if (!is_weight_type(t)) return "the dtype is no float or block type";
  if (k < 1 || k % kBlockGroup != 0) return "k must be a positive multiple of 8";
  const int64_t block = !is_block_type(t) ? 1 : t >= DType::q2_k ? 256 : 32;
  return k % block == 0 ? nullptr : "k must be whole blocks";
}
inline const char* why_not_table(DType t, bool planes, const float* row_scales, int64_t k) {
  if (planes && t != DType::q8_0 && t != DType::q4_0) return "planes are q8_0 or q4_0";
  if (t != DType::i8) return why_not_blocks(t, k);
  if (k < 1 || k % kBlockGroup != 0) return "k must be a positive multiple of 8";
  return row_scales ? nullptr : "i8 rows need row_scales";
}
inline bool starts_on_16(const void* p) { return p && reinterpret_cast<intptr_t>(p) % 16 == 0; }

}  // namespace detail

inline const char* why_not_dequantize_blocks(const DequantizeBlocksParams& p) {
  if (const char* why = detail::why_not_table(p.dtype, p.planes, p.row_scales, p.k)) return why;
  if (p.out_type != OutType::f32 && p.out_type != OutType::bf16) return "out must be f32 or bf16";
  if (p.n < 0) return "n must not be negative";
  if (p.n * p.k / kBlockGroup > int64_t{0x7fffffff} * 256) return "n * k is too large";
  return detail::starts_on_16(p.blocks) && detail::starts_on_16(p.out) && p.out_stride % 8 == 0
             ? nullptr
             : "blocks and rows of out must start on 16 bytes";
}
inline const char* why_not_gemv_blocks(const GemvBlocksParams& p) {
  if (const char* why = detail::why_not_blocks(p.dtype, p.k)) return why;
  if (p.m < 1 || p.n < 1 || p.m > 8 * 65535) return "m must be 1 to 524280 and n positive";
  if (p.x_type == ActType::int8) return "x must be f32 or bf16";
  if (!detail::starts_on_16(p.x) || !detail::starts_on_16(p.w) || p.x_stride % 8 != 0) return "w and rows of x must start on 16 bytes";
  if (!p.output.out) return "out is null";
  const ProductOutput& o = p.output;
  if (o.epilogue == Epilogue::raw || o.out_type == OutType::int32) return "raw sums exist for int8 products alone";
  if (o.epilogue == Epilogue::add && (!o.residual || o.out_type != OutType::f32)) return "add needs a residual and writes f32";
  if (o.epilogue == Epilogue::geglu && p.n % 16 != 0) return "geglu needs n a multiple of 16: gate and up alternate in blocks of 8 rows";
  if (o.out_type == OutType::int8 && (o.epilogue != Epilogue::geglu || !(o.inverse_scale > 0)))
    return "int8 output is geglu's and needs an inverse_scale above 0";
  return nullptr;
}
inline const char* why_not_embed(const EmbedParams& p) {
  if (const char* why = detail::why_not_table(p.dtype, p.planes, p.row_scales, p.dim)) return why;
  if (!is_block_type(p.dtype) && p.row_bytes % 16 != 0) return "rows of the table must start on 16 bytes";
  if (p.rows < 0) return "rows must not be negative";
  return detail::starts_on_16(p.table) && detail::starts_on_16(p.out) ? nullptr : "table and out must start on 16 bytes";
}

inline bool supports_dequantize_blocks(const DequantizeBlocksParams& p, const DeviceFacts&) {
  return why_not_dequantize_blocks(p) == nullptr;
}
inline bool supports_gemv_blocks(const GemvBlocksParams& p, const DeviceFacts&) { return why_not_gemv_blocks(p) == nullptr; }
inline bool supports_embed(const EmbedParams& p, const DeviceFacts&) { return why_not_embed(p) == nullptr; }

}  // namespace lapidary::cuda
