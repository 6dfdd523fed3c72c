// int8 products of 64-bit ARM with the dot product (SDOT); compiled with its flag.
#if defined(__GNUC__)
#pragma GCC diagnostic ignored "-Wunused-function"  // most of simd/neon.h and kernels/math.h
#endif

#define LAPIDARY_DOT
#define LAPIDARY_SIMD_HEADER "cpu/simd/neon.h"
#define LAPIDARY_SIMD_INT_HEADER "cpu/simd/int_neon.h"
#include "cpu/kernels/arm64.h"
#include "cpu/kernels/packed_int8.h"

namespace lapidary::cpu {
namespace {

// See kernels/probe.h. Enough sums to hide an instruction's latency.
double dot_probe(const void* data, int64_t rounds) {
  constexpr int kSums = 16;
  const int8x16_t x = load128(data, 0);
  int32x4_t sums[kSums];
  LAPIDARY_UNROLL for (int j = 0; j < kSums; ++j) sums[j] = vreinterpretq_s32_s8(load128(data, kProbeBytes / 16 + j));
  for (int64_t r = 0; r < rounds; ++r) {
    for (int i = 0; i < kProbeBytes / 16; ++i) {
      const int8x16_t w = load128(data, i);
      LAPIDARY_UNROLL for (int j = 0; j < kSums; ++j) sums[j] = vdotq_s32(sums[j], x, w);
    }
  }
  double total = 0;
  for (const int32x4_t& lanes : sums) total += static_cast<double>(vaddlvq_s32(lanes));
  return total;
}

constexpr const PackedKernel* kList[] = {&kPackedInt8Kernel};

}  // namespace

extern const PackedKernels kNeonDotPacked = {kList, 1};
extern const ProbeLoop kNeonDotProbe = {Feature::none, DType::i8, 2 * 16 * kProbeBytes, dot_probe};

}  // namespace lapidary::cpu
