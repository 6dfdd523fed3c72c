// Attention in f32 over an f32 cache: one query and head a block, for the precision in which results are compared, not for speed.
#pragma once

#include "cuda/api/attention_prefill.h"
#include "cuda/kernels/accurate_math.cuh"
#include "cuda/kernels/attention_blocks.cuh"
#include "cuda/kernels/kv_page.cuh"
#include "cuda/kernels/online_softmax.cuh"
#include "cuda/primitives/cluster.cuh"
#include "cuda/primitives/warp.cuh"

namespace lapidary::cuda {

// A block owns one query row of one head. Keys come in blocks of 64 at multiples of 64 (prefix first, then the cache, rising); of a block
// only the keys that the query sees are read. Scores: eight lanes a key, each over every eighth group of four dims by fma, then a
// butterfly. Weights: one thread a key. Values: thread t owns dims t, t + 128, ..., one fma a key in rising order. Everything depends on
// the query's position, its window and its image alone. exp and tanh are those of accurate_math.cuh; scores stay in natural units.
//
// head_dim: a multiple of 4 up to 512. Registers: 4 outputs a thread. Shared memory: 2 queries of head_dim, 64 weights.
struct AttentionF32Kernel {
  using Params = AttentionF32Params;
  static constexpr const char* kName = "attention_f32";
  static constexpr Needs kNeeds = Needs::sm80;
  static constexpr int kThreads = 128, kBlocksPerSm = 4;
  static constexpr int kKeys = kPageTokens, kMaxHeadDim = 512, kOutputs = kMaxHeadDim / kThreads, kLanesPerKey = 8;
  static size_t smem_bytes(int head_dim) { return (kKeys + 1 + 3) * sizeof(float) + 2 * head_dim * sizeof(float); }

  // Rows of keys or values that follow each other, f32 or bf16.
  struct Rows {
    const void* first;
    bool bf16;
    LAPIDARY_DEVICE F32x4 four(int64_t at) const {
      if (!bf16) return load_readonly(static_cast<const F32x4*>(first) + at / 4);
      const U32x2 v = load_readonly(static_cast<const U32x2*>(first) + at / 4);
      return {low_bf16(v[0]), high_bf16(v[0]), low_bf16(v[1]), high_bf16(v[1])};
    }
    LAPIDARY_DEVICE float one(int64_t at) const {
      return bf16 ? to_f32(load_readonly(static_cast<const BFloat16*>(first) + at)) : load_readonly(static_cast<const float*>(first) + at);
    }
  };

  struct State {
    float m = kNegativeHuge, l = 0;
    float o[kOutputs] = {};
  };

  // Rows [begin, end) of a block, 0 <= begin < end <= 64.
  static LAPIDARY_DEVICE void visit(const AttentionCommon& c, const Rows& k, const Rows& v, int begin, int end, const float* q_smem,
                                    float* weights, State& state) {
    const int head_dim = c.head_dim;
    for (int first = 0; first < kKeys; first += kThreads / kLanesPerKey) {
      const int key = first + thread_index() / kLanesPerKey;
      const bool visible = key >= begin && key < end;
      float score = 0;
      if (visible) {
        for (int d = thread_index() % kLanesPerKey * 4; d < head_dim; d += kLanesPerKey * 4) {
          const F32x4 a = load_shared(reinterpret_cast<const F32x4*>(q_smem + d)), b = k.four(static_cast<int64_t>(key) * head_dim + d);
          LAPIDARY_UNROLL
          for (int e = 0; e < 4; ++e) score = fma(a[e], b[e], score);
        }
      }
      score = warp_reduce<kLanesPerKey>(score, Sum{}) * c.scale;
      if (c.softcap != 0) score = c.softcap * tanh_accurate(divide_exact(score, c.softcap));
      if (thread_index() % kLanesPerKey == 0) store_shared(weights + key, visible ? score : +kMaskedScore);
    }
    sync_threads();
    const float a = load_shared(weights + lane()), b = load_shared(weights + lane() + kWarp);
    const float highest = warp_reduce(max_f32(a, b), Max{});
    const float raised = max_f32(state.m, highest), rescale = exp_accurate(state.m - raised);
    const float weight_a = exp_accurate(a - raised), weight_b = exp_accurate(b - raised);
    state.l = fma(state.l, rescale, warp_reduce(weight_a + weight_b, Sum{}));
    state.m = raised;
    sync_threads();  // all have read the scores
    if (warp() == 0) {
      store_shared(weights + lane(), weight_a);
      store_shared(weights + lane() + kWarp, weight_b);
    }
    sync_threads();
    LAPIDARY_UNROLL
    for (int n = 0; n < kOutputs; ++n) {
      const int d = thread_index() + n * kThreads;
      if (d < head_dim) {
        float o = state.o[n] * rescale;
        for (int key = begin; key < end; ++key) o = fma(load_shared(weights + key), v.one(static_cast<int64_t>(key) * head_dim + d), o);
        state.o[n] = o;
      }
    }
    sync_threads();  // the weights are free
  }

  static LAPIDARY_DEVICE void run(const Params& p, std::byte* smem) {
    wait_for_previous_grids();
    const AttentionCommon& c = p.common;
    float* const weights = reinterpret_cast<float*>(smem);
    int* const found = reinterpret_cast<int*>(smem) + kKeys;
    float* const q_smem = weights + kKeys + 4;
    float* const q_prefix_smem = q_smem + c.head_dim;
    const int token = block_x(), head = block_y(), kv_head = head / (c.num_heads / c.num_kv_heads);

    if (thread_index() == 0) store_shared(found, -1);
    sync_threads();
    for (int s = thread_index(); s < c.num_sequences; s += kThreads) {
      const int first = load_readonly(&c.sequences[s].first_row);
      if (token >= first && token - first < load_readonly(&c.sequences[s].rows)) store_shared(found, s);
    }
    const int64_t row = (static_cast<int64_t>(token) * c.num_heads + head) * c.head_dim;
    for (int d = thread_index(); d < c.head_dim; d += kThreads) {
      store_shared(q_smem + d, load_readonly(p.q + row + d));
      store_shared(q_prefix_smem + d, load_readonly((p.q_prefix != nullptr ? p.q_prefix : p.q) + row + d));
    }
    sync_threads();
    const int index = load_shared(found);
    if (index < 0) return;  // a row of no sequence: nothing is written
    const AttentionSequence sequence = load_sequence(c.sequences + index);

    State state;
    const bool wide_prefix = p.prefix_k_f32 != nullptr;
    for (int first = 0; first < c.prefix_tokens; first += kKeys) {
      const int64_t at = (static_cast<int64_t>(kv_head) * c.prefix_tokens + first) * c.head_dim;
      const Rows k = wide_prefix ? Rows{p.prefix_k_f32 + at, false} : Rows{c.prefix_k + at, true};
      const Rows v = wide_prefix ? Rows{p.prefix_v_f32 + at, false} : Rows{c.prefix_v + at, true};
      const int rest = c.prefix_tokens - first;
      visit(c, k, v, 0, rest < kKeys ? rest : kKeys, q_prefix_smem, weights, state);
    }
    ImageBlock image = {0, 0};
    if (p.images != nullptr) image = {load_readonly(&p.images[token].first), load_readonly(&p.images[token].end)};
    const KeyRange keys = visible_keys(sequence.first_pos + token - sequence.first_row, c.window, image.first, image.end);
    const KvPage<KvType::f32> layout = {c.num_kv_heads, c.head_dim};
    for (int block = keys.begin / kKeys; block * kKeys < keys.end; ++block) {
      const std::byte* page = page_of_block(sequence, block);
      const int begin = keys.begin - block * kKeys, end = keys.end - block * kKeys;
      visit(c, {page + layout.keys(kv_head), false}, {page + layout.values(kv_head), false}, begin > 0 ? begin : 0,
            end < kKeys ? end : kKeys, q_smem, weights, state);
    }
    const float inverse = state.l == 0 ? 0.0f : divide_exact(1.0f, state.l);
    LAPIDARY_UNROLL
    for (int n = 0; n < kOutputs; ++n) {
      const int d = thread_index() + n * kThreads;
      if (d >= c.head_dim) continue;
      if (p.out_type == ActType::bf16) {
        store_global(static_cast<BFloat16*>(p.out) + row + d, to_bf16(state.o[n] * inverse));
      } else {
        store_global(static_cast<float*>(p.out) + row + d, state.o[n] * inverse);
      }
    }
  }
};

}  // namespace lapidary::cuda
