// Element types: plain numbers, and the GGUF block kinds that stay in their blocks in memory.
#pragma once

#include <cstdint>
#include <string_view>

namespace lapidary {

enum class DType : uint8_t { f32, bf16, f16, i8, i32, u8, q8_0, q4_0, q4_1, q5_0, q5_1, q2_k, q3_k, q4_k, q5_k, q6_k };
inline constexpr int kNumDTypes = 16;

struct DTypeInfo {
  std::string_view name;   // as in messages and inspect: "bf16", "q4_k"
  int32_t block_elements;  // 1 for plain types; rows are whole blocks
  int32_t block_bytes;
};

const DTypeInfo& dtype_info(DType dtype);

inline bool is_block_type(DType dtype) { return dtype >= DType::q8_0; }

// Bytes of `elements` consecutive elements; elements is a multiple of block_elements.
inline int64_t dtype_bytes(DType dtype, int64_t elements) {
  const DTypeInfo& info = dtype_info(dtype);
  return elements / info.block_elements * info.block_bytes;
}

}  // namespace lapidary
