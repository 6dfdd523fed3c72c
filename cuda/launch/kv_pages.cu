// Launchers for pages of the KV cache.
#include "cuda/api/launchers.h"
#include "cuda/kernels/kv_pages.cuh"
#include "cuda/primitives/launch.cuh"

namespace lapidary::cuda {

namespace {

template <bool Export>
Status launch_rows(const char* where, const KvRowsParams& p, const LaunchContext& context) {
  if (const char* why = why_not_kv_rows(p)) return Status::refused(where, why);
  const int64_t head_bytes = p.head_dim * kv_element_bytes(p.type);
  const uintptr_t places = reinterpret_cast<uintptr_t>(p.k) | reinterpret_cast<uintptr_t>(p.v) | static_cast<uintptr_t>(head_bytes);
  const Grid grid = {p.end - p.first};
  if (places % 16 == 0) return launch<KvRowsKernel<U32x4, Export>>(grid, p, context);
  if (places % 4 == 0) return launch<KvRowsKernel<uint32_t, Export>>(grid, p, context);
  if (places % 2 == 0) return launch<KvRowsKernel<uint16_t, Export>>(grid, p, context);
  return launch<KvRowsKernel<uint8_t, Export>>(grid, p, context);
}

}  // namespace

Status copy_pages(const CopyPagesParams& p, const LaunchContext& context) {
  if (const char* why = why_not_pages(p.count, p.page_bytes)) return Status::refused("copy_pages", why);
  return launch<CopyPagesKernel>({int64_t{p.count} * CopyPagesKernel::spans(p)}, p, context);
}

Status zero_pages(const ZeroPagesParams& p, const LaunchContext& context) {
  if (const char* why = why_not_pages(p.count, p.page_bytes)) return Status::refused("zero_pages", why);
  return launch<ZeroPagesKernel>({int64_t{p.count} * ZeroPagesKernel::spans(p)}, p, context);
}

Status kv_export(const KvRowsParams& p, const LaunchContext& context) { return launch_rows<true>("kv_export", p, context); }
Status kv_import(const KvRowsParams& p, const LaunchContext& context) { return launch_rows<false>("kv_import", p, context); }

}  // namespace lapidary::cuda
