// The stacked int8 q, k, v product whose epilogue goes on to attention's inputs: QK-norm, RoPE, rounding, append to the cache.
#pragma once

#include "cuda/api/gemm_plan.h"
#include "cuda/api/qk_rope_append.h"

namespace lapidary::cuda {

// Bits as of gemm_int8 to f32 followed by qk_rope_append.
struct GemmInt8QkvParams {
  Int8Product product;       // w: rows of q, then k, then v: n = (num_heads + 2 * num_kv_heads) * head_dim; output is not used
  QkRopeAppendParams heads;  // rows.q, k, v and their strides are not used; tokens = m
  GemmPlan plan;             // tile 0 of the path, never split; tile -1: chosen
};

// A tile owns whole heads: 256 columns are four, two or one.
inline constexpr MmaTile kQkvMmaTile = {64, 256, 64, 32, 64, 3, 1, 70, false};
inline constexpr WgmmaTile kQkvWgmmaTile = {128, 256, 3, 1, 95};
// Floats of a row of heads in shared memory: padded by 8, so that the eight rows of a fragment store to different banks.
inline constexpr int kQkvRowFloats = 256 + 8;
// Behind the stages of the wgmma kernel: eight rows for each of its eight consumer warps.
inline constexpr int64_t kQkvStagingBytes = int64_t{8} * 8 * kQkvRowFloats * 4;

inline const char* refuse_gemm_int8_qkv(const GemmInt8QkvParams& params) {
  const Int8Product& p = params.product;
  const QkRopeAppendParams& h = params.heads;
  if (const char* why = refuse_operands(p.x, p.w, p.x_stride, p.w_stride, p.m, p.n, p.k)) return why;
  if (p.k > kMaxInt8K) return "int32 sums could overflow";
  if (p.w_scales == nullptr || reinterpret_cast<uintptr_t>(p.w_scales) % 8 != 0)
    return "weight scales are missing or not aligned to 8 bytes";
  if (h.head_dim != 64 && h.head_dim != 128 && h.head_dim != 256) return "a tile of 256 columns owns whole heads of 64, 128 or 256";
  if (h.num_heads <= 0 || h.num_kv_heads <= 0 || p.n != (h.num_heads + 2 * h.num_kv_heads) * h.head_dim)
    return "n is not the heads of q, k and v";
  if (h.tokens != p.m || h.num_sequences < 0) return "tokens are the rows of x";
  if (h.kv_type != KvType::bf16 && h.kv_type != KvType::int8) return "the cache is bf16 or int8";
  if (h.q_out == nullptr || h.sequences == nullptr) return "no q_out, or no sequences";
  if (h.q_type == ActType::int8) return "q is written as f32 or bf16";
  if (!h.rows.cos != !h.rows.sin || !h.rows.prefix_cos != !h.rows.prefix_sin) return "cos and sin come together";
  if (h.q_prefix_out != nullptr && h.rows.prefix_cos == nullptr) return "q_prefix_out needs prefix_cos and prefix_sin";
  uintptr_t bits = 0;
  for (const void* pointer :
       {static_cast<const void*>(h.rows.q_norm.weight), static_cast<const void*>(h.rows.k_norm.weight),
        static_cast<const void*>(h.rows.cos), static_cast<const void*>(h.rows.sin), static_cast<const void*>(h.rows.prefix_cos),
        static_cast<const void*>(h.rows.prefix_sin), static_cast<const void*>(h.q_out), static_cast<const void*>(h.q_prefix_out)}) {
    bits |= reinterpret_cast<uintptr_t>(pointer);
  }
  return bits % 16 == 0 ? nullptr : "norms, angles and queries start on 16 bytes";
}
inline bool supports_gemm_int8_qkv(const GemmInt8QkvParams& p, const DeviceFacts& device) {
  return refuse_gemm_device(device) == nullptr && refuse_gemm_int8_qkv(p) == nullptr;
}

inline GemmPlan plan_gemm_int8_qkv(const Int8Product& p, const DeviceFacts& device) {
  constexpr PlanWords kMma = {"mma.sync, a tile owns whole heads", "", ""};
  constexpr PlanWords kWgmma = {"wgmma, a tile owns whole heads", "", "wgmma, a tile owns whole heads, weights shared by pairs of blocks"};
  return device.has_wgmma() ? plan_tiles(&kQkvWgmmaTile, 1, p.m, p.n, p.k, false, device, false, kWgmma)
                            : plan_tiles(&kQkvMmaTile, 1, p.m, p.n, p.k, false, device, false, kMma);
}

}  // namespace lapidary::cuda
