// Every launcher, one line each: name, params. A launcher checks its problem again and refuses what supports_<name> refuses.
#pragma once

#include "cuda/api/attention_decode.h"
#include "cuda/api/attention_prefill.h"
#include "cuda/api/blocks.h"
#include "cuda/api/gemm_plan.h"
#include "cuda/api/gemm_qkv.h"
#include "cuda/api/gemv.h"
#include "cuda/api/kv_pages.h"
#include "cuda/api/probe.h"
#include "cuda/api/qk_rope_append.h"
#include "cuda/api/rows.h"
#include "cuda/api/sampling.h"
#include "cuda/api/sparse_weight.h"

#define LAPIDARY_LAUNCHERS(X)                  \
  X(attention_prefill, AttentionPrefillParams) \
  X(attention_full, AttentionFullParams)       \
  X(attention_f32, AttentionF32Params)         \
  X(gemv_int8, GemvInt8Params)                 \
  X(gemv_bf16, GemvBf16Params)                 \
  X(gemv_planes, GemvPlanesParams)             \
  X(gemv_blocks, GemvBlocksParams)             \
  X(dequantize_blocks, DequantizeBlocksParams) \
  X(embed, EmbedParams)                        \
  X(gemm_int8, GemmInt8Params)                 \
  X(gemm_bf16, GemmBf16Params)                 \
  X(gemm_f32, GemmF32Params)                   \
  X(gemm_int8_qkv, GemmInt8QkvParams)          \
  X(gemm_sparse_int8, GemmSparseInt8Params)    \
  X(memory_probe, MemoryProbeParams)           \
  X(matrix_probe, MatrixProbeParams)           \
  X(rms_norm, RmsNormParams)                   \
  X(add_norm, AddNormParams)                   \
  X(geglu, GegluParams)                        \
  X(quantize, QuantizeParams)                  \
  X(row_absmax, RowAbsmaxParams)               \
  X(sequence_scales, SequenceScalesParams)     \
  X(add, AddParams)                            \
  X(soft_cap, SoftCapParams)                   \
  X(fill, FillParams)                          \
  X(gather_rows, GatherRowsParams)             \
  X(rope_angles, RopeAnglesParams)             \
  X(copy_pages, CopyPagesParams)               \
  X(zero_pages, ZeroPagesParams)               \
  X(kv_export, KvRowsParams)                   \
  X(kv_import, KvRowsParams)                   \
  X(sample, SampleParams)                      \
  X(rope, RopeParams)                          \
  X(qk_rope_append, QkRopeAppendParams)        \
  X(append_kv, AppendKvParams)                 \
  X(attention_decode, AttentionDecodeParams)

namespace lapidary::cuda {
#define LAPIDARY_DECLARE(name, Params) Status name(const Params& params, const LaunchContext& context);
LAPIDARY_LAUNCHERS(LAPIDARY_DECLARE)
#undef LAPIDARY_DECLARE
}  // namespace lapidary::cuda
