// The probes' kernels: the bandwidth of memory and the rate of the matrix units, with nothing else in the way.
#pragma once

#include <type_traits>

#include "cuda/api/probe.h"
#include "cuda/primitives/barrier.cuh"
#include "cuda/primitives/cluster.cuh"
#include "cuda/primitives/math.cuh"
#include "cuda/primitives/memory.cuh"
#include "cuda/primitives/mma.cuh"
#include "cuda/primitives/warp.cuh"
#include "cuda/primitives/wgmma.cuh"

namespace lapidary::cuda {

// Blocks stride over the buffer together; a thread has eight 16-byte loads on the way (32 KB a block of 256 threads, two blocks: 64 KB a
// multiprocessor, above the 24 KB that latency times bandwidth asks for).
struct MemoryProbeKernel {
  using Params = MemoryProbeParams;
  static constexpr const char* kName = "memory_probe";
  static constexpr Needs kNeeds = Needs::sm80;
  static constexpr int kThreads = 256, kBlocksPerSm = 2, kInFlight = 8;
  static constexpr size_t kSmemBytes = kThreads / kWarp * sizeof(uint32_t);

  struct Xor {
    LAPIDARY_DEVICE uint32_t operator()(uint32_t a, uint32_t b) const { return a ^ b; }
  };

  static LAPIDARY_DEVICE void run(const Params& p, std::byte* smem) {
    wait_for_previous_grids();
    allow_next_grid();
    const U32x4* from = static_cast<const U32x4*>(p.from);
    U32x4* to = static_cast<U32x4*>(p.to);
    const int64_t count = p.bytes / 16;
    const int64_t stride = static_cast<int64_t>(grid_x()) * kThreads;
    uint32_t sum = 0;
    int64_t i = static_cast<int64_t>(block_x()) * kThreads + thread_index();
    for (; i + (kInFlight - 1) * stride < count; i += kInFlight * stride) {
      U32x4 v[kInFlight];
      LAPIDARY_UNROLL
      for (int j = 0; j < kInFlight; ++j) v[j] = load_streaming(from + i + j * stride);
      LAPIDARY_UNROLL
      for (int j = 0; j < kInFlight; ++j) {
        sum ^= v[j][0] ^ v[j][1] ^ v[j][2] ^ v[j][3];
        if (to) store_global(to + i + j * stride, v[j]);
      }
    }
    for (; i < count; i += stride) {
      const U32x4 v = load_streaming(from + i);
      sum ^= v[0] ^ v[1] ^ v[2] ^ v[3];
      if (to) store_global(to + i, v);
    }
    sum = block_reduce<kThreads>(sum, Xor{}, 0u, reinterpret_cast<uint32_t*>(smem));
    if (thread_index() == 0) store_global(p.sums + block_x(), sum);
  }
};

// 32 well-mixed bits: operands that switch as many wires as real data does, which the power limit notices.
LAPIDARY_DEVICE uint32_t probe_bits(uint32_t i) {
  i = (i ^ (i >> 16)) * 0x7feb352du;
  i = (i ^ (i >> 15)) * 0x846ca68bu;
  return i ^ (i >> 16);
}
// As int8, or as two bf16 of magnitude 0.5 to 1.
template <bool kInt8>
LAPIDARY_DEVICE uint32_t probe_operand(uint32_t i) {
  return kInt8 ? probe_bits(i) : (probe_bits(i) & 0x807f807fu) | 0x3f003f00u;
}

// Eight warps, each with eight independent chains of mma: enough to hide an instruction's latency.
template <bool kInt8>
struct MmaProbeKernel {
  using Params = MatrixProbeParams;
  static constexpr const char* kName = "mma_probe";
  static constexpr Needs kNeeds = Needs::sm80;
  static constexpr int kThreads = 256, kBlocksPerSm = 1, kChains = 8;
  static constexpr size_t kSmemBytes = 0;
  using Sum = std::conditional_t<kInt8, int, float>;

  static LAPIDARY_DEVICE void run(const Params& p, std::byte*) {
    wait_for_previous_grids();
    uint32_t a[4], b[kChains][2];
    Sum d[kChains][4];
    LAPIDARY_UNROLL
    for (int i = 0; i < 4; ++i) a[i] = probe_operand<kInt8>(static_cast<uint32_t>(thread_index() * 32 + i));
    LAPIDARY_UNROLL
    for (int c = 0; c < kChains; ++c) {
      LAPIDARY_UNROLL
      for (int i = 0; i < 2; ++i) b[c][i] = probe_operand<kInt8>(static_cast<uint32_t>(thread_index() * 32 + 4 + 2 * c + i));
      LAPIDARY_UNROLL
      for (int i = 0; i < 4; ++i) d[c][i] = 0;
    }
    for (int step = 0; step < p.steps; ++step) {
      LAPIDARY_UNROLL
      for (int c = 0; c < kChains; ++c) {
        if constexpr (kInt8) {
          mma_s8(d[c], a, b[c]);
        } else {
          mma_bf16(d[c], a, b[c]);
        }
      }
    }
    Sum sum = 0;
    LAPIDARY_UNROLL
    for (int c = 0; c < kChains; ++c) {
      LAPIDARY_UNROLL
      for (int i = 0; i < 4; ++i) sum += d[c][i];
    }
    store_global(p.sums + static_cast<int64_t>(block_x()) * kThreads + thread_index(), bits_as<uint32_t>(sum));
  }
};

// Two warpgroups, each with its own 64 rows of A, over one B tile of 256 rows and 128 bytes of k; one block a multiprocessor.
template <bool kInt8>
struct WgmmaProbeKernel {
  using Params = MatrixProbeParams;
  static constexpr const char* kName = "wgmma_probe";
  static constexpr Needs kNeeds = Needs::sm90a;
  static constexpr int kThreads = 256, kBlocksPerSm = 1, kN = 256;
  static constexpr int kRowBytes = 128, kGroupBytes = 64 * kRowBytes, kBBytes = kN * kRowBytes;
  static constexpr size_t kSmemBytes = 2 * kGroupBytes + kBBytes;
  using Sum = std::conditional_t<kInt8, int, float>;

  static LAPIDARY_DEVICE void run(const Params& p, std::byte* smem) {
    wait_for_previous_grids();
    for (int i = thread_index(); i < static_cast<int>(kSmemBytes / 4); i += kThreads) {
      store_shared(reinterpret_cast<uint32_t*>(smem) + i, probe_operand<kInt8>(static_cast<uint32_t>(i)));
    }
    fence_proxy_async();
    sync_threads();
    const std::byte* b_tile = smem + 2 * kGroupBytes;
    const uint64_t a = smem_descriptor(smem + thread_index() / 128 * kGroupBytes, 16, 8 * kRowBytes, Swizzle::bytes128);
    const uint64_t b = smem_descriptor(b_tile, 16, 8 * kRowBytes, Swizzle::bytes128);
    Sum d[kN / 2];
    LAPIDARY_UNROLL
    for (int i = 0; i < kN / 2; ++i) d[i] = 0;
    for (int step = 0; step < p.steps; ++step) {
      wgmma_fence();
      LAPIDARY_UNROLL
      for (int k = 0; k < kRowBytes / 32; ++k) {
        if constexpr (kInt8) {
          wgmma_s8<kN>(d, descriptor_advance(a, 32 * k), descriptor_advance(b, 32 * k), true);
        } else {
          wgmma_bf16<kN>(d, descriptor_advance(a, 32 * k), descriptor_advance(b, 32 * k), true);
        }
      }
      wgmma_commit();
    }
    wgmma_wait<0>();
    wgmma_keep(d);
    Sum sum = 0;
    LAPIDARY_UNROLL
    for (int i = 0; i < kN / 2; ++i) sum += d[i];
    store_global(p.sums + static_cast<int64_t>(block_x()) * kThreads + thread_index(), bits_as<uint32_t>(sum));
  }
};

}  // namespace lapidary::cuda
