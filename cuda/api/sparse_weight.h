// int8 weights with 2:4 sparsity as the sparse tensor cores read them: of every four neighbouring k's of a row at most two are stored. The
// layout, the packer, the unpacker, and what the sparse product takes.
//
//   values    int8 [n][padded_k / 2], padded_k = k rounded up to 128: two values of every chunk of four k's, in rising k
//
//               dense   a 0 0 b | 0 c d 0 | 0 0 0 e | ...        (e alone: stored with a zero in front, at place 2)
//               stored  a b     | c d     | 0 e     | ...
//               places  0 3     | 1 2     | 2 3     | ...        (of the chunk, two bits each, rising)
//
//   metadata  uint32 [ceil(n / 16)][padded_k / 64][32]: for 16 rows and 64 k's one word for each lane of a warp, in the order of mma.sp's
//   operand.
//             Word `lane` has the places of 16 stored values of row (lane / 4 + 8 * (lane % 2)) of the 16, of k's 32 * (lane / 2 % 2) .. +
//             31 of the 64: stored value s in bits 2 s, 2 s + 1. Rows beyond n have the places 0, 1 everywhere.
//
// Three eighths less than dense: k / 2 bytes of values and k / 8 bytes of metadata a row.
#pragma once

#include <cstring>
#include <vector>

#include "cuda/api/gemm_plan.h"

namespace lapidary::cuda {

inline constexpr int kSparseK = 128;  // padded_k is a multiple of it: what a kernel takes at a time
inline constexpr int kSparseRows = 16, kSparseStepK = 64;
inline constexpr uint32_t kSparsePlaces01 = 0x44444444u;  // places 0, 1 in every chunk

inline int64_t sparse_padded_k(int64_t k) { return gemm_ceil_div(k, kSparseK) * kSparseK; }
inline int64_t sparse_values_bytes(int64_t n, int64_t k) { return n * sparse_padded_k(k) / 2; }
inline int64_t sparse_metadata_words(int64_t n, int64_t k) {
  return gemm_ceil_div(n, kSparseRows) * (sparse_padded_k(k) / kSparseStepK) * 32;
}

struct SparsePlace {
  int64_t word;
  int shift;  // of the stored value's two bits
};
// Where the place of stored value `stored` (0 .. padded_k / 2 - 1) of row `row` stands in the metadata.
inline SparsePlace sparse_place(int64_t row, int64_t stored, int64_t k) {
  const int64_t step = stored / 32, within = stored % 32;
  const int64_t r = row % kSparseRows, lane = r % 8 * 4 + r / 8 + 2 * (within / 16);
  return {(row / kSparseRows * (sparse_padded_k(k) / kSparseStepK) + step) * 32 + lane, static_cast<int>(within % 16 * 2)};
}

struct PackedSparseWeight {
  std::vector<int8_t> values;
  std::vector<uint32_t> metadata;
};

// dense: int8 [n][k], row-major, k a multiple of 4. False: a chunk of four has more than two non-zeros.
inline bool pack_sparse_weight(const int8_t* dense, int64_t n, int64_t k, PackedSparseWeight* packed) {
  const int64_t row_values = sparse_padded_k(k) / 2;
  packed->values.assign(static_cast<size_t>(sparse_values_bytes(n, k)), 0);
  packed->metadata.assign(static_cast<size_t>(sparse_metadata_words(n, k)), kSparsePlaces01);
  for (int64_t row = 0; row < n; ++row) {
    for (int64_t chunk = 0; chunk < k / 4; ++chunk) {
      const int8_t* four = dense + row * k + chunk * 4;
      int places[2], count = 0;
      for (int i = 0; i < 4; ++i) {
        if (four[i] == 0) continue;
        if (count == 2) return false;
        places[count++] = i;
      }
      // A lone value is the second of its pair, or the first when it stands at place 0; the other place then holds a zero.
      if (count == 0) places[0] = 0, places[1] = 1;
      if (count == 1 && places[0] == 0) places[1] = 1;
      if (count == 1 && places[0] != 0) places[1] = places[0], places[0] = places[1] - 1;
      for (int i = 0; i < 2; ++i) {
        packed->values[static_cast<size_t>(row * row_values + chunk * 2 + i)] = four[places[i]];
        const SparsePlace at = sparse_place(row, chunk * 2 + i, k);
        uint32_t& word = packed->metadata[static_cast<size_t>(at.word)];
        word = (word & ~(3u << at.shift)) | static_cast<uint32_t>(places[i]) << at.shift;
      }
    }
  }
  return true;
}

// The dense matrix again: int8 [n][k].
inline void unpack_sparse_weight(const int8_t* values, const uint32_t* metadata, int64_t n, int64_t k, int8_t* dense) {
  std::memset(dense, 0, static_cast<size_t>(n * k));
  for (int64_t row = 0; row < n; ++row) {
    for (int64_t stored = 0; stored < k / 2; ++stored) {
      const SparsePlace at = sparse_place(row, stored, k);
      const int place = static_cast<int>(metadata[at.word] >> at.shift & 3u);
      dense[row * k + stored / 2 * 4 + place] =
          static_cast<int8_t>(dense[row * k + stored / 2 * 4 + place] + values[row * (sparse_padded_k(k) / 2) + stored]);
    }
  }
}

// y as of Int8Product with the unpacked weight.
struct SparseInt8Product {
  const int8_t* x = nullptr;           // int8 [m, k], rows x_stride bytes apart
  const int8_t* values = nullptr;      // int8 [n, padded_k / 2], 16-byte aligned
  const uint32_t* metadata = nullptr;  // uint32 [ceil(n / 16), padded_k / 64, 32], 128-byte aligned
  const float* x_scales = nullptr;     // f32 [m]; null: x_scale for every row
  const float* w_scales = nullptr;     // f32 [n]
  int64_t x_stride = 0;                // bytes, a multiple of 16, as the address of x
  float x_scale = 1;
  int32_t m = 0, n = 0, k = 0;  // k a multiple of 16
  ProductOutput output;
};

// Columns of the tensor cores' tile are tokens, its rows are channels: the sparse operand is the first.
struct SparseTile {
  int m, n;  // tokens, channels
  int warp_m, warp_n;
  int stages;
  int blocks_per_sm;
  int rate;  // as MmaTile's

  constexpr int threads() const { return (m / warp_m) * (n / warp_n) * 32; }
  constexpr int64_t stage_bytes() const { return static_cast<int64_t>(m) * kSparseK + static_cast<int64_t>(n) * kSparseK / 2; }
  constexpr int64_t smem_bytes() const { return stages * stage_bytes(); }

  static constexpr int kWgmma = 0;
  constexpr bool splits() const { return false; }
  constexpr int64_t unit_bytes() const { return kSparseK; }
  constexpr bool may_pair() const { return false; }
  constexpr int64_t whole_tile_blocks(int64_t tiles, int) const { return tiles; }
};
inline constexpr SparseTile kSparseTiles[] = {{32, 64, 16, 32, 5, 3, 35}, {64, 128, 32, 32, 4, 2, 60}, {128, 128, 32, 64, 4, 1, 75}};
inline constexpr int kSparseTileCount = sizeof kSparseTiles / sizeof kSparseTiles[0];

struct GemmSparseInt8Params {
  SparseInt8Product product;
  GemmPlan plan;  // never split; tile -1: chosen
};

inline const char* refuse_gemm_sparse_int8(const SparseInt8Product& p) {
  if (const char* why = refuse_operands(p.x, p.values, p.x_stride, sparse_padded_k(p.k), p.m, p.n, p.k)) return why;
  if (p.metadata == nullptr || reinterpret_cast<uintptr_t>(p.metadata) % 128 != 0) return "metadata is missing or not aligned to 128 bytes";
  if (p.k > kMaxInt8K) return "int32 sums could overflow";
  if (p.output.epilogue != Epilogue::raw && p.w_scales == nullptr) return "no weight scales";
  return refuse_output(p.output, p.n, true);
}
inline bool supports_gemm_sparse_int8(const SparseInt8Product& p, const DeviceFacts& device) {
  return refuse_gemm_device(device) == nullptr && refuse_gemm_sparse_int8(p) == nullptr;
}
inline GemmPlan plan_gemm_sparse_int8(const SparseInt8Product& p, const DeviceFacts& device) {
  constexpr PlanWords kWords = {"mma.sp, whole tiles: the fullest waves", "", ""};
  return plan_tiles(kSparseTiles, kSparseTileCount, p.m, p.n, p.k, false, device, false, kWords);
}

}  // namespace lapidary::cuda
