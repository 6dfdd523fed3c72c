// Launchers of the row and elementwise kernels.
#include "cuda/api/launchers.h"
#include "cuda/kernels/elementwise.cuh"
#include "cuda/kernels/geglu.cuh"
#include "cuda/kernels/quantize.cuh"
#include "cuda/kernels/rms_norm.cuh"
#include "cuda/primitives/launch.cuh"

namespace lapidary::cuda {

namespace {

// Rows of up to this many elements are a block of 128 threads' work, longer ones one of 512's: two to three groups of four per thread for
// Gemma's hidden sizes. The number of threads does not change a bit of the result.
constexpr int kShortRow = 1024;

template <template <int, bool> class Kernel, class Params>
Status launch_norm(const Params& p, const LaunchContext& context) {
  if (p.dim > kSharedRowDim) return launch<Kernel<512, false>>({p.rows, 1, 1, 1, row_smem_bytes(false, p.dim)}, p, context);
  const Grid grid = {p.rows, 1, 1, 1, row_smem_bytes(true, p.dim)};
  return p.dim <= kShortRow ? launch<Kernel<128, true>>(grid, p, context) : launch<Kernel<512, true>>(grid, p, context);
}

}  // namespace

Status rms_norm(const RmsNormParams& p, const LaunchContext& context) {
  if (!supports_rms_norm(p, *context.device)) return Status::refused("rms_norm", "dim must be positive and an int8 output needs its scale");
  return launch_norm<RmsNormKernel>(p, context);
}

Status add_norm(const AddNormParams& p, const LaunchContext& context) {
  if (!supports_add_norm(p, *context.device)) return Status::refused("add_norm", "dim must be positive and an int8 output needs its scale");
  return launch_norm<AddNormKernel>(p, context);
}

Status geglu(const GegluParams& p, const LaunchContext& context) {
  if (!supports_geglu(p, *context.device)) {
    return Status::refused("geglu",
                           "ffn must be positive, interleaved a multiple of 8 and without `up`, and an int8 output needs its scale");
  }
  return launch<GegluKernel>({static_cast<int64_t>(p.rows) * row_spans(p.out, p.ffn), 1, 1, 1, GegluKernel::kSmemBytes}, p, context);
}

Status quantize(const QuantizeParams& p, const LaunchContext& context) {
  if (!supports_quantize(p, *context.device))
    return Status::refused("quantize", "dim must be positive, the input f32 or bf16, and an int8 output needs its scale");
  const Grid grid = {static_cast<int64_t>(p.rows) * row_spans(p.out, p.dim), 1, 1, 1, QuantizeKernel<float>::kSmemBytes};
  return p.in_type == ActType::bf16 ? launch<QuantizeKernel<BFloat16>>(grid, p, context) : launch<QuantizeKernel<float>>(grid, p, context);
}

Status row_absmax(const RowAbsmaxParams& p, const LaunchContext& context) {
  if (!supports_row_absmax(p, *context.device)) return Status::refused("row_absmax", "dim must be positive and the input f32 or bf16");
  const Grid grid = {p.rows, 1, 1, 1, RowAbsmaxKernel<float>::kSmemBytes};
  return p.in_type == ActType::bf16 ? launch<RowAbsmaxKernel<BFloat16>>(grid, p, context)
                                    : launch<RowAbsmaxKernel<float>>(grid, p, context);
}

Status sequence_scales(const SequenceScalesParams& p, const LaunchContext& context) {
  return launch<SequenceScalesKernel>({p.sequences, 1, 1, 1, SequenceScalesKernel::kSmemBytes}, p, context);
}

Status add(const AddParams& p, const LaunchContext& context) { return launch<AddKernel>({ceil_div(p.count, kFlatSpan)}, p, context); }

Status soft_cap(const SoftCapParams& p, const LaunchContext& context) {
  if (!supports_soft_cap(p, *context.device)) return Status::refused("soft_cap", "the cap must be positive");
  return launch<SoftCapKernel>({ceil_div(p.count, kFlatSpan)}, p, context);
}

Status fill(const FillParams& p, const LaunchContext& context) { return launch<FillKernel>({ceil_div(p.count, kFlatSpan)}, p, context); }

Status gather_rows(const GatherRowsParams& p, const LaunchContext& context) {
  if (p.dim <= 0) return Status::refused("gather_rows", "dim must be positive");
  return launch<GatherRowsKernel>({p.count}, p, context);
}

Status rope_angles(const RopeAnglesParams& p, const LaunchContext& context) {
  return launch<RopeAnglesKernel>({ceil_div(static_cast<int64_t>(p.tokens) * p.half, int64_t{RopeAnglesKernel::kThreads})}, p, context);
}

Status rope(const RopeParams& p, const LaunchContext& context) { return launch<RopeKernel>({p.tokens}, p, context); }

}  // namespace lapidary::cuda
