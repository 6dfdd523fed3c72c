// AMX in plain C++, for tests: a thread's tiles, and what the instructions do with them as Intel's manual (volume 2) defines it. Part of
// amx.h. The functions that take tile numbers are the definition; those of amx.h's form, numbered at compile time, call them.
#pragma once

#include <cstdlib>
#include <cstring>

namespace lapidary::cpu {
namespace {

// What the processor answers with an exception ends the process here too, unless `refuse` is another function that does not return; it is
// told the rule that was broken.
struct EmulatedTiles {
  TileConfig config;
  bool configured = false;
  uint8_t bytes[8][16][64] = {};
  void (*refuse)(const char* rule) = [](const char*) { std::abort(); };
};
inline EmulatedTiles& tiles() {
  thread_local EmulatedTiles state;
  return state;
}

inline void require(bool holds, const char* rule) {
  if (!holds) tiles().refuse(rule);
}

inline void tile_configure(const TileConfig& config) {
  EmulatedTiles& t = tiles();
  require(config.palette == 1 && config.start_row == 0, "a configuration is of palette 1, from row 0");
  for (uint8_t byte : config.reserved) require(byte == 0, "reserved bytes of a configuration are zero");
  for (int i = 0; i < 16; ++i) {
    require(config.row_bytes[i] <= 64 && config.rows[i] <= 16, "a tile has at most 16 rows of 64 bytes");
    require((config.row_bytes[i] == 0) == (config.rows[i] == 0), "a tile has both rows and bytes, or neither");
    require(i < 8 || config.rows[i] == 0, "there are eight tiles");
  }
  t.config = config;
  t.configured = true;
  std::memset(t.bytes, 0, sizeof t.bytes);
}
inline void tile_release() { tiles().configured = false; }

inline EmulatedTiles& tiles_with(int tile) {
  EmulatedTiles& t = tiles();
  require(t.configured && t.config.rows[tile] > 0, "a tile is configured before it is used");
  return t;
}

inline void tile_zero(int tile) { std::memset(tiles_with(tile).bytes[tile], 0, sizeof(EmulatedTiles::bytes[0])); }
inline void tile_load(int tile, const void* rows, int64_t stride) {
  tile_zero(tile);
  EmulatedTiles& t = tiles();
  for (int r = 0; r < t.config.rows[tile]; ++r)
    std::memcpy(t.bytes[tile][r], static_cast<const char*>(rows) + r * stride, t.config.row_bytes[tile]);
}
inline void tile_store(int tile, void* rows, int64_t stride) {
  EmulatedTiles& t = tiles_with(tile);
  for (int r = 0; r < t.config.rows[tile]; ++r)
    std::memcpy(static_cast<char*>(rows) + r * stride, t.bytes[tile][r], t.config.row_bytes[tile]);
}

// The shapes must fit: C [m, n] words, A [m, k] words, B [k, n] words.
inline EmulatedTiles& dot_tiles(int C, int A, int B) {
  tiles_with(A), tiles_with(B);
  EmulatedTiles& t = tiles_with(C);
  const TileConfig& c = t.config;
  require(C != A && C != B && A != B, "a product is of three tiles");
  require(c.row_bytes[C] % 4 == 0 && c.row_bytes[A] % 4 == 0 && c.row_bytes[B] % 4 == 0, "rows of a product are whole words");
  require(c.rows[A] == c.rows[C] && c.row_bytes[B] == c.row_bytes[C] && c.rows[B] == c.row_bytes[A] / 4, "shapes of a product fit");
  return t;
}

template <typename T>
T tile_element(const EmulatedTiles& t, int tile, int row, int i) {
  T value;
  std::memcpy(&value, t.bytes[tile][row] + i * static_cast<int>(sizeof value), sizeof value);
  return value;
}

// Subnormal numbers count as zeros of their sign.
inline float flushed(float x) { return __builtin_fabsf(x) < 0x1p-126f ? __builtin_copysignf(0, x) : x; }
// A sum so small is judged before it is rounded to the coarse steps of subnormal numbers: it may not be lifted to the least normal one.
inline float flushed(float rounded, double exact) {
  return __builtin_fabs(exact) < 0x1p-126 * (1 - 0x1p-25) ? __builtin_copysignf(0, rounded) : rounded;
}
inline float fma_flushed(float a, float b, float c) { return flushed(__builtin_fmaf(a, b, c), static_cast<double>(a) * b + c); }
inline float add_flushed(float a, float b) { return flushed(a + b, static_cast<double>(a) + b); }

inline float widened_bf16(uint16_t bits) {
  const uint32_t word = static_cast<uint32_t>(bits) << 16;
  float x;
  std::memcpy(&x, &word, sizeof x);
  return flushed(x);
}

// Per element of C: a chain of fused multiply-adds over the even elements and one over the odd ones, both from 0 and in rising k; their
// sum; that added to C. Rounding to nearest even, subnormal inputs and results zero.
inline void tile_dot_bf16(int C, int A, int B) {
  EmulatedTiles& t = dot_tiles(C, A, B);
  for (int m = 0; m < t.config.rows[C]; ++m) {
    for (int n = 0; n < t.config.row_bytes[C] / 4; ++n) {
      float sums[2] = {};
      for (int k = 0; k < t.config.row_bytes[A] / 4; ++k) {
        for (int i = 0; i < 2; ++i) {
          const float a = widened_bf16(tile_element<uint16_t>(t, A, m, 2 * k + i)),
                      b = widened_bf16(tile_element<uint16_t>(t, B, k, 2 * n + i));
          sums[i] = fma_flushed(a, b, sums[i]);
        }
      }
      const float total = add_flushed(flushed(tile_element<float>(t, C, m, n)), add_flushed(sums[0], sums[1]));
      std::memcpy(t.bytes[C][m] + 4 * n, &total, sizeof total);
    }
  }
}

inline void tile_dot_u8_i8(int C, int A, int B) {
  EmulatedTiles& t = dot_tiles(C, A, B);
  for (int m = 0; m < t.config.rows[C]; ++m) {
    for (int n = 0; n < t.config.row_bytes[C] / 4; ++n) {
      uint32_t sum = tile_element<uint32_t>(t, C, m, n);
      for (int k = 0; k < t.config.row_bytes[A]; ++k)
        sum += static_cast<uint32_t>(tile_element<uint8_t>(t, A, m, k) * tile_element<int8_t>(t, B, k / 4, 4 * n + k % 4));
      std::memcpy(t.bytes[C][m] + 4 * n, &sum, sizeof sum);
    }
  }
}

template <int kTile>
void tile_zero() {
  tile_zero(kTile);
}
template <int kTile>
void tile_load(const void* rows, int64_t stride) {
  tile_load(kTile, rows, stride);
}
template <int kTile>
void tile_store(void* rows, int64_t stride) {
  tile_store(kTile, rows, stride);
}
template <int C, int A, int B>
void tile_dot_bf16() {
  tile_dot_bf16(C, A, B);
}
template <int C, int A, int B>
void tile_dot_u8_i8() {
  tile_dot_u8_i8(C, A, B);
}

}  // namespace
}  // namespace lapidary::cpu
