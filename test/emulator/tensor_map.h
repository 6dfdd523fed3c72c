// The emulator's tensor maps: what make_tensor_map writes in place of the driver's encoding.
#pragma once

#include <cstddef>
#include <cstdint>

#include "cuda/primitives/bulk_copy.cuh"

namespace lapidary::emulator {

struct TensorMapDescription {
  static constexpr uint64_t kMagic = 0x70616d726f736e74;
  uint64_t magic = kMagic;
  const std::byte* base = nullptr;
  int64_t strides[3] = {};          // bytes, of y, z, w
  int32_t sizes[4] = {1, 1, 1, 1};  // elements
  int16_t box[4] = {1, 1, 1, 1};    // elements
  int32_t element_bytes = 1, rank = 0;
  cuda::Swizzle swizzle = cuda::Swizzle::none;

  int64_t box_bytes() const { return int64_t{element_bytes} * box[0] * box[1] * box[2] * box[3]; }
};
static_assert(sizeof(TensorMapDescription) <= sizeof(cuda::TensorMap));

void encode_tensor_map(cuda::TensorMap* map, const TensorMapDescription& description);

}  // namespace lapidary::emulator
