// Copies between and out of the pages of the KV cache. Nothing but moves: any type, the same bits.
#pragma once

#include "cuda/api/kv_pages.h"
#include "cuda/primitives/cluster.cuh"

namespace lapidary::cuda {

inline constexpr int kPageThreads = 256, kPageVectors = 4;  // four 16-byte loads in flight per thread
inline constexpr int64_t kPageSpan = kPageThreads * kPageVectors * 16;

// Block (x, y) owns kPageSpan bytes of copy y.
struct CopyPagesKernel {
  using Params = CopyPagesParams;
  static constexpr const char* kName = "copy_pages";
  static constexpr Needs kNeeds = Needs::sm80;
  static constexpr int kThreads = kPageThreads, kBlocksPerSm = 4;

  static LAPIDARY_DEVICE void run(const Params& p, std::byte*) {
    wait_for_previous_grids();
    allow_next_grid();
    const PageCopy* copy = p.copies + block_x() / spans(p);
    const U32x4* from = static_cast<const U32x4*>(load_global(&copy->from));
    U32x4* to = static_cast<U32x4*>(load_global(&copy->to));
    const int64_t first = block_x() % spans(p) * (kPageSpan / 16) + thread_index(), end = p.page_bytes / 16;
    U32x4 held[kPageVectors];
    LAPIDARY_UNROLL
    for (int i = 0; i < kPageVectors; ++i)
      if (first + i * kPageThreads < end) held[i] = load_global(from + first + i * kPageThreads);
    LAPIDARY_UNROLL
    for (int i = 0; i < kPageVectors; ++i)
      if (first + i * kPageThreads < end) store_global(to + first + i * kPageThreads, held[i]);
  }
  static LAPIDARY_HOST_DEVICE int spans(const Params& p) { return static_cast<int>(ceil_div(p.page_bytes, kPageSpan)); }
};

struct ZeroPagesKernel {
  using Params = ZeroPagesParams;
  static constexpr const char* kName = "zero_pages";
  static constexpr Needs kNeeds = Needs::sm80;
  static constexpr int kThreads = kPageThreads, kBlocksPerSm = 4;

  static LAPIDARY_DEVICE void run(const Params& p, std::byte*) {
    wait_for_previous_grids();
    allow_next_grid();
    U32x4* page = static_cast<U32x4*>(load_global(p.pages + block_x() / spans(p)));
    const int64_t first = block_x() % spans(p) * (kPageSpan / 16) + thread_index(), end = p.page_bytes / 16;
    LAPIDARY_UNROLL
    for (int i = 0; i < kPageVectors; ++i)
      if (first + i * kPageThreads < end) store_global(page + first + i * kPageThreads, U32x4{{0, 0, 0, 0}});
  }
  static LAPIDARY_HOST_DEVICE int spans(const Params& p) { return static_cast<int>(ceil_div(p.page_bytes, kPageSpan)); }
};

// A block owns one position: keys, values and scales of all its heads, in units of U (the widest that divides a head's row and the
// addresses).
template <class U, bool Export>
struct KvRowsKernel {
  using Params = KvRowsParams;
  static constexpr const char* kName = Export ? "kv_export" : "kv_import";
  static constexpr Needs kNeeds = Needs::sm80;
  static constexpr int kThreads = 128, kBlocksPerSm = 8;

  static LAPIDARY_DEVICE void run(const Params& p, std::byte*) {
    wait_for_previous_grids();
    allow_next_grid();
    const int64_t at = block_x(), pos = p.first + at;
    const int bytes = p.type == KvType::f32 ? 4 : p.type == KvType::bf16 ? 2 : 1;
    const int head_units = p.head_dim * bytes / static_cast<int>(sizeof(U)), units = p.num_kv_heads * head_units;
    const int64_t side = static_cast<int64_t>(units) * kPageTokens;
    U* page = static_cast<U*>(load_global(p.pages + pos / kPageTokens % p.num_pages));
    const int row = static_cast<int>(pos % kPageTokens);
    for (int i = thread_index(); i < 2 * units; i += kThreads) {
      const int value = i >= units ? 1 : 0, unit = i - value * units, head = unit / head_units;
      U* in_page = page + value * side + static_cast<int64_t>(head * kPageTokens + row) * head_units + unit % head_units;
      move(in_page, static_cast<U*>(value ? p.v : p.k) + at * units + unit);
    }
    if (p.type != KvType::int8) return;
    float* scales = reinterpret_cast<float*>(page + 2 * side);
    for (int i = thread_index(); i < 2 * p.num_kv_heads; i += kThreads) {
      const int value = i >= p.num_kv_heads ? 1 : 0, head = i - value * p.num_kv_heads;
      move(scales + i * kPageTokens + row, (value ? p.v_scales : p.k_scales) + at * p.num_kv_heads + head);
    }
  }

 private:
  template <class T>
  static LAPIDARY_DEVICE void move(T* in_page, T* in_rows) {
    if constexpr (Export) {
      store_global(in_rows, load_global(in_page));
    } else {
      store_global(in_page, load_global(in_rows));
    }
  }
};

}  // namespace lapidary::cuda
