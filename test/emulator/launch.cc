// launch(): what a device refuses, and a grid run from its first block to its last.
#include <cstring>
#include <memory>
#include <mutex>
#include <vector>

#include "emulator/global_memory.h"
#include "emulator/grid.h"
#include "emulator/settings.h"

namespace lapidary::emulator {

namespace {

const char* unfit(const LaunchShape& s, const cuda::DeviceFacts& device) {
  if (s.grid[0] > 0x7fffffff || s.grid[1] > 65535 || s.grid[2] > 65535) return "the grid is too large";
  if (s.threads < 32 || s.threads > 1024 || s.threads % 32) return "a block needs 32..1024 threads, whole warps";
  if (static_cast<int64_t>(s.smem_bytes) > device.smem_per_block) return "more shared memory than a block of this device can have";
  if (s.needs >= 1 && !device.has_clusters()) return "the kernel needs compute capability 9.0 or later";
  if (s.needs >= 2 && !device.has_wgmma()) return "the kernel needs compute capability 9.0";
  if (s.cluster < 1 || s.cluster > 16) return "a cluster has 1..16 blocks";
  if (s.cluster > 1 && !device.has_clusters()) return "this device has no clusters";
  if (s.grid[0] % s.cluster) return "the grid is not a multiple of the cluster";
  return nullptr;
}

// A launch's copy of its parameters; tensor maps in them need this alignment.
struct alignas(128) ParamLine {
  std::byte bytes[128];
};

cuda::Status run_grid(const LaunchShape& shape, bool dependent, const void* params, void (*body)(const void*, std::byte*)) {
  const std::lock_guard lock(settings().mutex);
  Grid g(shape, params, body, dependent);
  const std::string& finding = g.run();
  settings().statistics = g.statistics;
  note_written(std::move(g.written), dependent);
  if (finding.empty()) return {};
  return cuda::Status::cuda(719, shape.name, keep_text(finding));
}

}  // namespace

cuda::Status launch(const LaunchShape& shape, const cuda::LaunchContext& context, const void* params, size_t params_bytes,
                    void (*body)(const void* params, std::byte* smem)) {
  if (shape.grid[0] <= 0 || shape.grid[1] <= 0 || shape.grid[2] <= 0) return {};
  if (const char* reason = unfit(shape, settings().device)) return cuda::Status::cuda(1, shape.name, reason);
  if (params_bytes > 4096) return cuda::Status::cuda(1, shape.name, "kernel parameters are limited to 4 KiB");
  auto copy = std::make_shared<std::vector<ParamLine>>((params_bytes + sizeof(ParamLine) - 1) / sizeof(ParamLine));
  std::memcpy(copy->data(), params, params_bytes);
  return enqueue(context.stream,
                 [shape, dependent = context.dependent, copy, body] { return run_grid(shape, dependent, copy->data(), body); });
}

}  // namespace lapidary::emulator
