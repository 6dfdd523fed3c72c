// Launcher of the device sampler: one launch for greedy rows, two with draws, three where a row has top-p without top-k.
#include "cuda/api/launchers.h"
#include "cuda/kernels/sampling_draw.cuh"
#include "cuda/kernels/sampling_scan.cuh"
#include "cuda/primitives/launch.cuh"

namespace lapidary::cuda {

Status sample(const SampleParams& p, const LaunchContext& context) {
  if (!supports_sample(p, *context.device))
    return Status::refused("sample", "rows, vocab or top_logprobs are outside of what the sampler takes");
  if (p.rows == 0) return {};
  const SampleLayout l = sample_layout(p.max_rows, p.vocab);
  std::byte* w = static_cast<std::byte*>(p.workspace);
  SampleKernelParams k = {};
  k.p = p;
  k.counters = reinterpret_cast<uint32_t*>(w + l.counters);
  k.bins = reinterpret_cast<uint32_t*>(w + l.bins);
  k.state = reinterpret_cast<SampleState*>(w + l.state);
  k.best = reinterpret_cast<uint64_t*>(w + l.best);
  k.bad = reinterpret_cast<U32x2*>(w + l.bad);
  k.stats = reinterpret_cast<F32x2*>(w + l.stats);
  k.mass = reinterpret_cast<uint64_t*>(w + l.mass);
  k.list = reinterpret_cast<U32x2*>(w + l.list);
  k.top_list = reinterpret_cast<U32x2*>(w + l.top_list);
  k.adjusted = p.needs.adjusts ? reinterpret_cast<float*>(w + l.adjusted) : nullptr;
  k.chunks = static_cast<int32_t>(l.chunks);
  k.room = static_cast<int32_t>(l.room);

  Grid grid = {l.chunks, p.rows, 1, 1, SampleScanKernel::kSmemBytes};
  Status status = launch<SampleScanKernel>(grid, k, context);
  grid.smem_bytes = sizeof(DrawSmem);
  if (status.ok() && (p.needs.draws || p.needs.most_top > 0)) status = launch<SampleWeighKernel>(grid, k, context);
  if (status.ok() && p.needs.nucleus) status = launch<SampleNucleusKernel>(grid, k, context);
  return status;
}

}  // namespace lapidary::cuda
