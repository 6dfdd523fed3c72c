// The single-thread kernels of the CPU backend as a table of functions, one table per instruction set. Plain pointers and
// sizes only: threads, tensors and checks stay in backend.cc.
//
// Every table gives the same bits (docs/numerics.md). kernels/impl.h and its parts are the one source of all tables, written
// in terms of V, sixteen f32 lanes, which simd/scalar.h, simd/avx2.h and simd/avx512.h define, and of I, int32 lanes, which
// simd/int_avx2.h and simd/int_avx512.h define for the int8 products; each kernels/*.cc includes its simd headers and is compiled
// with that instruction set's flags. Hazard: an inline function with external linkage, when called there, may be merged by the
// linker into the code of older processors. So everything those files call has internal linkage or lives in a C library: no std::
// templates, no inline helpers of base/ or tensor/.
#pragma once

#include <cstddef>
#include <cstdint>

#include "cpu/training_kernels.h"
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

// What a product does to a row of its input.
struct InputRule {
  float fixed_scale = 0;       // int8 inputs: > 0, the scale; 0: taken from the row
  bool round_to_bf16 = false;  // inputs that stay f32: rounded first, as bf16 precision wants it
};

// out[t, n] = x[t] · w[n] (i8: times the scales) over panels of packed weights.
struct PackedTask {
  const std::byte* input;  // [tokens] rows made by `prepare`, input_bytes(k) apart
  int64_t tokens;
  const std::byte* panels;  // of the whole weight, panel_bytes apart
  int64_t panel_bytes;
  int64_t n, k;           // of the whole weight; rows beyond n are not stored
  const float* w_scales;  // int8 inputs: [n]
  float* out;             // row i of the weight goes to out[t * out_stride + i - out_first]; panels write their own columns alone
  int64_t out_stride, out_first;
  // Memory that the caller reads next, which a kernel of many tokens may ask for meanwhile; null: what follows the panels.
  const std::byte* ahead = nullptr;
  int64_t ahead_bytes = 0;
};

// One way to multiply packed weights of one type with inputs of one form. See packed_layout.h for the panels.
struct PackedKernel {
  DType weight;
  DType input;                        // i8: quantised by the int8 rule; bf16: for inputs that are bf16; f32: any input as it is
  int64_t unit_panels;                // work is best cut at multiples of these
  int64_t (*input_bytes)(int64_t k);  // of one prepared row; a multiple of 64
  void (*prepare)(const float* x, int64_t k, const InputRule& rule, std::byte* row);
  // i8 inputs: a row that is quantised already.
  void (*prepare_quantized)(const int8_t* q, float scale, int64_t k, std::byte* row);
  // Panels [p0, p1), all tokens. Scratch: scratch_floats(tokens, k).
  void (*multiply)(const PackedTask& task, int64_t p0, int64_t p1, float* scratch);
  size_t (*scratch_floats)(int64_t tokens, int64_t k);
  int64_t single_tokens = 0;  // up to so many tokens, panels pass one by one: work may be cut anywhere
  // Blocks beside bf16 inputs: a panel [16, k], of which `rows` rows are there (more count as all), as the int8 panel of numbers that are
  // the rows' values by the int8 rule, scales [rows].
  void (*to_int8)(const std::byte* panel, int64_t k, const float* scales, int64_t rows, std::byte* int8_panel) = nullptr;
};

// A table's packed kernels: the first that fits is taken.
struct PackedKernels {
  const PackedKernel* const* list = nullptr;
  int count = 0;
};

// Keys are visited in partitions of kPartitionKeys, aligned to absolute positions; each has its own online softmax, and the
// partitions' states are merged in increasing order. So a result depends on the query's position and window alone, and long
// contexts can be shared among threads.
inline constexpr int64_t kPartitionKeys = 256;

// The keys that a query sees: positions [begin, end), not empty; or slots of a prefix, of which end is the count.
struct KeySpan {
  int64_t begin, end;
};

// Queries of `rows` consecutive tokens and of the `group` heads that share one KV head: query i is row i / group, head i % group.
struct AttentionTile {
  const float* q;  // first row, first head of the group; rows q_stride floats apart, heads head_dim apart
  int64_t q_stride;
  int64_t rows, group, head_dim;
  const KeySpan* visible;  // [rows]
  DType dtype;             // of keys and values: f32, bf16 or, in pages, i8
  void* const* pages;      // see KvView; null: a prefix, whose keys and values are [num_kv_heads, visible[0].end, head_dim]
  int64_t num_pages;
  const void *prefix_k, *prefix_v;
  int64_t kv_head, num_kv_heads;
  float scale, softcap;
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
enum class Feature { none, avx_vnni, avx512_vnni, avx512_bf16, amx };

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
  // Of the angles position * inv_freq[j], f32.
  void (*rope_angles)(float position, const float* inv_freq, int64_t half, float* cos, float* sin);

  // The passes of SamplingLoops over part of a vocabulary that begins at a block.
  bool (*block_maxima)(const float* x, int64_t n, int64_t block, float* maxima);
  void (*block_units)(const float* x, int64_t n, int64_t block, float low, float top, float temperature, float unit, uint64_t* sums);
  void (*bucket_units)(const float* x, int64_t n, float top, float temperature, float unit, uint64_t* buckets);
  int64_t (*find_between)(const float* x, int64_t n, float low, float high, int32_t* indices);

  // Partitions [p0, p1) of the tile's keys -> state; not fresh: merged into what it holds, each in turn.
  void (*attend)(const AttentionTile& tile, int64_t p0, int64_t p1, bool fresh, const AttentionState& state, float* scratch);
  size_t (*attend_scratch_floats)(int64_t queries, int64_t head_dim);
  // total = total merged with the state of later keys.
  void (*merge)(const AttentionState& total, const AttentionState& later, int64_t queries, int64_t head_dim);
  // out / sum of query (row, head) -> out + row * out_stride + head * head_dim elements, f32 or bf16.
  void (*finish)(const AttentionTile& tile, const AttentionState& state, void* out, int64_t out_stride, bool out_bf16);

  Probes probes;
  PackedKernels packed[4];  // looked through in order: an instruction set's own come before those it shares
  TrainingKernels training;
};

// Null: none.
const PackedKernel* find_packed(const Kernels& kernels, DType weight, DType input);

extern const Kernels kScalarKernels;
extern const Kernels kAvx2Kernels;
extern const Kernels kAvx512Kernels;
extern const PackedKernels kAvx512VnniPacked;
extern const PackedKernels kAvx512Bf16Packed;
extern const PackedKernels kAmxPacked;  // for a processor that has AVX-512 VNNI
extern const ProbeLoop kAmxInt8Probe, kAmxBf16Probe;
extern const PackedKernels kAvxVnniPacked;  // for a processor that has kAvx2Kernels

// The table of the instruction set in use; see cpu_instruction_set.
const Kernels& select_kernels();
// Whether this processor has it.
bool has_feature(Feature feature);

}  // namespace lapidary::cpu
