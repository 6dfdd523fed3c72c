// Pages of the KV cache as memory: copy for a fork's first write, zero for a fresh page, and one layer's rows out of and into pages for
// save and restore. The layout of a page is in attention.h.
#pragma once

#include "cuda/api/attention.h"

namespace lapidary::cuda {

// Sequences that share pages copy the ones they write to: all pages of a step in one launch.
struct PageCopy {
  const void* from;  // page_bytes, 16-byte aligned
  void* to;          // the same; no page is both a source and a target, and no target comes twice
};
struct CopyPagesParams {
  const PageCopy* copies;  // device [count]
  int32_t count;
  int64_t page_bytes;  // a multiple of 16
};

struct ZeroPagesParams {
  void* const* pages;  // device [count]: page_bytes each, 16-byte aligned
  int32_t count;
  int64_t page_bytes;  // a multiple of 16
};

// Positions [first, end) of one sequence in one layer, between its pages and contiguous rows. kv_export writes the rows, kv_import the
// pages (only the places of those positions).
struct KvRowsParams {
  void* const* pages;  // device [num_pages]
  void* k;             // [end - first, num_kv_heads, head_dim] of `type`
  void* v;             // the same shape
  float* k_scales;     // f32 [end - first, num_kv_heads]; int8 only, else null
  float* v_scales;     // the same shape
  KvType type;
  int32_t num_pages, num_kv_heads, head_dim;
  int32_t first, end;  // end - first at most 64 num_pages: positions of a ring must not share a place
};

inline int64_t kv_element_bytes(KvType type) { return type == KvType::f32 ? 4 : type == KvType::bf16 ? 2 : 1; }
inline int64_t kv_page_bytes(KvType type, int64_t num_kv_heads, int64_t head_dim) {
  return 2 * num_kv_heads * kPageTokens * (head_dim * kv_element_bytes(type) + (type == KvType::int8 ? 4 : 0));
}

// Null if the launcher takes the problem, else the reason.
inline const char* why_not_pages(int64_t count, int64_t page_bytes) {
  if (count < 0 || page_bytes <= 0) return "count must not be negative and page_bytes must be positive";
  return page_bytes % 16 != 0 ? "page_bytes must be a multiple of 16" : nullptr;
}
inline const char* why_not_kv_rows(const KvRowsParams& p) {
  if (p.num_pages <= 0 || p.num_kv_heads <= 0 || p.head_dim <= 0) return "num_pages, num_kv_heads and head_dim must be positive";
  if (p.first < 0 || p.end < p.first) return "positions must lie in rising order from 0";
  if (p.end - p.first > static_cast<int64_t>(p.num_pages) * kPageTokens) return "more positions than the pages hold";
  if (p.type == KvType::int8 && (!p.k_scales || !p.v_scales)) return "int8 rows need their scales";
  return nullptr;
}
inline bool supports_copy_pages(const CopyPagesParams& p, const DeviceFacts&) { return !why_not_pages(p.count, p.page_bytes); }
inline bool supports_zero_pages(const ZeroPagesParams& p, const DeviceFacts&) { return !why_not_pages(p.count, p.page_bytes); }
inline bool supports_kv_export(const KvRowsParams& p, const DeviceFacts&) { return !why_not_kv_rows(p); }
inline bool supports_kv_import(const KvRowsParams& p, const DeviceFacts&) { return !why_not_kv_rows(p); }

}  // namespace lapidary::cuda
