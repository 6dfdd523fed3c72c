// Loops that do nothing but one thing, as fast as the instruction set allows: what the roofline is measured with. Part of kernels/impl.h.
//
// The compiler must not find out that the work is the same each time: sums start from memory, and a product has a factor that
// changes within a round. The integer and bf16 dot products stand in the simd/*.h, since they have no common form.
#pragma once

#include "cpu/kernels/math.h"

namespace lapidary::cpu {
namespace {

// As many as `linear` has in flight.
constexpr int kProbeSums = kTileTokens * kTileRows;

double probe_f32(const void* data, int64_t rounds) {
  const float *numbers = static_cast<const float*>(data), *zeros = numbers + kProbeBytes / 4;
  const V x = set1(numbers[0]);
  V sums[kProbeSums];
  LAPIDARY_UNROLL for (int j = 0; j < kProbeSums; ++j) sums[j] = load(zeros + 16 * j);
  for (int64_t r = 0; r < rounds; ++r) {
    for (int64_t i = 0; i < kProbeBytes / 4; i += 16) {
      const V w = load(numbers + i);
      LAPIDARY_UNROLL for (int j = 0; j < kProbeSums; ++j) sums[j] = fma(x, w, sums[j]);
    }
  }
  double total = 0;
  for (const V& sum : sums) total += reduce_add(sum);
  return total;
}

double probe_read(const float* p, int64_t n) {
  V sums[4];
  LAPIDARY_UNROLL for (int j = 0; j < 4; ++j) sums[j] = zero();
  for (int64_t i = 0; i < n; i += 64) {
    LAPIDARY_UNROLL for (int j = 0; j < 4; ++j) sums[j] = add(sums[j], load(p + i + 16 * j));
  }
  double total = 0;
  for (const V& sum : sums) total += reduce_add(sum);
  return total;
}

constexpr Probes kProbes = {
    probe_read,
    {Feature::none, DType::f32, 2 * kProbeSums* kProbeBytes / 4, probe_f32},
    {kInt8FastProbe, kInt8Probe},
    kBf16Probe,
};

}  // namespace
}  // namespace lapidary::cpu
