// Tiles of keys, values or queries in shared memory: where a row's 16-byte chunks stand, how a tile arrives, how int8 becomes bf16.
#pragma once

#include "cuda/primitives/async_copy.cuh"
#include "cuda/primitives/math.cuh"
#include "cuda/primitives/memory.cuh"

namespace lapidary::cuda {

// A tile of bf16 rows of HeadDim elements. ldmatrix reads the same chunk of eight neighbouring rows; the eight must lie in different banks.
// Rows of 128 bytes and more: chunk c of row r stands at c ^ (r % 8). Rows of 64 bytes: two rows share the 128 bytes of all banks, so c ^
// (r / 2 % 4). Rows of other sizes are padded by one chunk if needed, to an odd number of chunks.
template <int HeadDim>
struct TileLayout {
  static_assert(HeadDim % 16 == 0);
  static constexpr int kChunks = HeadDim / 8;
  static constexpr bool kSwizzled = kChunks % 8 == 0 || kChunks == 4;
  static constexpr int kRowBytes = 16 * (kSwizzled ? kChunks : kChunks | 1);

  // Bytes from the tile's beginning.
  LAPIDARY_HOST_DEVICE static constexpr int offset(int row, int chunk) {
    if constexpr (kChunks % 8 == 0)
      return row * kRowBytes + (chunk ^ (row & 7)) * 16;
    else if constexpr (kChunks == 4)
      return row * kRowBytes + (chunk ^ (row >> 1 & 3)) * 16;
    else
      return row * kRowBytes + chunk * 16;
  }
  // offset(r + row, c + chunk) from base = offset(r, c), for a thread's own r, c and constants row, chunk that share no set bit with them
  // (or, row: a multiple of 8). Written so that constants stay constants: one exclusive or on one register instead of a register per place.
  LAPIDARY_HOST_DEVICE static constexpr int shift(int base, int row, int chunk) {
    if constexpr (kChunks % 8 == 0)
      return (base ^ ((chunk ^ row) & 7) * 16) + row * kRowBytes + chunk / 8 * 128;
    else if constexpr (kChunks == 4)
      return (base ^ (chunk ^ (row >> 1 & 3)) * 16) + row * kRowBytes;
    else
      return base + row * kRowBytes + chunk * 16;
  }
};

// Rows of a tile somewhere in global memory.
struct TileRows {
  const std::byte* first;  // row 0 of the tile
  int32_t stride_bytes;    // from row to row
  int32_t begin, end;      // rows that exist; the others become zeros and are not read
};

// Copies are issued, not awaited. Threads [0, Threads) take part; chunks from `chunks` (head_dim / 8) on become zeros.
template <int HeadDim, int Rows, int Threads>
LAPIDARY_DEVICE void load_tile_bf16(std::byte* tile, const TileRows& rows, int chunks, int thread) {
  using Layout = TileLayout<HeadDim>;
  constexpr int kTotal = Rows * Layout::kChunks;
  if constexpr (Threads % Layout::kChunks == 0 && kTotal % Threads == 0) {  // a thread keeps its column
    constexpr int kStep = Threads / Layout::kChunks;
    const int row = thread / Layout::kChunks, chunk = thread % Layout::kChunks;
    const int base = Layout::offset(row, chunk);
    const uint32_t begin = row - rows.begin, count = chunk < chunks && rows.end > rows.begin ? rows.end - rows.begin : 0;
    const std::byte* from = rows.first + row * rows.stride_bytes + chunk * 16;
    LAPIDARY_UNROLL
    for (int n = 0; n < kTotal / Threads; ++n) {
      const bool valid = begin + n * kStep < count;
      copy_async_16(tile + Layout::shift(base, n * kStep, 0), valid ? from : rows.first, valid);
      from += kStep * rows.stride_bytes;
    }
  } else {
    LAPIDARY_UNROLL
    for (int n = 0; n < ceil_div(kTotal, Threads); ++n) {
      const int i = thread + n * Threads;
      const int row = i / Layout::kChunks, chunk = i % Layout::kChunks;
      if (kTotal % Threads != 0 && i >= kTotal) break;
      const bool valid = row >= rows.begin && row < rows.end && chunk < chunks;
      copy_async_16(tile + Layout::offset(row, chunk), valid ? rows.first + row * rows.stride_bytes + chunk * 16 : rows.first, valid);
    }
  }
}

// The same for int8 rows into a staging tile of HeadDim bytes a row, unswizzled; `chunks` is head_dim / 16.
template <int HeadDim, int Rows, int Threads>
LAPIDARY_DEVICE void load_tile_int8(std::byte* stage, const TileRows& rows, int chunks, int thread) {
  constexpr int kChunks = HeadDim / 16, kTotal = Rows * kChunks, kStep = Threads / kChunks;
  static_assert(Threads % kChunks == 0 && kTotal % Threads == 0);
  thread = not_hoisted(thread);
  const int row = thread / kChunks, chunk = thread % kChunks;
  const uint32_t begin = row - rows.begin, count = chunk < chunks && rows.end > rows.begin ? rows.end - rows.begin : 0;
  const std::byte* from = rows.first + row * rows.stride_bytes + chunk * 16;
  LAPIDARY_UNROLL
  for (int n = 0; n < kTotal / Threads; ++n) {
    const bool valid = begin + n * kStep < count;
    copy_async_16(stage + (thread + n * Threads) * 16, valid ? from : rows.first, valid);
    from += kStep * rows.stride_bytes;
  }
}

// Four int8 of a register to four bf16, exactly. Byte b ^ 0x80 is b + 128; under the exponent of 2^23 it is the float 2^23 + 128 + b. What
// is left after the subtraction has at most 8 significant bits, so its upper half is the bf16.
LAPIDARY_DEVICE U32x2 widen_int8(uint32_t four) {
  constexpr uint32_t kExponent = 0x4b000000u;  // 2^23
  constexpr float kBias = 8388608.0f + 128.0f;
  const uint32_t biased = four ^ 0x80808080u;
  const float a = bits_as<float>(byte_permute(biased, kExponent, 0x7650)) - kBias,
              b = bits_as<float>(byte_permute(biased, kExponent, 0x7651)) - kBias;
  const float c = bits_as<float>(byte_permute(biased, kExponent, 0x7652)) - kBias,
              d = bits_as<float>(byte_permute(biased, kExponent, 0x7653)) - kBias;
  return {byte_permute(bits_as<uint32_t>(a), bits_as<uint32_t>(b), 0x7632),
          byte_permute(bits_as<uint32_t>(c), bits_as<uint32_t>(d), 0x7632)};
}

// A staged int8 tile to a bf16 tile, by Threads threads: 16 bytes in, two chunks out.
template <int HeadDim, int Rows, int Threads>
LAPIDARY_DEVICE void widen_tile(std::byte* tile, const std::byte* stage, int thread) {
  using Layout = TileLayout<HeadDim>;
  constexpr int kChunks = HeadDim / 16, kTotal = Rows * kChunks, kStep = Threads / kChunks;
  static_assert(Threads % kChunks == 0 && kTotal % Threads == 0);
  thread = not_hoisted(thread);
  const int base = Layout::offset(thread / kChunks, 2 * (thread % kChunks));
  LAPIDARY_UNROLL
  for (int n = 0; n < kTotal / Threads; ++n) {
    const U32x4 bytes = load_shared(reinterpret_cast<const U32x4*>(stage) + thread + n * Threads);
    LAPIDARY_UNROLL
    for (int half = 0; half < 2; ++half) {
      const U32x2 low = widen_int8(bytes[2 * half]), high = widen_int8(bytes[2 * half + 1]);
      store_shared(reinterpret_cast<U32x4*>(tile + Layout::shift(base, n * kStep, half)), U32x4{low[0], low[1], high[0], high[1]});
    }
  }
}

}  // namespace lapidary::cuda
