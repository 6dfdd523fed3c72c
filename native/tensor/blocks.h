// The 32- and 256-element block layouts of GGUF, as structs, and their exact values.
// `dequantize_row` is the truth that every block kernel is compared with; it is bit-equal to the format's definition in f32.
#pragma once

#include <cstdint>

#include "base/float16.h"
#include "tensor/dtype.h"

namespace lapidary {

struct BlockQ8_0 {
  f16 d;
  int8_t q[32];
};  // x = d * q
struct BlockQ4_0 {
  f16 d;
  uint8_t qs[16];
};  // x = d * (nibble - 8)
struct BlockQ4_1 {
  f16 d;
  f16 m;
  uint8_t qs[16];
};  // x = d * nibble + m
struct BlockQ5_0 {
  f16 d;
  uint8_t qh[4];
  uint8_t qs[16];
};  // x = d * (5 bits - 16)
struct BlockQ5_1 {
  f16 d;
  f16 m;
  uint8_t qh[4];
  uint8_t qs[16];
};  // x = d * 5 bits + m
struct BlockQ2_K {
  uint8_t scales[16];
  uint8_t qs[64];
  f16 d;
  f16 dmin;
};  // x = d * sc * q - dmin * mn
struct BlockQ3_K {
  uint8_t hmask[32];
  uint8_t qs[64];
  uint8_t scales[12];
  f16 d;
};  // x = d * (sc - 32) * q
struct BlockQ4_K {
  f16 d;
  f16 dmin;
  uint8_t scales[12];
  uint8_t qs[128];
};  // x = d * sc * q - dmin * mn
struct BlockQ5_K {
  f16 d;
  f16 dmin;
  uint8_t scales[12];
  uint8_t qh[32];
  uint8_t qs[128];
};
struct BlockQ6_K {
  uint8_t ql[128];
  uint8_t qh[64];
  int8_t scales[16];
  f16 d;
};  // x = d * sc * (6 bits - 32)

static_assert(sizeof(BlockQ8_0) == 34 && sizeof(BlockQ4_0) == 18 && sizeof(BlockQ4_1) == 20);
static_assert(sizeof(BlockQ5_0) == 22 && sizeof(BlockQ5_1) == 24);
static_assert(sizeof(BlockQ2_K) == 84 && sizeof(BlockQ3_K) == 110 && sizeof(BlockQ4_K) == 144);
static_assert(sizeof(BlockQ5_K) == 176 && sizeof(BlockQ6_K) == 210);

// Widens `elements` weights (whole blocks; any dtype but i8, i32, u8) from `src`, which may be unaligned, to f32.
void dequantize_row(DType dtype, const void* src, int64_t elements, float* dst);

}  // namespace lapidary
