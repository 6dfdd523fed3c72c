// QK-norm, RoPE, rounding and append to the cache, from f32 projections.
#pragma once

#include "cuda/kernels/head_row.cuh"
#include "cuda/primitives/cluster.cuh"

namespace lapidary::cuda {

// The sequence that `token` belongs to, and the token's place in it. found false: none.
struct TokenPlace {
  bool found;
  AttentionSequence sequence;
  int32_t position;
};
// By a whole warp: 32 sequences at a time.
LAPIDARY_DEVICE TokenPlace place_of_token(const AttentionSequence* sequences, int num_sequences, int token) {
  for (int first = 0; first < num_sequences; first += kWarp) {
    const int i = first + lane();
    bool mine = false;
    if (i < num_sequences) {
      const int row = load_readonly(&sequences[i].first_row);
      mine = token >= row && token < row + load_readonly(&sequences[i].rows);
    }
    const uint32_t owners = ballot(mine);
    if (owners == 0) continue;
    int index = 0;
    while ((owners >> index & 1u) == 0) ++index;
    const AttentionSequence s = load_sequence(sequences + first + index);
    return {true, s, s.first_pos + token - s.first_row};
  }
  return {};
}

// A warp owns one head of one token: a query, a key or a value; a block eight of them. Memory-bound: a row is read once and written once (a
// query twice with a second rotation). Heads of a token are neighbouring warps: queries, then keys, then values.
template <KvType Kv, bool Wide>
struct QkRopeAppendKernel {
  using Params = QkRopeAppendParams;
  static constexpr const char* kName = "qk_rope_append";
  static constexpr Needs kNeeds = Needs::sm80;
  static constexpr int kThreads = 256, kBlocksPerSm = 4;
  static constexpr int kWarps = kThreads / kWarp;

  static LAPIDARY_HOST_DEVICE int heads_of_token(const Params& p) {
    return (p.rows.q ? p.num_heads : 0) + (p.rows.k ? 2 * p.num_kv_heads : 0);
  }

  static LAPIDARY_DEVICE void run(const Params& p, std::byte*) {
    const int heads = heads_of_token(p);
    const int64_t task = static_cast<int64_t>(block_x()) * kWarps + warp();
    const int token = static_cast<int>(task / heads);
    if (token >= p.tokens) return;
    wait_for_previous_grids();
    allow_next_grid();
    const int head = static_cast<int>(task % heads) - (p.rows.q ? p.num_heads : 0);
    if (head < 0) {
      query(p, token, p.num_heads + head);
    } else {
      append(p, token, head % p.num_kv_heads, head >= p.num_kv_heads);
    }
  }

  static LAPIDARY_DEVICE void query(const Params& p, int token, int head) {
    finish_query(p, HeadRow<Wide>::load(p.rows.q + token * p.rows.q_stride + static_cast<int64_t>(head) * p.head_dim, p.head_dim), token,
                 head);
  }

  // `row`: the projection, by a whole warp.
  static LAPIDARY_DEVICE void finish_query(const Params& p, HeadRow<Wide> row, int token, int head) {
    row.norm(p.rows.q_norm, p.head_dim);
    const int64_t angles = static_cast<int64_t>(token) * (p.head_dim / 2),
                  at = (static_cast<int64_t>(token) * p.num_heads + head) * p.head_dim;
    if (p.q_prefix_out != nullptr)
      store_query(p, row.rotated(p.rows.prefix_cos + angles, p.rows.prefix_sin + angles, p.head_dim), p.q_prefix_out, at);
    if (p.rows.cos != nullptr) row = row.rotated(p.rows.cos + angles, p.rows.sin + angles, p.head_dim);
    store_query(p, row, p.q_out, at);
  }

  static LAPIDARY_DEVICE void store_query(const Params& p, const HeadRow<Wide>& row, void* out, int64_t at) {
    const bool bf16 = p.q_type == ActType::bf16;
    std::byte* to = static_cast<std::byte*>(out) + at * (bf16 ? 2 : 4);
    if (bf16) {
      store_row<KvType::bf16>(row, to, nullptr, p.head_dim);
    } else {
      store_row<KvType::f32>(row, to, nullptr, p.head_dim);
    }
  }

  static LAPIDARY_DEVICE void append(const Params& p, int token, int kv_head, bool value) {
    const TokenPlace place = place_of_token(p.sequences, p.num_sequences, token);
    if (!place.found) return;
    const float* from = value ? p.rows.v + token * p.rows.v_stride : p.rows.k + token * p.rows.k_stride;
    finish_append(p, HeadRow<Wide>::load(from + static_cast<int64_t>(kv_head) * p.head_dim, p.head_dim), place, token, kv_head, value);
  }

  // `row`: the projection, by a whole warp; `place`: where the token stands in its sequence.
  static LAPIDARY_DEVICE void finish_append(const Params& p, HeadRow<Wide> row, const TokenPlace& place, int token, int kv_head,
                                            bool value) {
    if (!value) {
      row.norm(p.rows.k_norm, p.head_dim);
      const int64_t angles = static_cast<int64_t>(token) * (p.head_dim / 2);
      if (p.rows.cos != nullptr) row = row.rotated(p.rows.cos + angles, p.rows.sin + angles, p.head_dim);
    }
    std::byte* page = page_of_block(place.sequence, place.position / kPageTokens);
    const KvPage<Kv> layout = {p.num_kv_heads, p.head_dim};
    const int slot = place.position % kPageTokens;
    store_row<Kv>(row, page + (value ? layout.values(kv_head, slot) : layout.keys(kv_head, slot)),
                  page + (value ? layout.value_scales(kv_head, slot) : layout.key_scales(kv_head, slot)), p.head_dim);
  }
};

}  // namespace lapidary::cuda
