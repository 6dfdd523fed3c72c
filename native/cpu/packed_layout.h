// The panel layouts. Contracts: kernels, packers and unpackers agree on these pictures alone.
//
// int8, a panel of rows r = 0 .. 15:
//   [k padded to a multiple of 64, in groups of 4][16 rows][4 numbers] i8       16 · padded k bytes
//   row_sums [16] i32                                                           Σ of the row's numbers, for inputs moved up by 128
// One group is 64 bytes: a register of the AVX-512 dot product, a row of an AMX tile; 16 groups are one AMX tile.
//
// bf16, a panel of rows r = 0 .. 15:
//   [k padded to a multiple of 32, in groups of 2][16 rows][2 numbers] bf16     32 · padded k bytes
// One group is 64 bytes: a register of pairs for the AVX-512 dot product and for widening by a shift; 16 groups are one AMX tile.
//
// GGUF blocks, a panel of rows r = 0 .. 15: chunks of 64 columns (blocks of 32) or of 256 (K blocks), k padded to whole chunks with zeros.
// A chunk is scales, then for each 32 columns their numbers, 64 bytes per bit of a number:
//   Q8_0, Q4_0, Q5_0   d [2][16] f16                                            of the chunk's two blocks
//   Q4_1, Q5_1         d [2][16] f16, m [2][16] f16
//   Q4_K, Q5_K         d [16] f16, dmin [16] f16, sc [8][16] u8, mn [8][16] u8   the six-bit scales unpacked: 2 to 3 % more than the file
//   Q6_K               d [16] f16, 32 zero bytes, sc [16][16] i8                 of sixteen columns each
//   8 bits             [8 words][16 rows] u32     byte e of word j: column 4 j + e, moved up by 128
//   4 bits             [4 words][16 rows] u32     byte e of word j: column 4 j + e in the low four bits, column 16 + 4 j + e in the high
//   5 bits             as 4 bits, then [16 rows] u32: the fifth bit of the column of (pair s, element i) is bit s + 16 i
//   6 bits             as 4 bits, then [2 words][16 rows] u32: its two high bits are bits 2 (s % 8) + 16 i of word s / 8
// Pair s = 2 j + h of 32 columns has elements 4 j + h and 4 j + h + 2: what a mask of two bytes leaves of a word.
//
// f16, a panel of rows r = 0 .. 15:
//   [k padded to a multiple of 2][16 rows] f16                                  32 · padded k bytes
#pragma once

#include <cstdint>

#include "tensor/dtype.h"

namespace lapidary::cpu {

struct PackedLayout;

inline constexpr int64_t kPackedRows = 16;
inline constexpr int64_t kInt8Group = 4;
static constexpr int64_t packed_int8_columns(int64_t k) { return (k + 63) / 64 * 64; }

inline constexpr int64_t kBf16Group = 2;
static constexpr int64_t packed_bf16_columns(int64_t k) { return (k + 31) / 32 * 32; }

// What tells one block type from another. x = d · (number - kOffset), or with kMinimum d · number + m.
template <DType kDType, int kNumberBits, int kMovedUp, bool kK, bool kHasMinimum>
struct BlockForm {
  static constexpr DType kType = kDType;
  static constexpr int kBits = kNumberBits, kOffset = kMovedUp;
  static constexpr bool kSuper = kK, kMinimum = kHasMinimum, kGroupsOf16 = kK && !kHasMinimum;
  static constexpr int64_t kBlocks = kK ? 8 : 2;  // of 32 columns in a chunk
  static constexpr int64_t kScaleBytes = kK ? 320 : kHasMinimum ? 128 : 64;
  static constexpr int64_t kNumberBytes = 64 * kNumberBits;  // of 32 columns
  static constexpr int64_t kChunkBytes = kScaleBytes + kBlocks * kNumberBytes;
};
using FormQ8_0 = BlockForm<DType::q8_0, 8, 128, false, false>;
using FormQ4_0 = BlockForm<DType::q4_0, 4, 8, false, false>;
using FormQ4_1 = BlockForm<DType::q4_1, 4, 0, false, true>;
using FormQ5_0 = BlockForm<DType::q5_0, 5, 16, false, false>;
using FormQ5_1 = BlockForm<DType::q5_1, 5, 0, false, true>;
using FormQ4_K = BlockForm<DType::q4_k, 4, 0, true, true>;
using FormQ5_K = BlockForm<DType::q5_k, 5, 0, true, true>;
using FormQ6_K = BlockForm<DType::q6_k, 6, 32, true, false>;

inline constexpr int64_t kQuantColumns = 32;  // of one block of numbers, whatever the type
inline constexpr int64_t kPairs = kQuantColumns / 2;
static constexpr int64_t packed_f16_columns(int64_t k) { return (k + 1) / 2 * 2; }

extern const PackedLayout kPackedInt8;
extern const PackedLayout kPackedF16, kPackedQ8_0, kPackedQ4_0, kPackedQ4_1, kPackedQ5_0, kPackedQ5_1, kPackedQ4_K, kPackedQ5_K,
    kPackedQ6_K;
extern const PackedLayout kPackedBf16;

}  // namespace lapidary::cpu
