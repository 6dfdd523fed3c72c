// Prefill attention on wgmma and TMA, warp-specialised (sm_90a): head_dim 128 and 256, bf16 cache.
#pragma once

#include "cuda/kernels/attention_rows.cuh"
#include "cuda/primitives/bulk_copy.cuh"
#include "cuda/primitives/cluster.cuh"
#include "cuda/primitives/wgmma.cuh"

namespace lapidary::cuda {

struct PrefillWgmmaParams {
  PrefillParams prefill;
  TensorMap pages;               // the pool as bf16 [pool rows, head_dim], boxes of [64, 64]
  TensorMap prefix_k, prefix_v;  // bf16 [num_kv_heads * prefix_tokens, head_dim], boxes of [64, 64]
  const std::byte* pool;
};

// A tile of Rows rows of HeadDim bf16 as TMA and wgmma have it with the 128-byte swizzle: slabs of 64 columns, each Rows rows of 128 bytes.
template <int HeadDim, int Rows>
struct SlabLayout {
  static constexpr int kChunks = HeadDim / 8, kSlabs = HeadDim / 64, kSlabBytes = Rows * 128;
  LAPIDARY_HOST_DEVICE static constexpr int offset(int row, int chunk) {
    return chunk / 8 * kSlabBytes + row * 128 + ((chunk ^ row) & 7) * 16;
  }
};

// A block owns one tile of 128 packed query rows of one sequence and one KV head. Warpgroup 0 loads: one thread asks TMA for the keys and
// values of each block of 64 keys, two stages of each. Warpgroups 1 and 2 own 64 rows each; a thread owns rows and columns as in mma
// fragments, scores (32 registers), weights (16) and output (head_dim / 2) stay in registers. The order of keys and of every sum is that of
// AttentionPrefillKernel.
//
// Pipeline of a step: QK of this block issued | PV of the block before issued | wait QK, softmax | wait PV, rescale the output, pack the
// weights. With a second query for the prefix this runs twice, prefix then cache, the queries in shared memory exchanged between. The
// newest block's values behind the newest position are overwritten with zeros in shared memory: a weight of 0 times NaN would be NaN.
//
// head_dim exactly HeadDim; pages inside the pool. Shared memory at 256: 64 KiB queries, 2 * (32 + 32) KiB; up to 128 KiB in flight.
template <int HeadDim>
struct AttentionPrefillWgmmaKernel {
  using Params = PrefillWgmmaParams;
  static constexpr const char* kName = "attention_prefill_wgmma";
  static constexpr Needs kNeeds = Needs::sm90a;
  static constexpr int kThreads = 384, kBlocksPerSm = 1;
  static constexpr int kRows = 128, kKeys = 64, kStages = 2, kGroupThreads = 128, kConsumerThreads = 256;
  using QLayout = SlabLayout<HeadDim, kRows>;
  using KvLayout = SlabLayout<HeadDim, kKeys>;

  // Shared memory.
  static constexpr int kTileBytes = kKeys * HeadDim * 2;
  static constexpr int kQ = 0, kK = kRows * HeadDim * 2, kV = kK + kStages * kTileBytes, kRanges = kV + kStages * kTileBytes;
  static constexpr int kBarriers = kRanges + kRows * sizeof(KeyRange);
  enum BarrierIndex {
    kFullK,
    kFullV = kFullK + kStages,
    kEmptyK = kFullV + kStages,
    kEmptyV = kEmptyK + kStages,
    kBarrierCount = kEmptyV + kStages
  };
  static constexpr size_t kSmemBytes = kBarriers + kBarrierCount * sizeof(Barrier);
  static constexpr int kZeroBarrier = 1, kGroupBarrier = 2;  // named barriers: both consumer groups; + group: one

  using Scores = float[kKeys / 8][4];
  using Weights = uint32_t[kKeys / 16][4];
  using Output = float[HeadDim / 8][4];

  struct Block {
    const PrefillParams& p;
    std::byte* smem;
    int32_t newest, prefix_steps, steps;  // newest: block of keys of the first step after the prefix
    int32_t full_begin, full_end;
    int32_t valid_keys;  // of the newest block

    LAPIDARY_DEVICE int block_of(int step) const { return newest - (step - prefix_steps); }
    LAPIDARY_DEVICE Barrier* barrier(int first, int step) const {
      return reinterpret_cast<Barrier*>(smem + kBarriers) + first + step % kStages;
    }
    LAPIDARY_DEVICE std::byte* tile(int first, int step) const { return smem + first + step % kStages * kTileBytes; }
  };
  static LAPIDARY_DEVICE uint32_t parity(int step) { return step / kStages & 1; }

  // --- the loading thread -----------------------------------------------------------------------------------------------------
  static LAPIDARY_DEVICE void load(const Block& b, int step, const TensorMap* map, int row, int full, int empty, int tiles) {
    barrier_wait(b.barrier(empty, step), parity(step) ^ 1);
    Barrier* const arrived = b.barrier(full, step);
    barrier_arrive_expect(arrived, kTileBytes);
    LAPIDARY_UNROLL
    for (int slab = 0; slab < KvLayout::kSlabs; ++slab)
      tensor_load(b.tile(tiles, step) + slab * KvLayout::kSlabBytes, map, arrived, slab * 64, row);
  }
  static LAPIDARY_DEVICE void produce(const Params& params, const Block& b, const AttentionSequence* sequence) {
    const PrefillParams& p = b.p;
    const int kv_head = block_y();
    for (int step = 0; step < b.prefix_steps; ++step) {
      const int row = kv_head * p.prefix_tokens + step * kKeys;
      load(b, step, &params.prefix_k, row, kFullK, kEmptyK, kK);
      load(b, step, &params.prefix_v, row, kFullV, kEmptyV, kV);
    }
    const int num_pages = load_readonly(&sequence->num_pages);
    const void* const* pages = load_readonly(&sequence->pages);
    for (int step = b.prefix_steps; step < b.steps; ++step) {
      const std::byte* page = static_cast<const std::byte*>(load_readonly(pages + b.block_of(step) % num_pages));
      const int row = static_cast<int>((page - params.pool) / (HeadDim * 2)) + kv_head * kPageTokens;
      load(b, step, &params.pages, row, kFullK, kEmptyK, kK);
      load(b, step, &params.pages, row + p.num_kv_heads * kPageTokens, kFullV, kEmptyV, kV);
    }
  }

  // --- the computing warpgroups -------------------------------------------------------------------------------------------------
  // The group's 64 rows of q.
  static LAPIDARY_DEVICE void load_queries(const Block& b, const uint16_t* q, int group) {
    load_query_rows<QLayout, 16>(b.smem + kQ, q, b.p, packed_rows(b.p), group * 64 + warp() % 4 * 16);
    copy_async_commit();
    copy_async_wait<0>();
    fence_proxy_async();
    named_barrier_sync(kGroupBarrier + group, kGroupThreads);
  }
  // s = q kᵀ, issued.
  static LAPIDARY_DEVICE void issue_scores(const Block& b, int step, int group, Scores& s) {
    const uint64_t q = smem_descriptor(b.smem + kQ + group * 64 * 128, 16, 1024, Swizzle::bytes128);
    const uint64_t k = smem_descriptor(b.tile(kK, step), 16, 1024, Swizzle::bytes128);
    wgmma_fence();
    LAPIDARY_UNROLL
    for (int kk = 0; kk < HeadDim / 16; ++kk) {
      wgmma_bf16<kKeys>(reinterpret_cast<float(&)[kKeys / 2]>(s), descriptor_advance(q, kk / 4 * QLayout::kSlabBytes + kk % 4 * 32),
                        descriptor_advance(k, kk / 4 * KvLayout::kSlabBytes + kk % 4 * 32), kk > 0);
    }
    wgmma_commit();
  }
  // o += p v, issued.
  static LAPIDARY_DEVICE void issue_values(const Block& b, int step, const Weights& weights, Output& o) {
    const uint64_t v = smem_descriptor(b.tile(kV, step), KvLayout::kSlabBytes, 1024, Swizzle::bytes128);
    wgmma_fence();
    LAPIDARY_UNROLL
    for (int kk = 0; kk < kKeys / 16; ++kk) {
      wgmma_bf16<HeadDim, true>(reinterpret_cast<float(&)[HeadDim / 2]>(o), weights[kk], descriptor_advance(v, kk * 2048), true);
    }
    wgmma_commit();
  }
  static LAPIDARY_DEVICE void wait_values(const Block& b, int step) {
    barrier_wait(b.barrier(kFullV, step), parity(step));
    if (step != b.prefix_steps || b.valid_keys == kKeys) return;
    std::byte* const tile = b.tile(kV, step);
    const int thread = thread_index() - kGroupThreads;
    for (int i = thread; i < (kKeys - b.valid_keys) * QLayout::kChunks; i += kConsumerThreads) {
      store_shared(reinterpret_cast<U32x4*>(tile + KvLayout::offset(b.valid_keys + i / QLayout::kChunks, i % QLayout::kChunks)),
                   U32x4{0, 0, 0, 0});
    }
    fence_proxy_async();
    sync_warp();  // lanes leave the loop at different turns, and the barrier is for whole warps
    named_barrier_sync(kZeroBarrier, kConsumerThreads);
  }
  static LAPIDARY_DEVICE void release(Barrier* empty) {
    if (lane() == 0) barrier_arrive(empty);
  }
  // Scores of a step to weights; see scores_to_weights.
  static LAPIDARY_DEVICE void softmax(const Block& b, int step, int row, Scores& s, SoftmaxRow (&state)[2], float (&rescale)[2]) {
    const PrefillParams& p = b.p;
    cap_scores(p.score, s);
    const bool prefix = step < b.prefix_steps;
    const int block = prefix ? step : b.block_of(step);
    if (prefix ? (step + 1) * kKeys > p.prefix_tokens : block < b.full_begin || block >= b.full_end) {
      LAPIDARY_UNROLL
      for (int h = 0; h < 2; ++h) {
        KeyRange keys = {0, p.prefix_tokens};
        if (!prefix) keys = load_shared(reinterpret_cast<const KeyRange*>(b.smem + kRanges) + row + h * 8 + lane() / 4);
        hide_keys(keys, block * kKeys, h, s);
      }
    }
    scores_to_weights(p.score.factor, s, state, rescale);
  }

  static LAPIDARY_DEVICE void consume(const Block& b, int group) {
    const PrefillParams& p = b.p;
    const int row = group * 64 + warp() % 4 * 16;
    const bool second_query = b.prefix_steps > 0 && p.q_prefix != nullptr;
    SoftmaxRow state[2];
    Output o;
    LAPIDARY_UNROLL
    for (int n = 0; n < HeadDim / 8; ++n) o[n][0] = o[n][1] = o[n][2] = o[n][3] = 0;
    int end = 0;
    while (end < b.steps) {
      int step = end;
      const bool prefix_alone = second_query && step == 0;
      end = prefix_alone ? b.prefix_steps : b.steps;
      load_queries(b, prefix_alone ? p.q_prefix : p.q, group);

      Scores s;
      Weights weights;
      float rescale[2];
      barrier_wait(b.barrier(kFullK, step), parity(step));
      issue_scores(b, step, group, s);
      wgmma_wait<0>();
      wgmma_keep(reinterpret_cast<float(&)[kKeys / 2]>(s));
      release(b.barrier(kEmptyK, step));
      softmax(b, step, row, s, state, rescale);
      rescale_output(rescale, o);
      pack_weights(s, weights);
      for (++step; step < end; ++step) {
        barrier_wait(b.barrier(kFullK, step), parity(step));
        issue_scores(b, step, group, s);
        wait_values(b, step - 1);
        issue_values(b, step - 1, weights, o);
        wgmma_wait<1>();
        wgmma_keep(reinterpret_cast<float(&)[kKeys / 2]>(s));
        release(b.barrier(kEmptyK, step));
        softmax(b, step, row, s, state, rescale);
        wgmma_wait<0>();
        wgmma_keep(reinterpret_cast<float(&)[HeadDim / 2]>(o));
        release(b.barrier(kEmptyV, step - 1));
        rescale_output(rescale, o);
        pack_weights(s, weights);
      }
      wait_values(b, end - 1);
      issue_values(b, end - 1, weights, o);
      wgmma_wait<0>();
      wgmma_keep(reinterpret_cast<float(&)[HeadDim / 2]>(o));
      release(b.barrier(kEmptyV, end - 1));
      named_barrier_sync(kGroupBarrier + group, kGroupThreads);  // the group's rows of q may be overwritten
    }
    write_rows<QLayout>(b.smem + kQ, p, packed_rows(p), row, state, o);
  }

  static LAPIDARY_DEVICE void run(const Params& params, std::byte* smem) {
    const PrefillParams& p = params.prefill;
    wait_for_previous_grids();
    const PackedRows rows = packed_rows(p);
    const TileKeys tile = keys_of_tile<false, kRows>(p, rows, kKeys);
    const int prefix_steps = ceil_div(p.prefix_tokens, kKeys), last_keys = tile.keys.end - (tile.blocks.end - 1) * kKeys;
    const Block b = {p,
                     smem,
                     tile.blocks.end - 1,
                     prefix_steps,
                     prefix_steps + tile.blocks.end - tile.blocks.begin,
                     tile.blocks.full_begin,
                     tile.blocks.full_end,
                     last_keys};
    store_ranges<false, kRows, kThreads>(reinterpret_cast<KeyRange*>(smem + kRanges), p, rows);
    if (thread_index() == 0) {
      LAPIDARY_UNROLL
      for (int stage = 0; stage < kStages; ++stage) {
        barrier_init(b.barrier(kFullK, stage), 1);
        barrier_init(b.barrier(kFullV, stage), 1);
        barrier_init(b.barrier(kEmptyK, stage), kConsumerThreads / kWarp);
        barrier_init(b.barrier(kEmptyV, stage), kConsumerThreads / kWarp);
      }
      fence_barrier_init();
    }
    sync_threads();
    if (thread_index() < kGroupThreads) {
      fewer_registers<24>();
      if (thread_index() == 0) produce(params, b, rows.sequence);
    } else {
      more_registers<240>();
      consume(b, thread_index() / kGroupThreads - 1);
    }
  }
};

}  // namespace lapidary::cuda
