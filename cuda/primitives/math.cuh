// Arithmetic that both compilations must agree on: explicit fused multiply-add, fast exponentials, conversions to and from bf16, f16 and
// int8. Neither compiler may contract on its own (-ffp-contract=off, -fmad=false): what is fused is written fma().
#pragma once

#include "cuda/primitives/platform.cuh"

#ifdef LAPIDARY_EMULATED
#include <cmath>
#endif

namespace lapidary::cuda {

struct BFloat16 {
  uint16_t bits;
};
struct Half {
  uint16_t bits;
};

inline constexpr float kLog2e = 1.4426950408889634f;
inline constexpr float kNegativeHuge = -1e30f;  // a score that no key has; finite, so that differences are never NaN

#ifdef LAPIDARY_EMULATED
LAPIDARY_DEVICE float fma(float a, float b, float c) { return std::fma(a, b, c); }
LAPIDARY_DEVICE float exp2_fast(float x) { return emulator::exp2_fast(x); }              // 2 ulp, like ex2.approx.ftz
LAPIDARY_DEVICE float tanh_fast(float x) { return emulator::tanh_fast(x); }              // relative error 2^-11, like tanh.approx
LAPIDARY_DEVICE float rsqrt_fast(float x) { return emulator::rsqrt_fast(x); }            // 2 ulp, like rsqrt.approx
LAPIDARY_DEVICE float reciprocal_fast(float x) { return emulator::reciprocal_fast(x); }  // 1 ulp
LAPIDARY_DEVICE float sqrt_exact(float x) { return std::sqrt(x); }
LAPIDARY_DEVICE float divide_exact(float a, float b) { return a / b; }
LAPIDARY_DEVICE float max_f32(float a, float b) { return std::fmax(a, b); }
LAPIDARY_DEVICE float min_f32(float a, float b) { return std::fmin(a, b); }
LAPIDARY_DEVICE float abs_f32(float a) { return std::fabs(a); }
LAPIDARY_DEVICE float round_even(float x) { return std::nearbyintf(x); }
LAPIDARY_DEVICE float to_f32(Half v) { return emulator::half_to_float(v.bits); }
LAPIDARY_DEVICE Half to_half(float v) { return {emulator::float_to_half(v)}; }
// q = clamp(round_even(x), -127, 127) as int8 (NaN: 0). Full precision: the shared int8 rule of docs/numerics.md.
LAPIDARY_DEVICE int8_t to_int8(float x) {
  if (!(x == x)) return 0;
  x = std::nearbyintf(x);
  return static_cast<int8_t>(x > 127 ? 127 : x < -127 ? -127 : x);
}
LAPIDARY_DEVICE int dot4_s8(uint32_t a, uint32_t b, int c) { return emulator::dot4_s8(a, b, c); }
LAPIDARY_DEVICE uint32_t byte_permute(uint32_t a, uint32_t b, uint32_t selector) { return emulator::byte_permute(a, b, selector); }
#else
LAPIDARY_DEVICE float fma(float a, float b, float c) { return __fmaf_rn(a, b, c); }
LAPIDARY_DEVICE float exp2_fast(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}
LAPIDARY_DEVICE float tanh_fast(float x) {
  float y;
  asm("tanh.approx.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}
LAPIDARY_DEVICE float rsqrt_fast(float x) {
  float y;
  asm("rsqrt.approx.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}
LAPIDARY_DEVICE float reciprocal_fast(float x) {
  float y;
  asm("rcp.approx.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}
LAPIDARY_DEVICE float sqrt_exact(float x) { return __fsqrt_rn(x); }
LAPIDARY_DEVICE float divide_exact(float a, float b) { return __fdiv_rn(a, b); }
LAPIDARY_DEVICE float max_f32(float a, float b) { return fmaxf(a, b); }
LAPIDARY_DEVICE float min_f32(float a, float b) { return fminf(a, b); }
LAPIDARY_DEVICE float abs_f32(float a) { return fabsf(a); }
LAPIDARY_DEVICE float round_even(float x) { return rintf(x); }
LAPIDARY_DEVICE float to_f32(Half v) {
  float f;
  asm("cvt.f32.f16 %0, %1;" : "=f"(f) : "h"(v.bits));
  return f;
}
LAPIDARY_DEVICE Half to_half(float v) {
  Half h;
  asm("cvt.rn.f16.f32 %0, %1;" : "=h"(h.bits) : "f"(v));
  return h;
}
LAPIDARY_DEVICE int8_t to_int8(float x) {
  int q;
  asm("cvt.rni.sat.s8.f32 %0, %1;" : "=r"(q) : "f"(x));
  return static_cast<int8_t>(q < -127 ? -127 : q);
}
LAPIDARY_DEVICE int dot4_s8(uint32_t a, uint32_t b, int c) { return __dp4a(static_cast<int>(a), static_cast<int>(b), c); }
LAPIDARY_DEVICE uint32_t byte_permute(uint32_t a, uint32_t b, uint32_t selector) { return __byte_perm(a, b, selector); }
#endif

LAPIDARY_HOST_DEVICE float to_f32(BFloat16 v) { return bits_as<float>(static_cast<uint32_t>(v.bits) << 16); }
// To nearest, ties to even; NaN stays NaN.
LAPIDARY_HOST_DEVICE BFloat16 to_bf16(float v) {
  const uint32_t u = bits_as<uint32_t>(v);
  if ((u & 0x7fffffffu) > 0x7f800000u) return {static_cast<uint16_t>((u >> 16) | 0x40u)};
  return {static_cast<uint16_t>((u + 0x7fffu + ((u >> 16) & 1u)) >> 16)};
}
// Two bf16 in one register, `low` in the lower half (the lower address).
LAPIDARY_DEVICE uint32_t pack_bf16(float low, float high) {
#if !defined(LAPIDARY_EMULATED) && defined(__CUDA_ARCH__)
  uint32_t r;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(r) : "f"(high), "f"(low));
  return r;
#else
  return static_cast<uint32_t>(to_bf16(low).bits) | static_cast<uint32_t>(to_bf16(high).bits) << 16;
#endif
}
LAPIDARY_HOST_DEVICE float low_bf16(uint32_t pair) { return bits_as<float>(pair << 16); }
LAPIDARY_HOST_DEVICE float high_bf16(uint32_t pair) { return bits_as<float>(pair & 0xffff0000u); }
// Sums of two pairs of bf16, each rounded to nearest even.
LAPIDARY_DEVICE uint32_t add_bf16x2(uint32_t a, uint32_t b) {
#if !defined(LAPIDARY_EMULATED) && defined(__CUDA_ARCH__)
  uint32_t r;
  asm("fma.rn.bf16x2 %0, %1, %2, %3;" : "=r"(r) : "r"(a), "r"(0x3f803f80u), "r"(b));  // a * 1 + b: sm_80 has no add of its own
  return r;
#else
  return pack_bf16(low_bf16(a) + low_bf16(b), high_bf16(a) + high_bf16(b));
#endif
}
LAPIDARY_DEVICE uint32_t pack_int8(int8_t a, int8_t b, int8_t c, int8_t d) {
  return static_cast<uint8_t>(a) | static_cast<uint32_t>(static_cast<uint8_t>(b)) << 8 |
         static_cast<uint32_t>(static_cast<uint8_t>(c)) << 16 | static_cast<uint32_t>(static_cast<uint8_t>(d)) << 24;
}

}  // namespace lapidary::cuda
