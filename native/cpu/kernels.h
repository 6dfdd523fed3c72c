// The single-thread kernels of the CPU backend as a table of functions, one table per instruction set. Plain pointers and
// sizes only: threads, tensors and checks stay in backend.cc.
//
// Every table gives the same bits (docs/numerics.md). kernels_impl.h and its parts are the one source of all tables, written
// in terms of V, sixteen f32 lanes, which simd_scalar.h, simd_avx2.h and simd_avx512.h define; each kernels_*.cc includes one
// simd header and is compiled with that instruction set's flags. Hazard: an inline function with external linkage, when
// called there, may be merged by the linker into the code of older processors. So everything those files call has internal
// linkage or lives in a C library: no std:: templates, no inline helpers of base/ or tensor/.
#pragma once

#include <cstddef>
#include <cstdint>

#include "tensor/dtype.h"

namespace lapidary::cpu {

// Weight rows that one call of `linear` takes at most, and activation rows. Callers split larger work.
inline constexpr int64_t kLinearRows = 32;
inline constexpr int64_t kLinearTokens = 64;

// out[t, n] = x[t] · w[n] for t in [0, tokens).
struct LinearTask {
  const float* x;  // [tokens, k], rows x_stride floats apart
  int64_t tokens, x_stride;
  const void* weight;  // row n at n * row_bytes, `dtype`, unaligned
  int64_t row_bytes;
  DType dtype;
  int64_t k;
  float* out;  // [tokens, ...], rows out_stride floats apart
  int64_t out_stride;
};

// Keys are visited in partitions of kPartitionKeys, aligned to absolute positions; each has its own online softmax, and the
// partitions' states are merged in increasing order. So a result depends on the query's position and window alone, and long
// contexts can be shared among threads.
inline constexpr int64_t kPartitionKeys = 512;

// Queries of `rows` consecutive tokens and of the `group` heads that share one KV head: query i is row i / group, head i % group.
struct AttentionTile {
  const float* q;  // first row, first head of the group; rows q_stride floats apart, heads head_dim apart
  int64_t q_stride;
  int64_t rows, group, head_dim;
  int64_t first_pos;   // absolute position of row 0
  void* const* pages;  // see KvView
  int64_t num_pages;
  bool kv_bf16;
  int64_t kv_head, num_kv_heads;
  float scale, softcap;
  int64_t window;
};

// Softmax state of a tile's queries over some of their keys; sum is 0 where a query saw none, and at least 1 elsewhere.
struct AttentionState {
  float* max;  // [queries]
  float* sum;  // [queries]
  float* out;  // [queries, padded head_dim], not yet divided by sum
};

static constexpr int64_t padded(int64_t elements) { return (elements + 15) / 16 * 16; }
static constexpr int64_t attention_state_floats(int64_t queries, int64_t head_dim) { return queries * (padded(head_dim) + 2); }

struct Kernels {
  const char* name;

  // Exact widening of n weights (whole blocks) to f32.
  void (*widen)(DType dtype, const void* src, int64_t n, float* dst);
  void (*round_to_bf16)(const float* src, int64_t n, void* dst);

  // Rows [n0, n1) of the weight, at most kLinearRows; at most kLinearTokens tokens.
  void (*linear)(const LinearTask& task, int64_t n0, int64_t n1, float* scratch);
  size_t (*linear_scratch_floats)(int64_t tokens, int64_t k);

  void (*rms_norm)(const float* x, const float* weight, float offset, float eps, int64_t dim, void* out, bool out_bf16);
  void (*scale)(float* x, float factor, int64_t n);
  void (*add)(float* x, const float* y, int64_t n);
  void (*soft_cap)(float* x, float cap, int64_t n);
  void (*geglu)(const float* gate, const float* up, int64_t n, void* out, bool out_bf16);
  void (*rope)(float* x, const float* cos, const float* sin, int64_t heads, int64_t half);  // x [heads, 2 * half]

  // Partitions [p0, p1) of the tile's keys -> state.
  void (*attend)(const AttentionTile& tile, int64_t p0, int64_t p1, const AttentionState& state, float* scratch);
  size_t (*attend_scratch_floats)(int64_t queries, int64_t head_dim);
  // total = total merged with the state of later keys.
  void (*merge)(const AttentionState& total, const AttentionState& later, int64_t queries, int64_t head_dim);
  // out / sum of query (row, head) -> out + row * out_stride + head * head_dim elements, f32 or bf16.
  void (*finish)(const AttentionTile& tile, const AttentionState& state, void* out, int64_t out_stride, bool out_bf16);
};

extern const Kernels kScalarKernels;
extern const Kernels kAvx2Kernels;
extern const Kernels kAvx512Kernels;

// The table of the instruction set in use; see cpu_instruction_set.
const Kernels& select_kernels();

}  // namespace lapidary::cpu
