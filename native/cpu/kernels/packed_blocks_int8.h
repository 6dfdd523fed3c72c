// GGUF block panels -> int8 panels of the same rows, for products with int8 inputs (docs/numerics.md, "Blocks in int8"): a number is
// the f32 value that the format defines, times the inverse of its row's scale, rounded to nearest, ties to even. The same panel as
// quantising the rows to int8 and packing them gives.
#pragma once

#include "cpu/kernels/packed_blocks.h"

namespace lapidary::cpu {
namespace {

constexpr int64_t kInt8GroupBytes = kPackedRows * kInt8Group;

// 2^23: a small integer in the low bits of this f32 is added to it.
constexpr uint32_t kIntegerBits = 0x4b000000;
constexpr float kIntegerBase = 8388608.0f;

// What one block of 32 columns does to its numbers.
struct BlockRule {
  V table;      // 4 bits: the numbers of value 0 .. 15, moved down
  V scales[2];  // of columns 0 .. 15, 16 .. 31
  V minimum;
  V inverse;  // of the rows' int8 scales
};

// Column kColumn of 32 in sixteen rows, moved down.
template <class Form, int kColumn>
LAPIDARY_INLINE V number_at(const std::byte* numbers, const BlockRule& rule) {
  constexpr int pair = kColumn / 4 * 2 + kColumn % 2, element = kColumn / 2 % 2;
  W bits = set_words(kIntegerBits);
  if constexpr (Form::kBits == 8) {
    bits = merge(bits, shift<8 * (kColumn % 4)>(load_words(numbers + kColumn / 4 * 64)), 0xff);
  } else {
    const W low = shift<8 * (kColumn % 4) + 4 * (kColumn / 16)>(load_words(numbers + kColumn % 16 / 4 * 64));
    if constexpr (Form::kBits == 4 && kLooksUp) return look_up(rule.table, low);
    bits = merge(bits, low, 0xf);
    if constexpr (Form::kBits == 5) bits = merge(bits, shift<pair + 16 * element - 4>(load_words(numbers + 256)), 0x10);
    if constexpr (Form::kBits == 6)
      bits = merge(bits, shift<2 * (pair % 8) + 16 * element - 4>(load_words(numbers + 256 + pair / 8 * 64)), 0x30);
  }
  return sub(as_f32(bits), set1(kIntegerBase + Form::kOffset));
}

// The low eight bits of each lane: the int8 number. NaN, which a file's scales may give, has none of them set.
template <class Form, int kColumn>
LAPIDARY_INLINE W int8_at(const std::byte* numbers, const BlockRule& rule) {
  V x = mul(rule.scales[Form::kGroupsOf16 ? kColumn / 16 : 0], number_at<Form, kColumn>(numbers, rule));
  if constexpr (Form::kMinimum) x = Form::kSuper ? sub(x, rule.minimum) : add(x, rule.minimum);
  return as_words(add(mul(x, rule.inverse), set1(kRoundingMagic)));
}

// Groups kFirst .. 7 of the block, [4 columns] of sixteen rows each.
template <class Form, int kFirst = 0>
LAPIDARY_INLINE void put_int8_groups(const std::byte* numbers, const BlockRule& rule, W& sums, std::byte* to) {
  if constexpr (kFirst < kQuantColumns / kInt8Group) {
    constexpr int column = kFirst * kInt8Group;
    const W even = choose(int8_at<Form, column>(numbers, rule), shift<-16>(int8_at<Form, column + 2>(numbers, rule)), 0xffff);
    const W odd = choose(int8_at<Form, column + 1>(numbers, rule), shift<-16>(int8_at<Form, column + 3>(numbers, rule)), 0xffff);
    const W group = choose(even, shift<-8>(odd), 0x00ff00ff);
    store_words(to + kFirst * kInt8GroupBytes, group);
    sums = add_bytes(sums, group);
    put_int8_groups<Form, kFirst + 1>(numbers, rule, sums, to);
  }
}

// See PackedKernel::to_int8. Rows beyond the last have scales of zero, and numbers of zero for it.
template <class Form>
void blocks_to_int8(const std::byte* panel, int64_t k, const float* scales, int64_t rows, std::byte* to) {
  const int64_t blocks = packed_int8_columns(k) / kQuantColumns;
  float table[16];
  for (int i = 0; i < 16; ++i) table[i] = static_cast<float>(i - Form::kOffset);
  BlockRule rule{load(table), {zero(), zero()}, zero(), div(set1(1), load_lanes(scales, rows < kPackedRows ? rows : kPackedRows))};
  W sums = set_words(0);
  for (int64_t i = 0; i < blocks; ++i, to += kQuantColumns / kInt8Group * kInt8GroupBytes) {
    const std::byte* chunk = panel + i / Form::kBlocks * Form::kChunkBytes;
    const int64_t b = i % Form::kBlocks;
    rule.scales[0] = block_scale<Form>(chunk, b);
    if constexpr (Form::kGroupsOf16) {
      const V d = rule.scales[0];
      LAPIDARY_UNROLL for (int g = 0; g < 2; ++g) rule.scales[g] = mul(d, to_f32(widen_i8(chunk + 64 + b * 32 + g * 16)));
    }
    if constexpr (Form::kMinimum) rule.minimum = block_minimum<Form>(chunk, b);
    put_int8_groups<Form>(chunk + Form::kScaleBytes + b * Form::kNumberBytes, rule, sums, to);
  }
  store_words(to, sums);
}

template <class Form>
constexpr PackedKernel kBlocksKernel = {Form::kType,           DType::bf16,    2, blocks_input_bytes<Form>, blocks_prepare<Form>, nullptr,
                                        blocks_multiply<Form>, blocks_scratch, 0, blocks_to_int8<Form>};

// The entries of a list of packed kernels that kernel<Form> has for the block types.
#define LAPIDARY_BLOCK_KERNELS(kernel)                                                                                                 \
  &kernel<FormQ8_0>, &kernel<FormQ4_0>, &kernel<FormQ4_1>, &kernel<FormQ5_0>, &kernel<FormQ5_1>, &kernel<FormQ4_K>, &kernel<FormQ5_K>, \
      &kernel<FormQ6_K>

}  // namespace
}  // namespace lapidary::cpu
