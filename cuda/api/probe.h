// Params of the probes: kernels that do one thing as fast as a device can, so that other kernels are measured against the device at hand
// and not against its data sheet.
#pragma once

#include "cuda/api/status.h"

namespace lapidary::cuda {

// Reads `bytes` once, and writes them to `to` unless it is null.
struct MemoryProbeParams {
  const void* from;  // [bytes], 16-byte aligned
  void* to;          // [bytes], 16-byte aligned, or null
  uint32_t* sums;    // [blocks]: the XOR of all 32-bit words that a block read
  int64_t bytes;     // a multiple of 16
  int32_t blocks;
};

// Matrix instructions on registers (mma) or on one tile in shared memory (wgmma), over and over. Every step multiplies the same operands
// and adds, so the sums grow by equal amounts: that is how a result is verified.
enum class MatrixUnit : int32_t { mma_s8, mma_bf16, wgmma_s8, wgmma_bf16 };
struct MatrixProbeParams {
  uint32_t* sums;  // [blocks, 256]: a thread's accumulators added up (bf16: as f32 bits)
  MatrixUnit unit;
  int32_t blocks, steps;
};
inline bool supports_matrix_probe(const MatrixProbeParams& p, const DeviceFacts& device) {
  return (p.unit == MatrixUnit::mma_s8 || p.unit == MatrixUnit::mma_bf16) || device.has_wgmma();
}
// Multiplications and additions of one launch.
inline double matrix_probe_operations(const MatrixProbeParams& p) {
  const bool wide = p.unit == MatrixUnit::wgmma_s8 || p.unit == MatrixUnit::wgmma_bf16;
  const double k = p.unit == MatrixUnit::mma_s8 || p.unit == MatrixUnit::wgmma_s8 ? 32 : 16;
  const double per_block = wide ? 2.0 * 4 * 64 * 256 * k : 8.0 * 8 * 16 * 8 * k;
  return 2 * per_block * p.blocks * p.steps;
}

}  // namespace lapidary::cuda
