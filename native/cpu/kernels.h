// The single-thread kernels of the CPU backend as a table of functions, one table per instruction set. Plain pointers and
// sizes only: threads, tensors and checks stay in backend.cc.
//
// Every table gives the same bits (docs/numerics.md). kernels_impl.h and its parts are the one source of all tables, written
// in terms of V, sixteen f32 lanes, which simd_scalar.h, simd_avx2.h and simd_avx512.h define, and of I, int32 lanes, which
// simd_int_avx2.h and simd_int_avx512.h define for the int8 products; each kernels_*.cc includes its simd headers and is compiled
// with that instruction set's flags. Hazard: an inline function with external linkage, when called there, may be merged by the
// linker into the code of older processors. So everything those files call has internal linkage or lives in a C library: no std::
// templates, no inline helpers of base/ or tensor/.
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

// out[t, n] = float(x[t] · w[n]) * (x_scales[t] * w_scales[n]), the product of two int8 rows exact in int32 (so k < 2^17).
struct Int8Task {
  const void* x;             // [tokens] rows that `prepare` made, row_bytes apart
  const int32_t* x_offsets;  // [tokens] what `prepare` returned for each
  const float* x_scales;     // [tokens]
  int64_t tokens;
  const int8_t* weight;   // [n, k], unaligned
  const float* w_scales;  // [n]
  int64_t k;
  float* out;  // [tokens, ...], rows out_stride floats apart
  int64_t out_stride;
};

struct Int8Kernels {
  // The form in which `multiply` reads an input row of k numbers, and its bytes.
  int64_t (*row_bytes)(int64_t k);
  int32_t (*prepare)(const int8_t* q, int64_t k, void* row);

  // Weight rows [n0, n1). More than direct_tokens tokens: the rows are first rearranged, panel_rows at a time, so work is best cut
  // at multiples of panel_rows and into many tokens. Fewer: the rows are read where they are.
  int64_t direct_tokens, panel_rows;
  void (*multiply)(const Int8Task& task, int64_t n0, int64_t n1, float* scratch);
  size_t (*scratch_floats)(int64_t tokens, int64_t k);
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

// What a loop needs beyond its table's instruction set.
enum class Feature { none, avx_vnni, avx512_vnni, avx512_bf16 };

// The data of a ProbeLoop: kProbeBytes of numbers of its type, which stay in the first-level cache, and as many zero bytes behind them,
// whose value the compiler must not know.
inline constexpr int64_t kProbeBytes = 4096;

// A loop of nothing but one kind of multiplication and addition on independent sums.
struct ProbeLoop {
  Feature needs;
  DType dtype;         // f32, i8 or bf16
  int64_t operations;  // of one round, a multiplication and an addition being two
  // The total of all products: with ones for numbers, half the operations done.
  double (*run)(const void* data, int64_t rounds);
};

// The loops that measure the roofline, see probe.h.
struct Probes {
  double (*read)(const float* p, int64_t n);  // the sum of n f32, n a multiple of 64
  ProbeLoop f32;
  ProbeLoop int8[2];  // the best first; run may be null
  ProbeLoop bf16;     // run may be null
};

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
  // Both follow ops/int8.h: the largest |x|, NaN passed over; q = to_int8(x * inverse).
  float (*absolute_max)(const float* x, int64_t n);
  void (*quantize_int8)(const float* x, int64_t n, float inverse, int8_t* q);
  void (*geglu)(const float* gate, const float* up, int64_t n, void* out, bool out_bf16);
  void (*rope)(float* x, const float* cos, const float* sin, int64_t heads, int64_t half);  // x [heads, 2 * half]

  // Partitions [p0, p1) of the tile's keys -> state.
  void (*attend)(const AttentionTile& tile, int64_t p0, int64_t p1, const AttentionState& state, float* scratch);
  size_t (*attend_scratch_floats)(int64_t queries, int64_t head_dim);
  // total = total merged with the state of later keys.
  void (*merge)(const AttentionState& total, const AttentionState& later, int64_t queries, int64_t head_dim);
  // out / sum of query (row, head) -> out + row * out_stride + head * head_dim elements, f32 or bf16.
  void (*finish)(const AttentionTile& tile, const AttentionState& state, void* out, int64_t out_stride, bool out_bf16);

  Probes probes;
  Int8Kernels int8;
};

extern const Kernels kScalarKernels;
extern const Kernels kAvx2Kernels;
extern const Kernels kAvx512Kernels;
extern const Int8Kernels kAvx512VnniInt8;  // takes the place of kAvx512Kernels.int8

// The table of the instruction set in use; see cpu_instruction_set.
const Kernels& select_kernels();
// Whether this processor has it.
bool has_feature(Feature feature);

}  // namespace lapidary::cpu
