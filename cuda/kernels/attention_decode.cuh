// Decode attention: few query rows over many keys, bound by the reading of keys and values.
#pragma once

#include "cuda/kernels/attention_decode_merge.cuh"
#include "cuda/primitives/mma.cuh"

namespace lapidary::cuda {

// Grid: x the split (split 0 is the prefix when there is one), y (KV head, row group), z the sequence. A block owns the keys of its split
// for up to 8 * Columns packed query rows. It walks over tiles of 64 keys, oldest first:
//
//   scores   S^T = K Q^T: warp w owns keys 16 w .. 16 w + 15 and all rows; a thread keys g and g + 8 and of each eight rows 2t and 2t + 1
//            (g = lane / 4, t = lane % 4)
//   weights  2^(s - m), m the running maximum over the four warps; bf16, to shared memory
//   sums     O^T += V^T P^T: warp w owns dims 16 (w + 4 i) .. + 15 and all rows; they stay in registers
//
// Keys are the A operand (16 rows) and queries B (n = 8), so a group of up to eight packed rows costs one n8 column and not a padded m16.
// Pipeline, Stages = 1..4 of each ring: wait K(j) | QK | load K(j + Stages), maxima | weights, wait V(j) | PV | load V(j + Stages).
//
// int8: keys and values are widened to bf16 in registers, exactly; scores are multiplied by the key's scale, weights by the value's before
// they are rounded. One ldmatrix of int8 gives each thread four neighbouring dims of a key, or two dims of two keys; so the dims of a k16
// step are in another order, which the queries follow (prepare_queries), and row g of a V^T fragment is dim 2g, row g + 8 dim 2g + 1.
//
// Bytes in flight: the rings are 64 KiB (head_dim 64 in int8 and 32 in bf16: 32 KiB, 32 in int8: 24 KiB), all of them requested while a
// warp waits for keys, at least half while it computes: 32 KiB or more per block at head_dim 128 and 256, against the 24 KiB per SM that
// HBM latency asks for. Up to 86 KiB of shared memory, so two or three blocks fit an SM of 8.0 and 9.0; one of 8.6, 8.9 and 12.0 at
// head_dim 256, where the bandwidth per SM is a quarter.
//
// Refused (supports_attention_decode): other head_dims, f32 caches, more than 16 tokens per sequence, more than 32 heads per KV head.
template <int HeadDim, KvType Kv, int Columns>
struct AttentionDecodeKernel {
  using Params = DecodeParams;
  using Layout = DecodeLayout<HeadDim, Kv, Columns>;
  static constexpr const char* kName = "attention_decode";
  static constexpr Needs kNeeds = Needs::sm80;
  static constexpr int kThreads = kDecodeThreads, kBlocksPerSm = Columns <= 2 ? 3 : 2;  // three: up to 168 registers
  static constexpr size_t kSmemBytes = Layout::kBytes;
  static constexpr int kDimTiles = ceil_div(HeadDim / 16, kDecodeWarps);  // of 16 dims, per warp
  static constexpr bool kQueriesInRegisters = Columns == 1;  // they are the same for every tile; more than one column is too much

  using Weights = TileLayout<kDecodeTileKeys>;

  struct Work {
    SoftmaxRow rows[Columns][2];        // rows 8 n + 2t + {0, 1}; all warps hold the same
    float sums[kDimTiles][Columns][4];  // fragments of O^T
    uint32_t queries[HeadDim / 32][4];  // with kQueriesInRegisters: B fragments of two k16 steps each
  };

  static LAPIDARY_DEVICE bool has_dims(int tile) { return HeadDim / 16 >= kDecodeWarps || tile * kDecodeWarps + warp() < HeadDim / 16; }

  static LAPIDARY_DEVICE void load_queries(const DecodeBlock& b, int column, int step, uint32_t (&q)[4]) {
    using Rows = TileLayout<HeadDim>;
    load_matrix_x4(q, b.smem + Layout::kQ + Rows::shift(Rows::offset(lane() % 8, lane() / 8), column * 8, 4 * step));
  }

  // Scores of the warp's 16 keys. Two chains of k16 steps, even and odd, in every instance: a row's bits do not depend on Columns.
  template <KvType Tile>
  static LAPIDARY_DEVICE void scores(const DecodeBlock& b, const Work& work, const std::byte* keys, float (&s)[Columns][4]) {
    using Rows = typename Layout::template Rows<Tile>;
    const int place = Rows::offset(warp() * 16 + lane() % 16, lane() / 16);
    float odd[Columns][4];
    LAPIDARY_UNROLL
    for (int n = 0; n < Columns; ++n) {
      LAPIDARY_UNROLL
      for (int e = 0; e < 4; ++e) s[n][e] = odd[n][e] = 0;
    }
    LAPIDARY_UNROLL
    for (int step = 0; step < HeadDim / 32; ++step) {
      uint32_t k[2][4];
      if constexpr (Tile == KvType::int8) {
        uint32_t bytes[4];
        load_matrix_x4(bytes, keys + Rows::shift(place, 0, 2 * step));
        LAPIDARY_UNROLL
        for (int i = 0; i < 4; ++i) {
          const U32x2 pairs = widen_int8(bytes[i]);
          k[i / 2][i % 2] = pairs[0], k[i / 2][i % 2 + 2] = pairs[1];
        }
      } else {
        load_matrix_x4(k[0], keys + Rows::shift(place, 0, 4 * step));
        load_matrix_x4(k[1], keys + Rows::shift(place, 0, 4 * step + 2));
      }
      LAPIDARY_UNROLL
      for (int n = 0; n < Columns; ++n) {
        uint32_t q[4];
        if constexpr (kQueriesInRegisters) {
          LAPIDARY_UNROLL
          for (int i = 0; i < 4; ++i) q[i] = work.queries[step][i];
        } else {
          load_queries(b, n, step, q);
        }
        mma_bf16(s[n], k[0], {q[0], q[1]});
        mma_bf16(odd[n], k[1], {q[2], q[3]});
      }
    }
    LAPIDARY_UNROLL
    for (int n = 0; n < Columns; ++n) {
      LAPIDARY_UNROLL
      for (int e = 0; e < 4; ++e) s[n][e] += odd[n][e];
    }
  }

  // Scores in units of log2, -infinity where the key is not visible; the warp's maxima to shared memory. Takes the scales of the thread's
  // two keys and values out of the ring, which is loaded anew with the next keys.
  template <KvType Tile>
  static LAPIDARY_DEVICE void scale_and_mask(const DecodeBlock& b, int tile, int n_of_split, float (&s)[Columns][4],
                                             float (&value_scale)[2]) {
    const ScoreScale& score = b.params.score;
    const int key = warp() * 16 + lane() / 4;
    float factor[2] = {score.factor, score.factor};  // of keys g and g + 8
    if constexpr (Tile == KvType::int8) {
      using Loader = DecodeLoader<HeadDim, Kv, Columns, Tile>;
      const float* keys = Loader::scales(b, Layout::kScaleK, n_of_split) + key;
      const float* values = Loader::scales(b, Layout::kScaleV, n_of_split) + key;
      factor[0] *= load_shared(keys), factor[1] *= load_shared(keys + 8);
      value_scale[0] = load_shared(values), value_scale[1] = load_shared(values + 8);
    }
    LAPIDARY_UNROLL
    for (int n = 0; n < Columns; ++n) {
      LAPIDARY_UNROLL
      for (int e = 0; e < 4; ++e) s[n][e] *= factor[e / 2];
    }
    if (score.outer != 0) {
      LAPIDARY_UNROLL
      for (int n = 0; n < Columns; ++n) {
        LAPIDARY_UNROLL
        for (int e = 0; e < 4; ++e) s[n][e] = score.cap(s[n][e]);
      }
    }
    const int first = tile * kDecodeTileKeys, end = first + kDecodeTileKeys;
    const int window = b.is_prefix() ? kNoWindow : b.params.problem.common.window;
    const int oldest = b.is_prefix() ? b.params.problem.common.prefix_tokens - 1 : b.oldest_query();
    if (end > oldest + 1 || (!b.is_prefix() && first <= b.newest_query() - window)) {
      LAPIDARY_UNROLL
      for (int n = 0; n < Columns; ++n) {
        const auto last = load_shared(reinterpret_cast<const Vec<int32_t, 2>*>(b.smem + Layout::kLast) + n * 4 + lane() % 4);
        LAPIDARY_UNROLL
        for (int e = 0; e < 4; ++e) {
          const int at = first + key + e / 2 * 8;
          if (at > last[e % 2] || at <= last[e % 2] - window) s[n][e] = kMaskedScore;
        }
      }
    }
    LAPIDARY_UNROLL
    for (int n = 0; n < Columns; ++n) {
      F32x2 most = {{max_f32(s[n][0], s[n][2]), max_f32(s[n][1], s[n][3])}};
      LAPIDARY_UNROLL
      for (int e = 0; e < 2; ++e) most[e] = over_keys(most[e], [](float x, float y) { return max_f32(x, y); });
      if (lane() < 4) store_shared(reinterpret_cast<F32x2*>(b.smem + Layout::kTileMax) + (warp() * Columns + n) * 4 + lane(), most);
    }
  }

  // Over the eight lanes that hold one row's keys.
  template <class Op>
  static LAPIDARY_DEVICE float over_keys(float v, Op op) {
    LAPIDARY_UNROLL
    for (int step = 4; step < kWarp; step *= 2) v = op(v, shuffle_xor(v, step));
    return v;
  }

  // Scores to weights; sums so far under the new maxima; the warp's totals and the weights to shared memory.
  template <KvType Tile>
  static LAPIDARY_DEVICE void weigh(const DecodeBlock& b, Work& work, const float (&s)[Columns][4], const float (&value_scale)[2]) {
    const int place = Weights::offset(lane() % 4 * 2, warp() * 2);
    LAPIDARY_UNROLL
    for (int n = 0; n < Columns; ++n) {
      F32x2 most = load_shared(reinterpret_cast<const F32x2*>(b.smem + Layout::kTileMax) + n * 4 + lane() % 4);
      LAPIDARY_UNROLL
      for (int w = 1; w < kDecodeWarps; ++w) {
        const F32x2 other = load_shared(reinterpret_cast<const F32x2*>(b.smem + Layout::kTileMax) + (w * Columns + n) * 4 + lane() % 4);
        most[0] = max_f32(most[0], other[0]), most[1] = max_f32(most[1], other[1]);
      }
      F32x2 total;
      LAPIDARY_UNROLL
      for (int e = 0; e < 2; ++e) {
        const float kept = work.rows[n][e].raise(most[e]);
        LAPIDARY_UNROLL
        for (int i = 0; i < kDimTiles; ++i) work.sums[i][n][e] *= kept, work.sums[i][n][e + 2] *= kept;
        const float low = exp2_fast(s[n][e] - work.rows[n][e].m), high = exp2_fast(s[n][e + 2] - work.rows[n][e].m);
        total[e] = over_keys(low + high, Sum{});
        std::byte* weights = b.smem + Layout::kP + lane() / 4 * 2;
        put_shared(weights + Weights::shift(place, n * 8 + e, 0),
                   rounded(Vec<float, 1>{{Tile == KvType::int8 ? low * value_scale[0] : low}}));
        put_shared(weights + Weights::shift(place, n * 8 + e, 1),
                   rounded(Vec<float, 1>{{Tile == KvType::int8 ? high * value_scale[1] : high}}));
      }
      if (lane() < 4) store_shared(reinterpret_cast<F32x2*>(b.smem + Layout::kTileSum) + (warp() * Columns + n) * 4 + lane(), total);
    }
  }

  static LAPIDARY_DEVICE void add_totals(const DecodeBlock& b, Work& work) {
    LAPIDARY_UNROLL
    for (int n = 0; n < Columns; ++n) {
      F32x2 total = {};
      LAPIDARY_UNROLL
      for (int w = 0; w < kDecodeWarps; ++w) {
        const F32x2 part = load_shared(reinterpret_cast<const F32x2*>(b.smem + Layout::kTileSum) + (w * Columns + n) * 4 + lane() % 4);
        total[0] += part[0], total[1] += part[1];
      }
      work.rows[n][0].l += total[0], work.rows[n][1].l += total[1];
    }
  }

  template <KvType Tile>
  static LAPIDARY_DEVICE void add_values(const DecodeBlock& b, Work& work, const std::byte* values) {
    using Rows = typename Layout::template Rows<Tile>;
    const int key = Tile == KvType::int8 ? lane() : lane() / 16 * 8 + lane() % 8,
              chunk = Tile == KvType::int8 ? warp() : 2 * warp() + lane() / 8 % 2;
    const int place = Rows::offset(key, chunk), weights = Weights::offset(lane() % 8, lane() / 8);
    LAPIDARY_UNROLL
    for (int step = 0; step < kDecodeTileKeys / 32; ++step) {
      uint32_t p[Columns][4];
      LAPIDARY_UNROLL
      for (int n = 0; n < Columns; ++n) load_matrix_x4(p[n], b.smem + Layout::kP + Weights::shift(weights, n * 8, 4 * step));
      LAPIDARY_UNROLL
      for (int i = 0; i < kDimTiles; ++i) {
        if (!has_dims(i)) continue;
        uint32_t v[2][4];
        if constexpr (Tile == KvType::int8) {
          uint32_t bytes[4];  // keys 8 j + 2t, + 1 of dims 2g, + 1
          load_matrix_x4_transposed(bytes, values + Rows::shift(place, step * 32, kDecodeWarps * i));
          LAPIDARY_UNROLL
          for (int j = 0; j < 4; ++j) {
            const U32x2 dims = widen_int8(byte_permute(bytes[j], 0, 0x3120));
            v[j / 2][j % 2 * 2] = dims[0], v[j / 2][j % 2 * 2 + 1] = dims[1];
          }
        } else {
          load_matrix_x4_transposed(v[0], values + Rows::shift(place, step * 32, 2 * kDecodeWarps * i));
          load_matrix_x4_transposed(v[1], values + Rows::shift(place, step * 32 + 16, 2 * kDecodeWarps * i));
        }
        LAPIDARY_UNROLL
        for (int n = 0; n < Columns; ++n) {
          mma_bf16(work.sums[i][n], v[0], {p[n][0], p[n][1]});
          mma_bf16(work.sums[i][n], v[1], {p[n][2], p[n][3]});
        }
      }
    }
  }

  // Calls put(row, dim, value) for every sum that this thread holds.
  template <KvType Tile, class Put>
  static LAPIDARY_DEVICE void each_sum(const Work& work, Put put) {
    LAPIDARY_UNROLL
    for (int i = 0; i < kDimTiles; ++i) {
      if (!has_dims(i)) continue;
      LAPIDARY_UNROLL
      for (int n = 0; n < Columns; ++n) {
        LAPIDARY_UNROLL
        for (int e = 0; e < 4; ++e) {
          const int dim = (i * kDecodeWarps + warp()) * 16 + (Tile == KvType::int8 ? lane() / 4 * 2 + e / 2 : lane() / 4 + e / 2 * 8);
          put(n * 8 + lane() % 4 * 2 + e % 2, dim, work.sums[i][n][e]);
        }
      }
    }
  }

  // The block's split, to its partial result: in shared memory when it is alone or in a cluster, else in global memory.
  template <KvType Tile>
  static LAPIDARY_DEVICE void attend(const DecodeBlock& b, bool to_shared) {
    using Loader = DecodeLoader<HeadDim, Kv, Columns, Tile>;
    constexpr int kStages = Loader::kStages;
    Loader loader(b);
    LAPIDARY_UNROLL
    for (int n = 0; n < kStages; ++n) loader.load_keys(n), loader.load_values(n);
    prepare_queries<Layout, HeadDim, Tile == KvType::int8>(b);
    Work work = {};
    sync_threads();
    if constexpr (kQueriesInRegisters) {
      LAPIDARY_UNROLL
      for (int step = 0; step < HeadDim / 32; ++step) load_queries(b, 0, step, work.queries[step]);
    }
    const int tiles = loader.tiles.end - loader.tiles.begin;
    for (int n = 0; n < tiles; ++n) {
      if (n > 0) {
        sync_threads();  // values n - 1 are used up
        loader.load_values(n + kStages - 1);
      }
      copy_async_wait<2 * kStages - 1>();
      sync_threads();  // keys n are there
      float s[Columns][4], value_scale[2] = {1, 1};
      scores<Tile>(b, work, Loader::stage(b, Layout::kK, n), s);
      scale_and_mask<Tile>(b, loader.tiles.begin + n, n, s, value_scale);
      sync_threads();  // keys n are used up, the maxima are there
      loader.load_keys(n + kStages);
      weigh<Tile>(b, work, s, value_scale);
      copy_async_wait<2 * kStages - 1>();
      sync_threads();  // values n, weights and totals are there
      add_totals(b, work);
      add_values<Tile>(b, work, Loader::stage(b, Layout::kV, n));
    }
    allow_next_grid();
    if (to_shared) {
      sync_threads();  // the rings are free
      each_sum<Tile>(work, [&](int row, int dim, float v) { store_shared(reinterpret_cast<float*>(b.smem) + Layout::sum(row, dim), v); });
      each_state(work,
                 [&](int row, const SplitState& v) { store_shared(reinterpret_cast<SplitState*>(b.smem + Layout::kState) + row, v); });
    } else {
      const GlobalPartials to = global_partials(b, HeadDim);
      const int64_t first = static_cast<int64_t>(b.split) * to.rows;
      each_sum<Tile>(work, [&](int row, int dim, float v) {
        if (row < b.rows()) store_global(to.sums_at + (first + row) * HeadDim + dim, v);
      });
      each_state(work, [&](int row, const SplitState& v) {
        if (row < b.rows()) store_global(to.states_at + first + row, v);
      });
    }
  }
  template <class Put>
  static LAPIDARY_DEVICE void each_state(const Work& work, Put put) {
    if (warp() != 0 || lane() >= 4) return;
    LAPIDARY_UNROLL
    for (int n = 0; n < Columns; ++n) {
      LAPIDARY_UNROLL
      for (int e = 0; e < 2; ++e) put(n * 8 + lane() * 2 + e, SplitState{{work.rows[n][e].m, work.rows[n][e].l}});
    }
  }

  static LAPIDARY_DEVICE void run(const Params& p, std::byte* smem) {
    wait_for_previous_grids();
    const DecodeBlock b = decode_block(p, smem);
    if (b.tokens == 0) return;  // so do the other blocks of the cluster
    const bool works = b.split < b.splits, to_shared = p.plan.cluster || b.splits == 1;
    if (!works && !p.plan.cluster) return;
    if (works) {
      if (Kv == KvType::int8 && !b.is_prefix()) {
        attend<Kv>(b, to_shared);
      } else {
        attend<KvType::bf16>(b, to_shared);
      }
    }
    if (!to_shared) {
      if (arrived_last(b, reinterpret_cast<int32_t*>(smem + Layout::kFlag)))
        merge_global<HeadDim>(b, global_partials(b, HeadDim), 2 * Layout::kRingBytes);
      return;
    }
    const int size = p.plan.cluster ? cluster_size() : 1, rank = p.plan.cluster ? cluster_rank() : 0;
    if (size > 1) {
      cluster_sync();
    } else {
      sync_threads();
    }
    merge_splits<HeadDim>(b, ClusterPartials<Layout>{smem, rank, size}, 0, b.rows(), rank * kThreads + thread_index(), size * kThreads);
    if (size > 1) cluster_sync();  // until everyone has read this block's part
  }
};

}  // namespace lapidary::cuda
