// Where things stand in a page of the key-value cache (the layout is AttentionSequence's, cuda/api/attention.h).
#pragma once

#include "cuda/api/attention.h"
#include "cuda/primitives/memory.cuh"

namespace lapidary::cuda {

template <KvType Kv>
inline constexpr int kKvBytes = Kv == KvType::f32    ? 4
                                : Kv == KvType::bf16 ? 2
                                                     : 1;  // of one element

// Bytes from a page's beginning. One KV head's 64 rows of keys are contiguous, and so are its values and its scales.
template <KvType Kv>
struct KvPage {
  int32_t num_kv_heads, head_dim;

  LAPIDARY_HOST_DEVICE int64_t keys(int kv_head, int row = 0) const {
    return static_cast<int64_t>(kv_head * kPageTokens + row) * head_dim * kKvBytes<Kv>;
  }
  LAPIDARY_HOST_DEVICE int64_t values(int kv_head, int row = 0) const { return keys(num_kv_heads + kv_head, row); }
  LAPIDARY_HOST_DEVICE int64_t key_scales(int kv_head, int row = 0) const {
    return keys(2 * num_kv_heads) + (kv_head * kPageTokens + row) * 4;
  }
  LAPIDARY_HOST_DEVICE int64_t value_scales(int kv_head, int row = 0) const { return key_scales(num_kv_heads + kv_head, row); }
};

LAPIDARY_DEVICE AttentionSequence load_sequence(const AttentionSequence* s) {
  return {load_readonly(&s->first_row), load_readonly(&s->rows), load_readonly(&s->first_pos), load_readonly(&s->num_pages),
          load_readonly(&s->pages)};
}

// The page of positions [64 block, 64 block + 64). Kernels that append write through it.
LAPIDARY_DEVICE std::byte* page_of_block(const AttentionSequence& s, int block) {
  return static_cast<std::byte*>(const_cast<void*>(load_readonly(s.pages + block % s.num_pages)));
}

}  // namespace lapidary::cuda
