// Prefill attention on mma.sync (sm_80 and later): flash attention over paged or contiguous keys and values.
#pragma once

#include "cuda/kernels/attention_rows.cuh"
#include "cuda/primitives/cluster.cuh"
#include "cuda/primitives/mma.cuh"

namespace lapidary::cuda {

enum class KvSource { bf16_pages, int8_pages, full };  // full: contiguous bf16 without cache, every key visible

// A block owns one tile of packed query rows (a token's heads of one KV group are neighbouring rows) of one sequence and one KV head.
// A warp owns RowTiles * 16 rows over all keys and all of head_dim; a thread, of each 16 rows, rows g and g + 8 (g = lane / 4) and the
// column pairs 8j + 2 (lane % 4): scores, weights and output stay in registers, q in shared memory.
//
// Steps: the prefix's blocks of keys first (rising, with q_prefix), then the cache's from the newest to the oldest that any row sees;
// blocks begin at multiples of Keys in absolute positions. Only blocks at the edges run mask code. Pipeline: load K0 | wait K, load V | QK
// | wait V, load next K | softmax, PV. int8: both stages are widened to bf16 tiles at the step's beginning and the next two load behind the
// whole step. Keys that no row sees are not read but zeros: memory behind the newest position is uninitialised.
//
// head_dim up to HeadDim, a multiple of 8 (int8: 16); columns behind it are zeros and are not written. Any group size.
template <int HeadDim, int RowTiles, int Warps, int Keys, KvSource Source, int BlocksPerSm>
struct AttentionPrefillKernel {
  using Params = PrefillParams;
  using Layout = TileLayout<HeadDim>;
  static constexpr bool kInt8 = Source == KvSource::int8_pages, kFull = Source == KvSource::full;
  static constexpr const char* kName = kFull ? "attention_full" : kInt8 ? "attention_prefill_int8" : "attention_prefill";
  static constexpr Needs kNeeds = Needs::sm80;
  static constexpr int kThreads = Warps * kWarp, kBlocksPerSm = BlocksPerSm;
  static constexpr int kWarpRows = RowTiles * 16, kRows = Warps * kWarpRows, kKeys = Keys;
  static_assert(kPageTokens % Keys == 0, "a block of keys lies in one page");

  // What the loop needs seldom is in shared memory, not in registers.
  struct alignas(8) Seldom {
    const void* const* pages;
    KeyRange keys;  // that any row sees
    int32_t num_pages;
    int32_t token;  // row of q of the sequence's first token
  };

  // Shared memory.
  static constexpr int kTileBytes = Keys * Layout::kRowBytes, kStageBytes = kInt8 ? Keys * HeadDim : 0, kScaleBytes = kInt8 ? Keys * 4 : 0;
  static constexpr int kQ = 0, kK = kQ + kRows * Layout::kRowBytes, kV = kK + kTileBytes, kStageK = kV + kTileBytes,
                       kStageV = kStageK + kStageBytes;
  static constexpr int kScaleK = kStageV + kStageBytes, kScaleV = kScaleK + 2 * kScaleBytes;  // two of each: the step's and the next one's
  static constexpr int kRanges = kScaleV + 2 * kScaleBytes, kPages = kRanges + kRows * 8, kSeldom = kPages + 2 * 8;
  static constexpr size_t kSmemBytes = kSeldom + sizeof(Seldom);

  using Scores = float[RowTiles][Keys / 8][4];
  using Weights = uint32_t[RowTiles][Keys / 16][4];  // bf16 pairs, as the A operand of mma
  using Output = float[RowTiles][HeadDim / 8][4];

  // Uniform over the block.
  struct Block {
    const Params& p;
    std::byte* smem;
    KeyBlocks blocks;
    int32_t kv_head, prefix_steps, steps;

    LAPIDARY_DEVICE int block_of(int step) const { return blocks.end - 1 - (step - prefix_steps); }
  };

  // --- loading --------------------------------------------------------------------------------------------------------------
  static LAPIDARY_DEVICE const Seldom* seldom(const Block& b) { return reinterpret_cast<const Seldom*>(b.smem + kSeldom); }

  // The page of a step's keys, for two steps ahead of its use: slot step % 2.
  static LAPIDARY_DEVICE void fetch_page(const Block& b, int step) {
    if constexpr (!kFull) {
      if (thread_index() != 0 || step < b.prefix_steps || step >= b.steps) return;
      const int page = b.block_of(step) * Keys / kPageTokens % load_shared(&seldom(b)->num_pages);
      copy_async_small<8>(b.smem + kPages + step % 2 * 8, load_shared(&seldom(b)->pages) + page);
    }
  }

  // Rows of a step's keys (Value: values) in memory.
  template <bool Value>
  static LAPIDARY_DEVICE TileRows rows_of(const Block& b, int step) {
    const Params& p = b.p;
    if (step < b.prefix_steps) {
      const std::byte* base = reinterpret_cast<const std::byte*>(Value ? p.prefix_v : p.prefix_k);
      const int64_t row = static_cast<int64_t>(b.kv_head) * p.prefix_tokens + step * Keys;
      return {base + row * p.head_dim * 2, p.head_dim * 2, 0, p.prefix_tokens - step * Keys};
    }
    const int first = b.block_of(step) * Keys;
    const KeyRange keys = load_shared(&seldom(b)->keys);
    if constexpr (kFull) {
      const std::byte* base = reinterpret_cast<const std::byte*>(Value ? p.v : p.k);
      const int64_t row = static_cast<int64_t>(load_shared(&seldom(b)->token) + first) * p.kv_stride + b.kv_head * p.head_dim;
      return {base + row * 2, p.kv_stride * 2, 0, keys.end - first};
    } else {
      constexpr int kElement = kInt8 ? 1 : 2;
      const std::byte* page = load_shared(reinterpret_cast<const std::byte* const*>(b.smem + kPages + step % 2 * 8));
      const int row = ((Value ? p.num_kv_heads : 0) + b.kv_head) * kPageTokens + first % kPageTokens;
      return {page + static_cast<int64_t>(row) * p.head_dim * kElement, p.head_dim * kElement, keys.begin - first, keys.end - first};
    }
  }

  template <bool Value>
  static LAPIDARY_DEVICE void load_bf16(const Block& b, int step) {
    load_tile_bf16<HeadDim, Keys, kThreads>(b.smem + (Value ? kV : kK), rows_of<Value>(b, step), b.p.head_dim / 8, thread_index());
  }

  // Both int8 stages and their scales.
  static LAPIDARY_DEVICE void load_int8(const Block& b, int step) {
    const TileRows k = rows_of<false>(b, step);
    load_tile_int8<HeadDim, Keys, kThreads>(b.smem + kStageK, k, b.p.head_dim / 16, thread_index());
    load_tile_int8<HeadDim, Keys, kThreads>(b.smem + kStageV, rows_of<true>(b, step), b.p.head_dim / 16, thread_index());
    const std::byte* page = load_shared(reinterpret_cast<const std::byte* const*>(b.smem + kPages + step % 2 * 8));
    const float* scales = reinterpret_cast<const float*>(page + static_cast<int64_t>(2 * b.p.num_kv_heads) * kPageTokens * b.p.head_dim);
    scales += b.kv_head * kPageTokens + b.block_of(step) * Keys % kPageTokens;
    static_assert(2 * Keys <= kThreads);
    const int thread = not_hoisted(thread_index()), key = thread % Keys;
    if (thread < 2 * Keys) {
      const bool value = thread >= Keys, valid = key >= k.begin && key < k.end;
      if (value) scales += b.p.num_kv_heads * kPageTokens;
      copy_async_small<4>(b.smem + (value ? kScaleV : kScaleK) + step % 2 * kScaleBytes + key * 4, scales + key, valid);
    }
  }

  // --- one step -------------------------------------------------------------------------------------------------------------
  // s = q kᵀ for the warp's rows.
  static LAPIDARY_DEVICE void scores(const std::byte* smem, Scores& s) {
    LAPIDARY_UNROLL
    for (int i = 0; i < RowTiles; ++i) {
      LAPIDARY_UNROLL
      for (int j = 0; j < Keys / 8; ++j) s[i][j][0] = s[i][j][1] = s[i][j][2] = s[i][j][3] = 0;
    }
    const int q_base = Layout::offset(warp() * kWarpRows + lane() % 16, lane() / 16);
    const int k_base = Layout::offset(lane() % 8 + lane() / 16 * 8, lane() / 8 % 2);
    LAPIDARY_UNROLL
    for (int kk = 0; kk < HeadDim / 16; ++kk) {
      uint32_t q[RowTiles][4];
      LAPIDARY_UNROLL
      for (int i = 0; i < RowTiles; ++i) load_matrix_x4(q[i], smem + kQ + Layout::shift(q_base, i * 16, 2 * kk));
      LAPIDARY_UNROLL
      for (int j = 0; j < Keys / 16; ++j) {
        uint32_t k[4];  // keys 0..7 dims 0..7, 8..15; keys 8..15 the same
        load_matrix_x4(k, smem + kK + Layout::shift(k_base, j * 16, 2 * kk));
        LAPIDARY_UNROLL
        for (int i = 0; i < RowTiles; ++i) {
          mma_bf16(s[i][2 * j], q[i], {k[0], k[1]});
          mma_bf16(s[i][2 * j + 1], q[i], {k[2], k[3]});
        }
      }
    }
  }

  // Of 16 rows: each column times its key's scale.
  static LAPIDARY_DEVICE void scale_columns(const std::byte* scales, float (&s)[Keys / 8][4]) {
    LAPIDARY_UNROLL
    for (int j = 0; j < Keys / 8; ++j) {
      const F32x2 c = load_shared(reinterpret_cast<const F32x2*>(scales) + j * 4 + lane() % 4);
      LAPIDARY_UNROLL
      for (int e = 0; e < 4; ++e) s[j][e] *= c[e % 2];
    }
  }

  // Of rows [row, row + 16) of the tile: hides keys outside each row's range.
  static LAPIDARY_DEVICE void mask(const Block& b, int step, int row, float (&s)[Keys / 8][4]) {
    const bool prefix = step < b.prefix_steps;
    LAPIDARY_UNROLL
    for (int h = 0; h < 2; ++h) {
      KeyRange keys = {0, b.p.prefix_tokens};
      if (!prefix) keys = load_shared(reinterpret_cast<const KeyRange*>(b.smem + kRanges) + row + h * 8 + lane() / 4);
      hide_keys(keys, (prefix ? step : b.block_of(step)) * Keys, h, s);
    }
  }

  // o += p v for the warp's rows.
  static LAPIDARY_DEVICE void accumulate_v(const std::byte* smem, const Weights& p, Output& o) {
    const int v_base = Layout::offset(lane() % 16, lane() / 16);
    LAPIDARY_UNROLL
    for (int kk = 0; kk < Keys / 16; ++kk) {
      LAPIDARY_UNROLL
      for (int n = 0; n < HeadDim / 16; ++n) {
        uint32_t v[4];  // keys 0..7, 8..15 of dims 0..7; of dims 8..15
        load_matrix_x4_transposed(v, smem + kV + Layout::shift(v_base, kk * 16, 2 * n));
        LAPIDARY_UNROLL
        for (int i = 0; i < RowTiles; ++i) {
          mma_bf16(o[i][2 * n], p[i][kk], {v[0], v[1]});
          mma_bf16(o[i][2 * n + 1], p[i][kk], {v[2], v[3]});
        }
      }
    }
  }

  // --- the schedule ---------------------------------------------------------------------------------------------------------
  static LAPIDARY_DEVICE Block setup(const Params& p, const PackedRows& rows, std::byte* smem) {
    const TileKeys tile = keys_of_tile<kFull, kRows>(p, rows, Keys);
    const int prefix_steps = kFull ? 0 : ceil_div(p.prefix_tokens, Keys);
    if (thread_index() == 0) {
      Seldom* to = reinterpret_cast<Seldom*>(smem + kSeldom);
      store_shared(&to->keys, tile.keys);
      store_shared(&to->token, rows.token);
      if constexpr (!kFull) {
        store_shared(&to->num_pages, load_readonly(&rows.sequence->num_pages));
        store_shared(&to->pages, load_readonly(&rows.sequence->pages));
      }
    }
    store_ranges<kFull, kRows, kThreads>(reinterpret_cast<KeyRange*>(smem + kRanges), p, rows);
    return {p, smem, tile.blocks, block_y(), prefix_steps, prefix_steps + tile.blocks.end - tile.blocks.begin};
  }

  static LAPIDARY_DEVICE void run(const Params& p, std::byte* smem) {
    wait_for_previous_grids();
    const Block b = setup(p, packed_rows(p), smem);
    const bool second_query = b.prefix_steps > 0 && p.q_prefix != nullptr;
    load_query_rows<Layout, kWarpRows>(smem + kQ, second_query ? p.q_prefix : p.q, p, packed_rows(p), warp() * kWarpRows);
    fetch_page(b, 0);
    fetch_page(b, 1);
    copy_async_commit();
    copy_async_wait<0>();
    sync_threads();  // the pages are known
    if constexpr (!kInt8)
      load_bf16<false>(b, 0);
    else if (b.prefix_steps == 0)
      load_int8(b, 0);
    copy_async_commit();

    SoftmaxRow row[RowTiles][2];
    Output o;
    LAPIDARY_UNROLL
    for (int i = 0; i < RowTiles; ++i) {
      LAPIDARY_UNROLL
      for (int n = 0; n < HeadDim / 8; ++n) o[i][n][0] = o[i][n][1] = o[i][n][2] = o[i][n][3] = 0;
    }
    for (int step = 0; step < b.steps; ++step) {
      const bool prefix = step < b.prefix_steps;
      if (second_query && step == b.prefix_steps) {
        sync_warp();  // the warp has read its rows of q_prefix for the last time
        load_query_rows<Layout, kWarpRows>(smem + kQ, p.q, p, packed_rows(p), warp() * kWarpRows);
      }
      if (kInt8 && prefix) {
        sync_threads();  // the tiles are free
        load_bf16<false>(b, step);
        load_bf16<true>(b, step);
      }
      copy_async_commit();
      copy_async_wait<0>();
      sync_threads();  // K is here (int8: both stages), and V and the page slot are free
      if constexpr (kInt8) {
        if (!prefix) {
          widen_tile<HeadDim, Keys, kThreads>(smem + kK, smem + kStageK, thread_index());
          widen_tile<HeadDim, Keys, kThreads>(smem + kV, smem + kStageV, thread_index());
        }
        sync_threads();
        if (step + 1 >= b.prefix_steps && step + 1 < b.steps) load_int8(b, step + 1);
      } else {
        load_bf16<true>(b, step);
      }
      copy_async_commit();

      Scores s;
      scores(smem, s);
      if constexpr (!kInt8) {
        copy_async_wait<0>();
        sync_threads();  // V is here and K is free
        if (step + 1 < b.steps) load_bf16<false>(b, step + 1);
      }
      fetch_page(b, step + 2);  // into this step's slot
      copy_async_commit();

      const bool masked = prefix ? (step + 1) * Keys > p.prefix_tokens : b.blocks.masked(b.block_of(step));
      Weights weights;
      LAPIDARY_UNROLL
      for (int i = 0; i < RowTiles; ++i) {
        if (kInt8 && !prefix) scale_columns(smem + kScaleK + step % 2 * kScaleBytes, s[i]);
        cap_scores(p.score, s[i]);
        if (masked) mask(b, step, warp() * kWarpRows + i * 16, s[i]);
        float rescale[2];
        scores_to_weights(p.score.factor, s[i], row[i], rescale);
        rescale_output(rescale, o[i]);
        if (kInt8 && !prefix) scale_columns(smem + kScaleV + step % 2 * kScaleBytes, s[i]);
        pack_weights(s[i], weights[i]);
      }
      accumulate_v(smem, weights, o);
    }
    const PackedRows rows = packed_rows(p);
    sync_warp();  // the warp's own rows of q become its staging
    LAPIDARY_UNROLL
    for (int i = 0; i < RowTiles; ++i) write_rows<Layout>(smem + kQ, p, rows, warp() * kWarpRows + i * 16, row[i], o[i]);
  }
};

}  // namespace lapidary::cuda
