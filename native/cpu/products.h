// Matrix products with weights: which kernel, how the input is prepared, how the work is cut for the pool. Packed weights
// (packed.h) go through their kernels here, and so do weights that become int8 panels unit by unit on the way: int8 rows that callers bring
// along, blocks beside int8 inputs. Other plain rows go through plain_products.cc.
#pragma once

#include <algorithm>
#include <initializer_list>
#include <vector>

#include "base/thread_pool.h"
#include "cpu/kernels.h"
#include "cpu/packed.h"
#include "cpu/scratch.h"
#include "ops/int8.h"
#include "ops/ops.h"

namespace lapidary::cpu {

// Work, in multiply-adds or their like, below which a second thread costs more than it brings.
inline constexpr int64_t kWorthAThread = 64 * 1024;

// fn(i) for i in [0, n), each of about `work` multiply-adds.
template <typename Fn>
void for_each(ThreadPool& pool, int64_t n, int64_t work, const Fn& fn) {
  pool.parallel_for(n, kWorthAThread / std::max<int64_t>(work, 1) + 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) fn(i);
  });
}

inline bool is_act(const Tensor& t) { return t.dtype == DType::f32 || t.dtype == DType::bf16; }

struct Projection {
  const Linear& weight;
  const Tensor& out;  // f32 [tokens, weight.out()]
};

// Whether its inputs become int8, as far as that does not depend on their rows (for_rows).
bool quantizes_input(const Linear& w);

// The kernel for a packed weight whose inputs are of type `act` (f32 or bf16) before they are quantised. Null: the weight is plain, or
// must stay so.
const PackedKernel* kernel_for(const Kernels& kernels, const Linear& w, DType act);

// The input of products, in the form that one kernel reads; in memory of the calling thread, until its next product.
struct PreparedInput {
  const PackedKernel* kernel;
  const std::byte* rows;
  int64_t tokens, k;
};

// row(t, scratch) gives row t as f32 [k], in `scratch` [k] or elsewhere; called on any thread, once per row, about `work` multiply-adds
// each.
template <typename Row>
PreparedInput prepare_input(ThreadPool& pool, const PackedKernel& kernel, const InputRule& rule, int64_t tokens, int64_t k, int64_t work,
                            const Row& row) {
  const int64_t bytes = kernel.input_bytes(k);
  std::byte* rows = reinterpret_cast<std::byte*>(thread_scratch(ScratchUse::input, static_cast<size_t>(tokens * bytes + 3) / 4));
  for_each(pool, tokens, 2 * k + work, [&](int64_t t) {
    float* scratch = thread_scratch(ScratchUse::kernel, static_cast<size_t>(k));
    kernel.prepare(row(t, scratch), k, rule, rows + t * bytes);
  });
  return {&kernel, rows, tokens, k};
}

// The int8 scale for all rows of one sequence; `row` as for prepare_input.
template <typename Row>
float shared_scale(const Kernels& kernels, ThreadPool& pool, int64_t tokens, int64_t k, const Row& row) {
  std::vector<float> most(static_cast<size_t>(tokens));
  for_each(pool, tokens, k, [&](int64_t t) {
    most[static_cast<size_t>(t)] = kernels.absolute_max(row(t, thread_scratch(ScratchUse::kernel, static_cast<size_t>(k))), k);
  });
  return int8_scale(absolute_max(most.data(), tokens));
}

// Rows that are quantised already: x i8 [tokens, k], scales f32 [tokens].
PreparedInput prepare_quantized_input(ThreadPool& pool, const PackedKernel& kernel, const Tensor& x, const Tensor& scales);

InputRule input_rule(const Linear& w, DType act);

// Whether `multiply` takes it: packed, or plain int8 rows that are packed on the way.
inline bool goes_by_panels(const Linear& w) { return w.packed || w.weight.dtype == DType::i8; }

// Whether one prepared input serves both weights.
bool same_input(const Kernels& kernels, const Linear& a, const Linear& b, DType act);

// Each out = input · weightᵀ; all weights go by panels, and are of the input's kernel: of its type, or blocks that become int8 on the way.
void multiply(const Kernels& kernels, ThreadPool& pool, const PreparedInput& input, std::initializer_list<Projection> projections);

// out = gelu_tanh(input · gateᵀ) * (input · upᵀ), f32 or bf16 [tokens, ffn], without a trip of either product through memory.
void multiply_gated(const Kernels& kernels, ThreadPool& pool, const PreparedInput& input, const Linear& gate, const Linear& up,
                    const Tensor& out);

// Plain rows.
void multiply_plain(const Kernels& kernels, ThreadPool& pool, const Tensor& x, std::initializer_list<Projection> projections);
// x act [rows, dim] -> q i8 [rows, dim], scales f32 [rows]; see Backend::quantize_rows.
void quantize_rows(const Kernels& kernels, ThreadPool& pool, const Tensor& x, float fixed_scale, const Tensor& q, const Tensor& scales);

}  // namespace lapidary::cpu
