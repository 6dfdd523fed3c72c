// The arithmetic of a draw that the host's sampler and a device's share bit for bit (docs/numerics.md): made of operations that every
// compiler rounds alike, no library function. Weights are added as whole units, so a sum is exact and the same in any order. Compiled by
// nvcc too.
#pragma once

#include <cstdint>
#include <cstring>

#ifdef __CUDACC__
#define LAPIDARY_SHARED __host__ __device__ inline
#else
#define LAPIDARY_SHARED inline
#endif

namespace lapidary::sampling {

LAPIDARY_SHARED uint32_t float_bits(float x) {
  uint32_t bits;
  memcpy(&bits, &x, sizeof bits);
  return bits;
}
LAPIDARY_SHARED float float_of(uint32_t bits) {
  float x;
  memcpy(&x, &bits, sizeof x);
  return x;
}

// The order of filters as a number: the likelier logit has the lower key, -0 and 0 the same. Not for NaN.
LAPIDARY_SHARED uint32_t likelihood_key(float logit) {
  const uint32_t bits = float_bits(logit + 0.0f);
  return bits & 0x80000000u ? bits : ~(bits | 0x80000000u);
}
LAPIDARY_SHARED float logit_of_key(uint32_t key) { return float_of(key & 0x80000000u ? key : ~key & 0x7fffffffu); }

// The adjusted logit less the largest one, over the temperature: at most 0.
LAPIDARY_SHARED float scaled_logit(float logit, float top, float temperature) { return (logit - top) / temperature; }

// e^z for z <= 0 within two units of the last place, 0 below -103.98: products and sums, unfused. z = n ln 2 + r, ln 2 in two parts of
// which the first has 14 bits, so that n times it is exact; the polynomial of (e^r - 1 - r) / r^2.
LAPIDARY_SHARED float weight_of(float z) {
  constexpr float kMagic = 0x1.8p+23f;  // adding it rounds to an integer, which is then in the low bits
  z = z < -104.0f ? -104.0f : z;
  const float shifted = z * 0x1.715476p+0f + kMagic;
  const int32_t n = static_cast<int32_t>(float_bits(shifted) - 0x4b400000u);  // -150 .. 0
  const float whole = shifted - kMagic;
  const float r = (z - whole * 0x1.62e4p-1f) - whole * 0x1.7f7d1cp-20f;
  float p = 0x1.a12a42p-13f * r + 0x1.6d4920p-10f;
  p = p * r + 0x1.1110e0p-7f;
  p = p * r + 0x1.5554e4p-5f;
  p = p * r + 0x1.555556p-3f;
  p = p * r + 0.5f;
  const float power = 1.0f + (r + r * r * p);
  const int32_t half = n / 2;  // 2^n in two factors: the result may be subnormal
  return power * float_of(static_cast<uint32_t>(half + 127) << 23) * float_of(static_cast<uint32_t>(n - half + 127) << 23);
}

// Buckets of scaled logits, 1/32 wide, the likeliest first; -32 and less share the last. A lower logit is never in an earlier bucket.
constexpr int kBuckets = 1024;
constexpr float kBucketScale = -32.0f;
LAPIDARY_SHARED int bucket_of(float z) {
  const float at = z * kBucketScale;
  return static_cast<int>(float_bits((at < kBuckets - 1 ? at : kBuckets - 1) + 0x1.8p+23f) - 0x4b400000u);
}

// A unit of weight is 2^-unit_bits: as fine as 64 bits allow for a whole vocabulary of weights of 1 (2^-44 for 262,144 tokens).
LAPIDARY_SHARED int unit_bits(int64_t vocab) {
  int bits = 62;
  while (vocab > 1) {
    vocab = (vocab + 1) / 2;
    --bits;
  }
  return bits;
}
// The units of a weight, rounded down: a token with none is never drawn.
LAPIDARY_SHARED uint64_t units_of(float weight, int unit_bits) {
  return static_cast<uint64_t>(static_cast<int64_t>(weight * float_of(static_cast<uint32_t>(unit_bits + 127) << 23)));
}

// A token stays in the top p when it has fewer than this many units before it: ceil(top_p * total), at least 1, so that the first stays.
LAPIDARY_SHARED uint64_t top_p_limit(float top_p, uint64_t total) {
  const double limit = static_cast<double>(top_p) * static_cast<double>(total);
  const uint64_t whole = static_cast<uint64_t>(limit);
  const uint64_t up = whole + (static_cast<double>(whole) < limit ? 1 : 0);
  return up < 1 ? 1 : up;
}

LAPIDARY_SHARED float repeated(float logit, float penalty) { return logit > 0 ? logit / penalty : logit * penalty; }
LAPIDARY_SHARED float generated(float logit, float presence, float frequency, int32_t count) {
  return logit - (presence + frequency * static_cast<float>(count));
}

LAPIDARY_SHARED uint64_t mix(uint64_t x) {  // splitmix64's finalizer
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
  x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
  return x ^ (x >> 31);
}
// 53 random bits from (seed, counter) alone. A splitmix64 stream whose start is the mixed seed: neighbouring seeds give unrelated streams.
LAPIDARY_SHARED uint64_t draw_bits(uint64_t seed, uint64_t counter) {
  constexpr uint64_t kStep = 0x9e3779b97f4a7c15u;
  return mix(mix(seed + kStep) + (counter + 1) * kStep) >> 11;
}

LAPIDARY_SHARED uint64_t multiply_high(uint64_t a, uint64_t b) {
  const uint64_t a0 = a & 0xffffffffu, a1 = a >> 32, b0 = b & 0xffffffffu, b1 = b >> 32;
  const uint64_t middle = a1 * b0 + (a0 * b0 >> 32), low = a0 * b1 + (middle & 0xffffffffu);
  return a1 * b1 + (middle >> 32) + (low >> 32);
}
// floor(uniform * total) for the uniform number draw_bits / 2^53: the token drawn is the first, in id order, at whose end the sum of units
// exceeds this.
LAPIDARY_SHARED uint64_t draw_target(uint64_t draw_bits, uint64_t total) { return multiply_high(draw_bits << 11, total); }

}  // namespace lapidary::sampling
