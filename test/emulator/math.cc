// The approximate functions of the device with its stated errors, and conversions. Deterministic: an error depends on the argument alone.
#include <bit>
#include <cmath>

#include "emulator/device.h"

namespace lapidary::emulator {
namespace {

// `exact` rounded, then moved by up to `ulps` in a direction that the argument's bits decide, unless the result is exact: code must not
// lean on correct rounding that the device does not give.
float approximate(float x, double exact, int ulps) {
  const float nearest = static_cast<float>(exact);
  if (static_cast<double>(nearest) == exact || !std::isfinite(nearest)) return nearest;
  const uint32_t hash = std::bit_cast<uint32_t>(x) * 0x9e3779b1u >> 24;
  const int move = static_cast<int>(hash % static_cast<uint32_t>(2 * ulps - 1)) - (ulps - 1);  // rounding itself is up to half an ulp
  float y = nearest;
  for (int i = 0; i < std::abs(move); ++i) y = std::nextafterf(y, move < 0 ? -INFINITY : INFINITY);
  return y;
}

float flush(float x) { return std::fpclassify(x) == FP_SUBNORMAL ? std::copysign(0.0f, x) : x; }

}  // namespace

float exp2_fast(float x) {
  x = flush(x);
  return flush(approximate(x, std::exp2(static_cast<double>(x)), 2));
}

// Eleven significant bits.
float tanh_fast(float x) {
  const float y = std::tanh(x);
  if (!(std::fabs(y) < 1) || y == 0) return y;
  const uint32_t bits = std::bit_cast<uint32_t>(y);
  return std::bit_cast<float>((bits + 0xfffu + ((bits >> 13) & 1)) & ~0x1fffu);
}

float rsqrt_fast(float x) { return approximate(x, 1.0 / std::sqrt(static_cast<double>(x)), 2); }
float reciprocal_fast(float x) { return approximate(x, 1.0 / static_cast<double>(x), 1); }

float half_to_float(uint16_t bits) {
  const uint32_t sign = static_cast<uint32_t>(bits & 0x8000) << 16, exponent = bits >> 10 & 31, fraction = bits & 0x3ff;
  if (exponent == 31) return std::bit_cast<float>(sign | 0x7f800000u | fraction << 13);
  if (exponent == 0) return std::copysign(std::ldexp(static_cast<float>(fraction), -24), std::bit_cast<float>(sign | 0x3f800000u));
  return std::bit_cast<float>(sign | (exponent + 112) << 23 | fraction << 13);
}

// To nearest, ties to even; NaN becomes the canonical one, as cvt.rn.f16.f32 has it.
uint16_t float_to_half(float x) {
  const uint32_t bits = std::bit_cast<uint32_t>(x);
  const auto sign = static_cast<uint16_t>(bits >> 16 & 0x8000);
  const float magnitude = std::fabs(x);
  if (std::isnan(x)) return 0x7fff;
  if (magnitude >= 65520.0f) return sign | 0x7c00;
  if (magnitude < 6.103515625e-05f) {  // subnormal: multiples of 2^-24
    return static_cast<uint16_t>(sign | static_cast<uint32_t>(std::nearbyint(std::ldexp(static_cast<double>(magnitude), 24))));
  }
  const uint32_t m = bits & 0x7fffffffu, rounded = m + 0xfffu + (m >> 13 & 1);
  return static_cast<uint16_t>(sign | ((rounded >> 13) - (112u << 10)));
}

int dot4_s8(uint32_t a, uint32_t b, int c) {
  auto sum = static_cast<uint32_t>(c);
  for (int i = 0; i < 4; ++i) {
    sum += static_cast<uint32_t>(static_cast<int8_t>(a >> 8 * i) * static_cast<int8_t>(b >> 8 * i));
  }
  return static_cast<int>(sum);
}

uint32_t byte_permute(uint32_t a, uint32_t b, uint32_t selector) {
  const uint64_t bytes = static_cast<uint64_t>(b) << 32 | a;
  uint32_t result = 0;
  for (int i = 0; i < 4; ++i) {
    const uint32_t pick = selector >> 4 * i & 15;
    uint32_t byte = static_cast<uint32_t>(bytes >> 8 * (pick & 7)) & 0xff;
    if (pick & 8) byte = byte & 0x80 ? 0xff : 0;  // the sign of the byte, eight times
    result |= byte << 8 * i;
  }
  return result;
}

}  // namespace lapidary::emulator
